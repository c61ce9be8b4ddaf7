"""What is to be published and is not confirmed yet: in order, bounded, batched.

1. Messages leave in the order they came in. Neighbours on one subject share a batch; a message is never moved
   past one of another subject, for a client may hear both.
2. Queued and unconfirmed messages together take at most `max_messages` and `max_bytes`.
3. A batch that the broker has not confirmed when the link is lost goes back to its place and is sent again.
4. A message older than `max_age` seconds is given up, and so is the oldest one when `evict` makes room during
   an outage. Whatever is given up is handed to the caller, never dropped in silence.

Pure: `now` is a monotonic clock in seconds.
"""

from bisect import insort
from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from roomcast.core.broker import Subject


class Entry(msgspec.Struct, eq=False, gc=False):
    """One message in the outbox, out of the garbage collector's sight: no ring may go through it for good.

    Attributes:
        subject: where it goes.
        message: encoded, ready for an envelope.
        epoch, number: from the publisher's `Numbering`.
        queued: when it came in.
        place: in everything the publisher sends.
        sent: whether it was handed to the broker, so that it may have been delivered although nothing confirms it.
    """

    subject: Subject
    message: bytes
    epoch: int
    number: int
    queued: float
    place: int = 0
    sent: bool = False


class Batch(msgspec.Struct, eq=False, gc=False):
    """Neighbouring messages of one subject, numbered without a hole, that leave as one payload.

    Attributes:
        index: their place among all batches.
        entries: they themselves.
    """

    index: int
    entries: Sequence[Entry]

    @property
    def subject(self) -> Subject:
        """Where the batch goes."""
        return self.entries[0].subject


class Outbox:
    """The outbox of one node.

    Args:
        max_messages, max_bytes: bounds on what is queued or unconfirmed.
        max_age: seconds after which a queued message is given up.
        batch_bytes: largest batch of more than one message.
        window: how many batches may be unconfirmed at once.
    """

    def __init__(
        self,
        *,
        max_messages: int,
        max_bytes: int,
        max_age: float,
        batch_bytes: int = 65_536,
        window: int = 1024,
    ) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._max_age = max_age
        self.batch_bytes = batch_bytes
        self._window = window
        self._queue: deque[Entry] = deque()
        self._returned: list[Batch] = []
        self._flying: dict[int, Batch] = {}
        self._index = 0
        self.messages = 0
        self.bytes = 0

    def __len__(self) -> int:
        """Messages queued or unconfirmed."""
        return self.messages

    @property
    def idle(self) -> bool:
        """Nothing waits to be sent, and nothing to be confirmed."""
        return self.messages == 0

    @property
    def flying(self) -> int:
        """Batches sent and not settled."""
        return len(self._flying)

    def fits(self, size: int) -> bool:
        """Whether a message of `size` bytes finds a place (rule 2). An empty outbox takes any one message."""
        return self.messages == 0 or (self.messages < self._max_messages and self.bytes + size <= self._max_bytes)

    def claim(self, size: int) -> bool:
        """Take a place for a message of `size` bytes if it fits (rule 2); False, and no place, when it does not."""
        messages, size_then = self.messages, self.bytes + size
        if messages and (messages >= self._max_messages or size_then > self._max_bytes):
            return False
        self.messages = messages + 1
        self.bytes = size_then
        return True

    def reserve(self, size: int) -> None:
        """Take a place for a message of `size` bytes, whether it fits or not."""
        self.messages += 1
        self.bytes += size

    def release(self, size: int) -> None:
        """Give a reserved place back, unused."""
        self.messages -= 1
        self.bytes -= size

    def entries(self) -> Iterator[Entry]:
        """All that is queued or unconfirmed."""
        for batch in (*self._flying.values(), *self._returned):
            yield from batch.entries
        yield from self._queue

    def put(self, entry: Entry) -> None:
        """Take in a message, in the place reserved for it."""
        self._queue.append(entry)

    def take(self) -> Batch | None:
        """The next batch to send, oldest first (rules 1 and 3); None when there is none, or the window is full."""
        if len(self._flying) >= self._window:
            return None
        if self._returned:
            batch = self._returned.pop(0)
        elif self._queue:
            self._index += 1
            batch = Batch(self._index, self._neighbours())
        else:
            return None
        self._flying[batch.index] = batch
        return batch

    def confirm(self, batch: Batch) -> None:
        """The broker has the batch, or it is beyond hope: its places are free again."""
        if self._flying.pop(batch.index, None) is not None:
            entries = batch.entries
            self.messages -= len(entries)
            for entry in entries:
                self.bytes -= len(entry.message)

    def give_back(self, batch: Batch) -> None:
        """The batch was not confirmed: it keeps its places and its turn (rule 3)."""
        if self._flying.pop(batch.index, None) is not None:
            insort(self._returned, batch, key=lambda returned: returned.index)

    def expire(self, now: float) -> list[Entry]:
        """Give up what is too old (rule 4)."""
        given_up: list[Entry] = []
        while (oldest := self._oldest()) is not None and now - oldest.queued > self._max_age:
            given_up.extend(self._drop_oldest())
        return given_up

    def evict(self, size: int) -> list[Entry]:
        """Give up the oldest until a message of `size` bytes fits (rule 4)."""
        given_up: list[Entry] = []
        while not self.fits(size) and self._oldest() is not None:
            given_up.extend(self._drop_oldest())
        return given_up

    def clear(self) -> list[Entry]:
        """Give up everything, sent or not."""
        left = list(self.entries())
        self._flying.clear()
        self._returned.clear()
        self._queue.clear()
        self._free(left)
        return left

    def _neighbours(self) -> list[Entry]:
        queue = self._queue
        first = queue.popleft()
        first.sent = True
        entries = [first]
        subject = first.subject
        if not queue or queue[0].subject != subject:
            return entries
        epoch, number = first.epoch, first.number
        room = self.batch_bytes - len(first.message)
        while queue:
            entry = queue[0]
            number += 1
            room -= len(entry.message)
            if entry.number != number or entry.subject != subject or entry.epoch != epoch or room < 0:
                break
            entry.sent = True
            entries.append(entry)
            queue.popleft()
        return entries

    def _oldest(self) -> Entry | None:
        if self._returned:
            return self._returned[0].entries[0]
        return self._queue[0] if self._queue else None

    def _drop_oldest(self) -> Sequence[Entry]:
        dropped = self._returned.pop(0).entries if self._returned else (self._queue.popleft(),)
        self._free(dropped)
        return dropped

    def _free(self, entries: Sequence[Entry]) -> None:
        self.messages -= len(entries)
        for entry in entries:
            self.bytes -= len(entry.message)
