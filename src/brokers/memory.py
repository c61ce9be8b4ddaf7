"""The broker of one process: `memory://name` joins all adapters of that name on the same event loop."""

import asyncio
from collections.abc import Collection, Sequence
from typing import ClassVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from roomcast.core.arrivals import Arrivals
from roomcast.core.broker import BrokerConfig, Delivery, Gap, Guarantees, Log, Position, Subject
from roomcast.core.errors import BrokerClosed, BrokerUnavailable, ConfigurationError, PayloadTooLarge

_Hubs = dict[str, dict[Subject, set["MemoryBroker"]]]
_hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, _Hubs] = WeakKeyDictionary()


class MemoryBroker:
    """Delivers within one event loop, in the order of the calls, without a copy and without a wait."""

    parameters: ClassVar[frozenset[str]] = frozenset()
    log: Log | None = None

    def __init__(self, config: BrokerConfig) -> None:
        parts = urlsplit(config.url)
        if parts.path.strip("/") or parts.username or parts.port:
            raise ConfigurationError("A memory URL is memory:// or memory://name, with nothing else in it.")
        self._name = parts.hostname or ""
        self._subjects: set[Subject] = set()
        self._arrivals = Arrivals(config.buffer, self._check_open)
        self._members: dict[Subject, set[MemoryBroker]] | None = None
        self._closed = False
        self.guarantees = Guarantees(order="publisher", confirmed=True, max_payload=config.max_payload)

    async def start(self) -> None:
        """Join the hub of this name (rule 1); there is nothing that could be unavailable."""
        self._check_open()
        hubs = _hubs.setdefault(asyncio.get_running_loop(), {})
        self._members = hubs.setdefault(self._name, {})

    async def aclose(self) -> None:
        """Leave the hub; blocked calls raise `BrokerClosed` (rule 11)."""
        if self._closed:
            return
        await self.unsubscribe(tuple(self._subjects))
        self._closed = True
        self._arrivals.wake()

    async def publish(self, subject: Subject, payload: bytes, /) -> Position | None:
        """Hand the payload to every subscribed node, this one included (rules 4 to 6)."""
        members = self._hub()
        if len(payload) > self.guarantees.max_payload:
            raise PayloadTooLarge(size=len(payload), limit=self.guarantees.max_payload, broker="memory")
        delivery = Delivery(subject, payload)
        for node in members.get(subject, ()):
            node._arrivals.put(delivery)  # noqa: SLF001 - a peer of the same class
        return None

    async def subscribe(self, subjects: Collection[Subject], /) -> None:
        """Hear these subjects from the next publish on (rule 2)."""
        members = self._hub()
        for subject in subjects:
            self._subjects.add(subject)
            members.setdefault(subject, set()).add(self)

    async def unsubscribe(self, subjects: Collection[Subject], /) -> None:
        """Stop hearing these subjects (rule 3)."""
        for subject in subjects:
            self._subjects.discard(subject)
            if self._members is not None and (nodes := self._members.get(subject)) is not None:
                nodes.discard(self)
                if not nodes:
                    del self._members[subject]

    async def receive(self) -> Sequence[Delivery | Gap]:
        """All that has arrived, at least one event (rule 7)."""
        return await self._arrivals.take()

    def _hub(self) -> dict[Subject, set["MemoryBroker"]]:
        self._check_open()
        if self._members is None:
            raise BrokerUnavailable("The memory broker is not started: await start() first.", broker="memory")
        return self._members

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerClosed("The memory broker is closed.", broker="memory")
