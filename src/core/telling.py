"""Whom this node tells about its rooms: the watches of other nodes, and what each of them must still hear.

1. A watch is told the whole set when it is new and when it asks for it again.
2. From then on it is told who came and who went. A join and a leave of one client between two messages cancel out.
3. Each message has the version after that of the one before, so that a hole is seen. The whole set may begin anew at
   any time.
4. What could not be sent is made good with the whole set, at the next beat.
5. A watch that is merely renewed is answered, too, with an empty message when nothing has changed: so the loss of the
   last message is seen with the next one.
6. A watch ends when its origin says so or says bye. It outlives an origin that is merely not live by `patience`
   seconds since it was last renewed, so that who was stopped for a while misses nothing.
7. At most `limit` watches are kept; one more is refused.

Pure: `now` is a monotonic clock in seconds.
"""

from collections.abc import Callable, Container, Iterable, Iterator
from itertools import islice

from roomcast.core.messages import Members, Watch
from roomcast.core.subjects import Room

Place = tuple[str, Room | None]
"""A namespace, and a room of it or None for all of it."""


class _Told:
    """One watch of another node."""

    __slots__ = ("answer", "changes", "number", "origin", "place", "renewed", "version", "whole")

    def __init__(self, origin: str, number: int, place: Place, now: float) -> None:
        self.origin = origin
        self.number = number
        self.place = place
        self.renewed = now
        self.version = 0
        self.whole = False  # owed
        self.changes: dict[str, bool] = {}  # owed: sid to whether it came
        self.answer = False  # owed


class Telling:
    """The watches of other nodes on the rooms of this one.

    Args:
        members: the sids that are in a place now.
        patience: see rule 6.
        limit: see rule 7.
    """

    def __init__(
        self, members: Callable[[str, Room | None], Iterable[str]], *, patience: float, limit: int = 100_000
    ) -> None:
        self._members = members
        self._patience = patience
        self._limit = limit
        self._size = 0
        self._by_origin: dict[str, dict[int, _Told]] = {}
        self._by_place: dict[Place, dict[_Told, None]] = {}
        self._due: dict[_Told, None] = {}

    def __len__(self) -> int:
        return self._size

    @property
    def due(self) -> bool:
        """Whether there is something to tell now."""
        return bool(self._due)

    def watch(self, origin: str, watch: Watch, now: float) -> bool:
        """A node watches, or renews its watch (rule 1); False when that is refused (rule 7)."""
        place = watch.namespace, watch.room
        told = self._by_origin.get(origin, {}).get(watch.number)
        if told is not None and told.place != place:
            self.unwatch(origin, watch.number)
            told = None
        if told is None:
            if self._size >= self._limit:
                return False
            told = _Told(origin, watch.number, place, now)
            self._by_origin.setdefault(origin, {})[watch.number] = told
            self._by_place.setdefault(place, {})[told] = None
            self._size += 1
            told.whole = True
        told.whole = told.whole or watch.again
        told.answer = True
        self._due[told] = None
        told.renewed = now
        return True

    def unwatch(self, origin: str, number: int) -> None:
        """A watch is over (rule 6)."""
        told = self._by_origin.get(origin, {}).get(number)
        if told is not None:
            self._drop(told)

    def bye(self, origin: str) -> None:
        """A node is gone for good (rule 6)."""
        for told in tuple(self._by_origin.get(origin, {}).values()):
            self._drop(told)

    def entered(self, place: Place, sid: str) -> None:
        """A client came into a place."""
        self._note(place, sid, came=True)

    def exited(self, place: Place, sid: str) -> None:
        """A client left a place."""
        self._note(place, sid, came=False)

    def beat(self, now: float, live: Container[str]) -> None:
        """A period is over (rules 4 and 6); `live` are the nodes that are there."""
        for origin, watches in tuple(self._by_origin.items()):
            for told in tuple(watches.values()):
                if origin not in live and now - told.renewed > self._patience:
                    self._drop(told)
                elif told.whole:
                    self._due[told] = None

    def tell(self, send: Callable[[str, Members], bool], page: int) -> None:
        """Send what is due.

        Args:
            send: sends a message to a node; False when it cannot (rule 4).
            page: how many sids a message may hold.
        """
        due, self._due = self._due, {}
        for told in due:
            sent = all(send(told.origin, message) for message in self._messages(told, page))
            told.whole = not sent

    def _messages(self, told: _Told, page: int) -> Iterator[Members]:
        """What a watch is owed, in pages; it is owed nothing once the last one is taken."""
        answer, told.answer = told.answer, False
        changes, told.changes = told.changes, {}
        if told.whole:
            pages = list(_pages(self._members(*told.place), page)) or [()]
            for number, sids in enumerate(pages, 1):
                yield self._next(told, joined=sids, whole=number == 1, more=number < len(pages))
        elif changes:
            for sids in _pages(changes, page):
                joined = tuple(sid for sid in sids if changes[sid])
                yield self._next(told, joined=joined, left=tuple(sid for sid in sids if not changes[sid]))
        elif answer:
            yield self._next(told)

    @staticmethod
    def _next(
        told: _Told,
        *,
        joined: tuple[str, ...] = (),
        left: tuple[str, ...] = (),
        whole: bool = False,
        more: bool = False,
    ) -> Members:
        told.version += 1
        return Members(told.number, told.version, joined, left, whole, more)

    def _note(self, place: Place, sid: str, *, came: bool) -> None:
        for told in self._by_place.get(place, ()):
            if told.whole:
                continue  # it will be told what is so then
            if told.changes.pop(sid, came) is came:  # else they cancel out (rule 2)
                told.changes[sid] = came
            self._due[told] = None

    def _drop(self, told: _Told) -> None:
        self._size -= 1
        self._due.pop(told, None)
        watches, watchers = self._by_origin[told.origin], self._by_place[told.place]
        del watches[told.number], watchers[told]
        if not watches:
            del self._by_origin[told.origin]
        if not watchers:
            del self._by_place[told.place]


def _pages(sids: Iterable[str], page: int) -> Iterator[tuple[str, ...]]:
    rest = iter(sids)
    while some := tuple(islice(rest, page)):
        yield some
