"""Which client claims which key on this node, and the tickets that bring the claims of all nodes into one order.

1. A claim draws a ticket: a clock beyond every ticket that its node has heard of, and its sid. The clock follows the
   time of day, so the lower ticket is the older claim, as far as the clocks of the nodes agree.
2. A claim is entered before anyone is asked, and is under way until it is held or dropped. It asks every node that its
   node knows at that moment, its own among them; a node that leaves is no longer one of those it asks.
3. A node answers a question once none of its own claims of the key with a lower ticket is under way: with those it
   holds, and with those under way that do not ask the node that asks.
4. A claim that is told of a ticket higher than its own draws a new one beyond it, and asks again. So among those that
   come to be held together, the one with the highest ticket was told of all others.
5. When all have answered, a claim is granted if fewer than `limit` are held. Else it is refused, or, with
   "evict_oldest", granted once the oldest ones beyond the limit are evicted.
6. What two halves of a cluster granted apart is too much once they meet: the newest claims are surplus, or, with
   "evict_oldest", the oldest.

Every wait is for a lower ticket, so somebody can always go on.

Pure: `now` is microseconds since 1970; sending, waiting and giving up are the caller's business.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal

import msgspec

Policy = Literal["refuse", "evict_oldest"]

AHEAD = 3_600_000_000
"""Microseconds by which a ticket may be ahead of this node's time: what is further off would spoil every later one."""

_QUESTIONS = 10_000  # that wait to be answered


class Rival(msgspec.Struct, array_like=True, frozen=True):
    """A claim as another one is told of it.

    Attributes:
        clock, sid: its ticket.
        held: whether it is held; else it is under way, and does not ask who is told.
    """

    clock: int
    sid: str
    held: bool = True

    @property
    def order(self) -> tuple[int, str]:
        """The lower one came first."""
        return self.clock, self.sid


@dataclass(slots=True, eq=False)
class Ticket:
    """A claim of a client of this node.

    Attributes:
        key: what is claimed.
        sid, namespace: who claims it.
        limit: how many may hold the key.
        policy: what happens to one too many.
        clock: with the sid, the ticket proper.
        asked: the nodes that are asked.
        homes: which node told of each rival, by its sid: the one that keeps it.
        held: granted; else under way.
    """

    key: str
    sid: str
    namespace: str
    limit: int
    policy: Policy
    clock: int = 0
    asked: set[str] = field(default_factory=set[str])
    homes: dict[str, str] = field(default_factory=dict[str, str])
    held: bool = False

    @property
    def order(self) -> tuple[int, str]:
        """The lower one came first."""
        return self.clock, self.sid


