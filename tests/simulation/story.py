"""A history, looked up: which client was surely, or possibly, in which room between two places of the history.

Calls overlap, so what a room's members were is not always known. What is known follows from these rules:

1. A client is *possibly* in a room from the call of a join on, until a leave has returned that was called after the
   join had ended; and it is in its namespace, and in the room of its sid, while it is connected.
2. It is *surely* in a room from the return of a join on, until a leave is called; but not at all when a leave was
   under way at the same time as the join.
3. A call that did not end well may still have its effect later, until all is quiet.
4. Of a client that ever lost its connection nothing is sure but its namespace and its sid.
5. Who asks for a client of a node that is taken for lost is told that it is done, and nothing may have happened. Where
   clients come back, the word of any node that takes it for lost is enough.
6. Closing a room is a leave for all its members: done when it returns on the node that closes it (with one order for
   all: unless it has waited for long), and perhaps never elsewhere, since the word of it may be lost.
"""

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeVar

from tests.simulation.history import (
    Away,
    Back,
    Called,
    ClientGone,
    ClientLeaving,
    ClientUp,
    Ended,
    Event,
    Fault,
    Got,
    History,
    Met,
    NodeDown,
    NodeStopping,
    Quiet,
    Seen,
    Watched,
)

E = TypeVar("E", bound=Event)

NEVER = 1 << 60
_PATIENCE = 1.0  # seconds in which a process surely waits until its word has come back from the log
_WORD = 0.5  # seconds after which a word in the log is read, and another one that takes it back


@dataclass(frozen=True, slots=True)
class Life:
    """One client, from place to place: connected, about to go, gone.

    Attributes:
        node: where it was at first.
        homes: where it came back, and when.
        roams: whether its connection was ever lost: then what was done to its rooms just before may be, too.
    """

    name: str
    node: str
    namespace: str
    up: int
    leaving: int
    gone: int
    homes: tuple[tuple[int, str], ...] = ()
    roams: bool = False

    def home(self, place: int) -> str:
        """Its node, at a place."""
        return next((node for since, node in reversed(self.homes) if since <= place), self.node)


@dataclass(frozen=True, slots=True)
class Move:
    """A join or a leave: when it was called, when its effect is there for sure, and when it is over, effect or not."""

    called: int
    done: int
    over: int


def _unless_back(away: int, homes: list[tuple[int, str]]) -> int:
    return NEVER if homes and homes[-1][0] > away else away


