"""A broker in memory whose faults are commanded by the test; everything else keeps the rules of the seam.

A `Hub` is the server. Each node holds a `FaultyBroker`, its one link to the hub: publishes travel to the hub in the
order of the calls, deliveries travel back in the order of their publisher, both in virtual time. The faults:

- `delay`: single deliveries take longer; what the same publisher sent later queues up behind them.
- `lose_link`, `restore_link`: what is in flight is lost, publishes under way end unconfirmed (delivered to none, to
  some or to all), two gaps tell (rule 8).
- `stall`: the hub accepts nothing and confirms nothing, and the link seems fine.
- `overflow`: deliveries dropped with a gap.
- `lose`, `repeat`: what no broker tells: a delivery vanishes or comes twice. Only numbers can find out.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, ClassVar, cast
from unittest import mock

from roomcast.core.broker import Broker, BrokerConfig, Delivery, Gap, Guarantees, Log, Position, Subject
from roomcast.core.errors import BrokerClosed, BrokerError, BrokerUnavailable, PayloadTooLarge, PublishUnconfirmed

LATENCY = 0.001  # seconds from a node to the hub, and from the hub to a node

MakeBroker = Callable[[BrokerConfig], Broker]
Watcher = Callable[["FaultyBroker", Delivery], None]


class Hub:
    """The server: who hears what.

    Attributes:
        brokers: every node's link, in the order they were made.
        dropped: called with what `lose` makes vanish.
        latency: seconds of one way between a node and the hub.
        context: what happens between the nodes happens in it; None: in that of the node that began it.
    """

    def __init__(self) -> None:
        self.brokers: list[FaultyBroker] = []
        self.subscribers: dict[Subject, dict[FaultyBroker, None]] = {}
        self.dropped: Watcher = lambda _broker, _delivery: None
        self.latency: Callable[[], float] = lambda: LATENCY
        self.context: Context | None = None

    def route(self, sender: "FaultyBroker | None", subject: Subject, payload: bytes, limit: int | None = None) -> None:
        """Send a payload on to those who hear the subject, or to the first `limit` of them."""
        delivery = Delivery(subject, payload)
        for receiver in tuple(self.subscribers.get(subject, ()))[:limit]:
            receiver.carry(sender, delivery)


@dataclass(eq=False)
class _Flight:
    """A publish between its call and its confirm."""

    subject: Subject
    payload: bytes
    confirm: "asyncio.Future[Position | None]"


@dataclass(eq=False)
class _Pipe:
    """Deliveries of one publisher on their way to one node."""

    due: float = 0.0
    deliveries: deque[Delivery] = field(default_factory=deque[Delivery])


class FaultyBroker:
    """One node's link to the hub.

    Attributes:
        guarantees: as any broker's.
        handed: called with each delivery as the core gets it.
        forgotten: called with the subjects the core unsubscribes.
        subjects: what the core wants to hear.
        asked: those of them for which a call of `subscribe` has come back.
        published: payloads that reached the hub.
    """

    parameters: ClassVar[frozenset[str]] = frozenset()
    log: Log | None = None

    def __init__(self, hub: Hub, config: BrokerConfig, partitions: int | None) -> None:
        self.hub = hub
        self.guarantees = Guarantees(
            order="publisher", confirmed=True, max_payload=config.max_payload, partitions=partitions
        )
        self.handed: Callable[[Delivery], None] = lambda _delivery: None
        self.forgotten: Callable[[Collection[Subject]], None] = lambda _subjects: None
        self.subjects: dict[Subject, None] = {}
        self.asked: set[Subject] = set()
        self.linked = False
        self.closed = False
        self.published = 0
        self.unreachable = False
        self.refusals: deque[BrokerError] = deque()
        self._buffer = config.buffer
        self._connection = 0
        self._events: deque[Delivery | Gap] = deque()
        self._ready = asyncio.Event()
        self._uplink: deque[_Flight] = deque()
        self._unconfirmed: deque[_Flight] = deque()
        self._pipes: dict[FaultyBroker | None, _Pipe] = {}
        self._delays: deque[float] = deque()
        self._stalled = False
        self._losing = self._repeating = self._overflowing = 0
        hub.brokers.append(self)

    # The seam

    async def start(self) -> None:
        self._check_open()
        await asyncio.sleep(self.hub.latency())
        if self.unreachable:
            raise BrokerUnavailable("The hub does not answer.", broker="faulty")
        self.linked = True
        self._connection += 1

    async def aclose(self) -> None:
        if self.closed:
            return
        if self.linked:
            await self._flush()
        self.closed = True
        self._drop_link(reach=0, partial=0)
        self._ready.set()

    def publish(self, subject: Subject, payload: bytes, /) -> "asyncio.Future[Position | None]":
        loop = asyncio.get_running_loop()
        flight = _Flight(subject, payload, loop.create_future())
        error = self._refusal(len(payload))
        if error is not None:
            flight.confirm.set_exception(error)
            return flight.confirm
        self._uplink.append(flight)
        loop.call_later(self.hub.latency(), self._arrive, self._connection, context=self.hub.context)
        return flight.confirm

    async def subscribe(self, subjects: Collection[Subject], /) -> None:
        self._check_open()
        self.subjects.update(dict.fromkeys(subjects))
        try:
            await self._subscribe(subjects)
        finally:
            self.asked.update(subjects)

    async def _subscribe(self, subjects: Collection[Subject]) -> None:
        if not self.linked:
            raise BrokerUnavailable("No link: the subjects are kept.", broker="faulty")
        connection = self._connection
        await asyncio.sleep(self.hub.latency())  # to the hub
        self._check_link(connection)
        for subject in subjects:
            self.hub.subscribers.setdefault(subject, {})[self] = None
        await asyncio.sleep(self.hub.latency())  # and back
        self._check_link(connection)

    async def unsubscribe(self, subjects: Collection[Subject], /) -> None:
        self.forgotten(subjects)
        for subject in subjects:
            self.subjects.pop(subject, None)
            self.asked.discard(subject)
            self._unroute(subject)

    async def receive(self) -> Sequence[Delivery | Gap]:
        while not self._events:
            self._check_open()
            self._ready.clear()
            await self._ready.wait()
        events = tuple(self._events)
        self._events.clear()
        for event in events:
            if isinstance(event, Delivery):
                self.handed(event)
        return events

    async def _flush(self) -> None:
        """Rule 11: within a second."""
        loop = asyncio.get_running_loop()
        until = loop.time() + 1.0
        await asyncio.sleep(2 * LATENCY)
        while self.linked and (self._uplink or self._unconfirmed) and loop.time() < until:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(LATENCY)

    # The faults

    @property
    def quiet(self) -> bool:
        """Nothing is on its way to or from this node."""
        under_way = self._uplink or self._unconfirmed or self._events
        return not under_way and not any(pipe.deliveries for pipe in self._pipes.values())

    def delay(self, seconds: float, deliveries: int = 1) -> None:
        """The next deliveries to this node take so much longer, each."""
        self._delays.extend([seconds] * deliveries)

    def lose(self, deliveries: int = 1) -> None:
        """The next deliveries to this node vanish, and nobody is told."""
        self._losing += deliveries

    def repeat(self, deliveries: int = 1) -> None:
        """The next deliveries to this node arrive twice."""
        self._repeating += deliveries

    def overflow(self, deliveries: int = 1) -> None:
        """The next deliveries to this node find its buffer full."""
        self._overflowing += deliveries

    def behave(self) -> None:
        """No more of the faults that were commanded and have not happened."""
        self._losing = self._repeating = self._overflowing = 0
        self._delays.clear()
        self.stall(stalled=False)

    def stall(self, *, stalled: bool = True) -> None:
        """The hub neither takes nor confirms what this node publishes, until it does again."""
        self._stalled = stalled
        if not stalled:
            for _ in tuple(self._uplink):
                self._arrive(self._connection)

    def lose_link(self, *, reach: int = 0, partial: int = 0) -> None:
        """The link breaks: of the publishes under way the first `reach` were in time, the next one for `partial` nodes.

        What is on its way to this node is lost.
        """
        if self.linked:
            self._drop_link(reach=reach, partial=partial)
            self._put(Gap("disconnected", ongoing=True))

    def restore_link(self) -> None:
        """The link is back, with all its subjects (rules 1 and 8)."""
        if self.linked or self.closed:
            return
        self.linked = True
        self._connection += 1
        for subject in self.subjects:
            self.hub.subscribers.setdefault(subject, {})[self] = None
        self._put(Gap("reconnected"))

    # Inside

    def carry(self, sender: "FaultyBroker | None", delivery: Delivery) -> None:
        """The hub sends a delivery of one publisher to this node."""
        loop = asyncio.get_running_loop()
        pipe = self._pipes.setdefault(sender, _Pipe())
        pipe.due = max(pipe.due, loop.time() + self.hub.latency() + (self._delays.popleft() if self._delays else 0.0))
        pipe.deliveries.append(delivery)
        loop.call_at(pipe.due, self._deliver, pipe, context=self.hub.context)

    def _deliver(self, pipe: _Pipe) -> None:
        if not pipe.deliveries:
            return  # lost with the link meanwhile
        delivery = pipe.deliveries.popleft()
        if self._losing:
            self._losing -= 1
            self.hub.dropped(self, delivery)
            return
        if self._overflowing or len(self._events) >= self._buffer:
            self._overflowing = max(0, self._overflowing - 1)
            last = self._events[-1] if self._events else None
            if isinstance(last, Gap) and last.reason == "overflow":
                self._events[-1] = Gap("overflow", missed=(last.missed or 0) + 1)
            else:
                self._put(Gap("overflow", missed=1))
            return
        self._put(delivery)
        if self._repeating:
            self._repeating -= 1
            self._put(delivery)

    def _put(self, event: Delivery | Gap) -> None:
        self._events.append(event)
        self._ready.set()

    def _arrive(self, connection: int) -> None:
        if connection != self._connection or self._stalled or not self._uplink:
            return
        flight = self._uplink.popleft()
        self.published += 1
        self.hub.route(self, flight.subject, flight.payload)
        self._unconfirmed.append(flight)
        loop = asyncio.get_running_loop()
        loop.call_later(self.hub.latency(), self._confirm, connection, context=self.hub.context)

    def _confirm(self, connection: int) -> None:
        if connection == self._connection and self._unconfirmed:
            flight = self._unconfirmed.popleft()
            if not flight.confirm.done():
                flight.confirm.set_result(None)

    def _drop_link(self, *, reach: int, partial: int) -> None:
        self.linked = False
        self._connection += 1
        for number, flight in enumerate(self._uplink):
            if number < reach:
                self.hub.route(self, flight.subject, flight.payload)
            elif number == reach:
                self.hub.route(self, flight.subject, flight.payload, limit=partial)
        for flight in (*self._unconfirmed, *self._uplink):
            if not flight.confirm.done():
                flight.confirm.set_exception(PublishUnconfirmed("The link broke before the confirm.", broker="faulty"))
        self._unconfirmed.clear()
        self._uplink.clear()
        for pipe in self._pipes.values():
            pipe.deliveries.clear()
        for subject in tuple(self.hub.subscribers):
            self._unroute(subject)

    def _unroute(self, subject: Subject) -> None:
        nodes = self.hub.subscribers.get(subject)
        if nodes is not None:
            nodes.pop(self, None)
            if not nodes:
                del self.hub.subscribers[subject]

    def _refusal(self, size: int) -> BrokerError | None:
        if self.closed:
            return BrokerClosed("The broker is closed.", broker="faulty")
        if not self.linked:
            return BrokerUnavailable("No link: nothing was sent.", broker="faulty")
        if size > self.guarantees.max_payload:
            return PayloadTooLarge(size=size, limit=self.guarantees.max_payload, broker="faulty")
        return self.refusals.popleft() if self.refusals else None

    def _check_open(self) -> None:
        if self.closed:
            raise BrokerClosed("The broker is closed.", broker="faulty")

    def _check_link(self, connection: int) -> None:
        self._check_open()
        if connection != self._connection:
            raise BrokerUnavailable("The link broke: the subjects are kept.", broker="faulty")


class _EntryPoint:
    """What `importlib.metadata` gives for a broker that an installed package declares."""

    def __init__(self, name: str, make: MakeBroker) -> None:
        self.name = self.value = name
        self._make = make

    def load(self) -> MakeBroker:
        return self._make


@contextmanager
def installed(hub: Hub, **others: MakeBroker) -> Generator[None, None, None]:
    """While open, `faulty://hub` and `faulty://hub?partitions=8` are brokers as a third-party package adds them.

    Args:
        hub: the server.
        others: more brokers by scheme.
    """

    def make(config: BrokerConfig) -> FaultyBroker:
        partitions = config.parameters.get("partitions")
        return FaultyBroker(hub, config, int(partitions) if partitions else None)

    make.parameters = frozenset({"partitions"})  # type: ignore[attr-defined]  # a class would have it
    added = {name: _EntryPoint(name, one) for name, one in {"faulty": make, **others}.items()}

    def entry_points(**selection: Any) -> Any:
        mine = added.get(selection.get("name", ""))
        return (mine,) if mine is not None else cast("Any", metadata.entry_points)(**selection)

    with mock.patch("roomcast.core.registry.entry_points", entry_points):
        yield
