"""When the publisher looks at what became of a flush (rule 5), and how long it waits for a confirm."""

import asyncio
import gc
import weakref
from typing import Any

import pytest

from roomcast.core.broker import Gap, Guarantees, Order, Position, Subject
from roomcast.core.errors import PublishRejected, PublishUnconfirmed
from roomcast.core.options import options
from roomcast.core.outbox import Entry
from roomcast.core.publisher import Publisher
from roomcast.core.stats import Stats
from roomcast.core.wire import Wire
from tests.cluster.harness import virtual

ROOMS = tuple(Subject(f"app.room.{name}") for name in "abc")
REFUSED = PublishRejected("no", broker="fake")


class Broker:
    """Accepts publishes; the test says when each is confirmed."""

    def __init__(self, order: Order) -> None:
        self.guarantees = Guarantees(order=order, confirmed=True, max_payload=1 << 20)
        self.log: Any = None
        self.futures: list[asyncio.Future[Position | None]] = []

    def publish(self, _subject: Subject, _payload: bytes) -> asyncio.Future[Position | None]:
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]


class World:
    """A publisher on such a broker."""

    def __init__(self, order: Order, **settings: Any) -> None:
        self.broker, self.gaps = Broker(order), list[Gap]()
        self.publisher = Publisher(
            origin="me",
            broker_name="fake",
            settings=options(settings),
            wire=Wire(max_payload=1 << 20),
            stats=Stats(),
            tell=self.gaps.append,
        )
        fake: Any = self.broker
        self.publisher.attach(fake)
        self.publisher.release()

    async def flush(self) -> tuple[list[Entry], list[asyncio.Future[None]]]:
        """One message to each room, in one flush; and what waits for the confirm of each."""
        entries: list[Entry] = []
        for room in ROOMS:
            assert self.publisher.reserve_now(1)
            entries.append(self.publisher.put(room, b"\x90"))
        await asyncio.sleep(0)
        return entries, [self.publisher.confirmed(entry) for entry in entries]


async def turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_one_connection_is_asked_once_in_a_flush() -> None:
    """Rule 5."""
    world = World("publisher")
    _, waits = await world.flush()
    first, second, third = world.broker.futures
    first.set_result(None)
    second.set_exception(REFUSED)
    await turns()
    assert not any(wait.done() for wait in waits)
    assert world.publisher.backlog == 3
    third.set_result(None)
    await turns()
    assert [wait.exception() for wait in waits] == [None, REFUSED, None]
    assert world.publisher.backlog == 0
    assert [gap.missed for gap in world.gaps] == [1]


async def test_what_is_not_done_with_the_last_one_is_settled_when_it_is() -> None:
    """Rule 5: "as a rule"; nothing is forgotten where it does not hold."""
    world = World("publisher")
    _, waits = await world.flush()
    first, second, third = world.broker.futures
    first.set_result(None)
    third.set_result(None)
    await turns()
    assert [wait.done() for wait in waits] == [True, False, True]
    assert world.publisher.backlog == 1
    second.set_result(None)
    await turns()
    assert waits[1].done()
    assert world.publisher.backlog == 0


@pytest.mark.parametrize(("order", "log"), [("subject", None), ("total", object())])
async def test_a_connection_that_stands_still_keeps_back_nothing_of_the_others(order: Order, log: Any) -> None:
    """Rule 5: "else when each is"."""
    world = World(order)
    world.broker.log = log
    world.publisher.attach(world.broker)  # type: ignore[arg-type]  # a fake
    world.broker.log = None  # it is asked for nothing else here
    _, waits = await world.flush()
    world.broker.futures[1].set_result(None)
    await turns()
    assert [wait.done() for wait in waits] == [False, True, False]
    assert world.publisher.backlog == 2


async def test_a_lost_link_gives_back_what_it_had_not_confirmed() -> None:
    """Rule 3."""
    world = World("publisher")
    _, waits = await world.flush()
    first, second, third = world.broker.futures
    first.set_result(None)
    for lost in (second, third):
        lost.set_exception(PublishUnconfirmed("lost", broker="fake"))
    await turns()
    assert [wait.done() for wait in waits] == [True, False, False]
    world.publisher.release()
    await turns()
    assert len(world.broker.futures) == 5
    for again in world.broker.futures[3:]:
        again.set_result(None)
    await turns()
    assert all(wait.done() and wait.exception() is None for wait in waits)


