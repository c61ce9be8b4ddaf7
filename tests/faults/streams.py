"""A stream of numbered events from one node to another, and what must come of it whatever breaks meanwhile."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Unpack

from roomcast import Gap
from roomcast.core.options import Settings
from tests.adapter.servers import Client, Cluster, Node
from tests.waiting import until

BEAT = 0.4
"""Seconds between heartbeats: a dead link is noticed within two of them (rule 12)."""
RECOVERY = 4.0
"""Seconds in which two nodes are whole again once the broker accepts connections; one attempt to connect may take 5."""
QUICK: Settings = {"heartbeat": BEAT, "peer_timeout": 2 * BEAT}


class Stream:
    """Numbers from a client's room on node `a`: to `near` on the same node, and to `far` on node `b`."""

    def __init__(self, a: Node, b: Node, near: Client, far: Client) -> None:
        self.a, self.b, self.near, self.far = a, b, near, far
        self.sent = 0
        self.gaps: list[Gap] = []
        self.ended = False
        b.adapter.on_gap(self.gaps.append)
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self.ended:
            await self.a.sio.emit("n", self.sent, room="red")
            self.sent += 1
            await asyncio.sleep(0.002)

    async def flows(self, count: int = 20) -> None:
        """Return once some more was sent."""
        goal = self.sent + count
        await until(lambda: self.sent >= goal, what="the stream to go on")

    async def end(self) -> tuple[int, int]:
        """End the stream; how many numbers `far` got, and how many its node was told it missed."""
        self.ended = True
        await self._task
        await self.a.sio.emit("end", room="red")
        near = [number for _, number in (await self.near.hear("end"))[:-1]]
        far = [number for _, number in (await self.far.hear("end"))[:-1]]
        assert near == list(range(self.sent))
        assert far == sorted(set(far)), "a repeat, or out of order"
        return len(far), sum(gap.missed or 0 for gap in self.gaps if gap.reason == "missed")

    async def account(self) -> None:
        """End the stream, and find everything that was sent: received, or told as missed."""
        got, missed = await self.end()
        assert got + missed == self.sent
        assert not self.a.adapter.stats()["given_up"]


@asynccontextmanager
async def streaming(cluster: Cluster, url_b: str | None = None, **settings: Unpack[Settings]) -> AsyncGenerator[Stream]:
    """A stream over a pair of nodes; node `b` may take another way to the broker."""
    options: Settings = {**QUICK, **settings}
    a, b = await cluster.node(**options), await cluster.node(url=url_b, **options)
    near, far = await a.client(), await b.client()
    await a.sio.enter_room(near.sid, "red")
    await b.sio.enter_room(far.sid, "red")
    stream = Stream(a, b, near, far)
    await stream.flows()
    yield stream
    assert stream.ended, "the test ended without an account"


async def at_once(stream: Stream) -> None:
    """P9: an event reaches the clients of its own node while the broker is away."""
    assert not stream.a.adapter.health()
    began = asyncio.get_running_loop().time()
    await stream.a.sio.emit("local", to=stream.near.sid)
    await stream.near.only("local")
    assert asyncio.get_running_loop().time() - began < 0.3


async def recovered(stream: Stream, what: str) -> None:
    """Both nodes are whole again, and an event crosses; measured from now."""
    began = asyncio.get_running_loop().time()
    await until(lambda: stream.a.adapter.health() and stream.b.adapter.health(), what="both nodes to be healthy")
    healthy = asyncio.get_running_loop().time() - began
    await stream.a.sio.emit("crossed", to=stream.far.sid)
    await stream.far.only("crossed")
    took = asyncio.get_running_loop().time() - began
    print(f"{what}: healthy after {healthy:.3f} s, an event crossed after {took:.3f} s")  # noqa: T201 - a measurement
    assert took <= RECOVERY


def lost(node: Node) -> int:
    return int(node.adapter.stats()["disconnects"])
