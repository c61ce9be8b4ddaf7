"""Watches of presence as an application has them, and a look at what the nodes keep for them."""

import asyncio
from typing import Any

import roomcast
from roomcast.core.presence import Presence
from tests.cluster.harness import SimClient, SimNode

PEER_TIMEOUT = 10.0  # the default; a crash is noticed within it, and a second at most


def inside(node: SimNode) -> Presence:
    return node.adapter._presence  # pyright: ignore[reportPrivateUsage]


def told(node: SimNode) -> int:
    """How many watches of others a node keeps."""
    return len(inside(node)._telling)  # pyright: ignore[reportPrivateUsage]


def watched(node: SimNode) -> int:
    """How many rooms a node watches."""
    presence: Any = inside(node)
    assert len(presence._watched) == len(presence._places)
    return len(presence._watched)


def who(*clients: SimClient) -> dict[str, str]:
    return {client.sid: client.node.id for client in clients}


def joined(client: SimClient) -> roomcast.Change:
    return roomcast.Change("joined", client.sid, client.node.id)


def left(client: SimClient) -> roomcast.Change:
    return roomcast.Change("left", client.sid, client.node.id)


async def upcoming(watch: roomcast.PresenceWatch) -> roomcast.Change:
    """The next change, which comes within a minute."""
    async with asyncio.timeout(60):
        return await anext(watch)


class Watching:
    """Someone who watches as an application does, and keeps a copy.

    Attributes:
        copy: the present set at first, brought forward by each change.
        changes: all changes so far.
        ended: how it ended.
    """

    def __init__(self, watch: roomcast.PresenceWatch) -> None:
        self.copy = dict(watch.present)
        self.changes: list[roomcast.Change] = []
        self.ended: Exception | None = None
        self._watch = watch
        self._task = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        try:
            async for change in self._watch:
                self.changes.append(change)
                if change.kind == "joined":
                    assert change.sid not in self.copy
                    self.copy[change.sid] = change.node
                else:
                    del self.copy[change.sid]
                assert self.copy == self._watch.present
        except roomcast.BrokerClosed as exc:
            self.ended = exc

    async def over(self) -> None:
        """Wait for its end."""
        await asyncio.wait_for(self._task, 1)
