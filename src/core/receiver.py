"""The receiving half of a node: opens what arrives, puts it in order, and hands it to the handler of its kind.

1. Nothing that arrives can end the loop: what cannot be read is counted and logged once per kind, a handler that fails
   is logged.
2. What has arrived before is dropped by its numbers; a hole in them is a gap.
3. Many messages are no reason to keep the loop to oneself: it runs after each `_SLICE` of handling. What is read from a
   log is handed on no faster than the clients it is for are served, since it can wait there (`pace`).
4. With `order="total"`, what this node's own clients are to see goes through the log as well, and is done at the place
   that it has there (`at_home`): so it comes in the same order for the clients of all nodes. Who waits for that is told
   once it is done (`readback`).
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any, Literal, Protocol

from roomcast.core.broker import Broker, Delivery, Gap, Subject
from roomcast.core.errors import BrokerClosed, WireError
from roomcast.core.gaps import Gaps
from roomcast.core.messages import Message
from roomcast.core.pace import Paced
from roomcast.core.readback import Readback
from roomcast.core.reader import Reader
from roomcast.core.sequences import Tracking
from roomcast.core.stats import Stats
from roomcast.core.wire import Wire

logger = logging.getLogger("roomcast")

_SLICE = 0.005  # seconds of handling after which the loop gets a turn
_MOURNED = 600.0  # seconds for which the numbers of a lost peer are kept


class _Node(Protocol):
    id: str
    total: bool
    handlers: dict[type[Any], Callable[[str, Any], None]]
    at_home: dict[type[Any], Callable[[Any], None]]
    reader: Reader | None
    readback: Readback | None
    paced: Paced | None
    stats: Stats
    gaps: Gaps
    wire: Wire

    def wants(self, subject: Subject) -> bool: ...

    def fault(self, what: str, error: BaseException) -> None: ...


class Receiver:
    """What one node receives.

    Args:
        node: whose.
        on_gap: called with each gap that the broker tells.
        heard: called with the id of the node from which something has arrived.
        in_order: order holds across the subjects of a publisher.

    Attributes:
        tracking: the numbers of all publishers.
        waited: clients were waited for; whoever looks at it takes it back.
        closed: the node is.
    """

    def __init__(
        self, node: _Node, *, on_gap: Callable[[Gap], None], heard: Callable[[str], None], in_order: bool
    ) -> None:
        self.tracking = Tracking()
        self.waited = False
        self.closed = False
        self._node = node
        self._on_gap = on_gap
        self._heard = heard
        self._in_order = in_order
        self._logged: set[str] = set()
        self._mourned: deque[tuple[float, str]] = deque()
        self._own = 0  # the last place of an envelope of this node's own

    async def run(self, broker: Broker) -> None:
        """Receive until the node is closed."""
        turn = time.monotonic()
        while True:
            try:
                events = await broker.receive()
            except BrokerClosed:
                if self.closed:
                    return
                raise
            for event in events:
                if isinstance(event, Gap):
                    self._on_gap(event)
                    continue
                for origin, message in self._opened(event):
                    self._handle(origin, message)
                    paced = self._node.paced
                    if time.monotonic() - turn > _SLICE or (paced is not None and paced.fell_behind):
                        await self._breathe(paced)
                        turn = time.monotonic()
                if self._own and self._node.readback is not None:
                    self._node.readback.came_back(self._own)
                    self._own = 0
                if time.monotonic() - turn > _SLICE:  # also when nothing of it was for anybody here
                    await self._breathe(self._node.paced)
                    turn = time.monotonic()

    async def _breathe(self, paced: Paced | None) -> None:
        """Rule 3."""
        await asyncio.sleep(0)
        if paced is not None and await paced.serve():
            self.waited = True

    def _opened(self, delivery: Delivery) -> Iterable[tuple[str, Message | WireError]]:
        """The messages of a delivery that are new here, and their origin."""
        subject, reader = delivery.subject, self._node.reader
        if not self._node.wants(subject) and (reader is None or not reader.wants(delivery)):
            return ()  # in flight while the subject was given up
        return self.open(delivery, time.time_ns() // 1000)

    def open(self, delivery: Delivery, now: int | None) -> Iterable[tuple[str, Message | WireError]]:
        """The same, wanted or not; `now` is None for what a log gives back of the time before the start."""
        subject, reader = delivery.subject, self._node.reader
        try:
            envelope = self._node.wire.open(subject, delivery.payload, now)
        except WireError as exc:
            self.refuse(exc)
            if reader is not None:
                reader.unread(delivery, exc)
            return ()
        origin = envelope.origin
        if origin == self._node.id:
            if not self._node.total:
                return ()
            self._own = envelope.place + len(envelope.messages) - 1
        if now is not None:
            self._heard(origin)
        messages, repeats = envelope.messages, 0
        if envelope.epoch:
            place = envelope.place if self._in_order else 0
            reading = self.tracking.read(subject, origin, envelope.epoch, envelope.first, len(messages), place)
            if reading.missed and now is not None:
                self._node.stats.missed += reading.missed
                self._node.gaps.tell(Gap("missed", subject=subject, origin=origin, missed=reading.missed))
            if repeats := reading.repeats:
                self._node.stats.repeats += repeats
                messages = messages[repeats:]
        if reader is not None:
            return reader.read(delivery, origin, envelope.sent, messages, repeats)
        return zip(repeat(origin), messages, strict=False)

    def _handle(self, origin: str, message: Message | WireError) -> None:
        if isinstance(message, WireError):
            self.refuse(message)
            return
        if origin == self._node.id:
            self._come_back(message)
            return
        self._node.stats.received += 1
        handler = self._node.handlers.get(type(message))
        if handler is None:
            self.refuse(WireError("unexpected", f"A {type(message).__name__} arrived, and nobody here handles it."))
            return
        try:
            handler(origin, message)
        except WireError as exc:
            self.refuse(exc)
        except Exception as exc:  # noqa: BLE001 - rule 1: no message ends the loop
            self._node.fault(f"handling a {type(message).__name__} failed", exc)

    def _come_back(self, message: Message) -> None:
        """Rule 4."""
        handler = self._node.at_home.get(type(message))
        if handler is not None:
            try:
                handler(message)
            except Exception as exc:  # noqa: BLE001 - rule 1: no message ends the loop
                self._node.fault(f"handling a {type(message).__name__} of this node's own failed", exc)

    def refuse(self, error: WireError) -> None:
        """Count something that arrived and is not accepted; log the first of its kind."""
        self._node.stats.refused[error.kind] += 1
        if error.kind not in self._logged:
            self._logged.add(error.kind)
            logger.warning("roomcast: %s More of this kind (%s) is only counted.", error, error.kind)

    # Publishers that are gone

    def left(self, node: str, why: Literal["bye", "lost"]) -> None:
        """A peer is gone."""
        if why == "bye":
            self.tracking.forget_origin(node)
        else:  # it may come back, and then its numbers tell what was lost
            self._mourned.append((time.monotonic() + _MOURNED, node))

    def tick(self, now: float) -> None:
        """Forget the numbers of those who did not come back."""
        while self._mourned and self._mourned[0][0] < now:
            self.tracking.forget_origin(self._mourned.popleft()[1])
