"""Who is in a room, as nodes on a real broker see it that is killed, is away for a while, and comes back."""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from roomcast import PresenceWatch
from tests.adapter.servers import Client, Node, serving
from tests.faults.streams import BEAT, QUICK, RECOVERY
from tests.services import NatsServer, RedisServer, Server
from tests.waiting import until

pytestmark = pytest.mark.fault

ROOM = "lobby"
DEATH = 2 * BEAT + 1.0
"""Seconds of silence after which a node is lost: `peer_timeout`, and a tick of the clock."""


@pytest.fixture(params=[RedisServer, NatsServer], ids=lambda server: server.scheme)
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    async with request.param() as server:
        yield server


class Watcher:
    """A watch of the room, and what its changes add up to.

    Attributes:
        told: who is there by the present set and every change since.
        changes: what was told, in order: "joined" or "left", and the sid.
    """

    def __init__(self, watch: PresenceWatch) -> None:
        self.told = dict(watch.present)
        self.changes: list[tuple[str, str]] = []
        self._following = asyncio.create_task(self._follow(watch))

    async def _follow(self, watch: PresenceWatch) -> None:
        async for change in watch:
            self.changes.append((change.kind, change.sid))
            if change.kind == "joined":
                assert change.sid not in self.told
                self.told[change.sid] = change.node
            else:
                assert self.told.pop(change.sid) == change.node

    async def stop(self) -> None:
        self._following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._following


async def members(node: Node, count: int) -> dict[str, Client]:
    """Clients in the room, by their sids."""
    clients = [await node.client() for _ in range(count)]
    for client in clients:
        await node.sio.enter_room(client.sid, ROOM)
    return {client.sid: client for client in clients}


def of(node: Node, *groups: dict[str, Client]) -> dict[str, str]:
    return {sid: node.adapter.host_id for group in groups for sid in group}


async def away(server: Server, *nodes: Node) -> None:
    """Kill the server; return once the nodes have noticed."""
    pid = server.pid
    await server.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await until(lambda: not any(node.adapter.health() for node in nodes), what="the nodes to be deaf")


async def test_watches_are_exact_again_when_the_broker_is_back(server: Server) -> None:
    """Also of who came, who left, whose connection ended, and which whole node went, while nobody could tell."""
    async with serving(server.url) as cluster:
        a, b, parting = [await cluster.node(**QUICK) for _ in range(3)]
        near, far, going = await members(a, 3), await members(b, 3), await members(parting, 2)
        async with a.adapter.presence(ROOM) as one, b.adapter.presence(ROOM) as other:
            watchers = [Watcher(one), Watcher(other)]
            assert [watcher.told for watcher in watchers] == [of(a, near) | of(b, far) | of(parting, going)] * 2
            for outage in range(2):
                await away(server, a, b)
                came = await members(b, 2)
                left, _ = far.popitem()
                ended, client = near.popitem()
                await b.sio.leave_room(left, ROOM)
                await client.aclose()
                if outage == 0:
                    await parting.stop()  # it can say bye to nobody
                    cluster.nodes.remove(parting)
                await until(lambda: ended not in one.present and left not in other.present, what="what is here is told")  # noqa: B023
                assert left in one.present
                assert ended in other.present
                assert not came.keys() & one.present.keys(), "the broker is away: it cannot have been told"
                await server.start()
                far |= came
                for watcher in watchers:
                    there = of(a, near) | of(b, far)
                    await until(lambda: watcher.told == there, within=RECOVERY + DEATH, what="the watch to be exact")  # noqa: B023
            assert server.starts == 3
            (newest,) = await members(b, 1)
            for watcher in watchers:
                await until(lambda: watcher.changes[-1] == ("joined", newest), what="a join after it all")  # noqa: B023
                assert [kind for kind, sid in watcher.changes if sid in going] == ["left"] * len(going), "once"
                await watcher.stop()