@dataclass(frozen=True, slots=True)
class Question:
    """What are the claims of a key? Asked on behalf of a claim, by its node."""

    origin: str
    request: int
    key: str
    clock: int
    sid: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a claim.

    Attributes:
        outcome: "grant", "refuse", or "again" for a new ticket.
        evict: claims that must be gone before it is granted, the oldest first.
    """

    outcome: Literal["grant", "refuse", "again"]
    evict: tuple[Rival, ...] = ()


class Tickets:
    """The claims of one node.

    Args:
        node: its id.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._clock = 0
        self._keys: dict[str, dict[str, Ticket]] = {}
        self._sids: dict[str, dict[str, Ticket]] = {}
        self._under_way: set[Ticket] = set()
        self._questions: dict[str, dict[tuple[str, str], Question]] = {}
        self._waiting = 0

    def __len__(self) -> int:
        """How many claims there are."""
        return sum(len(tickets) for tickets in self._sids.values())

    def __contains__(self, ticket: Ticket) -> bool:
        return self.find(ticket.key, ticket.sid) is ticket

    @property
    def waiting(self) -> int:
        """Questions that are not answered yet."""
        return self._waiting

    def find(self, key: str, sid: str) -> Ticket | None:
        """The claim of a key by a client."""
        return self._keys.get(key, {}).get(sid)

    def of(self, sid: str) -> list[Ticket]:
        """The claims of a client."""
        return list(self._sids.get(sid, {}).values())

    def held(self) -> list[Ticket]:
        """The claims that are held."""
        return [ticket for tickets in self._sids.values() for ticket in tickets.values() if ticket.held]

    # A claim of this node

    def enter(self, ticket: Ticket, peers: Collection[str], now: int) -> None:
        """A claim is under way (rule 2); it must be the only one of its client for this key."""
        self._keys.setdefault(ticket.key, {})[ticket.sid] = ticket
        self._sids.setdefault(ticket.sid, {})[ticket.key] = ticket
        self._under_way.add(ticket)
        self.draw(ticket, peers, now)

    def draw(self, ticket: Ticket, peers: Collection[str], now: int) -> None:
        """A new ticket for a claim that is under way, which asks these nodes and its own (rules 1 and 2)."""
        self._clock = ticket.clock = max(self._clock + 1, now)
        ticket.asked = {*peers, self._node}

    def judge(self, ticket: Ticket, rivals: Collection[Rival]) -> Verdict:
        """What becomes of a claim once all that it asked have answered (rules 4 and 5)."""
        held = sorted((rival for rival in rivals if rival.held), key=attrgetter("order"))
        surplus = max(0, len(held) - ticket.limit + 1)
        if surplus and ticket.policy == "refuse":
            return Verdict("refuse")
        if any(rival.order > ticket.order for rival in rivals):
            return Verdict("again")
        return Verdict("grant", evict=tuple(held[:surplus]))

    def hold(self, ticket: Ticket) -> None:
        """A claim is granted."""
        ticket.held = True
        self._under_way.discard(ticket)

    def drop(self, ticket: Ticket) -> None:
        """A claim is refused, withdrawn, released or evicted; fine when that has happened."""
        if ticket not in self:
            return
        self._under_way.discard(ticket)
        for table, outer, inner in ((self._keys, ticket.key, ticket.sid), (self._sids, ticket.sid, ticket.key)):
            del table[outer][inner]
            if not table[outer]:
                del table[outer]

    @staticmethod
    def surplus(ticket: Ticket, rivals: Iterable[Rival]) -> list[Rival]:
        """Those of the rivals of a held claim, itself among them, who are too many (rule 6)."""
        oldest_first = sorted((rival for rival in rivals if rival.held), key=attrgetter("order"))
        if ticket.policy == "refuse":
            return oldest_first[ticket.limit :]
        return oldest_first[: max(0, len(oldest_first) - ticket.limit)]

    # What other nodes say

    def hear(self, clock: int, now: int) -> None:
        """Take note of another ticket (rule 1): of each one that asks, and of each one that is told.

        Raises:
            ValueError: it is too far ahead of this node's time.
        """
        if clock > now + AHEAD:
            raise ValueError(f"the clocks of two nodes differ by {(clock - now) / 3.6e9:.1f} hours")
        self._clock = max(self._clock, clock)

    def ask(self, question: Question) -> None:
        """A node asks; `answers` tells what it is told, and when.

        Raises:
            ValueError: too many wait already.
        """
        claim = (question.origin, question.sid)
        if claim not in self._questions.get(question.key, {}):
            if self._waiting >= _QUESTIONS:
                raise ValueError(f"over {_QUESTIONS} claims wait for those before them")
            self._waiting += 1
        self._questions.setdefault(question.key, {})[claim] = question

    def answers(self, key: str) -> list[tuple[Question, list[Rival]]]:
        """The questions about a key that can be answered now, with the answers; to be called after every change."""
        ready = [
            (question, rivals)
            for question in self._questions.get(key, {}).values()
            if (rivals := self._answer(question)) is not None
        ]
        for question, _ in ready:
            self._forget(question)
        return ready

    def left(self, node: str) -> None:
        """A node is gone, and what it asked (rule 2)."""
        for ticket in self._under_way:
            ticket.asked.discard(node)
        for question in [one for waiting in self._questions.values() for one in waiting.values()]:
            if question.origin == node:
                self._forget(question)

    def _answer(self, question: Question) -> list[Rival] | None:
        """What is told (rule 3); None while it is too early."""
        rivals: list[Rival] = []
        for ticket in self._keys.get(question.key, {}).values():
            if ticket.sid == question.sid:
                continue
            if not ticket.held and ticket.order < (question.clock, question.sid):
                return None
            if ticket.held or question.origin not in ticket.asked:
                rivals.append(Rival(*ticket.order, held=ticket.held))
        return rivals

    def _forget(self, question: Question) -> None:
        del self._questions[question.key][question.origin, question.sid]
        self._waiting -= 1
        if not self._questions[question.key]:
            del self._questions[question.key]
