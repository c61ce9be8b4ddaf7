"""What waits for a slow client is bounded, and the policy decides what is lost (rules 5 and 6 of the queue)."""

import asyncio
import logging
from typing import Any, get_args

import pytest
from engineio import packet as eio_packet
from hypothesis import given
from hypothesis import strategies as st

from roomcast.core.client_queue import Bounds
from roomcast.core.options import SlowClient
from tests.core.effort import effort
from tests.waiting import until
from tests.write_path.wire import HIGH_WATER, Connection, framed, turns

# pyright: reportPrivateUsage=false

POLICIES: tuple[SlowClient, ...] = get_args(SlowClient)
PACKETS, SIZE = 6, 3000

steps = st.lists(
    st.one_of(
        st.tuples(st.just("emit"), st.integers(10, 900), st.integers(0, 2)),
        st.tuples(st.just("send"), st.integers(10, 400)),
        st.tuples(st.just("signal"), st.just(0)),
        st.tuples(st.just("turn"), st.integers(1, 6)),
        st.tuples(st.just("drain"), st.just(0)),
        st.tuples(st.just("stall"), st.just(0)),
    ),
    max_size=80,
)


def wire(parts: tuple[str | bytes, ...]) -> bytes:
    return b"".join(framed("4" + part if isinstance(part, str) else part) for part in parts)


async def play(schedule: list[Any], connection: Connection, bounds: Bounds) -> list[tuple[str, bytes]]:
    """Run a schedule; what was put, in order: its kind and its bytes. The bounds hold at every step."""
    await connection.start()
    await turns(5)
    put: list[tuple[str, bytes]] = [("signal", framed('0{"sid":"eio"}'))]
    connection.wire.stall()
    for number, (kind, *args) in enumerate(schedule):
        if connection.socket.closed:
            break  # it was cut
        if kind == "emit":
            parts = (f"{number:05}".ljust(args[0]), *(bytes([n]) * args[0] for n in range(args[1])))
            connection.emit(parts)
            put.append(("emit", wire(parts)))
        elif kind == "send":
            await connection.send(f"own {number:05}".ljust(args[0]))
            put.append(("send", wire((f"own {number:05}".ljust(args[0]),))))
        elif kind == "signal":
            await connection.signal(eio_packet.PING)
            put.append(("signal", framed("2")))
        elif kind == "turn":
            await turns(args[0])
        else:
            getattr(connection.wire, kind)()
        queue = connection.socket.queue
        messages = [frame for frame in queue.items if frame.message]
        assert len(messages) + queue.taken <= bounds.packets + sum(not frame.message for frame in queue.items) + 1
        waiting = sum(frame.size for frame in messages) + queue._taken_size
        assert waiting <= max(bounds.size, 3 * 900) + 64 * len(schedule)
    return put


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "queue"])
def test_the_bounds_hold_and_only_whole_events_are_lost(policy: SlowClient, *, direct: bool) -> None:
    bounds = Bounds(PACKETS, SIZE, policy)

    @given(steps)
    @effort(120)
    def holds(schedule: list[Any]) -> None:
        async def run() -> None:
            connection = Connection(bounds, direct=direct)
            put = await play(schedule, connection, bounds)
            stats = connection.stats
            if stats.clients_cut:
                assert connection.socket.queue.closed
                assert connection.wire.aborted == direct
                connection.wire.drain()
                await turns(30)
                connection.wire.incoming.put_nowait(None)
                await connection.end()
                assert connection.socket.closed
                return
            await connection.settle()
            out = bytes(connection.wire.out)
            lost = 0
            for kind, data in put:  # a subsequence of what was put: whole packets, in order, and only events missing
                if out.startswith(data):
                    out = out[len(data) :]
                else:
                    assert kind == "emit", "only events are dropped"
                    lost += 1
            assert not out, "something that was never put, or out of its order"
            assert lost == stats.dropped_newest + stats.dropped_oldest
            assert not (stats.dropped_oldest and policy != "drop_oldest")
            await connection.end()

        asyncio.run(run())

    holds()


async def stalled(policy: SlowClient, *, direct: bool = True) -> Connection:
    """A client whose transport takes nothing more, and for whom nothing waits otherwise."""
    connection = Connection(Bounds(PACKETS, 10**6, policy), direct=direct)
    await connection.start()
    await turns(5)
    connection.wire.stall()
    connection.emit(("x" * (HIGH_WATER + 1),))
    await turns(5)
    assert connection.wire.buffered > HIGH_WATER
    return connection


def heard(connection: Connection) -> list[int]:
    out = bytes(connection.wire.out)
    return [number for number in range(100) if f"event {number:02}".encode() in out]


async def test_drop_newest_keeps_what_came_first(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "roomcast"):
        connection = await stalled("drop_newest")
        for number in range(50):
            connection.emit((f"event {number:02}",))
            await turns(2)
        await connection.settle()
    assert heard(connection) == list(range(PACKETS))
    assert connection.stats.dropped_newest == 50 - PACKETS
    assert len([record for record in caplog.records if "dropped" in record.message]) == 1, "once a second"
    await connection.end()


