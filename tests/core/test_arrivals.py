"""The buffer behind `receive`: the only module of this folder that is tested on a loop, for it waits."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.core.arrivals import Arrivals
from roomcast.core.broker import Delivery, Gap, Subject
from roomcast.core.errors import BrokerClosed
from tests.core.effort import effort

ROOM = Subject("t.room.a")
DOWN, UP = Gap("disconnected", ongoing=True), Gap("reconnected")


def always_open() -> None:
    """A broker that is never closed."""


def delivery(number: int) -> Delivery:
    return Delivery(ROOM, b"%d" % number)


async def test_rule_1_take_gives_all_that_is_there_in_order() -> None:
    arrivals = Arrivals(10, always_open)
    arrivals.put(delivery(1))
    arrivals.gap(DOWN)
    arrivals.gap(UP)
    arrivals.put(delivery(2))
    assert list(await arrivals.take()) == [delivery(1), DOWN, UP, delivery(2)]


async def test_rule_1_take_waits_and_cancelling_it_loses_nothing() -> None:
    arrivals = Arrivals(10, always_open)
    waiting = asyncio.ensure_future(arrivals.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
    arrivals.put(delivery(1))
    await asyncio.gather(waiting, return_exceptions=True)
    assert list(await arrivals.take()) == [delivery(1)]


async def test_a_blocked_take_sees_that_the_broker_is_closed() -> None:
    closed = False

    def check_open() -> None:
        if closed:
            raise BrokerClosed("closed", broker="test")

    arrivals = Arrivals(10, check_open)
    waiting = asyncio.ensure_future(arrivals.take())
    await asyncio.sleep(0)
    closed = True
    arrivals.wake()
    with pytest.raises(BrokerClosed):
        await waiting


async def test_rule_2_what_finds_no_room_is_one_gap_where_the_loss_begins() -> None:
    arrivals = Arrivals(2, always_open)
    for number in range(5):
        arrivals.put(delivery(number))
    assert list(await arrivals.take()) == [delivery(0), delivery(1), Gap("overflow", missed=3)]
    arrivals.put(delivery(5))
    assert list(await arrivals.take()) == [delivery(5)]


async def test_rule_3_a_full_buffer_stays_bounded_while_the_link_comes_and_goes() -> None:
    arrivals = Arrivals(2, always_open)
    for number in range(10):
        for _ in range(3):
            arrivals.put(delivery(number))
        arrivals.gap(DOWN)
        arrivals.gap(UP)
    assert list(await arrivals.take()) == [delivery(0), delivery(0), Gap("overflow", missed=28), DOWN, UP]


@given(st.lists(st.sampled_from(["put", "link", "take"]), max_size=60), st.integers(1, 5))
@effort(200)
def test_every_delivery_is_given_or_counted_and_the_buffer_is_bounded(steps: list[str], limit: int) -> None:
    async def run() -> None:
        arrivals = Arrivals(limit, always_open)
        put = given_out = missed = 0
        arrivals.gap(UP)
        for step in (*steps, "take"):
            if step == "put":
                arrivals.put(delivery(put))
                put += 1
            elif step == "link":
                arrivals.gap(DOWN)
                arrivals.gap(UP)
            else:
                waiting = arrivals._events  # pyright: ignore[reportPrivateUsage]
                events: Sequence[Delivery | Gap] = await arrivals.take() if waiting else ()
                assert len(events) <= limit + 5  # one overflow, one outage and what came before them
                for event in events:
                    if isinstance(event, Delivery):
                        assert event.payload == b"%d" % (given_out + missed)
                        given_out += 1
                    else:
                        missed += event.missed or 0
        assert given_out + missed == put

    asyncio.run(run())