class Story:
    """The index of one history."""

    def __init__(self, history: History) -> None:
        self.history = history
        places = range(len(history.events))
        self._by_kind: dict[type[Event], list[tuple[int, Any]]] = defaultdict(list)
        for place, event in zip(places, history.events, strict=True):
            self._by_kind[type(event)].append((place, event))
        self.calls: dict[int, tuple[int, Called]] = {one.call: (place, one) for place, one in self._of(Called)}
        self.ends: dict[int, tuple[int, Ended]] = {one.call: (place, one) for place, one in self._of(Ended)}
        self.got: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for place, got in self._of(Got):
            self.got[got.call][got.client].append(place)
        self.quiets = [place for place, _ in self._of(Quiet)]
        self.calm = not self._of(Fault)
        self.stopping = {one.node: place for place, one in reversed(self._of(NodeStopping))}
        self.down = {one.node: (place, one.how) for place, one in reversed(self._of(NodeDown))}
        leaving = {one.client: place for place, one in reversed(self._of(ClientLeaving))}
        gone = {one.client: place for place, one in reversed(self._of(ClientGone))}
        homes: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for place, back in self._of(Back):
            homes[back.client].append((place, back.node))
        away = {one.client: place for place, one in self._of(Away)}
        self.clients = {
            one.client: Life(
                one.client,
                one.node,
                one.namespace,
                place,
                min(
                    leaving.get(one.client, NEVER),
                    gone.get(one.client, NEVER),
                    self.stopping.get(homes[one.client][-1][1] if homes[one.client] else one.node, NEVER),
                    _unless_back(away.get(one.client, NEVER), homes[one.client]),
                ),
                gone.get(one.client, NEVER),
                tuple(homes[one.client]),
                one.client in away,
            )
            for place, one in self._of(ClientUp)
        }
        self._met: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
        for place, met in self._of(Met):
            self._met[met.node, met.peer].append((place, met.kind))
        self._joins: dict[tuple[str, str], list[Move]] = defaultdict(list)
        self._leaves: dict[tuple[str, str], list[Move]] = defaultdict(list)
        for place, call in self.calls.values():
            self._note_move(place, call)

    def _of(self, kind: type[E]) -> list[tuple[int, E]]:
        return self._by_kind[kind]

    def looks(self, quiet: int) -> list[Seen | Watched]:
        """What was seen when all was quiet."""
        return list(takewhile(lambda event: isinstance(event, (Seen, Watched)), self.history.events[quiet + 1 :]))  # type: ignore[arg-type]

    def _note_move(self, place: int, call: Called) -> None:
        end, outcome = self.end(call.call)
        if call.op in ("enter", "leave") and call.client in self.clients:
            home = self.clients[call.client].node
            well = outcome == "returned" and self._trusts(call.node, home, self.soon_after(end))
            over = end if well else self.next_quiet(min(end, len(self.history.events)))
            moves = self._joins if call.op == "enter" else self._leaves
            if outcome != "failed":
                moves[call.client, call.rooms[0]].append(Move(place, end if well else NEVER, over))
        elif call.op == "close" and outcome != "failed":
            moments = self.history.moments
            at_once = not self.history.total or (end != NEVER and moments[end] - moments[place] < _PATIENCE)
            for life in self.clients.values():
                if life.namespace == call.namespace:
                    here = life.node == call.node and outcome == "returned" and at_once
                    over = end if here else self.next_quiet(min(end, len(self.history.events)))
                    self._leaves[life.name, call.rooms[0]].append(Move(place, end if here else NEVER, over))

    def knows(self, node: str, peer: str, place: int) -> bool:
        """Whether a node knew another one at a place."""
        met = self._met[node, peer]
        index = bisect_left(met, (place, ""))
        return node == peer or (index > 0 and met[index - 1][1] == "joined")

    def _trusts(self, node: str, peer: str, place: int) -> bool:
        """Whether a node knew another one at a place, and had no word from a third that it is lost (rule 5)."""
        witnesses = [one for one, of in self._met if of == peer] if self.history.recovery else []
        lately = bisect_left(self.history.moments, self.history.moments[place - 1] - _WORD)
        return self.knows(node, peer, place) and all(self.kept(one, peer, lately, place) for one in witnesses)

    def kept(self, node: str, peer: str, since: int, until: int) -> bool:
        """Whether a node knew another one all the time between two places."""
        met = self._met[node, peer]
        return self.knows(node, peer, since) and not any(since < place < until for place, _ in met)

    def soon_after(self, place: int) -> int:
        """A place a moment later: several are told of the same thing one after the other."""
        moments = self.history.moments
        return bisect_left(moments, moments[place] + 0.01)

    def end(self, call: int) -> tuple[int, str]:
        """Where a call ended, and how; never, "pending"."""
        place, ended = self.ends.get(call, (NEVER, None))
        return place, "pending" if ended is None else ended.outcome

    def next_quiet(self, place: int) -> int:
        """When all is quiet after a place."""
        index = bisect_left(self.quiets, place)
        return self.quiets[index] if index < len(self.quiets) else NEVER

    def surely(self, life: Life, room: str, since: int, until: int) -> bool:
        """Whether a client was in a room, or ("*") in its namespace, all the time between two places (rule 2)."""
        if not (life.up < since and life.leaving > until):
            return False
        if room in ("*", f"@{life.name}"):
            return True
        if life.roams:
            return False
        leaves = self._leaves.get((life.name, room), ())
        return any(
            join.done < since and not any(leave.over > join.called and leave.called < until for leave in leaves)
            for join in self._joins.get((life.name, room), ())
        )

    def possibly(self, life: Life, room: str, since: int, until: int) -> bool:
        """Whether a client may have been in a room at any time between two places (rule 1)."""
        if life.gone < since:
            return False
        if room in ("*", f"@{life.name}"):
            return True
        leaves = () if life.roams else self._leaves.get((life.name, room), ())
        return any(
            join.called < until and not any(join.over < leave.called and leave.done < since for leave in leaves)
            for join in self._joins.get((life.name, room), ())
        )

    def owed(self, emit: Called, since: int, until: int) -> list[Life]:
        """Who is surely addressed by an emit, whenever in between it arrives."""
        return [
            life
            for life in self.clients.values()
            if self._in_reach(emit, life, since)
            and any(self.surely(life, room, since, until) for room in emit.rooms or ("*",))
            and not any(self.possibly(life, room, since, until) for room in emit.excluded)
        ]

    def may_get(self, emit: Called, life: Life, since: int, until: int) -> bool:
        """Whether a client may be addressed by an emit that arrives some time in between."""
        return (
            self._in_reach(emit, life, since)
            and any(self.possibly(life, room, since, until) for room in emit.rooms or ("*",))
            and not any(self.surely(life, room, since, until) for room in emit.excluded)
        )

    def _in_reach(self, emit: Called, life: Life, place: int) -> bool:
        return emit.namespace == life.namespace and (not emit.local or emit.node == life.home(place))
