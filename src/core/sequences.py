"""Numbers per publisher and subject: the publisher's side that gives them, the receiver's side that reads them.

A number is (epoch, n): n counts 1, 2, 3 within an epoch. A publisher begins a new, higher epoch for a subject
whose count it no longer has, so both sides may forget. The receiver, per origin and subject:

1. The first number ever seen is the baseline: what came before it was sent before anyone here listened.
2. n directly after the last one is in order.
3. A higher n is a hole: the numbers between were lost.
4. An n at or below the last one is a repeat.
5. A higher epoch begins anew, and what it lacks before its first n is a hole; a lower epoch is a repeat.
"""

from dataclasses import dataclass

from roomcast.core.broker import Subject


class Numbering:
    """The publisher's counts, one per subject, at most `limit` of them.

    Args:
        epoch: higher than any this origin used before, such as its start in microseconds since 1970.
        limit: how many subjects to count; beyond it the oldest counts are forgotten.
    """

    def __init__(self, epoch: int, limit: int = 131_072) -> None:
        self._epoch = epoch
        self._limit = limit
        self._counts: dict[Subject, list[int]] = {}

    def next(self, subject: Subject) -> tuple[int, int]:
        """The epoch and number of the next message on a subject."""
        count = self._counts.get(subject)
        if count is None:
            if len(self._counts) >= self._limit:
                for oldest in list(self._counts)[: self._limit // 8 + 1]:
                    del self._counts[oldest]
            self._epoch += 1
            self._counts[subject] = count = [self._epoch, 0]
        count[1] += 1
        return count[0], count[1]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a batch of numbers tells.

    Attributes:
        repeats: how many messages at the head of the batch were received before.
        missed: how many messages are missing before the batch.
    """

    repeats: int = 0
    missed: int = 0


_IN_ORDER = Reading()


class Tracking:
    """The receiver's last numbers, per subject and origin, at most `limit` of them."""

    def __init__(self, limit: int = 131_072) -> None:
        self._limit = limit
        self._size = 0
        self._last: dict[Subject, dict[str, list[int]]] = {}

    def __len__(self) -> int:
        """How many pairs of subject and origin are remembered."""
        return self._size

    def read(self, subject: Subject, origin: str, epoch: int, first: int, count: int) -> Reading:
        """Take note of the messages `first` .. `first + count - 1` of an epoch (rules 1 to 5)."""
        origins = self._last.get(subject)
        last = None if origins is None else origins.get(origin)
        end = first + count - 1
        if last is None:
            self._make_room()
            self._last.setdefault(subject, {})[origin] = [epoch, end]
            self._size += 1
            return _IN_ORDER
        if epoch == last[0]:
            expected = last[1] + 1
            if first == expected:
                last[1] = end
                return _IN_ORDER
            if first > expected:
                last[1] = end
                return Reading(missed=first - expected)
            last[1] = max(last[1], end)
            return Reading(repeats=min(count, expected - first))
        if epoch > last[0]:
            last[0], last[1] = epoch, end
            return Reading(missed=first - 1)
        return Reading(repeats=count)

    def forget(self, subject: Subject) -> None:
        """Nobody here listens to the subject any more."""
        self._size -= len(self._last.pop(subject, ()))

    def forget_origin(self, origin: str) -> None:
        """A node is gone for good, and so are its numbers."""
        for subject, origins in list(self._last.items()):
            if origins.pop(origin, None) is not None:
                self._size -= 1
            if not origins:
                del self._last[subject]

    def _make_room(self) -> None:
        while self._size >= self._limit:
            self.forget(next(iter(self._last)))