async def test_drop_oldest_keeps_what_came_last() -> None:
    connection = await stalled("drop_oldest")
    for number in range(50):
        connection.emit((f"event {number:02}",))
        await turns(2)
    await connection.settle()
    numbers = heard(connection)
    taken = 3  # by engine.io's writer at the first turn: half the bound, at most
    assert numbers[-(PACKETS - taken) :] == [47, 48, 49]
    assert len(numbers) == PACKETS
    assert connection.stats.dropped_oldest == 50 - PACKETS
    await connection.end()


async def test_disconnect_drops_the_connection_and_its_buffer() -> None:
    connection = await stalled("disconnect")
    for number in range(PACKETS + 1):
        connection.emit((f"event {number:02}",))
    assert connection.stats.clients_cut == 1
    assert connection.wire.aborted
    connection.emit(("after",))
    await turns(30)
    assert connection.socket.closed
    assert not [frame for frame in connection.socket.queue.items if frame.packets != (None,)]
    assert connection._handler is not None
    await asyncio.wait_for(connection._handler, 10)


@pytest.mark.parametrize("policy", ["disconnect", "drop_oldest"])
async def test_one_stalled_client_among_a_thousand_slows_nobody(policy: SlowClient) -> None:
    """What it costs is its bound, and the others have each event as soon as they would without it."""
    connection = await stalled(policy)
    others: list[Connection] = []
    for _ in range(999):
        others.append(Connection(beside=connection))
        await others[-1].start()
    queue = connection.socket.queue
    everyone = [connection.client, *(other.client for other in others)]
    for number in range(3 * PACKETS):
        connection.fanout.send(everyone, (f"event {number:02}",))
        await until(lambda: not connection.fanout._due, what="the slices are written")
        assert not any(other.wire.buffered or other.socket.queue.qsize() for other in others)
        assert len(queue.items) + queue.taken <= PACKETS + 1, "its bound, and the end"
    expected = framed('0{"sid":"eio"}') + b"".join(framed(f"4event {n:02}") for n in range(3 * PACKETS))
    assert {bytes(other.wire.out) for other in others} == {expected}
    assert connection.stats.sent_direct >= 999 * 3 * PACKETS
    assert connection.stats.clients_cut == (policy == "disconnect")
    assert connection.stats.dropped_newest + connection.stats.dropped_oldest == (policy != "disconnect") * 2 * PACKETS
    connection.wire.drain()
    await asyncio.gather(*(one.end() for one in (connection, *others)))


async def test_a_fast_client_is_never_slow_however_much_is_emitted_in_one_turn() -> None:
    connection = Connection(Bounds(PACKETS, SIZE, "disconnect"))
    await connection.start()
    await turns(5)
    for number in range(100):
        connection.emit((f"event {number:02}",))
    await turns(5)
    assert heard(connection) == list(range(100))
    assert not connection.stats.clients_cut
    await connection.end()


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
async def test_acknowledgements_take_the_place_of_events_and_are_bounded_too(policy: SlowClient) -> None:
    connection = await stalled(policy)
    for number in range(PACKETS):
        connection.emit((f"event {number:02}",))
    await turns(5)
    own = 0
    while not connection.stats.clients_cut:
        await connection.send(f"own {own:02}")
        own += 1
        assert own <= PACKETS, "without a bound"
    assert connection.stats.dropped_newest + connection.stats.dropped_oldest == own - 1
    assert connection._handler is not None
    await asyncio.wait_for(connection._handler, 10)


async def test_a_packet_larger_than_the_bound_is_taken_when_nothing_waits() -> None:
    connection = Connection(Bounds(PACKETS, 10, "drop_newest"), direct=False)
    await connection.start()
    await turns(5)
    connection.emit(("x" * 100,))
    connection.emit(("y" * 100,))
    await connection.settle()
    assert b"x" * 100 in connection.wire.out
    assert b"y" not in connection.wire.out
    await connection.end()


async def test_a_volatile_event_is_dropped_while_the_transport_holds_something_back() -> None:
    connection = await stalled("drop_newest")
    connection.emit(("volatile 1",), volatile=True)
    connection.wire.drain()
    await connection.settle()
    connection.emit(("volatile 2",), volatile=True)
    await connection.settle()
    assert b"volatile 1" not in connection.wire.out
    assert b"volatile 2" in connection.wire.out
    assert connection.stats.volatile_dropped == 1
    await connection.end()


async def test_a_server_that_never_waits_for_its_transport_costs_no_more() -> None:
    """As older sans-I/O protocols of uvicorn, whose `send` writes on, however much is buffered."""
    connection = Connection(Bounds(1000, 10**6, "disconnect"))
    assert connection._writer is not None
    connection._writer.paced = False
    connection.wire._writable.clear = lambda: None  # type: ignore[method-assign]
    await connection.start()
    await turns(5)
    connection.wire.stall()
    for number in range(100):
        connection.emit((f"event {number:02}".ljust(900),))
        await turns(3)
    assert connection.wire.buffered < HIGH_WATER + 1000
    connection.wire.drain()
    await until(lambda: heard(connection) == list(range(100)), what="all events")
    await connection.end()
