"""The broker over Redis publish/subscribe: `redis://`, `rediss://` (TLS) and `unix://` (a local socket).

A subject is a Redis channel, verbatim. What goes out is packed by hand at the call, which fixes the order
(rule 4), and written in large batches while earlier ones are still unconfirmed. The two connections below
are `redis_link.Link`; this module keeps what outlives a link: the subjects and what was received. When the next one
is made: `lifecycle`.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Protocol

from roomcast.brokers.lifecycle import Lifecycle
from roomcast.brokers.redis_link import Link
from roomcast.brokers.redis_servers import TLS_PARAMETERS, endpoint
from roomcast.core.arrivals import Arrivals
from roomcast.core.broker import BrokerConfig, Delivery, Gap, Guarantees, Log, Subject
from roomcast.core.errors import (
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    PayloadTooLarge,
    PublishUnconfirmed,
)

_LARGEST = 512 * 1024 * 1024
"""Bytes: what Redis carries in one string, whatever the configuration asks for."""
_FLUSH = 1.0
"""Seconds that `aclose` waits for the confirmation of what was accepted."""
_LONGEST_DELAY = 0.3
"""Seconds between attempts to reconnect, at most. Peers wait for the last one to be back."""


class Carrier(Protocol):
    """What is between two changes of the link: a `Link`, or several that mend one another."""

    @property
    def over(self) -> asyncio.Event:
        """Set once it is lost or ended."""
        ...

    def publish(self, channel: bytes, payload: bytes) -> asyncio.Future[None]:
        """Queue one payload; see rules 4 and 5."""
        ...

    async def subscribe(self, channels: Collection[bytes]) -> None:
        """Hear these channels; returns when every one is confirmed."""
        ...

    async def unsubscribe(self, channels: Collection[bytes]) -> None:
        """Hear these channels no more."""
        ...

    async def flush(self, within: float) -> None:
        """Wait for the confirmation of everything published, for so many seconds at most."""
        ...

    def end(self, sent: Callable[[], BrokerError], unsent: Callable[[], BrokerError]) -> None:
        """Stop everything: what is published and unconfirmed fails as `sent`, the rest as `unsent`."""
        ...

    async def aclose(self) -> None:
        """Wait until nothing is left of what was ended."""
        ...


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told what happens on a link.

    Attributes:
        deliver: is called with the channel and the payload of everything heard.
        lost: is called once, at the moment the link is lost.
        tell: is called with gaps that are not the loss of the whole link.
    """

    deliver: Callable[[bytes, bytes], None]
    lost: Callable[[Carrier, Exception], None]
    tell: Callable[[Gap], None]


class Way(Protocol):
    """The way to what carries everything: a fixed server, whichever is the master now, or all of a cluster."""

    @property
    def address(self) -> str:
        """Where it leads to, for people to read."""
        ...

    async def open(self, listener: Listener) -> Carrier:
        """One attempt to connect, within `connect_timeout`."""
        ...


class Fixed:
    """The way to one server."""

    def __init__(self, config: BrokerConfig) -> None:
        self._config = config
        self._endpoint = endpoint(config)
        self.address = self._endpoint.address

    async def open(self, listener: Listener) -> Carrier:
        """Both connections."""
        config = self._config
        hears, tells = await self._endpoint.dial(names_of(config), within=config.connect_timeout)
        return Link(hears, tells, heartbeat=config.heartbeat, deliver=listener.deliver, lost=listener.lost)


def names_of(config: BrokerConfig) -> list[str]:
    """What the two connections are called, for operators to see."""
    return [f"{config.prefix}:{config.node}:{role}" for role in ("hears", "tells")]


