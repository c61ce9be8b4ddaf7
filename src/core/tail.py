"""The last stretch of a log, as one node has read it: what a client missed is found here.

A place is the epoch of the log and a number: offset and index in one, so that places of one epoch compare as numbers.

1. `latest` is the place of the last message that was read, whatever it was: nothing after it has been handed on.
2. `since` gives every packet after a place that is held for some subjects, in the order of the log, or raises
   `ReplayUnavailable`: it never gives a part of what there was.
3. Kept are the last `seconds`, of `size` bytes at most; the oldest gives way.
4. After `cut`, and in a new epoch, nothing before the next message is known.

Pure: `now` is a monotonic clock in seconds.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
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
    """The packets of one subject; the first `gone` of them are forgotten."""

    __slots__ = ("gone", "kept")

    def __init__(self) -> None:
        self.kept: list[Kept] = []
        self.gone = 0


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

    def text_of(self, number: int) -> str:
        """A place of this epoch, as clients keep it."""
        return place_text(self.epoch, number)

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
        self._lines.clear()
        self.bytes = 0
        self._floor = None

    def since(self, number: int, subjects: Iterable[Subject]) -> list[Kept]:
        """The packets on some subjects after a place of this epoch, in order (rule 2).

        Raises:
            ReplayUnavailable: not all of them are held, or the place is not one that was read.
        """
        if number > self.latest:
            raise ReplayUnavailable("The log has not come to this place yet.", reason="epoch_changed")
        if self._floor is None or number < self._floor or number <= UNKNOWN:
            raise ReplayUnavailable("This node no longer holds everything since then.", reason="trimmed")
        found: list[list[Kept]] = []
        for subject in dict.fromkeys(subjects):
            if (line := self._lines.get(subject)) is not None:
                at = bisect_right(line.kept, number, lo=line.gone, key=lambda kept: kept.number)
                if at < len(line.kept):
                    found.append(line.kept[at:])
        if len(found) == 1:
            return found[0]
        return list(merge(*found, key=lambda kept: kept.number))

    def _forget_first(self) -> None:
        kept = self._all.popleft()
        self.bytes -= kept.size
        self._floor = kept.number
        line = self._lines[kept.subject]
        line.gone += 1
        if line.gone == len(line.kept):
            del self._lines[kept.subject]
        elif line.gone >= _SPARE and line.gone * 2 >= len(line.kept):
            del line.kept[: line.gone]
            line.gone = 0
