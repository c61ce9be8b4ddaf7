"""Numbers per publisher and subject: the publisher's side that gives them, the receiver's side that reads them.

A number is (epoch, n): n counts 1, 2, 3 within an epoch. A publisher begins a new, higher epoch for a subject
whose count it no longer has, so both sides may forget. The receiver, per origin and subject:

1. The first number ever seen is the baseline: what came before it was sent before anyone here listened.
2. n directly after the last one is in order.
3. A higher n is a hole: the numbers between were lost.
4. An n at or below the last one is a repeat.
5. A higher epoch begins anew, and what it lacks before its first n is a hole; a lower epoch is a repeat.
6. After a pause, in which nobody here listened, a higher number is a new baseline; one at or below the last is still
   a repeat: its publisher had not learnt that it arrived.
7. Each message also has a place in everything its origin sends. One that comes after a later one of its origin has
   been sent again since a link was lost, and handing it on would break the order: it is dropped. To who did not
   listen when it was first sent it was never owed; to who did it is missed.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice

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


_ORIGINS = 16_384  # whose places are remembered


@dataclass(frozen=True, slots=True)
class Reading:
    """What a batch of numbers tells.

    Attributes:
        repeats: how many messages at the head of the batch must not be handed on (rules 4, 5 and 7).
        missed: how many messages are lost: missing before the batch, or too late in it.
    """

    repeats: int = 0
    missed: int = 0


_IN_ORDER = Reading()


_SHIFT = 64  # bits: a number has fewer, so that it and its epoch make one integer, which sorts as the pair does
_NUMBER = (1 << _SHIFT) - 1


class Tracking:
    """The receiver's last numbers, per subject and origin, at most `limit` of them.

    There may be one for each room of the cluster, so each is an integer and nothing else: small, and no work for
    Python's garbage collector.
    """

    def __init__(self, limit: int = 131_072) -> None:
        self._limit = limit
        self._size = 0
        self._heard: dict[str, dict[Subject, int]] = {}  # the last number, with its epoch above it, by origin
        self._paused: dict[str, dict[Subject, int]] = {}  # the same, where nobody here has listened for a while
        self._places: dict[str, int] = {}  # the last one of each origin; who was heard last comes last

    def __len__(self) -> int:
        """How many pairs of subject and origin are remembered."""
        return self._size

    def read(self, subject: Subject, origin: str, epoch: int, first: int, count: int, place: int = 0) -> Reading:
        """Take note of the messages `first` .. `first + count - 1` of an epoch (rules 1 to 7).

        Args:
            subject: where they arrived.
            origin: who sent them.
            epoch: of their numbers.
            first: number of the first.
            count: how many they are.
            place: of the first of them, in everything the origin sends; 0 when order holds within subjects alone.
        """
        reached = self._places.pop(origin, 0)
        late = 0 < place <= reached
        if len(self._places) >= _ORIGINS:
            self._forget({next(iter(self._places))})
        self._places[origin] = max(reached, place + count - 1 if place else 0)
        heard = self._heard.get(origin)
        if heard is not None and not late:
            next_one = (epoch << _SHIFT) + first
            last = heard.get(subject)
            if last == next_one - 1:
                heard[subject] = next_one + count - 1  # in order, as nearly all are (rule 2)
                return _IN_ORDER
            if last is None and self._size < self._limit and subject not in self._paused.get(origin, ()):
                heard[subject] = next_one + count - 1  # the first one, as nearly all others are (rule 1)
                self._size += 1
                return _IN_ORDER
        owed = heard is not None and subject in heard
        reading = self._read(subject, origin, epoch, first, count)
        if late and reading.repeats < count:
            missed = reading.missed + count - reading.repeats if owed else 0
            return Reading(repeats=count, missed=missed)
        return reading

    def _read(self, subject: Subject, origin: str, epoch: int, first: int, count: int) -> Reading:
        heard = self._heard.setdefault(origin, {})
        paused = self._paused.get(origin, {})
        listening = subject in heard
        last = heard.get(subject) or paused.get(subject)
        end = first + count - 1
        if last is None:
            self._make_room()
            self._heard.setdefault(origin, {})[subject] = (epoch << _SHIFT) + end
            self._size += 1
            return _IN_ORDER
        if epoch < last >> _SHIFT:
            return Reading(repeats=count)
        expected = (last & _NUMBER) + 1 if epoch == last >> _SHIFT else 1
        reading = _IN_ORDER
        if first > expected:
            reading = Reading(missed=first - expected) if listening else _IN_ORDER
        elif first < expected:
            reading = Reading(repeats=min(count, expected - first))
        if end >= expected:
            heard[subject] = (epoch << _SHIFT) + end
            paused.pop(subject, None)
        return reading

    def pause(self, subjects: Collection[Subject]) -> None:
        """Nobody here listens to the subjects for now (rule 6); many cost little more than one, with many origins."""
        gone = set(subjects)
        for origin, heard in self._heard.items():
            if left := heard.keys() & gone:
                self._paused.setdefault(origin, {}).update({subject: heard.pop(subject) for subject in left})

    def forget_origin(self, origin: str) -> None:
        """A node is gone for good, and so are its numbers."""
        self._forget({origin})

    def _forget(self, gone: Collection[str]) -> None:
        for origin in gone:
            self._places.pop(origin, None)
            for table in (self._heard, self._paused):
                self._size -= len(table.pop(origin, ()))

    def _make_room(self) -> None:
        """Forget those who were not heard for the longest time."""
        while self._size >= self._limit:
            if len(self._places) > 1:
                self._forget(set(islice(self._places, max(1, len(self._places) // 8))))
            else:
                table = next(filter(None, (*self._paused.values(), *self._heard.values())))
                del table[next(iter(table))]
                self._size -= 1
