"""Presence without a network: nodes that tell who is in a room, one that watches, and all that gets lost between."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from roomcast.core.messages import Members, Watch
from roomcast.core.subjects import Room
from roomcast.core.telling import Telling
from roomcast.core.watching import Change, Mirror, View

NODES = ("a", "b")
PLACE = ("/", "room")
EVERYTHING = 1000
PATIENCE = 10.0

nodes = st.sampled_from(NODES)
places = st.integers(0, 3)


def joined(sid: str) -> Change:
    return Change("joined", sid, sid[0])


def left(sid: str) -> Change:
    return Change("left", sid, sid[0])


class Teller:
    """A node that is watched, its clients, and what is on the way between it and the node that watches.

    Attributes:
        members: who is in the room.
        up: messages to the watching node, each with who was in the room when the last one of its flush was sent.
        down: messages to this node.
        renewed: when its watch was last renewed; None when it is forgotten.
    """

    def __init__(self, make: Callable[[Callable[[str, Room | None], Iterable[str]]], Telling]) -> None:
        self.members: dict[str, None] = {}
        self.telling = make(lambda _namespace, _room: tuple(self.members))
        self.up: deque[tuple[Members, set[str] | None]] = deque()
        self.down: deque[Watch] = deque()
        self.renewed: float | None = None

    def flush(self, possible: int, page: int) -> None:
        """Tell what is due in pages, but no more than so many of them."""
        sent: list[Members] = []

        def send(origin: str, message: Members) -> bool:
            assert origin == "watcher"
            assert len(message.joined) + len(message.left) <= page
            if len(sent) == possible:
                return False
            sent.append(message)
            return True

        before = self.telling.due
        self.telling.tell(send, page)
        assert not self.telling.due
        assert before or not sent
        if possible < EVERYTHING and not (sent and sent[0].whole):
            self.up.extend((message, None) for message in sent)
        elif sent:  # the changes are true at the last of them, a whole set that is sure at any of its pages
            now = set(self.members)
            self.up.extend((message, now if sent[0].whole else None) for message in sent[:-1])
            self.up.append((sent[-1], now))


class PresenceMachine(RuleBasedStateMachine):
    """Clients that come and go, messages that are lost in silence, nodes that take each other for lost."""

    make_telling: ClassVar[type[Telling]] = Telling
    make_mirror: ClassVar[type[Mirror]] = Mirror
    make_view: ClassVar[type[View]] = View

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.mirror = self.make_mirror()
        self.tellers = {node: Teller(lambda members: self.make_telling(members, patience=PATIENCE)) for node in NODES}
        self.live: set[str] = set()
        self.views: list[tuple[View, dict[str, str]]] = []
        self.untouched = self.make_view()
        for node in NODES:
            self.node_joins(node)

    # The nodes that are watched

    @rule(node=nodes, number=places)
    def client_enters(self, node: str, number: int) -> None:
        teller = self.tellers[node]
        if f"{node}{number}" not in teller.members:
            teller.members[f"{node}{number}"] = None
            teller.telling.entered(PLACE, f"{node}{number}")
            teller.telling.entered(("/", "another"), f"{node}{number}")

    @precondition(lambda self: any(teller.members for teller in self.tellers.values()))
    @rule(data=st.data())
    def client_exits(self, data: st.DataObject) -> None:
        sid = data.draw(st.sampled_from([sid for teller in self.tellers.values() for sid in teller.members]))
        del self.tellers[sid[0]].members[sid]
        self.tellers[sid[0]].telling.exited(PLACE, sid)

    @rule(node=nodes, possible=st.sampled_from((EVERYTHING, EVERYTHING, 0, 1, 2)), page=st.integers(1, 2))
    def node_tells(self, node: str, possible: int, page: int) -> None:
        self.tellers[node].flush(possible, page)

    @rule(node=nodes, live=st.booleans(), passed=st.sampled_from((1.0, 6.0)))
    def node_beats(self, node: str, live: bool, passed: float) -> None:
        self.now += passed
        teller = self.tellers[node]
        teller.telling.beat(self.now, {"watcher"} if live else set[str]())
        if teller.renewed is not None and not live and self.now - teller.renewed > PATIENCE:
            teller.renewed = None

    @rule(node=nodes)
    def whole_set_is_broken_off(self, node: str) -> None:
        """Its first page arrives, and no more."""
        self.ask(node, again=True)
        while self.tellers[node].down:
            self.hear(node)
        self.tellers[node].flush(1, 1)
        while self.tellers[node].up:
            self.deliver(node)

    @rule(node=nodes, number=places, possible=st.sampled_from((0, EVERYTHING)))
    def last_change_is_lost(self, node: str, number: int, possible: int) -> None:
        """Sent or not; and nothing is sent after it."""
        self.exchange(node)
        self.client_enters(node, number)
        self.tellers[node].flush(possible, 1)
        self.tellers[node].up.clear()

    @precondition(lambda self: any(teller.down for teller in self.tellers.values()))
    @rule(data=st.data())
    def node_is_asked(self, data: st.DataObject) -> None:
        self.hear(data.draw(st.sampled_from([node for node in NODES if self.tellers[node].down])))

    def hear(self, node: str) -> None:
        teller = self.tellers[node]
        assert teller.telling.watch("watcher", teller.down.popleft(), self.now)
        assert teller.telling.due, "telling rule 5"
        teller.renewed = self.now

    # The node that watches

    def node_joins(self, node: str) -> None:
        self.live.add(node)
        self.mirror.expect({node})
        self.ask(node, again=True)

    @rule(node=nodes)
    def node_is_back(self, node: str) -> None:
        if node not in self.live:
            self.node_joins(node)

    @rule(node=nodes)
    def node_leaves(self, node: str) -> None:
        self.live.discard(node)
        gone = {sid for sid, _ in self.mirror if sid[0] == node}
        changes = self.mirror.left(node)
        assert {change.sid for change in changes} == gone, "watching rule 3"
        self.note(changes)

    @rule(node=nodes)
    def watcher_doubts(self, node: str) -> None:
        self.mirror.doubt(node)
        self.ask(node, again=True)

    @rule()
    def watcher_beats(self) -> None:
        for node in self.live:
            self.ask(node, again=node in self.mirror.unsure)

    @precondition(lambda self: any(teller.up for teller in self.tellers.values()))
    @rule(data=st.data())
    def watcher_is_told(self, data: st.DataObject) -> None:
        self.deliver(data.draw(st.sampled_from([node for node in NODES if self.tellers[node].up])))

    def deliver(self, node: str) -> None:
        message, then = self.tellers[node].up.popleft()
        before = {sid for sid, _ in self.mirror if sid[0] == node}
        changes = self.mirror.take(node, message)
        known = {sid for sid, _ in self.mirror if sid[0] == node}
        if node in self.live and node not in self.mirror.unsure:
            assert then is None or known == then, "what is sure was so when it was told"
        else:
            assert known == before, "watching rules 2 and 3"
        self.note(changes)

    @rule(node=nodes, up=st.booleans(), last=st.booleans())
    def message_is_lost(self, node: str, up: bool, last: bool) -> None:
        lost: deque[tuple[Members, set[str] | None]] | deque[Watch] = (
            self.tellers[node].up if up else self.tellers[node].down
        )
        if lost:
            (lost.pop if last else lost.popleft)()

    def ask(self, node: str, *, again: bool) -> None:
        self.tellers[node].down.append(Watch(1, *PLACE, again))

    def note(self, changes: list[Change]) -> None:
        for view, _ in self.views:
            view.note(changes)
        self.untouched.note(changes)

    # Who looks

    @precondition(lambda self: len(self.views) < 2)
    @rule()
    def view_begins(self) -> None:
        self.views.append((self.make_view(self.mirror), dict(self.mirror)))

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def view_gives(self, data: st.DataObject) -> None:
        view, copy = data.draw(st.sampled_from(self.views))
        waiting = len(view)
        if (change := view.next()) is None:
            assert not waiting
        else:
            apply(copy, change)
        assert view.look() == copy, "watching rule 4"

    @rule()
    def everything_settles(self) -> None:
        """Two heartbeats in which nothing is lost: what is known is so, and whoever looks learns it."""
        for _ in range(2):  # what one finds missing is told after the other one
            self.watcher_beats()
            for node in self.live:
                self.node_beats(node, live=True, passed=1.0)
                self.exchange(node)
        truth = {sid: node for node in self.live for sid in self.tellers[node].members}
        assert dict(self.mirror) == truth
        assert not self.mirror.unsure
        for view, copy in self.views:
            while (change := view.next()) is not None:
                apply(copy, change)
            assert copy == truth == view.look()

    def exchange(self, node: str) -> None:
        teller = self.tellers[node]
        while teller.down or teller.up or teller.telling.due:
            while teller.down:
                self.hear(node)
            teller.flush(EVERYTHING, 2)
            while teller.up:
                self.deliver(node)

    @invariant()
    def bounded(self) -> None:
        for teller in self.tellers.values():
            assert len(teller.telling) == (teller.renewed is not None), "telling rule 6"
        for view, copy in self.views:
            assert len(view) <= len(copy) + len(dict(self.mirror)), "watching rule 5"
        assert self.untouched.look() == dict(self.mirror), "watching rule 4: until the first change is asked for"


def apply(copy: dict[str, str], change: Change) -> None:
    """One step; what cannot be one is an error."""
    if change.kind == "joined":
        assert change.sid not in copy
        copy[change.sid] = change.node
    else:
        del copy[change.sid]
