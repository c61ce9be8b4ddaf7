"""Everything of a log broker that does not depend on which server keeps the log.

What does is a *driver*: it makes links. A link is one life of the connection: it knows how each stream was found,
reads from given places on, appends, and is lost once. This module keeps what outlives it: the subjects, the places,
what was read and waits. When the next link is made: `lifecycle`.

A node reads every stream whole and picks its subjects here. So `subscribe` changes a set and is a barrier at once:
whatever is appended later is read later.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from roomcast.brokers.lifecycle import Lifecycle
from roomcast.brokers.log_places import Place, Places, View
from roomcast.brokers.log_settings import PARAMETERS, LogSettings, log_settings, stream_of
from roomcast.core.backlog import Backlog
from roomcast.core.broker import BrokerConfig, Delivery, Gap, Guarantees, Log, Order, Position, Subject
from roomcast.core.errors import (
    BrokerClosed,
    BrokerError,
    BrokerUnavailable,
    PayloadTooLarge,
    ReplayUnavailable,
)

_logger = logging.getLogger(__name__)

_FLUSH = 1.0
"""Seconds that `aclose` waits for the confirmation of what was accepted."""
_LONGEST_DELAY = 0.1
"""Seconds between attempts to reconnect, at most; publishers wait for the log meanwhile."""

Once = tuple[str, int]
Appending = asyncio.Future[Position | None]


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a stream."""

    at: Place
    subject: Subject
    payload: bytes


class Intake:
    """Where links put what they read, and what they are told about the node.

    Attributes:
        config: of the broker.
        settings: of the log.
    """

    def __init__(self, config: BrokerConfig, settings: LogSettings, backlog: Backlog) -> None:
        self.config = config
        self.settings = settings
        self.backlog = backlog
        self.places = Places(settings.streams)
        self.subjects: set[Subject] = set()
        self._epochs: dict[tuple[int, str], str] = {}
        self._foreign = False

    def take(self, stream: int, entry: Entry, first: int | None = None) -> None:
        """Take in an entry in the order of its stream: deliver it, or pass it over; `first` as in `Places.read`."""
        news = self.places.read(stream, entry.at, first)
        if news is False:
            return
        if isinstance(news, Gap):
            self.backlog.gap(news)
        if entry.subject in self.subjects or self.config.everything:
            self.backlog.put(Delivery(entry.subject, entry.payload, self.position(stream, entry.at)))

    def skip(
        self, stream: int, mark: str, offset: int | None = None, *, first: int | None = None, quiet: bool = False
    ) -> None:
        """Pass over what is not of roomcast, for good, and say so once.

        Args:
            stream: where it is.
            mark: as in `Place`.
            offset: when it has one: then it counts among the entries.
            first: as in `Places.read`.
            quiet: it is of roomcast, only for nobody to receive.
        """
        place = self.places.of(stream)
        if offset is not None:
            news = self.places.read(stream, Place(place.epoch, offset, mark), first)
            if isinstance(news, Gap):
                self.backlog.gap(news)
        else:
            self.places.move(stream, mark)
        if not self._foreign and not quiet:
            self._foreign = True
            _logger.warning(
                "Entry %s of the log under %s is not of roomcast and is passed over; later ones are not logged.",
                mark or offset,
                self.config.prefix,
            )

    def position(self, stream: int, at: Place) -> Position:
        """A place, as the core knows it."""
        if self.settings.streams == 1:
            return Position(at.epoch, str(at.offset))
        epoch = self._epochs.get((stream, at.epoch))
        if epoch is None:
            epoch = self._epochs[stream, at.epoch] = f"{at.epoch}.{stream}"
        return Position(epoch, str(at.offset))


class LogLink(Protocol):
    """One life of the connection to a log."""

    @property
    def over(self) -> asyncio.Event:
        """Set once the link is lost or ended."""
        ...

    @property
    def max_payload(self) -> int:
        """What the server carries, in bytes."""
        ...

    @property
    def views(self) -> Sequence[View]:
        """Each stream, as it was found."""
        ...

    def carry(self) -> None:
        """Read each stream from `intake.places` on, from now on."""
        ...

    def append(self, stream: int, subject: Subject, payload: bytes, once: Once | None) -> Appending:
        """Append an entry, in the order of the calls; resolves once the server has it."""
        ...

    def replay(self, stream: int, until: Place, since: float) -> AsyncGenerator[Sequence[Entry]]:
        """The entries up to a place that were appended after a moment on the broker's clock, in pages.

        Raises:
            ReplayUnavailable: some of them are gone, or may be.
        """
        ...

    async def flush(self, within: float) -> None:
        """Wait for what was appended to be confirmed, for so many seconds at most."""
        ...

    def end(self, error: type[BrokerError]) -> None:
        """Stop everything; what was sent is unconfirmed, what was not fails with this error."""
        ...

    async def aclose(self) -> None:
        """Wait until nothing of an ended link is left."""
        ...


Lost = Callable[[LogLink, Exception], None]
"""Called once, at the moment a link is lost."""


