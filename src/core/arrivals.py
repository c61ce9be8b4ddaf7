"""What has arrived and waits to be received: the bounded buffer behind a broker's `receive`.

Brokers need not use it, but its rules are those of the seam (`broker.py`, rules 7 and 8):

1. `take` waits for at least one event and gives all that are there, in order; cancelling it loses nothing.
2. At most `limit` deliveries wait. Those beyond it are dropped and counted in one overflow gap, in line, where the
   loss begins.
3. A gap of the link always finds room. While nobody takes anything, gaps at the end of a full buffer fall together,
   so that a link that comes and goes cannot grow it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from roomcast.core.broker import Delivery, Gap


class Arrivals:
    """The events of one broker that wait for its consumer.

    Args:
        limit: how many deliveries may wait (`BrokerConfig.buffer`).
        check_open: raises `BrokerClosed` once the broker is closed.
    """

    def __init__(self, limit: int, check_open: Callable[[], None]) -> None:
        self._limit = limit
        self._check_open = check_open
        self._events: deque[Delivery | Gap] = deque()
        self._ready = asyncio.Event()

    def put(self, delivery: Delivery) -> None:
        """Take in a delivery, or count it as lost (rule 2)."""
        waiting = len(self._events)
        if waiting < self._limit:
            self._events.append(delivery)
            if not waiting:
                self._ready.set()
        else:
            self._overflow(1)

    def gap(self, gap: Gap) -> None:
        """Take in a change of the link (rule 3)."""
        if gap.ongoing and len(self._events) >= self._limit:
            missed = 0
            while self._events and isinstance(last := self._events[-1], Gap):
                missed += last.missed or 0
                self._events.pop()
            if missed:
                self._overflow(missed)
        self._events.append(gap)
        self._ready.set()

    async def take(self) -> Sequence[Delivery | Gap]:
        """All that has arrived, at least one event (rule 1)."""
        while not self._events:
            self._check_open()
            self._ready.clear()
            await self._ready.wait()
        events = tuple(self._events)
        self._events.clear()
        return events

    def wake(self) -> None:
        """Let a blocked `take` see that the broker is closed."""
        self._ready.set()

    def _overflow(self, missed: int) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, Gap) and last.reason == "overflow":
            self._events[-1] = Gap("overflow", missed=(last.missed or 0) + missed)
        else:
            self._events.append(Gap("overflow", missed=missed))
        self._ready.set()