@virtual
async def test_each_confirm_has_its_own_deadline() -> None:
    world = World("publisher", emit_timeout=2.0)
    _, early = await world.flush()
    await asyncio.sleep(1)
    _, late = await world.flush()
    await asyncio.wait(early)
    assert not any(wait.done() for wait in late)
    await asyncio.wait(late)
    assert {type(wait.exception()) for wait in (*early, *late)} == {PublishUnconfirmed}
    assert world.publisher.backlog == 6, "they stay in the outbox"


@virtual
async def test_who_waits_as_long_as_it_takes_is_not_told_at_the_deadline() -> None:
    world = World("publisher", emit_timeout=0.05)
    told: list[bool] = []

    def tell(*, taken: bool) -> None:
        told.append(taken)

    entries, waits = await world.flush()
    world.publisher.when_settled(entries[0], tell)
    await asyncio.wait(waits[1:])
    assert not told
    for future in world.broker.futures:
        future.set_result(None)
    await turns()
    assert told == [True]


@pytest.mark.parametrize("end", ["deadline", "refused", "given up"])
@virtual
async def test_nothing_is_kept_of_a_wait_that_ended_in_an_error(end: str) -> None:
    """Rule 6: "nothing would ever free the ring"."""
    world = World("subject", emit_timeout=2.0)
    errors: list[weakref.ref[BaseException]] = []

    async def emit() -> None:
        assert world.publisher.reserve_now(1)
        entry = world.publisher.put(ROOMS[0], b"\x90")
        await world.publisher.confirmed(entry)

    async def emit_and_look() -> None:
        try:
            await emit()
        except (PublishRejected, PublishUnconfirmed) as error:
            errors.append(weakref.ref(error))

    emitting = asyncio.ensure_future(emit_and_look())
    await turns()
    if end == "refused":
        world.broker.futures[0].set_exception(PublishRejected("no", broker="fake"))
    elif end == "given up":
        world.publisher.close()
    await emitting
    del emitting
    world.broker.futures.clear()
    gc.collect()
    assert [error() for error in errors] == [None]


@pytest.mark.parametrize("order", ["publisher", "subject"])
def test_nothing_is_kept_of_what_was_on_its_way_when_the_loop_ended(order: Order) -> None:
    """Rule 6, for who waits still."""

    async def leave() -> weakref.ref[Publisher]:
        world = World(order)
        entries, _ = await world.flush()

        def tell(*, taken: bool) -> None:
            world.gaps.append(Gap("given_up", missed=taken))

        world.publisher.when_settled(entries[0], tell)
        return weakref.ref(world.publisher)

    publisher = asyncio.run(leave())
    gc.collect()
    assert publisher() is None


@pytest.mark.parametrize("order", ["publisher", "subject"])
async def test_a_broker_that_raises_makes_nobody_lose_sight_of_the_others(
    order: Order, caplog: pytest.LogCaptureFixture
) -> None:
    """Its error is as good as no confirm: the message keeps its place, and the others of the flush are settled."""
    world = World(order)
    publish = world.broker.publish

    def fail_once(subject: Subject, payload: bytes) -> asyncio.Future[Position | None]:
        if subject == ROOMS[1]:
            world.broker.publish = publish  # type: ignore[method-assign]
            raise RuntimeError("the handle is closed")
        return publish(subject, payload)

    world.broker.publish = fail_once  # type: ignore[method-assign, assignment]
    _, waits = await world.flush()
    assert len(world.broker.futures) == 2
    for future in world.broker.futures:
        future.set_result(None)
    await turns()
    assert [wait.done() for wait in waits] == [True, False, True]
    assert "foreign error" in caplog.text
    world.publisher.release()
    await turns()
    world.broker.futures[2].set_result(None)
    await turns()
    assert waits[1].done()
    assert world.publisher.backlog == 0