class RedisBroker:
    """Redis publish/subscribe over one link of two connections.

    Order is FIFO per publishing node, across subjects. A publish resolves with the reply to its PUBLISH:
    the server has then handed the message to the connections of all subscribers. A cancelled publish was
    sent all the same.
    """

    parameters: ClassVar[frozenset[str]] = TLS_PARAMETERS | {"db"}
    log: Log | None = None

    def __init__(self, config: BrokerConfig) -> None:
        self._config = config
        self._way: Way = self._way_of(config)
        self._names: dict[bytes, Subject] = {}  # the subjects to hear, by channel
        self._arrivals = Arrivals(config.buffer, self._check_open)
        self._life = Lifecycle[Carrier](
            "redis",
            lambda: f"Redis at {self._way.address}",
            self._arrivals,
            connect=self._connect,
            flush=self._flush,
            drop=self._drop,
            longest=_LONGEST_DELAY,
        )
        limit = min(config.max_payload, _LARGEST)
        self.guarantees = Guarantees(order="publisher", confirmed=True, max_payload=limit)

    @staticmethod
    def _way_of(config: BrokerConfig) -> Way:
        return Fixed(config)

    async def start(self) -> None:
        """Connect, or raise `BrokerUnavailable`, or `ConfigurationError` when Redis refuses this user."""
        await self._life.start()

    async def aclose(self) -> None:
        """Flush what was accepted, for a second at most, then disconnect (rule 11)."""
        await self._life.aclose()

    def publish(self, subject: Subject, payload: bytes, /) -> asyncio.Future[None]:
        """Queue one PUBLISH, in the order of the calls; the future resolves with the reply (rules 4, 5)."""
        link = self._life.link
        if link is None:
            return _failed(self._life.no_link())
        size = len(payload)
        if size > self.guarantees.max_payload:
            limit = self.guarantees.max_payload
            return _failed(PayloadTooLarge(size=size, limit=limit, broker="redis"))
        return link.publish(subject.encode(), payload)

    async def subscribe(self, subjects: Collection[Subject], /) -> None:
        """Hear these subjects: a SUBSCRIBE again for those heard already, so that it bars too (rule 2)."""
        self._check_open()
        channels = {subject.encode(): subject for subject in subjects}
        self._names.update(channels)
        link = self._life.require()
        try:
            await link.subscribe(channels)
        except ConfigurationError:
            for channel in channels:
                self._names.pop(channel, None)
            raise

    async def unsubscribe(self, subjects: Collection[Subject], /) -> None:
        """Stop hearing these subjects; what still arrives on them is dropped here (rule 3)."""
        self._check_open()
        channels = {subject.encode() for subject in subjects}
        for channel in channels:
            self._names.pop(channel, None)
        if (link := self._life.link) is not None:
            with suppress(BrokerUnavailable):  # the next link will not know them
                await link.unsubscribe(channels)

    async def receive(self) -> Sequence[Delivery | Gap]:
        """All that has arrived, at least one event (rule 7)."""
        return await self._arrivals.take()

    async def _connect(self) -> Carrier:
        """One attempt: both connections, then all subjects; only then does anybody see the link.

        The connections have `connect_timeout`. Subjects may be so many that they take longer than that:
        while they are restored, the link's own watch says whether there is progress.
        """
        link = await self._way.open(Listener(self._deliver, self._lost, self._arrivals.gap))
        try:
            await self._restore(link)
        except BaseException:
            await self._drop(link)
            raise
        self._life.use(link)
        return link

    async def _flush(self, link: Carrier) -> None:
        await link.flush(_FLUSH)

    async def _drop(self, link: Carrier) -> None:
        """End a link on purpose, and wait until nothing of it is left."""
        link.end(
            lambda: PublishUnconfirmed("Closed before Redis confirmed the message.", broker="redis"),
            self._life.no_link,
        )
        await link.aclose()

    async def _restore(self, link: Carrier) -> None:
        """Subscribe to every subject, those included that come or go meanwhile."""
        heard: set[bytes] = set()
        while heard != self._names.keys():
            fresh, stale = self._names.keys() - heard, heard - self._names.keys()
            await link.subscribe(fresh)
            await link.unsubscribe(stale)
            heard = (heard | fresh) - stale
        if link.over.is_set():
            raise self._life.no_link()

    def _lost(self, link: Carrier, cause: Exception) -> None:
        self._life.lost(link, cause)

    def _deliver(self, channel: bytes, payload: bytes) -> None:
        subject = self._names.get(channel)
        if subject is None:  # unsubscribed while it was on its way
            return
        self._arrivals.put(Delivery(subject, payload))

    def _check_open(self) -> None:
        self._life.check_open()


def _failed(error: BrokerError) -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future
