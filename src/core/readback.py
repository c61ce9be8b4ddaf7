"""Waiting until a node has read its own events back from the log: the shell around `unread`.

With `order="total"` a node's own clients get an event when it comes back. What the node does to them without the log,
such as taking one out of a room, would overtake the events that it published before. So it waits for them first:

1. `caught_up` returns when everything that concerns this node's clients and was published before the call has been
   handed to them, or was given up. When nothing is outstanding, and nobody waits, it does not suspend.
2. Those who wait go on in the order of their calls, and nobody overtakes one who may go on and has not run yet.
3. What was published more than `patience` seconds ago, and has still not come back, is not waited for: who waits goes
   on, and the first time that is logged. So it ends in time while the broker is away.
4. A wait that is cancelled changes nothing for the others.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable

from roomcast.core.outbox import Entry
from roomcast.core.unread import Unread

logger = logging.getLogger("roomcast")


class _Wait:
    """One who waits for a place to come back."""

    __slots__ = ("future", "place")

    def __init__(self, place: int) -> None:
        self.place = place
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Readback:
    """What one node reads back.

    Args:
        patience: see rule 3, in seconds.
        concerns: whether what is sent on a subject may concern this node's clients.
        returns: whether it is certain to come back to this node.
        ask: publishes something of no meaning that comes back for certain; False when that cannot be sent.
    """

    def __init__(
        self,
        patience: float,
        *,
        concerns: Callable[[str], bool],
        returns: Callable[[str], bool],
        ask: Callable[[], bool],
    ) -> None:
        self._unread = Unread()
        self._patience = patience
        self._concerns = concerns
        self._returns = returns
        self._ask = ask
        self._waits: deque[_Wait] = deque()
        self._told = False
        self._closed = False

    def __len__(self) -> int:
        return len(self._waits)

    async def caught_up(self) -> None:
        """Wait for what was published before (rule 1)."""
        outstanding = self._unread.outstanding and not self._closed
        if not outstanding and not self._waits:
            return
        left = self._unread.since + self._patience - time.monotonic()
        if outstanding and not (left > 0 and self._comes_back()):
            outstanding = False
            self._tell()
        if outstanding:
            await self._wait(self._unread.newest, left)
        else:
            await self._wait(0, self._patience)  # only for its turn, which comes before that

    def _comes_back(self) -> bool:
        """Whether the newest message is certain to come back; if need be, another one behind it."""
        if self._unread.certain:
            return True
        since = self._unread.since
        asked = self._ask()
        self._unread.since = since
        return asked

    async def _wait(self, place: int, within: float) -> None:
        wait = _Wait(place)
        self._waits.append(wait)
        if place <= self._unread.read:
            asyncio.get_running_loop().call_soon(self._go_on)  # not now: it would overtake those who may go on
        try:
            async with asyncio.timeout(within):
                await wait.future
        except TimeoutError:
            if wait.future.cancelled():  # else it came in the very turn of the deadline
                self._tell()
        finally:
            self._waits.remove(wait)
            self._go_on()

    def _go_on(self) -> None:
        """Let those go on who need not wait any longer; each stays in line until it has run (rule 2)."""
        for wait in self._waits:
            if wait.place > self._unread.read and not self._closed:
                return
            if not wait.future.done():
                wait.future.set_result(None)

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            logger.warning(
                "roomcast: what this node published has not come back from the log within %s s; its clients are moved "
                "and disconnected without waiting for it, and may miss what was emitted to them before",
                self._patience,
            )

    # What the node publishes and reads

    def put(self, entry: Entry) -> None:
        """A message has taken its place."""
        if self._concerns(entry.subject):
            self._unread.put(entry.place, entry.queued, certain=self._returns(entry.subject))

    def confirmed(self, entry: Entry) -> None:
        """The log has a message."""
        if self._concerns(entry.subject) and self._returns(entry.subject):
            self._unread.confirmed(entry.place)

    def given_up(self, entries: Iterable[Entry], left: Callable[[], Iterable[Entry]]) -> None:
        """Messages were given up, and those left were not."""
        lost = {entry.place for entry in entries}
        if self._unread.newest not in lost and not any(wait.place in lost for wait in self._waits):
            return
        certain = [one.place for one in left() if self._concerns(one.subject) and self._returns(one.subject)]
        self._unread.given_up(lost, certain)
        for wait in self._waits:
            if wait.place in lost:
                wait.place = self._unread.instead_of(wait.place, certain)
        self._go_on()

    def came_back(self, place: int) -> None:
        """A message of this node was handed to its clients, and all before it."""
        self._unread.came_back(place)
        self._told = False
        if self._waits:
            self._go_on()

    def close(self) -> None:
        """Nothing comes back any more: nobody waits."""
        self._closed = True
        self._go_on()
