"""An event for many members does not hold up the loop, and keeps every order (rules 1 and 6 of the fan-out).

How long a turn takes is not a test's business; how much is done in one is.
"""

import asyncio
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import roomcast
from roomcast.core import fanout
from roomcast.core.client_queue import ClientQueue
from roomcast.core.fanout import FanOut
from tests.core.effort import effort
from tests.write_path.wire import Connection, framed, turns

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


async def test_many_puts_are_cut_into_slices_between_which_the_loop_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    members = await crowd(MEMBERS, direct=True)
    monkeypatch.setattr(fanout, "_MANY", 100)
    monkeypatch.setattr(fanout, "_PUTS", 10)
    monkeypatch.setattr("roomcast.core.fanout.time.perf_counter", Turns())  # it stands for 0.003 s after three looks
    node = members[0].fanout
    node.send([member.client for member in members], ("event",))
    per_turn: list[int] = []
    while node._spread.left:
        before = node.stats.deliveries
        await turns(1)
        per_turn.append(node.stats.deliveries - before)
    assert sum(per_turn) == MEMBERS
    assert 0 < max(per_turn) <= 40
    await turns(120)
    assert all(b"event" in member.wire.out for member in members)
    for member in members:
        await member.end()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("emit"), st.just(None)),
        st.tuples(st.just("emit"), st.sets(st.integers(0, 3), min_size=1)),
        st.tuples(st.just("own"), st.integers(0, 3)),
        st.tuples(st.just("go"), st.integers(0, 3)),
        st.tuples(st.just("turn"), st.integers(1, 3)),
    ),
    max_size=30,
)


def check(schedule: list[tuple[Any, ...]], *, direct: bool) -> None:
    """Run a schedule of which each event for more than two is put one by one, turn by turn."""

    async def play() -> None:
        members = await crowd(4, direct=direct)
        node = members[0].fanout
        expected = [bytearray(member.wire.out) for member in members]
        here = set(range(4))
        for number, (kind, *args) in enumerate(schedule):
            text = f"{number} {kind}"
            if kind == "emit":
                to = sorted(here if args[0] is None else here & args[0])
                node.send([members[who].client for who in to], (text,))
                for who in to:
                    expected[who] += framed("4" + text)
            elif kind == "turn":
                await turns(args[0])
            else:
                one: int = args[0]
                member = members[one]
                if kind == "own":
                    await member.send(text)
                    expected[one] += framed("4" + text)
                elif one in here:
                    here.discard(one)
                    node.went(member.client)
                    assert not list(node._spread.owed(member.socket)), "it has what was sent before"
        while node._spread.left:
            await turns(1)
        for member, ought in zip(members, expected, strict=True):
            await member.settle()
            assert bytes(member.wire.out) == bytes(ought), "lost, doubled or out of order"
            await member.end()

    with (
        mock.patch.object(fanout, "_MANY", 2),
        mock.patch.object(fanout, "_PUTS", 1),
        mock.patch.object(fanout, "_SLICE", 0.0),
    ):
        asyncio.run(play())


@given(schedule=steps, direct=st.booleans())
@effort(60)
def test_what_is_put_in_slices_is_overtaken_by_nothing(*, schedule: list[tuple[Any, ...]], direct: bool) -> None:
    check(schedule, direct=direct)


@pytest.mark.parametrize(
    "schedule",
    [
        [("turn", 3), ("emit", None), ("own", 0), ("own", 3)],
        [("turn", 3), ("emit", None), ("emit", {0}), ("emit", {3})],
        [("turn", 3), ("emit", None), ("go", 0), ("go", 3)],
    ],
    ids=["own", "few", "gone"],
)
def test_who_forgets_that_some_have_still_to_get_an_event_is_found_out(schedule: list[tuple[Any, ...]]) -> None:
    check(schedule, direct=True)
    with mock.patch.object(FanOut, "settle", return_value=None), pytest.raises(AssertionError):
        check(schedule, direct=True)


async def test_what_is_left_to_put_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    members = await crowd(5, direct=True)
    monkeypatch.setattr(fanout, "_MANY", 2)
    monkeypatch.setattr(fanout, "_CROWD", 12)
    node = members[0].fanout
    for number in range(50):
        node.send([member.client for member in members], (f"event {number}",))
        assert node._spread.left <= 12 + len(members)
    for member in members:
        await member.settle()
        assert member.wire.out.count(b"event") == 50
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