class Driver(Protocol):
    """What makes links to one server."""

    name: str
    address: str

    async def dial(self, intake: Intake, lost: Lost) -> LogLink:
        """Connect, make the log or check its settings, look at its streams; within `connect_timeout`, or leave nothing.

        A stream that ends before its place in `intake.places` gets a new life here.

        Raises:
            BrokerUnavailable: it cannot be reached now.
            ConfigurationError: it will not work without a change.
        """
        ...

    async def delete(self) -> None:
        """Delete the log from the server."""
        ...


class LogBroker:
    """A broker with a log; each scheme is a subclass that names its driver."""

    parameters: ClassVar[frozenset[str]] = PARAMETERS

    def __init__(self, config: BrokerConfig, driver: Driver) -> None:
        self._config = config
        self._driver = driver
        settings = log_settings(config.parameters)
        self._backlog = Backlog(config.buffer, self._check_open)
        self._intake = Intake(config, settings, self._backlog)
        self._streams = settings.streams
        self._began: Sequence[View] = ()
        self._life = Lifecycle[LogLink](
            driver.name,
            lambda: f"the log at {driver.address}",
            self._backlog,
            connect=self._connect,
            flush=self._flush,
            drop=self._drop,
            longest=_LONGEST_DELAY,
            restored=Gap("reconnected", missed=0),
        )
        order: Order = "total" if settings.streams == 1 else "subject"
        self.guarantees = Guarantees(order=order, confirmed=True, max_payload=config.max_payload)

    @property
    def log(self) -> Log:
        """The log; it is what is appended to and replayed."""
        return self

    @property
    def retention(self) -> float:
        """See `Log.retention`."""
        return self._intake.settings.retention

    async def start(self) -> None:
        """Connect, or raise `BrokerUnavailable`, or `ConfigurationError` when the log has other settings (rule 1)."""
        await self._life.start()

    async def aclose(self) -> None:
        """Flush what was accepted, for a second at most, then disconnect; the log stays (rule 11)."""
        await self._life.aclose()

    async def delete(self) -> None:
        """Delete the log from the server, before `start`: for tests, and for operators who want other settings."""
        self._check_open()
        await self._driver.delete()

    def publish(self, subject: Subject, payload: bytes, /, *, once: Once | None = None) -> Appending:
        """Append one entry, in the order of the calls; resolves once the log has it (rules 4, 5)."""
        error: BrokerError
        if (link := self._life.link) is None:
            error = self._life.no_link()
        elif len(payload) > (limit := min(self.guarantees.max_payload, link.max_payload)):
            error = PayloadTooLarge(size=len(payload), limit=limit, broker=self._driver.name)
        else:
            return link.append(stream_of(subject, self._streams), subject, payload, once)
        future: Appending = asyncio.get_running_loop().create_future()
        failed(future, error)
        return future

    async def subscribe(self, subjects: Collection[Subject], /) -> None:
        """Deliver these subjects from now on (rule 2)."""
        self._check_open()
        self._intake.subjects.update(subjects)
        self._life.require()

    async def unsubscribe(self, subjects: Collection[Subject], /) -> None:
        """Pass these subjects over from now on (rule 3)."""
        self._intake.subjects.difference_update(subjects)

    async def receive(self) -> Sequence[Delivery | Gap]:
        """What was read, at least one event (rule 7)."""
        return await self._backlog.take()

    async def replay(self, seconds: float, /) -> AsyncIterator[Sequence[Delivery]]:
        """See `Log.replay`; a log of several streams is replayed one stream after the other."""
        for stream, view in enumerate(self._began):
            link = self._life.require()
            if link.views[stream].end.epoch != view.end.epoch:
                text = "The log is another one than at the start: what it held then is gone."
                raise ReplayUnavailable(text, reason="epoch_changed")
            async with aclosing(link.replay(stream, view.end, view.time - seconds)) as pages:
                async for page in pages:
                    yield [
                        Delivery(entry.subject, entry.payload, self._intake.position(stream, entry.at))
                        for entry in page
                    ]

    async def _connect(self) -> LogLink:
        """One attempt: a link that knows its streams and reads them from where this node is."""
        link = await self._driver.dial(self._intake, self._on_lost)
        if link.over.is_set():
            await link.aclose()
            raise self._life.no_link()
        gaps = self._intake.places.resume(link.views)
        if not self._began:
            self._began = link.views
        self._life.use(link)
        for gap in gaps:
            self._backlog.gap(gap)
        link.carry()
        return link

    async def _flush(self, link: LogLink) -> None:
        await link.flush(_FLUSH)

    async def _drop(self, link: LogLink) -> None:
        """End a link on purpose, and wait until nothing of it is left."""
        link.end(BrokerClosed if self._life.closed else BrokerUnavailable)
        await link.aclose()

    def _on_lost(self, link: LogLink, cause: Exception) -> None:
        self._life.lost(link, cause)

    def _check_open(self) -> None:
        self._life.check_open()


def failed(future: "asyncio.Future[Any]", error: Exception, cause: BaseException | None = None) -> None:
    """Fail a future that nobody may be waiting for any more."""
    if not future.done():
        error.__cause__ = cause
        future.set_exception(error)
        future.exception()  # seen: a caller that dropped the future gets no noise at exit


def trimmed() -> ReplayUnavailable:
    """What a replay ends with when not all of it is there any more."""
    text = "The log no longer holds everything since then: raise its retention or its max_bytes."
    return ReplayUnavailable(text, reason="trimmed")
