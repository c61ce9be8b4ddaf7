"""An event for many members does not hold up the loop, and keeps every order (rule 5 of the fan-out).

How long a turn takes is not a test's business; how much is done in one is.
"""

import asyncio
from typing import Any
from unittest import mock

import pytest

import roomcast
from roomcast.core import fanout
from roomcast.core.client_queue import ClientQueue
from tests.write_path.wire import Connection, turns

# pyright: reportPrivateUsage=false

MEMBERS = 300


class Turns:
    """A clock that moves a millisecond with each look; how many queues were flushed between two turns of the loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self.flushed = 0
        self.most = 0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now

    async def watch(self) -> None:
        while True:
            self.most = max(self.most, self.flushed)
            self.flushed = 0
            await asyncio.sleep(0)


async def crowd(count: int, *, direct: bool) -> list[Connection]:
    """Connections that share one fan-out."""
    first = Connection(direct=direct)
    members = [first]
    for _ in range(count - 1):
        member = Connection(direct=direct)
        member.eio, member.fanout, member.stats = first.eio, first.fanout, first.stats
        members.append(member)
    for number, member in enumerate(members):
        member.name = member.client.eio_sid = f"eio{number}"
        first.eio._async = first.eio._async | {"websocket": fanout._watched(member._driver)}
        await member.start()
    return members


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "queue"])
async def test_many_writes_are_cut_into_slices_between_which_the_loop_runs(*, direct: bool) -> None:
    members = await crowd(MEMBERS, direct=direct)
    clock = Turns()
    real = ClientQueue.flush

    def flush(self: ClientQueue) -> bool:
        clock.flushed += 1
        return real(self)

    with (
        mock.patch.object(ClientQueue, "flush", flush),
        mock.patch("roomcast.core.fanout.time.perf_counter", clock),
    ):
        watching = asyncio.ensure_future(clock.watch())
        clients = [member.client for member in members]
        for number in range(3):
            members[0].fanout.send(clients, (f"event {number}",))
        members[0].fanout.send(clients[: MEMBERS // 2], ("half",))
        await turns(60)
        members[0].fanout.send(clients, ("last",))
        await turns(60)
        watching.cancel()
    assert 0 < clock.most <= (80 if direct else 64)
    for number, member in enumerate(members):
        heard = [event for event in (b"event 0", b"event 1", b"event 2", b"half", b"last") if event in member.wire.out]
        at = [member.wire.out.index(event) for event in heard]
        assert at == sorted(at)
        assert len(heard) == (5 if number < MEMBERS // 2 else 4)
    for member in members:
        await member.end()


async def test_who_emits_again_and_again_lets_the_loop_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "_CROWD", 5)
    async with roomcast.Adapter("memory://") as adapter:
        import socketio  # noqa: PLC0415

        server: Any = socketio.AsyncServer(async_mode="asgi", client_manager=adapter)
        server.eio.sockets["eio"] = mock.Mock(queue=asyncio.Queue(), closed=False, closing=False)
        sid = await adapter.pre_connect("eio", "/")
        assert sid is not None
        await adapter.connect(sid, "/")
        ran = 0

        async def other() -> None:
            nonlocal ran
            while True:
                ran += 1
                await asyncio.sleep(0)

        running = asyncio.ensure_future(other())
        for _ in range(60):
            await server.emit("e")
        running.cancel()
        assert ran >= 10
        assert server.eio.sockets["eio"].queue.qsize() == 60
