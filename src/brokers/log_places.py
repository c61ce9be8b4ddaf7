"""How far a node has read each stream of a log, and what it has missed: pure, one rule each.

Offsets of one life count 1, 2, 3, so that whatever is not there to be read is seen:

1. The entry after the last one is the next to deliver.
2. One at or below the last was read before: it is passed over.
3. One further on shows a hole: so many entries were trimmed before they were read, `Gap("trimmed", missed=n)`.
4. One of another life: what that hides cannot be counted, `Gap("trimmed")`.
5. A stream that is taken up again in the same life goes on after the last entry that was read. When the entries that
   follow are trimmed already, that is told at once (as in 3).
6. A stream of another life is read from the beginning of that life (as in 4).
7. A stream that is met for the first time is read from its end.
8. A broker may take offsets for itself, which nobody can read. A log is trimmed from its beginning on: when the stream
   still has what was read last, or the next one, there is no hole before the entry that came. Where it does not, the
   broker's own count as entries, so that "missed" is how many at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from roomcast.core.broker import Gap


@dataclass(frozen=True, slots=True)
class Place:
    """A place between two entries of a stream: after the one with this offset.

    Attributes:
        epoch: the life of the stream.
        offset: of the last entry before the place.
        mark: where that is in the broker's own words, when the offset does not say.
    """

    epoch: str
    offset: int
    mark: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """A stream as it was found when a link was made.

    Attributes:
        start: before the first entry that its present life ever had.
        end: after its last entry.
        first: offset of the oldest entry it still has, or that it will have next; None when that was not asked.
        time: the moment of this, in seconds on the broker's clock.
        kept: whether what was read last from it is still where it was, as far as that was looked at.
    """

    start: Place
    end: Place
    first: int | None = None
    time: float = 0.0
    kept: bool = True


class Places:
    """Where this node is in each stream."""

    def __init__(self, streams: int) -> None:
        self._places: list[Place | None] = [None] * streams

    @property
    def marked(self) -> Sequence[Place]:
        """Where the reading of each stream goes on, when it is known of all in the broker's own words; or nothing."""
        places = [place for place in self._places if place is not None and place.mark]
        return places if len(places) == len(self._places) else ()

    def of(self, stream: int) -> Place:
        """Where the reading goes on."""
        place = self._places[stream]
        if place is None:
            raise LookupError(f"stream {stream} was never met")
        return place

    def resume(self, views: Sequence[View]) -> list[Gap]:
        """Take up each stream as it was found (rules 5 to 7); what is missed already."""
        gaps: list[Gap] = []
        for stream, view in enumerate(views):
            place = self._places[stream]
            if place is None:
                self._places[stream] = view.end
            elif place.epoch != view.end.epoch:
                gaps.append(Gap("trimmed"))
                self._places[stream] = view.start
            elif view.first is not None and view.first > place.offset + 1:
                gaps.append(Gap("trimmed", missed=view.first - place.offset - 1))
                self._places[stream] = replace(place, offset=view.first - 1)
        return gaps

    def behind(self, views: Sequence[View]) -> list[int]:
        """The streams that do not have what was read from them: they lost their end, and need a new life.

        One may have grown past that place since.
        """
        return [
            stream
            for stream, view in enumerate(views)
            if (place := self._places[stream]) is not None
            and place.epoch == view.end.epoch
            and (view.end.offset < place.offset or not view.kept)
        ]

    def jumps(self, stream: int, offset: int) -> bool:
        """Whether this is not the next offset of the same life, nor one that was read (rule 8)."""
        return offset > self.of(stream).offset + 1

    def read(self, stream: int, at: Place, first: int | None = None) -> Gap | bool:
        """Take note of an entry: whether it is new, or the gap before it, when there is one (rules 1 to 4, 8).

        Args:
            stream: where it is.
            at: the place behind it.
            first: the oldest offset that the stream had after the entry came, when that was asked.
        """
        place = self.of(stream)
        if place.epoch == at.epoch:
            if at.offset <= place.offset:
                return False
            whole = first is not None and first <= place.offset + 1
            missed = 0 if whole else at.offset - place.offset - 1
        else:
            missed = -1
        self._places[stream] = at
        return Gap("trimmed", missed=missed) if missed > 0 else (Gap("trimmed") if missed else True)

    def move(self, stream: int, mark: str) -> None:
        """Pass over something that is no entry, and has no offset."""
        self._places[stream] = replace(self.of(stream), mark=mark)
