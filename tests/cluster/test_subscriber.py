"""The subscribing half alone, over a broker whose answers the test gives."""

import asyncio
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager

import pytest

from roomcast.core.broker import Broker, Subject
from roomcast.core.errors import BrokerClosed, BrokerUnavailable, ConfigurationError
from roomcast.core.subscriber import Subscriber
from tests.waiting import until

ROOM, OTHER = Subject("t.room.a"), Subject("t.room.b")


class Gate:
    """What a subscriber uses of a broker: each subscribe waits for an answer."""

    def __init__(self) -> None:
        self.asked: list[frozenset[Subject]] = []
        self.dropped: list[Subject] = []
        self.answers: asyncio.Queue[Exception | None] = asyncio.Queue()

    async def subscribe(self, subjects: Collection[Subject], /) -> None:
        self.asked.append(frozenset(subjects))
        if (answer := await self.answers.get()) is not None:
            raise answer

    async def unsubscribe(self, subjects: Collection[Subject], /) -> None:
        self.dropped.extend(subjects)


@asynccontextmanager
async def running(linger: float = 60.0) -> AsyncGenerator[tuple[Subscriber, Gate, list[str]]]:
    gate, faults, forgotten = Gate(), list[str](), list[Subject]()
    subscriber = Subscriber(linger, dropped=forgotten.extend, fault=lambda what, _error: faults.append(what))
    loop = asyncio.ensure_future(subscriber.run(as_broker(gate)))
    try:
        yield subscriber, gate, faults
        assert forgotten == gate.dropped
    finally:
        subscriber.close()
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


def as_broker(gate: Gate) -> Broker:
    return gate  # type: ignore[return-value]  # only two of the verbs are called


async def test_rule_2_joins_of_one_tick_share_one_round_trip_and_the_next_ones_share_the_next() -> None:
    async with running() as (subscriber, gate, _):
        subscriber.hear(ROOM)
        subscriber.hear(OTHER)
        both = asyncio.gather(subscriber.heard(ROOM), subscriber.heard(OTHER))
        await until(lambda: bool(gate.asked), within=5)
        third = Subject("t.room.c")
        subscriber.hear(third)
        later = asyncio.ensure_future(subscriber.heard(third))
        gate.answers.put_nowait(None)
        await both
        assert not later.done()
        gate.answers.put_nowait(None)
        await later
        assert gate.asked == [{ROOM, OTHER}, {third}]


async def test_rule_3_without_a_link_a_join_returns_and_the_subject_counts_as_heard() -> None:
    async with running() as (subscriber, gate, _):
        subscriber.hear(ROOM)
        gate.answers.put_nowait(BrokerUnavailable("down", broker="gate"))
        await subscriber.heard(ROOM)
        assert subscriber.active(ROOM)


async def test_rule_3_a_join_whose_user_leaves_before_the_subscribe_does_not_wait_for_ever() -> None:
    async with running() as (subscriber, gate, _):
        subscriber.hear(OTHER)
        await until(lambda: bool(gate.asked), within=5)  # a subscribe is under way
        subscriber.hear(ROOM)
        waiting = asyncio.ensure_future(subscriber.heard(ROOM))
        await asyncio.sleep(0)
        subscriber.ignore(ROOM)
        async with asyncio.timeout(5):
            await waiting
        assert not subscriber.active(ROOM)


async def test_what_is_delivered_anyway_is_heard_at_once() -> None:
    """ "the broker delivers every subject, wanted or not: what is wanted is heard at once" """
    gate = Gate()
    subscriber = Subscriber(60.0, dropped=print, fault=print, everything=True)
    loop = asyncio.ensure_future(subscriber.run(as_broker(gate)))
    assert not subscriber.active(ROOM)
    subscriber.hear(ROOM)
    assert subscriber.active(ROOM)
    await subscriber.heard(ROOM)
    subscriber.close()
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def test_rule_4_what_the_broker_refuses_is_told_to_whoever_waits_and_asked_for_again() -> None:
    async with running() as (subscriber, gate, faults):
        subscriber.hear(ROOM)
        gate.answers.put_nowait(ConfigurationError("no"))
        with pytest.raises(ConfigurationError):
            await subscriber.heard(ROOM)
        assert faults == [f"the broker refuses to subscribe to {ROOM}"]
        gate.answers.put_nowait(None)
        await subscriber.heard(ROOM)
        assert gate.asked == [{ROOM}, {ROOM}]


async def test_rule_4_one_that_is_refused_does_not_keep_the_others_from_being_heard() -> None:
    async with running() as (subscriber, gate, _):
        subscriber.hear(ROOM)
        subscriber.hear(OTHER)
        both = asyncio.gather(subscriber.heard(ROOM), subscriber.heard(OTHER), return_exceptions=True)
        await until(lambda: bool(gate.asked), within=5)
        for answer in (ConfigurationError("one of them"), OSError("a foreign error"), None):  # both, then one by one
            gate.answers.put_nowait(answer)
        refused, heard = await both
        assert isinstance(refused, ConfigurationError)
        assert heard is None
        assert subscriber.active(OTHER)
        assert gate.asked[:3] == [{ROOM, OTHER}, {ROOM}, {OTHER}]


async def test_a_subject_is_given_up_after_the_linger() -> None:
    async with running(linger=0.0) as (subscriber, gate, _):
        gate.answers.put_nowait(None)
        subscriber.hear(ROOM)
        await subscriber.heard(ROOM)
        subscriber.ignore(ROOM)
        await until(lambda: gate.dropped == [ROOM], within=5)
        assert not subscriber.active(ROOM)


async def test_close_lets_everyone_go() -> None:
    async with running() as (subscriber, _, _):
        subscriber.hear(ROOM)
        waiting = asyncio.ensure_future(subscriber.heard(ROOM))
        await asyncio.sleep(0)
        subscriber.close()
        async with asyncio.timeout(5):
            await waiting


async def test_rule_5_a_closed_one_asks_for_nothing_more() -> None:
    """A node that closes while it subscribes to very many subjects must not ask for each of them in vain."""
    gate, faults = Gate(), list[str]()
    subscriber = Subscriber(0.0, dropped=lambda _subject: None, fault=lambda what, _error: faults.append(what))
    subscriber.hear(ROOM)
    subscriber.hear(OTHER)
    loop = asyncio.ensure_future(subscriber.run(as_broker(gate)))
    await until(lambda: bool(gate.asked), within=5)
    subscriber.ignore(OTHER)
    subscriber.close()
    for _ in range(3):
        gate.answers.put_nowait(BrokerClosed("closed", broker="gate"))
    async with asyncio.timeout(5):
        await loop
    assert gate.asked == [frozenset({ROOM, OTHER})]
    assert not gate.dropped
    assert not faults
