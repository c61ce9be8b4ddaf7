"""What waits for a client that has come back, until it knows that it has: what it missed, and then what is new.

It stands in the place of the client's queue.

1. Nothing leaves before `let_go`. Then all of it does, in order, before anything that comes later.
2. What was missed may be more than may wait for one client: it is handed on as fast as the client reads, so that what
   waits then is never more than half of that, with what waits for others on the same connection. It ends with the
   client. It is taken from its source no earlier, and in slices: of all who wait one takes its turn each time the loop
   runs, and no longer than `_TURN`. When the source has not all of it any more, the client is lost.
3. What is new while the client waits is bounded as in the queue itself; beyond that the client is cut.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from itertools import chain
from typing import Any

from roomcast.core.client_queue import Bounds
from roomcast.core.errors import ReplayUnavailable
from roomcast.core.frames import Frame
from roomcast.core.replay import Missed
from roomcast.core.rooms import Client, State

_TURN = 0.002  # seconds
_LOOK = 1.0  # seconds between two looks whether a client that does not read is still there


class HeldQueue:
    """The queue of one client that waits.

    Args:
        queue: its own; may be shared with clients of other namespaces on the same connection.
        missed: what it gets first; None where a slice ends.
        bounds: see rules 2 and 3.
        turn: shared by all who wait.
        cut: called with the queue when the client is cut.
        lost: called with the queue when not all that was missed can be given.
    """

    direct = False
    is_due = False
    items = ()
    quick = False

    def __init__(
        self,
        queue: Any,
        missed: Missed,
        bounds: Bounds,
        turn: asyncio.Lock,
        *,
        cut: Callable[[Any], None],
        lost: Callable[[Any], None],
    ) -> None:
        self._queue = queue
        self._connection = queue.socket.queue
        self._bounds = bounds
        self._turn = turn
        self._cut = cut
        self._lost = lost
        self._later: deque[Frame] = deque()
        self._all: Iterator[Frame | None] = chain(missed, self._new_ones())
        self._next: Frame | None = None
        self._over = False
        self._new = self._new_size = 0

    @property
    def socket(self) -> Any:
        """The connection."""
        return self._queue.socket

    def busy(self) -> bool:
        """Always: others wait."""
        return True

    def offer(self, frame: Frame) -> bool:
        """Take in what is new (rule 3)."""
        self._new += 1
        self._new_size += frame.size
        if self._new > self._bounds.packets or self._new_size > self._bounds.size:
            self._end()
            self._cut(self._queue)
            return False
        self._later.append(frame)
        return True

    def let_go(self, client: Client) -> Coroutine[Any, Any, None] | None:
        """Hand on what waits (rule 1); a coroutine goes on with it when it is too much for once (rule 2)."""
        self._hand_on()
        if not self._over:
            return self._go_on(client)
        client.queue = self._queue
        return None

    async def _go_on(self, client: Client) -> None:
        while not self._over:
            if self._next is not None:
                await self._taken()
            async with self._turn:
                if self.socket.closed or client.state is State.DISCONNECTING:
                    self._end()
                    return
                self._take_turn()
                if not self._over:
                    await asyncio.sleep(0)
        client.queue = self._queue

    def _take_turn(self) -> None:
        until = time.perf_counter() + _TURN
        while True:
            self._hand_on()
            if self._over or self._next is not None or time.perf_counter() >= until:
                return

    async def _taken(self) -> None:
        """Return once the client has taken what waits for it, or is gone."""
        taken = asyncio.ensure_future(self._connection.join())
        try:
            while not taken.done() and not self.socket.closed:
                await asyncio.wait({taken}, timeout=_LOOK)
        finally:
            taken.cancel()

    def _hand_on(self) -> None:
        """Hand on as much as fits half the bounds, or a slice of it; what does not fit is the next."""
        others, size = self._connection.qsize(), self._queue.size
        count = 0
        try:
            while (frame := self._next or next(self._all)) is not None:
                size += frame.size
                waiting = others + count
                if waiting and (waiting >= self._bounds.packets // 2 or size > self._bounds.size // 2):
                    self._next = frame
                    return
                self._next = None
                count += 1
                if not self._queue.offer(frame):
                    self._end()  # cut
                    return
        except StopIteration:
            self._over = True
        except ReplayUnavailable:
            self._end()
            self._lost(self._queue)

    def _new_ones(self) -> Missed:
        while self._later:
            yield self._later.popleft()

    def _end(self) -> None:
        """Nothing is handed on any more."""
        self._over = True
        self._next = None
        self._later.clear()
        self._all = iter(())
