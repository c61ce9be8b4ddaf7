"""Nodes that read one log, each at its own pace, and clients that come and go: who serves whom, and what each one got.

Each node has a `Sessions` and a `Tail` of its own and does with the news of the table what `recovery` does, without a
loop. What a client shall have got is worked out from the log and from when it was in which room.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from roomcast.core.broker import Subject
from roomcast.core.errors import ReplayUnavailable
from roomcast.core.messages import Emit, Keep, Lost, Message, Packet, Part, Refuse, Resume, Seize, Stay
from roomcast.core.rooms import Client
from roomcast.core.served import Served
from roomcast.core.sessions import Asked, Denied, Ended, Granted, News, Session, Sessions, owed
from roomcast.core.tail import Tail

WINDOW = 100.0
ALL = Subject("t.all")
EPOCH = "e"

picks = st.integers(0, 2)
people = st.integers(0, 1)
rooms = st.sampled_from(["red", "blue"])


@dataclass(eq=False)
class Person:
    """A client.

    Attributes:
        node: where its connection is; `alive` while that carries something.
        asking: the node that it waits for.
        history: when it was in which room, as the log has it.
        got: what it got since it has this sid.
    """

    name: str
    sid: str = ""
    pid: str = ""
    node: "Model | None" = None
    alive: bool = False
    asking: "Model | None" = None
    place: int | None = None
    born: int = 0
    history: list[Stay] = field(default_factory=list[Stay])
    got: list[int] = field(default_factory=list[int])


@dataclass(eq=False)
class Model:
    """A node.

    Attributes:
        at: how far it has read.
        whole: it has read the log from its beginning.
    """

    name: str
    at: int
    whole: bool
    table: Sessions
    tail: Tail
    served: dict[str, tuple[Served, Person]] = field(default_factory=dict[str, tuple[Served, Person]])
    asked: dict[int, Person] = field(default_factory=dict[int, Person])


def is_meant(emit: Emit, number: int, sid: str, history: Iterable[Stay]) -> bool:
    """Whether an event is for a client, worked out from its whole history."""
    was_in = {sid, *(s.room for s in history if s.joined < number and (s.left is None or s.left >= number))}
    return (not emit.rooms or bool(was_in & set(emit.rooms))) and not was_in & set(emit.excluded)


class Cluster(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[str, float, Message]] = []
        self.now = 0.0
        self.count = 0
        self.people = [Person("ann"), Person("bob")]
        self.owners: dict[tuple[str, int], str] = {}
        self.restored = 0
        self.ended: set[str] = set()
        self.partial: set[str] = set()
        self.say("nobody", Part("nothing", 0))
        self.truth = self.new(0)
        self.nodes: list[Model] = []

    @initialize()
    def begin(self) -> None:
        self.nodes = [self.new(0) for _ in range(3)]
        for who, person in enumerate(self.people):
            self.fresh(self.nodes[who], person)
        self.join(0, "red")
        self.read_all()

    def new(self, start: int) -> Model:
        """A node that has read the log from some entry on, as one does as it starts."""
        self.count += 1
        tail = Tail(seconds=1e9, size=1 << 30)
        node = Model(f"n{self.count}", start, start == 0, Sessions(window=WINDOW, limit=100), tail)
        self.read(node, len(self.log))
        return node

    def say(self, origin: str, message: Message) -> None:
        self.log.append((origin, self.now, message))

    # What a node does

    def read(self, node: Model, upto: int) -> None:
        for origin, sent, message in self.log[node.at : upto]:
            node.at += 1
            node.tail.mark(EPOCH, node.at)
            if isinstance(message, Emit):
                node.tail.add(ALL, message, 0.0)
                self.hand_on(node, message)
            else:
                before = self.not_theirs(node.table, origin, message)
                news = self.take_in(node.table, origin, sent, message)
                if before is not None and (after := self.state(node.table, before[0])) != before:
                    assert after is None, f"{origin} is not its owner"
                    assert isinstance(message, Keep), "it was taken from an owner that had more to say of it (rule 4)"
                self.act(node, news)
            if isinstance(message, Keep):
                self.compare(node, message.pid)
            if isinstance(message, Lost) and message.node == node.name:
                for served, _ in node.served.values():
                    self.keep(node, served)

    @staticmethod
    def state(table: Sessions, pid: str) -> tuple[str, str, int, float | None] | None:
        session = table.get(pid)
        return None if session is None else (pid, session.owner, session.term, session.parted)

    def not_theirs(self, table: Sessions, origin: str, message: Message) -> tuple[str, str, int, float | None] | None:
        """The state of a session of which somebody speaks whose word does not count (rule 1)."""
        if not isinstance(message, (Keep, Part)) or (state := self.state(table, message.pid)) is None:
            return None
        _, owner, term, parted = state
        theirs = (message.term, origin) == (term, owner)
        theirs |= message.term > term if isinstance(message, Keep) else parted is not None or message.sent_away
        return None if theirs else state

    @staticmethod
    def take_in(table: Sessions, origin: str, sent: float, message: Message) -> Iterable[News]:
        match message:
            case Keep():
                return table.keep(origin, message)
            case Part():
                return table.part(origin, message, sent)
            case Resume():
                return table.resume(origin, message, sent)
            case Refuse():
                return table.refuse(origin, message)
            case Seize():
                return table.seize(origin, message, sent)
            case Lost():
                return table.lost(message.node, sent)
            case _:
                raise AssertionError(message)

    def hand_on(self, node: Model, emit: Emit) -> None:
        for served, person in node.served.values():
            stays = served.describe("", 0).stays
            if is_meant(emit, node.at, person.sid, [stay for stay in stays if stay.left is None]):
                served.last = node.at
                if person.node is node and person.alive:
                    person.got.append(node.at)
                    person.place = node.at

    def act(self, node: Model, news: Iterable[News]) -> None:
        for one in news:
            if isinstance(one, Granted):
                pid, term = one.session.keep.pid, one.session.term
                assert self.owners.setdefault((pid, term), one.node) == one.node, "one owner, the same for all"
                self.compare(node, pid)
            match one:
                case Granted() if one.node == node.name:
                    self.granted(node, one)
                case Denied() if one.node == node.name:
                    denied = node.asked.pop(one.request)
                    if denied.asking is node:
                        self.fresh(node, denied)
                case Asked() if one.session.owner == node.name:
                    self.asked(node, one.session)
                case Ended() if one.session.owner == node.name:
                    _, person = node.served.pop(one.session.keep.pid, (None, None))
                    if person is not None and person.node is node:
                        person.node, person.alive = None, False
                    self.say(node.name, Part(one.session.keep.pid, one.session.term, over=True))
                case _:
                    pass

    def asked(self, node: Model, session: Session) -> None:
        served, person = node.served.get(session.keep.pid, (None, None))
        if served is None or person is None:
            self.say(node.name, Part(session.keep.pid, session.term, over=True))
        elif person.node is node and person.alive:
            self.say(node.name, Refuse(served.pid, served.term))
        else:
            self.part(node, served, over=False)

    def compare(self, node: Model, pid: str) -> None:
        """A session may have another owner by now."""
        session, (served, person) = node.table.get(pid), node.served.get(pid, (None, None))
        if session is not None and served is not None and person is not None and served.term < session.term:
            del node.served[pid]
            if person.node is node:
                person.node, person.alive = None, False

    def granted(self, node: Model, granted: Granted) -> None:
        person, session = node.asked.pop(granted.request), granted.session
        keep = session.keep
        if person.asking is not node or person.pid != keep.pid:  # it has gone again, or has another session by now
            self.say(node.name, Part(keep.pid, session.term))
            return
        try:
            start = session.start(None if person.place is None else (EPOCH, person.place))
            is_owed = owed(start, keep.sid, "/", keep.stays)
            kept = [one.number for one in node.tail.since(start, [ALL]) if is_owed(one)]
        except ReplayUnavailable:
            assert not node.whole, "all of the log is held"
            self.say(node.name, Part(keep.pid, session.term, over=True))
            self.fresh(node, person)
            return
        served = Served.resumed(keep, session.term, Client(keep.sid, ""))
        self.keep(node, served)
        served.replayed((kept or [person.place or 0])[-1])
        node.served[keep.pid] = (served, person)
        person.node, person.alive, person.asking = node, True, None
        person.got += kept
        person.place = person.got[-1] if person.got else None
        self.keep(node, served)
        self.restored += 1
        assert keep.sid == person.sid

    def keep(self, node: Model, served: Served) -> None:
        self.say(node.name, served.describe(EPOCH, node.tail.latest))

    def part(self, node: Model, served: Served, *, over: bool) -> None:
        self.keep(node, served)
        del node.served[served.pid]
        self.say(node.name, Part(served.pid, served.term, over, served.number))

    def fresh(self, node: Model, person: Person) -> None:
        self.count += 1
        person.sid, person.pid = f"sid{self.count}", f"pid{self.count}"
        person.node, person.alive, person.asking = node, True, None
        person.place, person.born, person.history, person.got = None, node.at, [], []
        served = Served(person.pid, Client(person.sid, ""), "/", born=node.tail.latest, identity="")
        node.served[person.pid] = (served, person)
        self.keep(node, served)

    def mine(self, person: Person) -> tuple[Model, Served] | None:
        """The node that takes itself for the one that serves a client, when that is still so in the log."""
        self.read(self.truth, len(self.log))
        session = self.truth.table.get(person.pid)
        for node in self.nodes:
            served, _ = node.served.get(person.pid, (None, None))
            if (
                served is not None
                and session is not None
                and session.parted is None
                and (session.owner, session.term) == (node.name, served.term)
            ):
                return node, served
        return None

    # What happens

    @rule(pick=picks, entries=st.integers(1, 6))
    def read_on(self, pick: int, entries: int) -> None:
        node = self.nodes[pick]
        self.read(node, min(len(self.log), node.at + entries))

    @rule()
    def read_all(self) -> None:
        for node in self.nodes:
            self.read(node, len(self.log))

    @rule(
        pick=picks,
        to=st.sampled_from([(), ("red",), ("blue",), ("red", "blue"), ("ann",), ("bob",)]),
        skip=st.sampled_from([(), ("blue",), ("ann",)]),
    )
    def emit(self, pick: int, to: tuple[str, ...], skip: tuple[str, ...]) -> None:
        sids = {person.name: person.sid or person.name for person in self.people}
        to, skip = (tuple(sids.get(one, one) for one in named) for named in (to, skip))
        self.say(self.nodes[pick].name, Emit("/", to, Packet("json", "x"), skip))

    @rule(who=people, room=rooms)
    def join(self, who: int, room: str) -> None:
        person = self.people[who]
        if (mine := self.mine(person)) is not None and all(
            s.room != room or s.left is not None for s in person.history
        ):
            node, served = mine
            served.entered(room, node.tail.latest)
            person.history.append(Stay(room, node.at))
            self.keep(node, served)

    @rule(who=people, room=rooms)
    def join_late(self, who: int, room: str) -> None:
        """A node that does not know yet that a session was taken from it puts its client into a room, and says so."""
        self.read(self.truth, len(self.log))
        session = self.truth.table.get(self.people[who].pid)
        if session is None or session.parted is not None:
            return
        for node in self.nodes:
            served, _ = node.served.get(self.people[who].pid, (None, None))
            if served is not None and served.term == session.term - 1:
                served.entered(f"{room} {node.at}", node.tail.latest)
                self.keep(node, served)
                self.partial.add(served.pid)
                return

    @rule(who=people, room=rooms)
    def leave(self, who: int, room: str) -> None:
        person = self.people[who]
        if (mine := self.mine(person)) is not None:
            node, served = mine
            served.exited(room, node.tail.latest)
            person.history = [
                Stay(s.room, s.joined, node.at) if s.room == room and s.left is None else s for s in person.history
            ]
            self.keep(node, served)

    @rule(who=people, noticed=st.booleans())
    def lose_connection(self, who: int, noticed: bool) -> None:
        person = self.people[who]
        person.alive = False
        if noticed:
            self.notice(who)

    @rule(who=people)
    def notice(self, who: int) -> None:
        """A node finds out that a connection is gone."""
        person = self.people[who]
        if person.node is not None and not person.alive:
            served, _ = person.node.served.get(person.pid, (None, None))
            if served is not None:
                self.part(person.node, served, over=False)
            person.node = None

    @precondition(lambda self: len(self.log) > 15)
    @rule(who=people)
    def quit(self, who: int) -> None:
        person = self.people[who]
        if person.alive and person.node is not None:
            person.alive = False
            self.part(person.node, person.node.served[person.pid][0], over=True)
            person.node = None

    @rule(who=people, pick=picks, at_once=st.booleans())
    def come_back(self, who: int, pick: int, at_once: bool) -> None:
        """To one node; and, before that has answered, perhaps to another."""
        person, node = self.people[who], self.nodes[pick]
        if at_once:
            self.read(node, len(self.log))
        if person.alive:
            return
        if not person.pid or node.table.get(person.pid) is None:
            self.fresh(node, person)
            return
        self.count += 1
        person.asking = node
        node.asked[self.count] = person
        self.say(node.name, Resume(self.count, person.pid))

    @rule(who=people, room=rooms, pick=picks, noticed=st.booleans(), leaves=st.booleans())
    def be_away(self, who: int, room: str, pick: int, noticed: bool, leaves: bool) -> None:
        """What happens most of the time."""
        self.emit(pick, ("red", "blue"), ())
        self.read_all()
        self.lose_connection(who, noticed)
        self.emit(pick, (room,), ())
        if leaves:
            self.read_all()
            self.leave(who, room)
        self.emit(pick, (), ("ann",))
        self.come_back(who, pick, at_once=True)
        self.read_all()

    @rule(who=people, room=rooms, pick=picks)
    def be_moved_while_away(self, who: int, room: str, pick: int) -> None:
        """It comes into a room, or leaves it, before its node finds out that its connection is gone."""
        self.read_all()
        self.lose_connection(who, noticed=False)
        self.emit(pick, (), ())
        self.emit(pick, (room,), ())
        self.read_all()
        is_in = any(stay.room == room and stay.left is None for stay in self.people[who].history)
        (self.leave if is_in else self.join)(who, room)
        self.emit(pick, (room,), ())
        self.come_back(who, pick, at_once=True)
        self.read_all()

    @rule(who=people, room=rooms, pick=picks)
    def be_taken_from_a_node_that_is_behind(self, who: int, room: str, pick: int) -> None:
        """It is seized, and its node does something to it before it has read that."""
        self.read_all()
        self.lose_connection(who, noticed=False)
        self.come_back(who, pick, at_once=True)
        for _ in range(2):
            self.lose_patience(who)
            self.read(self.nodes[pick], len(self.log))
        self.join_late(who, room)
        self.read_all()

    @rule(who=people)
    def lose_patience(self, who: int) -> None:
        person = self.people[who]
        if person.asking is not None and (session := person.asking.table.get(person.pid)) is not None:
            self.say(person.asking.name, Seize(person.pid, session.term))

    @rule(who=people, pick=picks)
    def send_away(self, who: int, pick: int) -> None:
        """The application ends the session of a client that is away, as far as a node has read."""
        node, pid = self.nodes[pick], self.people[who].pid
        if (session := node.table.get(pid)) is not None and session.parted is not None:
            self.say(node.name, Part(pid, session.term, over=True, sent_away=True))
            self.ended.add(pid)

    @precondition(lambda self: len(self.log) > 15)
    @rule(pick=picks, other=picks)
    def take_for_lost(self, pick: int, other: int) -> None:
        """Rightly or wrongly."""
        self.say(self.nodes[pick].name, Lost(self.nodes[other].name))

    @precondition(lambda self: len(self.log) > 20)
    @rule(pick=picks, partly=st.booleans())
    def crash(self, pick: int, partly: bool) -> None:
        """A node dies; another one starts, which reads the log, or the part since when everything was last said."""
        gone = self.nodes[pick]
        for person in self.people:
            if person.node is gone or person.asking is gone:
                person.node = person.asking = None
                person.alive = False
        self.say("x", Lost(gone.name))
        start = 0
        if partly:
            others = [node for node in self.nodes if node is not gone]
            while any(node.at < len(self.log) for node in others):
                for node in others:
                    self.read(node, len(self.log))
            start = len(self.log)
            for node in others:
                for served, _ in node.served.values():
                    self.keep(node, served)
        self.say("x", Part("nothing", 0))  # it admits nobody before it knows where in the log it is
        self.nodes[pick] = self.new(start)

    @precondition(lambda self: len(self.log) > 30)
    @rule(seconds=st.sampled_from([10.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    # What holds

    @invariant()
    def a_client_has_got_what_was_for_it_once_and_in_order(self) -> None:
        for person in self.people:
            if person.alive and person.node is not None:
                due = [
                    number
                    for number, (_, _, message) in enumerate(self.log[: person.node.at], 1)
                    if number > person.born
                    and isinstance(message, Emit)
                    and is_meant(message, number, person.sid, person.history)
                ]
                assert person.got == due, f"{person.name} has got {person.got}, not {due}"

    @invariant()
    def nodes_that_have_read_the_same_know_the_same(self) -> None:
        seen: dict[int, object] = {}
        for node in self.nodes:
            if node.whole:
                known = {
                    pid: (one.owner, one.term, one.parted, tuple(one.waiting), one.keep, dict(one.marks))
                    for person in self.people
                    if (one := node.table.get(pid := person.pid)) is not None
                }
                assert seen.setdefault(node.at, known) == known

    def teardown(self) -> None:
        """Nobody stays who was sent away, not even as it comes back; and nobody goes on with a part of a session."""
        while any(node.at < len(self.log) for node in (*self.nodes, self.truth)):
            self.read_all()
            self.read(self.truth, len(self.log))
        assert all(self.truth.table.get(pid) is None for pid in self.ended), "sent away"
        assert all(self.truth.table.get(pid) is None for pid in self.partial), "a part"
