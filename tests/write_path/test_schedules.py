"""The two ways out of a client's queue put the same bytes on the wire, in the order of the calls, whatever happens.

Each schedule runs twice over engine.io's own socket and writer: with a transport that may be written to directly and
with one that may not. Each check is proved by bugs planted in the queue.
"""

import asyncio
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from engineio import packet as eio_packet
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from roomcast.core.client_queue import ClientQueue
from roomcast.core.frames import Frame
from roomcast.core.writers import Writer
from tests.core.effort import effort
from tests.write_path.wire import Connection, framed, turns

# pyright: reportPrivateUsage=false

Step = tuple[Any, ...]

steps = st.lists(
    st.one_of(
        st.tuples(st.just("emit"), st.integers(1, 900), st.integers(0, 2)),
        st.tuples(st.just("emit"), st.integers(1, 40), st.just(0)),
        st.tuples(st.just("send"), st.integers(1, 300)),
        st.tuples(st.just("signal"), st.sampled_from([eio_packet.PING, eio_packet.NOOP])),
        st.tuples(st.just("turn"), st.integers(1, 6)),
        st.tuples(st.just("stall")),
        st.tuples(st.just("drain")),
    ),
    max_size=60,
)


def parts(number: int, size: int, attachments: int) -> tuple[str | bytes, ...]:
    return (f"{number}é".ljust(size, "."), *(bytes([number % 256, n]) * size for n in range(attachments)))


async def play(schedule: list[Step], connection: Connection) -> bytes:
    """Run a schedule; the bytes that ought to leave."""
    await connection.start()
    expected = bytearray(framed('0{"sid":"eio"}'))
    for number, (kind, *args) in enumerate(schedule):
        if kind == "emit":
            packet = parts(number, *args)
            connection.emit(packet)
            expected += b"".join(framed("4" + part if isinstance(part, str) else part) for part in packet)
        elif kind == "send":
            text = f"own {number}".ljust(args[0], ",")
            await connection.send(text)
            expected += framed("4" + text)
        elif kind == "signal":
            await connection.signal(args[0])
            expected += framed(str(args[0]))
        elif kind == "turn":
            await turns(args[0])
        elif kind == "stall":
            connection.wire.stall()
        else:
            connection.wire.drain()
    await connection.settle()
    await connection.end()
    return bytes(expected)


def check_same(got: bytes, expected: bytes) -> None:
    """Without pytest's own comparison: where much differs it takes minutes, and a planted bug makes much differ."""
    if got != expected:
        pairs = enumerate(zip(got, expected, strict=False))
        at = next((at for at, (one, other) in pairs if one != other), min(len(got), len(expected)))
        raise AssertionError(f"lost, doubled, split or out of order from byte {at} on")


def check(schedule: list[Step]) -> tuple[Connection, Connection]:
    async def both() -> tuple[Connection, Connection]:
        connections = Connection(), Connection(direct=False)
        for connection in connections:
            expected = await play(schedule, connection)
            check_same(bytes(connection.wire.out), expected)
            assert not connection.wire.wrong
        return connections

    return asyncio.run(both())


@given(steps)
@effort(300)
def test_both_ways_put_the_same_bytes_on_the_wire(schedule: list[Step]) -> None:
    fast, slow = check(schedule)
    sent = sum(kind in ("emit", "send") for kind, *_ in schedule)
    assert fast.stats.sent_direct + fast.stats.sent_queued == sent
    assert (slow.stats.sent_direct, slow.stats.sent_queued) == (0, sent)


def test_the_usual_schedule_is_all_direct() -> None:
    fast, slow = check([("turn", 5), *[("emit", 30, 1), ("send", 20), ("turn", 1)] * 10])
    assert fast.stats.sent_direct == slow.stats.sent_queued == 20
    assert fast.wire.sends == 1, "only what proved the connection"
    assert slow.wire.sends == 31


def test_a_signal_and_a_stall_go_through_the_writer_and_the_direct_way_comes_back() -> None:
    burst = [("emit", 900, 0)] * 6
    schedule: list[Step] = [("turn", 5), ("stall",), *burst, ("turn", 3), *burst, ("turn", 3), ("drain",), ("turn", 9)]
    fast, _ = check(schedule)
    assert fast.stats.sent_queued
    before = fast.stats.sent_queued
    fast, _ = check([*schedule, ("signal", eio_packet.PING), ("turn", 9), *[("emit", 9, 0), ("turn", 1)] * 20])
    assert fast.stats.sent_queued == before, "all twenty were direct again"


# Planted bugs


def forgets_that_send_is_under_way(_real: Any) -> Any:
    def offer(self: ClientQueue, frame: Frame) -> bool:
        self.direct = self._writer is not None
        self._append(frame)
        return True

    return offer


def is_always_ready(_real: Any) -> Any:
    def ready(self: Writer) -> bool:
        return not self._transport.is_closing()

    return ready


def signals_go_first(real: Any) -> Any:
    def append(self: ClientQueue, frame: Frame) -> None:
        real(self, frame)
        if not frame.message:
            self.items.insert(0, self.items.pop())

    return append


def parts_go_apart(real: Any) -> Any:
    def take(self: ClientQueue) -> Any:
        rest, self._rest = self._rest, []
        if not rest or not self.items:
            self._rest = rest
            return real(self)
        packet = real(self)
        self._rest += rest
        return packet

    return take


BUGS: list[tuple[type[Any], str, Callable[[Any], Any]]] = [
    (ClientQueue, "offer", forgets_that_send_is_under_way),
    (Writer, "ready", is_always_ready),
    (ClientQueue, "_append", signals_go_first),
    (ClientQueue, "_take", parts_go_apart),
]


@pytest.mark.parametrize(("kind", "name", "bug"), BUGS, ids=[bug.__name__ for *_, bug in BUGS])
def test_a_planted_bug_is_found(kind: type[Any], name: str, bug: Callable[[Any], Any]) -> None:
    @given(steps)
    @settings(
        max_examples=2000,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow],
    )
    def hunt(schedule: list[Step]) -> None:
        check(schedule)

    with mock.patch.object(kind, name, bug(getattr(kind, name))), pytest.raises(AssertionError):
        hunt()
