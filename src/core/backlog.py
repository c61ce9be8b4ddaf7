"""What was read from a log and waits to be received: a buffer that makes its reader wait instead of dropping.

Brokers need not use it, but its rules are those of the seam for logs (`broker.py`, rules 7 and 8):

1. `take` waits for at least one event and gives those that are there, in order, `limit` at most; cancelling it loses
   nothing.
2. `put` always takes a delivery in. Who reads asks `room` first how many are wanted, and waits in `has_room` while it
   is none, so that about `limit` deliveries, or `limit_bytes` of payload, are held.
3. A gap always finds room. While nobody takes anything, a link that comes and goes leaves one pair of gaps.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from roomcast.core.broker import Delivery, Gap

_BYTES = 64 * 1024 * 1024


class Backlog:
    """The events of one broker that wait for its consumer.

    Args:
        limit: how many deliveries may wait (`BrokerConfig.buffer`).
        check_open: raises `BrokerClosed` once the broker is closed.
        limit_bytes: of payload that may wait.
    """

    def __init__(self, limit: int, check_open: Callable[[], None], *, limit_bytes: int = _BYTES) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._check_open = check_open
        self._events: deque[Delivery | Gap] = deque()
        self._bytes = 0
        self._ready = asyncio.Event()
        self._free = asyncio.Event()
        self._free.set()

    def put(self, delivery: Delivery) -> None:
        """Take in a delivery."""
        self._events.append(delivery)
        self._bytes += len(delivery.payload)
        self._ready.set()
        if not self.room:
            self._free.clear()

    def gap(self, gap: Gap) -> None:
        """Take in a gap (rule 3)."""
        last = self._events[-1] if self._events else None
        if gap.ongoing and isinstance(last, Gap) and last.reason == "reconnected":
            self._events.pop()  # what the link lost in between is nothing, and it is lost again
            if not (self._events and isinstance(before := self._events[-1], Gap) and before.ongoing):
                self._events.append(last)  # somebody has taken the beginning already
                self._events.append(gap)
        else:
            self._events.append(gap)
        self._ready.set()

    @property
    def room(self) -> int:
        """How many more deliveries are wanted now (rule 2)."""
        return max(0, self._limit - len(self._events)) if self._bytes < self._limit_bytes else 0

    async def has_room(self) -> None:
        """Return once deliveries are wanted."""
        while not self.room:
            self._free.clear()
            await self._free.wait()

    async def take(self) -> Sequence[Delivery | Gap]:
        """What is there, at least one event (rule 1)."""
        while not self._events:
            self._check_open()
            self._ready.clear()
            await self._ready.wait()
        events = self._events
        if len(events) <= self._limit:
            taken = tuple(events)
            events.clear()
            self._bytes = 0
        else:
            taken = tuple(events.popleft() for _ in range(self._limit))
            self._bytes -= sum(len(event.payload) for event in taken if isinstance(event, Delivery))
        if self.room:
            self._free.set()
        return taken

    def wake(self) -> None:
        """Let a blocked `take` see that the broker is closed."""
        self._ready.set()
