"""The buffer behind the `receive` of a log: nothing is dropped, and who reads is made to wait."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.core.backlog import Backlog
from roomcast.core.broker import Delivery, Gap, Subject
from roomcast.core.errors import BrokerClosed
from tests.core.effort import effort

ROOM = Subject("t.room.a")
DOWN, UP, TRIMMED = Gap("disconnected", ongoing=True), Gap("reconnected", missed=0), Gap("trimmed", missed=3)


def always_open() -> None:
    """A broker that is never closed."""


def delivery(number: int) -> Delivery:
    return Delivery(ROOM, b"%d" % number)


async def test_rule_1_take_gives_what_is_there_in_order() -> None:
    backlog = Backlog(10, always_open)
    backlog.put(delivery(1))
    for gap in (DOWN, UP, TRIMMED):
        backlog.gap(gap)
    backlog.put(delivery(2))
    assert list(await backlog.take()) == [delivery(1), DOWN, UP, TRIMMED, delivery(2)]


async def test_rule_1_take_gives_limit_at_most_and_the_rest_the_next_time() -> None:
    backlog = Backlog(2, always_open)
    for number in range(5):
        backlog.put(delivery(number))
    taken = [list(await backlog.take()) for _ in range(3)]
    assert taken == [[delivery(0), delivery(1)], [delivery(2), delivery(3)], [delivery(4)]]


async def test_rule_1_take_waits_and_cancelling_it_loses_nothing() -> None:
    backlog = Backlog(10, always_open)
    waiting = asyncio.ensure_future(backlog.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
    backlog.put(delivery(1))
    await asyncio.gather(waiting, return_exceptions=True)
    assert list(await backlog.take()) == [delivery(1)]


async def test_a_blocked_take_sees_that_the_broker_is_closed() -> None:
    closed = False

    def check_open() -> None:
        if closed:
            raise BrokerClosed("closed", broker="test")

    backlog = Backlog(10, check_open)
    waiting = asyncio.ensure_future(backlog.take())
    await asyncio.sleep(0)
    closed = True
    backlog.wake()
    with pytest.raises(BrokerClosed):
        await waiting


async def test_rule_2_who_reads_waits_while_nothing_is_wanted() -> None:
    backlog = Backlog(2, always_open)
    assert backlog.room == 2
    backlog.put(delivery(1))
    await backlog.has_room()
    backlog.put(delivery(2))
    assert backlog.room == 0
    waiting = asyncio.ensure_future(backlog.has_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await backlog.take()
    await waiting
    assert backlog.room == 2


async def test_rule_2_bytes_are_bounded_too() -> None:
    backlog = Backlog(100, always_open, limit_bytes=10)
    backlog.put(Delivery(ROOM, bytes(9)))
    assert backlog.room == 99
    backlog.put(Delivery(ROOM, bytes(9)))
    assert backlog.room == 0
    await backlog.take()
    assert backlog.room == 100


async def test_rule_3_a_link_that_comes_and_goes_leaves_one_pair_of_gaps() -> None:
    backlog = Backlog(2, always_open)
    backlog.put(delivery(1))
    for _ in range(1000):
        backlog.gap(DOWN)
        backlog.gap(UP)
    assert [*await backlog.take(), *await backlog.take()] == [delivery(1), DOWN, UP]


async def test_rule_3_a_beginning_that_was_taken_already_keeps_its_end() -> None:
    backlog = Backlog(10, always_open)
    backlog.gap(DOWN)
    assert list(await backlog.take()) == [DOWN]
    backlog.gap(UP)
    backlog.gap(DOWN)
    assert list(await backlog.take()) == [UP, DOWN]


@given(steps=st.lists(st.one_of(st.integers(0, 5), st.just("take")), max_size=60), limit=st.integers(1, 4))
@effort(100)
def test_nothing_is_dropped_or_reordered_whatever_the_schedule(steps: Sequence[int | str], limit: int) -> None:
    async def run() -> None:
        backlog = Backlog(limit, always_open)
        put: list[Delivery] = []
        got: list[Delivery | Gap] = []
        for step in steps:
            if isinstance(step, int):
                for _ in range(step):
                    put.append(delivery(len(put)))
                    backlog.put(put[-1])
            elif len(got) < len(put):
                batch = await backlog.take()
                assert len(batch) <= limit
                got += batch
        while len(got) < len(put):
            got += await backlog.take()
        assert got == put
        assert backlog.room == limit

    asyncio.run(run())
