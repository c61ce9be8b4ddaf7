"""The sessions of all clients of a cluster: a table that every node builds from the log alone, equal on all of them.

A session is served by one node, its owner, or free. Its term counts its owners.

1. Only the owner's word counts about a session that it serves, in its term; a later term wins over an earlier one.
2. A session is free once its owner has parted with it, or is lost. It can be resumed within the window since then, and
   the first to ask in the log becomes its owner, in the next term. An owner that names another description than the
   last one here said more than the log has: the session is over, for what it was is not known. Anyone may say of a
   free session that it is over. Who says that its client is sent away means it, even if somebody has resumed the
   session since that was decided: then its owner does so.
3. Who asks for a session that is served waits: its owner is told to test the connection. It then parts with it, and
   the first who waits becomes the owner, who is told the same for the others: a client may have asked twice, because
   its first new connection broke as well. Or it refuses, and nobody waits any more.
4. An owner that does not answer may have its session seized by someone who waits. What it says later, like what an
   owner says that was taken for lost, is of an earlier term. When that describes another session than the one that was
   resumed, the log did not have all of it: the client has come back to a part of its session, which is over.
5. An owner that was taken for lost and is not takes back what nobody has resumed, by saying again what it serves.
6. A session that is over is forgotten; when there may be an owner that does not know that yet, its pid is remembered
   for two windows, so that what that owner says does not make it anew. Forgotten is also a session that has been free
   for two windows here, or served for three without a word about it. At most `limit` are free: one more, and the one
   that has been free for longest is forgotten, counted. At most ten times as many are there in all: one more is not
   taken in.

Pure: `sent` is the clock of the node that speaks, in seconds, as the log keeps it, the same for all; `now` is this
node's own, and only decides what to forget.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from roomcast.core.messages import Keep, Part, Refuse, Resume, Seize, Stay
from roomcast.core.tail import UNKNOWN, Kept

_WAITING = 8  # who may wait for one session
_MARKS = 8  # kept of one session
_SERVED = 10  # sessions in all for one that may be free


class Session:
    """One client's session, as its owner described it last.

    Attributes:
        keep: that description.
        owner: the node that serves it, or served it last.
        term: counts its owners.
        parted: since when it is free; None while it is served.
        heard: when this node heard of it last.
        waiting: who asked for it while it is served: nodes and the numbers of their requests.
        seized: the owner from which it was seized last, in which term, and as what it was described then.
    """

    __slots__ = ("heard", "keep", "marks", "owner", "parted", "seized", "term", "waiting")

    def __init__(self, owner: str, keep: Keep, heard: float) -> None:
        self.owner = owner
        self.term = keep.term
        self.parted: float | None = None
        self.heard = heard
        self.waiting: list[tuple[str, int]] = []
        self.seized: tuple[str, int, Keep] | None = None
        self.keep = keep
        self.marks: dict[int, int] = {}
        """For a client that got this place last: up to where nothing came after it that was for the client."""
        self._mark(keep)

    @property
    def number(self) -> int:
        """Of the last description in this term; 0 when there was none."""
        return self.keep.number if self.keep.term == self.term else 0

    def renew(self, owner: str, keep: Keep, heard: float) -> None:
        """An owner has described it again."""
        if keep.epoch != self.keep.epoch:
            self.marks.clear()
        if self.parted is not None:
            self.seized = None  # it is taken back
        self.owner, self.term, self.parted = owner, keep.term, None
        self.keep, self.heard = keep, heard
        self._mark(keep)

    def start(self, place: tuple[str, int] | None) -> int:
        """From where on a client has missed what was for it; `UNKNOWN` when that cannot be said.

        Args:
            place: the last one that it got; None when it has got none.
        """
        marks, keep = self.marks, self.keep
        epoch, number = (keep.epoch, 0) if place is None else place
        if epoch != keep.epoch:
            return UNKNOWN
        start = marks.get(number, number) if number else UNKNOWN
        if number < keep.born or not number:  # it has got nothing in this session: the place is of one before
            start = max(start, marks.get(0, keep.born))
        return start if start >= keep.floor else UNKNOWN

    def _mark(self, keep: Keep) -> None:
        marks = self.marks
        marks.setdefault(0, keep.born)
        if keep.last == UNKNOWN:
            return
        marks.pop(keep.last, None)
        marks[keep.last] = keep.upto
        if len(marks) > _MARKS:
            del marks[min((place for place in marks if place not in (0, keep.last)), key=self._use)]

    def _use(self, place: int) -> float:
        """How much a mark is worth: one is needed only for a place that nodes hold no more, when they hold its end."""
        upto = self.marks[place]
        return (upto - place) / max(1, self.keep.upto - upto)


@dataclass(frozen=True, slots=True)
class Granted:
    """A node is the owner of a session that it asked for."""

    session: Session
    node: str
    request: int


@dataclass(frozen=True, slots=True)
class Denied:
    """A node does not get the session that it asked for."""

    node: str
    request: int
    why: Literal["unknown", "expired", "refused", "over"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A node waits for a session that its owner serves (rule 3)."""

    session: Session
    node: str
    request: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A session is over, and its owner does not know: ended as it was resumed (rule 2), or not whole (rule 4).

    Attributes:
        whole: else the client has come back to a part of it.
    """

    session: Session
    whole: bool


News = Granted | Denied | Asked | Ended


class Sessions:
    """The table.

    Args:
        window: seconds within which a free session can be resumed (rule 2).
        limit: how many may be free (rule 6).

    Attributes:
        forgotten: how many were forgotten because too many were free.
    """

    def __init__(self, *, window: float, limit: int) -> None:
        self.forgotten = 0
        self._window = window
        self._limit = limit
        self._now = 0.0
        self._all: dict[str, Session] = {}
        self._by_sid: dict[str, Session] = {}
        self._served: dict[str, dict[str, Session]] = {}
        self._over: dict[str, float] = {}  # since when; the oldest comes first
        self._free: dict[str, Session] = {}  # the one that has been free for longest comes first

    def __len__(self) -> int:
        return len(self._all)

    def get(self, pid: str) -> Session | None:
        """The session of a pid."""
        return self._all.get(pid)

    def by_sid(self, sid: str) -> Session | None:
        """The session of a sid."""
        return self._by_sid.get(sid)

    def serves(self, node: str) -> bool:
        """Whether a node serves any session."""
        return bool(self._served.get(node))

    @property
    def free(self) -> int:
        """How many sessions are free."""
        return len(self._free)

    # What the log says, in its order

    def keep(self, origin: str, keep: Keep) -> Sequence[News]:
        """A node describes a session that it serves (rules 1 and 5)."""
        session = self._all.get(keep.pid)
        if session is None:
            if len(self._all) >= _SERVED * self._limit or keep.pid in self._over:
                return ()
            session = self._all[keep.pid] = self._by_sid[keep.sid] = Session(origin, keep, self._now)
            self._served.setdefault(origin, {})[keep.pid] = session
            return ()
        if keep.term < session.term or (keep.term == session.term and origin != session.owner):
            return self._late(session, origin, keep)
        self._free.pop(keep.pid, None)
        self._unserve(session)
        session.renew(origin, keep, self._now)
        self._served.setdefault(origin, {})[keep.pid] = session
        return ()

    def part(self, origin: str, part: Part, sent: float) -> Sequence[News]:
        """An owner parts with a session, or, when nobody serves it, anyone says that it is over (rule 2)."""
        session = self._all.get(part.pid)
        if session is not None and part.over and part.sent_away and part.term <= session.term:
            return self._end(session, whole=True)
        if session is None or part.term != session.term:
            return ()
        over = part.over or part.number != session.number
        if session.parted is not None:
            if part.over:
                self._forget(session, over=session.seized is not None)
            return ()
        if origin != session.owner:
            return ()
        if not over:
            return self._set_free(session, sent)
        self._forget(session, over=session.seized is not None)
        return self._deny(session, "over")

    def resume(self, origin: str, resume: Resume, sent: float) -> Sequence[News]:
        """A node asks for a session (rules 2 and 3)."""
        session = self._all.get(resume.pid)
        if session is None:
            return (Denied(origin, resume.request, "unknown"),)
        if session.parted is not None:
            if sent - session.parted > self._window:
                self._forget(session)
                return (Denied(origin, resume.request, "expired"),)
            return self._grant(session, origin, resume.request)
        if len(session.waiting) >= _WAITING:
            return (Denied(origin, resume.request, "refused"),)
        session.waiting.append((origin, resume.request))
        return (Asked(session, origin, resume.request),)

    def refuse(self, origin: str, refuse: Refuse) -> Sequence[News]:
        """An owner's client is still there (rule 3)."""
        session = self._all.get(refuse.pid)
        if session is None or session.parted is not None or (origin, refuse.term) != (session.owner, session.term):
            return ()
        return self._deny(session, "refused")

    def seize(self, origin: str, seize: Seize, sent: float) -> Sequence[News]:
        """An owner has not answered someone who waits (rule 4)."""
        session = self._all.get(seize.pid)
        if (
            session is None
            or session.parted is not None
            or seize.term != session.term
            or all(node != origin for node, _ in session.waiting)
        ):
            return ()
        return self._set_free(session, sent, seized=True)

    def lost(self, node: str, sent: float) -> Sequence[News]:
        """A node is gone: what it served is free (rule 2), and it waits for nothing."""
        news: list[News] = []
        for sessions in self._served.values():
            for session in sessions.values():
                if session.waiting:
                    session.waiting = [one for one in session.waiting if one[0] != node]
        for session in tuple(self._served.get(node, {}).values()):
            news += self._set_free(session, sent, seized=True)
        return news

    # Forgetting

    def tick(self, now: float) -> None:
        """Forget what is too old (rule 6)."""
        self._now = now
        for session in tuple(self._free.values()):
            if now - session.heard <= 2 * self._window:
                break
            self._forget(session)
        for pid, since in tuple(self._over.items()):
            if now - since <= 2 * self._window:
                break
            del self._over[pid]
        for served in tuple(self._served.values()):
            for session in tuple(served.values()):
                if now - session.heard > 3 * self._window:
                    self._forget(session)

    def clear(self) -> None:
        """Something that the log said was not read: nothing is certain any more."""
        self._all.clear()
        self._by_sid.clear()
        self._over.clear()
        self._served.clear()
        self._free.clear()

    def _set_free(self, session: Session, sent: float, *, seized: bool = False) -> Sequence[News]:
        self._unserve(session)
        if seized:
            session.seized = session.owner, session.term, session.keep
        session.parted, session.heard = sent, self._now
        if session.waiting:
            return self._grant(session, *session.waiting.pop(0))
        self._free[session.keep.pid] = session
        if len(self._free) > self._limit:
            self._forget(next(iter(self._free.values())))
            self.forgotten += 1
        return ()

    def _grant(self, session: Session, node: str, request: int) -> Sequence[News]:
        self._free.pop(session.keep.pid, None)
        session.owner, session.parted, session.heard = node, None, self._now
        session.term += 1
        self._served.setdefault(node, {})[session.keep.pid] = session
        return (Granted(session, node, request), *(Asked(session, *one) for one in session.waiting))

    def _end(self, session: Session, *, whole: bool) -> Sequence[News]:
        """It is over, whoever serves it."""
        self._forget(session, over=True)
        return (Ended(session, whole), *self._deny(session, "over"))

    def _late(self, session: Session, origin: str, keep: Keep) -> Sequence[News]:
        """It is described by an owner that it has no more (rule 4)."""
        if session.seized is None or session.seized[:2] != (origin, keep.term):
            return ()
        was = session.seized[2]
        if (keep.stays, keep.floor, bytes(keep.data)) == (was.stays, was.floor, bytes(was.data)):
            return ()
        return self._end(session, whole=False)

    @staticmethod
    def _deny(session: Session, why: Literal["refused", "over"]) -> list[News]:
        waiting, session.waiting = session.waiting, []
        return [Denied(node, request, why) for node, request in waiting]

    def _unserve(self, session: Session) -> None:
        served = self._served.get(session.owner)
        if served is not None and served.pop(session.keep.pid, None) is not None and not served:
            del self._served[session.owner]

    def _forget(self, session: Session, *, over: bool = False) -> None:
        pid, sid = session.keep.pid, session.keep.sid
        if over:
            self._over[pid] = self._now
            if len(self._over) > self._limit:
                del self._over[next(iter(self._over))]
        self._unserve(session)
        self._free.pop(pid, None)
        self._all.pop(pid, None)
        if self._by_sid.get(sid) is session:
            del self._by_sid[sid]


def owed(start: int, sid: str, namespace: str, stays: Sequence[Stay]) -> Callable[[Kept], bool]:
    """Whether a packet after `start` was for a client which was in these rooms at these times."""
    always = {sid, *(stay.room for stay in stays if stay.joined <= start and stay.left is None)}
    passing = [stay for stay in stays if stay.joined > start or (stay.left is not None and stay.left > start)]

    def is_owed(kept: Kept) -> bool:
        emit = kept.emit
        rooms = always if not passing else {*always, *(stay.room for stay in passing if _was_in(stay, kept.number))}
        is_in = not emit.rooms or not rooms.isdisjoint(emit.rooms)
        return is_in and emit.namespace == namespace and rooms.isdisjoint(emit.excluded)

    return is_owed


def _was_in(stay: Stay, number: int) -> bool:
    return stay.joined < number and (stay.left is None or number <= stay.left)
