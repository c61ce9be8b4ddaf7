"""Claims of one key by clients of many nodes, whatever arrives when, and whoever comes, goes or falls silent."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, get_args

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from roomcast.core.tickets import Policy, Question, Rival, Ticket, Tickets, Verdict

KEY = "user:42"
NODES = 5  # at most, over the whole run

indexes = st.integers(0, 1000)


@dataclass
class Hello:
    """A node introduces itself."""


@dataclass
class Asked:
    """A claim asks."""

    question: Question


@dataclass
class Told:
    """It is answered."""

    request: int
    rivals: list[Rival]


@dataclass
class Evict:
    """It wants another one to be gone."""

    request: int
    rival: Rival


@dataclass
class Evicted:
    """It is gone."""

    request: int


Message = Hello | Asked | Told | Evict | Evicted


@dataclass(eq=False)
class Attempt:
    """A claim, as the code around the tickets carries it out.

    Attributes:
        request: the number of what it waits for now.
        waiting: the nodes that have not responded.
        rivals: what the others told.
        evicting: whether it has been granted but for those who must go first.
        seen: sids of those who held the key at any time since it began.
        check: it is held, and only asks whether it still should be.
    """

    ticket: Ticket
    request: int = 0
    waiting: set[str] = field(default_factory=set[str])
    rivals: list[Rival] = field(default_factory=list[Rival])
    evicting: bool = False
    seen: set[str] = field(default_factory=set[str])
    check: bool = False


class Node:
    """One node: its tickets, who it knows, and its clocks that are wrong."""

    def __init__(self, name: str, tickets: Tickets, skew: int) -> None:
        self.name = name
        self.tickets = tickets
        self.skew = skew
        self.peers: set[str] = set()
        self.attempts: list[Attempt] = []
        self.lost: set[str] = set()
        self.clients = 0


class ClaimsMachine(RuleBasedStateMachine):
    """Messages of any two nodes arrive in order, and at any time; a node knows another one from its hello on.

    The world is parted at most once. While it never was, no moment may have more holders than the limit; parted, no
    side may; and once all have met again and nothing is under way, all of them together.
    """

    make: ClassVar[type[Tickets]] = Tickets

    def __init__(self) -> None:
        super().__init__()
        self.nodes: dict[str, Node] = {}
        self.pipes: dict[tuple[str, str], deque[Message]] = {}
        self.sides: tuple[set[str], set[str]] | None = None
        self.parted = False  # ever
        self.uneasy = False  # parted once, and what is left of it has not been put right
        self.requests = 0
        self.now = 1000
        self.made = 0

    @initialize(
        limit=st.integers(1, 3),
        policy=st.sampled_from(get_args(Policy)),
        skews=st.lists(indexes, min_size=3, max_size=3),
    )
    def begin(self, limit: int, policy: Policy, skews: list[int]) -> None:
        self.limit: int = limit
        self.policy: Policy = policy
        for skew in skews:
            self.add(skew)
        for node in self.nodes.values():
            node.peers = set(self.nodes) - {node.name}

    def add(self, skew: int) -> Node:
        self.made += 1
        name = f"node{self.made}"
        self.nodes[name] = node = Node(name, self.make(name), skew)
        return node

    # Messages

    def send(self, origin: Node, to: str, message: Message) -> None:
        if to in self.nodes and self.hears(origin.name, to):
            self.pipes.setdefault((origin.name, to), deque()).append(message)

    def hears(self, one: str, other: str) -> bool:
        return self.sides is None or any({one, other} <= side for side in self.sides)

    @property
    def under_way(self) -> list[tuple[str, str]]:
        return sorted(pipe for pipe, messages in self.pipes.items() if messages)

    @precondition(lambda self: self.under_way)
    @rule(index=indexes)
    def something_arrives(self, index: int) -> None:
        self.arrive(self.under_way[index % len(self.under_way)])

    @precondition(lambda self: self.under_way)
    @rule(index=indexes)
    def much_arrives_from_one_node(self, index: int) -> None:
        pipe = self.under_way[index % len(self.under_way)]
        while self.pipes.get(pipe):
            self.arrive(pipe)

    @rule(index=indexes)
    def all_to_and_from_a_node_arrives(self, index: int) -> None:
        self.serve(self.pick(index))

    def serve(self, node: Node) -> None:
        while own := [pipe for pipe in self.under_way if node.name in pipe]:
            self.arrive(own[0])

    def arrive(self, pipe: tuple[str, str]) -> None:
        origin, node = pipe[0], self.nodes[pipe[1]]
        match self.pipes[pipe].popleft():
            case Hello():
                self.meet(node, origin)
            case Asked(question):
                assert origin in node.peers, "a hello is older than any question"
                node.tickets.hear(question.clock, self.now + node.skew)
                node.tickets.ask(question)
            case Told(request, rivals):
                for attempt in self.waiting(node, request, origin):
                    attempt.waiting.remove(origin)
                    attempt.rivals += rivals
                    for rival in rivals:
                        node.tickets.hear(rival.clock, self.now + node.skew)
            case Evict(request, rival):
                self.evict_here(node, rival)
                self.send(node, origin, Evicted(request))
            case Evicted(request):
                for attempt in self.waiting(node, request, origin):
                    attempt.waiting.remove(origin)
        self.settle(node)

    @staticmethod
    def waiting(node: Node, request: int, origin: str) -> list[Attempt]:
        return [one for one in node.attempts if one.request == request and origin in one.waiting]

    def meet(self, node: Node, other: str) -> None:
        node.peers.add(other)
        if other in node.lost:
            node.lost.remove(other)
            for ticket in node.tickets.held():
                self.check(node, ticket)

    # What the code around the tickets does

    def settle(self, node: Node) -> None:
        """All that a node does by itself, until nothing more is to be done."""
        busy = True
        while busy:
            busy = False
            for question, rivals in node.tickets.answers(KEY):
                busy = True
                if question.origin != node.name:
                    self.send(node, question.origin, Told(question.request, rivals))
                for attempt in self.waiting(node, question.request, node.name):
                    attempt.waiting.remove(node.name)
                    attempt.rivals += rivals
            for attempt in [one for one in node.attempts if not one.waiting]:
                busy = True
                self.go_on(node, attempt)
        self.watch()

    def watch(self) -> None:
        holders = {ticket.sid for node in self.nodes.values() for ticket in node.tickets.held()}
        for node in self.nodes.values():
            for attempt in node.attempts:
                attempt.seen |= holders - {attempt.ticket.sid}

    def ask(self, node: Node, attempt: Attempt) -> None:
        ticket = attempt.ticket
        self.requests += 1
        attempt.request, attempt.waiting, attempt.rivals = self.requests, set(ticket.asked), []
        question = Question(node.name, attempt.request, KEY, ticket.clock, ticket.sid)
        node.tickets.ask(question)
        for peer in sorted(ticket.asked - {node.name}):
            self.send(node, peer, Asked(question))

    def go_on(self, node: Node, attempt: Attempt) -> None:
        """Everybody has responded."""
        ticket, tickets = attempt.ticket, node.tickets
        if ticket not in tickets:
            node.attempts.remove(attempt)
        elif attempt.check:
            node.attempts.remove(attempt)
            for rival in tickets.surplus(ticket, [*attempt.rivals, Rival(*ticket.order)]):
                self.evict(node, rival, 0)
        elif attempt.evicting:
            self.grant(node, attempt)
        else:
            self.judge(node, attempt, tickets.judge(ticket, attempt.rivals))

    def judge(self, node: Node, attempt: Attempt, verdict: Verdict) -> None:
        if verdict.outcome == "again":
            node.tickets.draw(attempt.ticket, node.peers, self.now + node.skew)
            self.ask(node, attempt)
        elif verdict.outcome == "refuse":
            assert self.policy == "refuse"
            assert self.parted or len(attempt.seen) >= self.limit, "refused although there was a place all the time"
            node.tickets.drop(attempt.ticket)
            node.attempts.remove(attempt)
        else:
            assert self.policy == "evict_oldest" or not verdict.evict
            attempt.evicting = True
            self.requests += 1
            attempt.request = self.requests
            for rival in verdict.evict:
                self.evict(node, rival, attempt.request)
                owner = self.owner(rival)
                if owner in self.nodes and owner in node.peers:
                    attempt.waiting.add(owner)

    def grant(self, node: Node, attempt: Attempt) -> None:
        node.tickets.hold(attempt.ticket)
        self.watch()
        node.attempts.remove(attempt)
        if not node.peers <= attempt.ticket.asked:
            self.check(node, attempt.ticket)

    @staticmethod
    def owner(rival: Rival) -> str:
        return rival.sid.partition(".")[0]

    def evict(self, node: Node, rival: Rival, request: int) -> None:
        if self.owner(rival) == node.name:
            self.evict_here(node, rival)
        else:
            self.send(node, self.owner(rival), Evict(request, rival))

    def evict_here(self, node: Node, rival: Rival) -> None:
        ticket = node.tickets.find(KEY, rival.sid)
        if ticket is not None and ticket.clock == rival.clock:
            node.tickets.drop(ticket)

    def check(self, node: Node, ticket: Ticket) -> None:
        node.attempts = [
            one for one in node.attempts if one.ticket is not ticket
        ]  # the last check is the one that counts
        ticket.asked = {*node.peers, node.name}
        attempt = Attempt(ticket, check=True)
        node.attempts.append(attempt)
        self.ask(node, attempt)

    # What happens to them

    @property
    def names(self) -> list[str]:
        return sorted(self.nodes)

    def pick(self, index: int) -> Node:
        return self.nodes[self.names[index % len(self.names)]]

    @rule(indexes=st.lists(indexes, min_size=1, max_size=4))
    def clients_claim(self, indexes: list[int]) -> None:
        self.now += 1
        for index in indexes:
            self.claim(self.pick(index))

    def claim(self, node: Node) -> None:
        node.clients += 1
        ticket = Ticket(KEY, f"{node.name}.{node.clients}", "/", self.limit, self.policy)
        node.tickets.enter(ticket, node.peers, self.now + node.skew)
        attempt = Attempt(ticket)
        node.attempts.append(attempt)
        self.ask(node, attempt)
        self.watch()
        self.settle(node)

    @rule(index=indexes)
    def client_goes(self, index: int) -> None:
        tickets = [(node, ticket) for node in self.nodes.values() for ticket in self.tickets(node)]
        if tickets:
            node, ticket = tickets[index % len(tickets)]
            node.tickets.drop(ticket)
            self.settle(node)

    @staticmethod
    def tickets(node: Node) -> list[Ticket]:
        return [*node.tickets.held(), *(one.ticket for one in node.attempts if not one.check)]

    @rule(index=indexes)
    def claim_is_given_up(self, index: int) -> None:
        """By a timeout, or its caller."""
        attempts = [(node, one) for node in self.nodes.values() for one in node.attempts if not one.check]
        if attempts:
            node, attempt = attempts[index % len(attempts)]
            node.attempts.remove(attempt)
            node.tickets.drop(attempt.ticket)
            self.settle(node)

    @precondition(lambda self: self.made < NODES and self.sides is None)
    @rule(skew=indexes)
    def node_joins(self, skew: int) -> None:
        self.join(skew)

    def join(self, skew: int) -> Node:
        """A new node knows all others before it asks; they know it once its hello is there."""
        node = self.add(skew)
        node.peers = set(self.nodes) - {node.name}
        for peer in sorted(node.peers):
            self.send(node, peer, Hello())
        return node

    @precondition(lambda self: self.made < NODES and self.sides is None)
    @rule()
    def node_joins_and_is_quick(self) -> None:
        """It claims at once, by a clock that is behind, and whatever it says and hears overtakes what others do."""
        node = self.join(0)
        self.claim(node)
        self.serve(node)

    @precondition(lambda self: len(self.nodes) > 1)
    @rule(index=indexes)
    def node_dies(self, index: int) -> None:
        """What it sent still arrives."""
        dead = self.nodes.pop(self.pick(index).name)
        for pipe in [pipe for pipe in self.pipes if pipe[1] == dead.name]:
            del self.pipes[pipe]
        for pipe in [pipe for pipe in self.under_way if pipe[0] == dead.name]:
            while self.pipes[pipe]:
                self.arrive(pipe)
        for node in self.nodes.values():
            self.leave(node, dead.name)

    def leave(self, node: Node, gone: str) -> None:
        node.peers.discard(gone)
        node.tickets.left(gone)
        for attempt in node.attempts:
            attempt.waiting.discard(gone)
        self.settle(node)

    @precondition(lambda self: not self.parted and len(self.nodes) > 1 and not self.hellos)
    @rule(cut=st.integers(1, NODES))
    def world_parts(self, cut: int) -> None:
        """Nothing passes any more, and each side takes the other one for lost."""
        names = self.names
        self.sides = set(names[:cut]), set(names[cut:])
        self.parted = self.uneasy = True
        for pipe in [pipe for pipe in self.pipes if not self.hears(*pipe)]:
            del self.pipes[pipe]
        for node in self.nodes.values():
            for other in names:
                if not self.hears(node.name, other):
                    node.lost.add(other)
                    self.leave(node, other)

    @property
    def hellos(self) -> bool:
        return any(isinstance(message, Hello) for pipe in self.pipes.values() for message in pipe)

    @precondition(lambda self: self.sides is not None)
    @rule()
    def world_is_whole_again(self) -> None:
        self.sides = None
        for node in self.nodes.values():
            for other in sorted(node.lost & set(self.nodes)):
                self.send(node, other, Hello())

    @rule()
    def everything_arrives(self) -> None:
        while self.under_way:
            for pipe in self.under_way:
                self.arrive(pipe)
        if self.sides is None:
            self.uneasy = False
        assert not any(node.attempts for node in self.nodes.values()), "somebody waits for ever"
        assert not any(node.tickets.waiting for node in self.nodes.values()), "a question is never answered"

    # What must hold

    @invariant()
    def never_more_than_the_limit(self) -> None:
        if self.sides is not None:
            for side in self.sides:
                self.check_limit(side)
        elif not self.uneasy:
            self.check_limit(self.names)

    def check_limit(self, names: Iterable[str]) -> None:
        held = [ticket.sid for name in names if name in self.nodes for ticket in self.nodes[name].tickets.held()]
        assert len(held) <= self.limit, f"{held} hold it together"

    def teardown(self) -> None:
        if self.nodes:
            if self.sides is not None:
                self.world_is_whole_again()
            self.everything_arrives()
            self.never_more_than_the_limit()
