"""The last stretch of a log, as one node has read it: what a client missed is found here.

A place is the epoch of the log and a number: offset and index in one, so that places of one epoch compare as numbers.

1. `latest` is the place of the last message that was read, whatever it was: nothing after it has been handed on.
2. `since` gives every packet after a place, up to the latest, that is held for some subjects, in the order of the log;
   or it raises `ReplayUnavailable`. It holds none of them for who takes them one by one: when the next one is forgotten
   before it is taken, that raises, too. What is given is never taken for all when it is a part.
3. Kept are the last `seconds`, of `size` bytes at most; the oldest gives way.
4. After `cut`, and in a new epoch, nothing before the next message is known.

Pure: `now` is a monotonic clock in seconds.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from heapq import merge
from typing import Any

from roomcast.core.broker import Position, Subject
from roomcast.core.errors import ReplayUnavailable
from roomcast.core.messages import Emit

UNKNOWN = -1
"""A number before every place: nothing is known of what came after it."""

_INDEX = 16  # bits; an envelope holds at most 65,536 messages
_MASK = (1 << _INDEX) - 1
_OVERHEAD = 500  # bytes that a packet takes besides its text
_DIGITS = 18
_SPARE = 64  # forgotten heads of a line before it is made anew


def number_of(position: Position, index: int) -> int:
    """The number of a message in what one position of the log holds."""
    return (int(position.offset) << _INDEX) | index


def place_text(epoch: str, number: int) -> str:
    """A place as clients keep it: `epoch.offset.index`."""
    return f"{epoch}.{number >> _INDEX}.{number & _MASK}"


def read_place(text: str) -> tuple[str, int] | None:
    """The epoch and the number in what a client sent as a place; None when it is none."""
    epoch, _, rest = text.rpartition(".")
    epoch, _, offset = epoch.rpartition(".")
    if not (epoch and _is_number(offset) and _is_number(rest)) or int(rest) > _MASK:
        return None
    return epoch, (int(offset) << _INDEX) | int(rest)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS


class Kept:
    """A packet in the tail.

    Attributes:
        number: its place.
        emit: the packet, and whom it is for.
        frame: the fan-out's, once a client was given it.
    """

    __slots__ = ("emit", "frame", "number", "size", "subject", "time")

    def __init__(self, number: int, time: float, size: int, subject: Subject, emit: Emit) -> None:
        self.number = number
        self.time = time
        self.size = size
        self.subject = subject
        self.emit = emit
        self.frame: Any = None


class _Line:
    """The packets of one subject; the first `gone` of them are forgotten, and `base` others that were before these."""

    __slots__ = ("base", "gone", "kept")

    def __init__(self) -> None:
        self.kept: list[Any] = []  # None where one is forgotten
        self.gone = 0
        self.base = 0

    def forget(self) -> None:
        """Forget the first that is held."""
        self.kept[self.gone] = None
        self.gone += 1
        if self.gone >= _SPARE and self.gone * 2 >= len(self.kept):
            self.clear(self.gone)

    def clear(self, count: int) -> None:
        """Let go of so many that are forgotten."""
        del self.kept[:count]
        self.base += count
        self.gone = max(0, self.gone - count)

    def since(self, number: int, upto: int) -> Iterator[Kept]:
        """Those after one number and up to another, as they are when they are taken (rule 2)."""
        return self._walk(self.base + bisect_right(self.kept, number, lo=self.gone, key=lambda kept: kept.number), upto)

    def _walk(self, at: int, upto: int) -> Iterator[Kept]:
        while True:
            if at < self.base + self.gone:
                raise _trimmed()
            if at - self.base >= len(self.kept) or self.kept[at - self.base].number > upto:
                return
            yield self.kept[at - self.base]
            at += 1


def _trimmed() -> ReplayUnavailable:
    return ReplayUnavailable("This node no longer holds everything since then.", reason="trimmed")


class Tail:
    """The last stretch of one log.

    Args:
        seconds, size: see rule 3.

    Attributes:
        epoch: of the log; empty before anything was read.
        latest: see rule 1; `UNKNOWN` before anything was read.
    """

    def __init__(self, *, seconds: float, size: int) -> None:
        self.epoch: str = ""
        self.latest = UNKNOWN
        self.bytes = 0
        self._seconds = seconds
        self._size = size
        self._floor: int | None = None  # everything after it is held; None: that begins with the next message
        self._all: deque[Kept] = deque()
        self._lines: dict[Subject, _Line] = {}

    def __len__(self) -> int:
        return len(self._all)

    @property
    def text(self) -> str:
        """The latest place, as clients keep it."""
        return place_text(self.epoch, self.latest)

    def mark(self, epoch: str, number: int) -> bool:
        """A message was read (rule 1); True when that begins another epoch than before (rule 4)."""
        anew = epoch != self.epoch
        if anew:
            self.cut()
        if self._floor is None:
            self._floor = number - 1
        renewed = anew and bool(self.epoch)
        self.epoch, self.latest = epoch, number
        return renewed

    def add(self, subject: Subject, emit: Emit, now: float) -> None:
        """Keep the packet that stands at the latest place."""
        size = _OVERHEAD + len(emit.packet.text) + sum(map(len, emit.packet.blobs))
        kept = Kept(self.latest, now, size, subject, emit)
        line = self._lines.get(subject)
        if line is None:
            line = self._lines[subject] = _Line()
        line.kept.append(kept)
        self._all.append(kept)
        self.bytes += size
        self.tick(now)

    def tick(self, now: float) -> None:
        """Forget what is too old or too much (rule 3)."""
        kept, oldest = self._all, now - self._seconds
        while kept and (kept[0].time < oldest or self.bytes > self._size):
            self._forget_first()

    def cut(self) -> None:
        """Something was not read (rule 4)."""
        self._all.clear()
        for line in self._lines.values():
            line.clear(len(line.kept))
        self._lines.clear()
        self.bytes = 0
        self._floor = None

    def since(self, number: int, subjects: Iterable[Subject]) -> Iterator[Kept]:
        """The packets on some subjects after a place of this epoch, in order (rule 2).

        Raises:
            ReplayUnavailable: not all of them are held, or the place is not one that was read.
        """
        if number > self.latest:
            raise ReplayUnavailable("The log has not come to this place yet.", reason="epoch_changed")
        if self._floor is None or number < self._floor or number <= UNKNOWN:
            raise _trimmed()
        lines = [self._lines[subject] for subject in dict.fromkeys(subjects) if subject in self._lines]
        found = [line.since(number, self.latest) for line in lines]
        return found[0] if len(found) == 1 else merge(*found, key=lambda kept: kept.number)

    def _forget_first(self) -> None:
        kept = self._all.popleft()
        self.bytes -= kept.size
        self._floor = kept.number
        line = self._lines[kept.subject]
        line.forget()
        if line.gone == len(line.kept):
            del self._lines[kept.subject]
