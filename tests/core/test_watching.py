"""Presence without a network: nodes that tell who is in a room, one that watches, and all that gets lost between."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from roomcast.core.messages import Members, Watch
from roomcast.core.subjects import Room
from roomcast.core.telling import Telling
from roomcast.core.watching import Change, Mirror, View
from tests.core.effort import hunt, run

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


def test_whatever_is_lost_whoever_looks_learns_who_is_there() -> None:
    run(PresenceMachine, 200)


# What is told: rule by rule


def clients(*sids: str) -> Callable[[str, Room | None], Iterable[str]]:
    """They are in every room."""

    def members(_namespace: str, _room: Room | None) -> Iterable[str]:
        return sids

    return members


class Log:
    """Who was told what."""

    def __init__(self) -> None:
        self.sent: list[Members] = []
        self.works = True

    def __call__(self, _origin: str, message: Members) -> bool:
        if self.works:
            self.sent.append(message)
        return self.works

    def taken(self) -> list[Members]:
        taken, self.sent = self.sent, []
        return taken


def test_rule_1_the_whole_set_is_told_when_a_watch_is_new_or_asks_again() -> None:
    """ "A watch is told the whole set when it is new and when it asks for it again." """
    log = Log()
    telling = Telling(clients("1", "2", "3"), patience=PATIENCE)
    telling.watch("w", Watch(7, *PLACE), 0.0)
    telling.tell(log, 2)
    whole = [Members(7, 1, ("1", "2"), whole=True, more=True), Members(7, 2, ("3",))]
    assert log.taken() == whole
    telling.watch("w", Watch(7, *PLACE, again=True), 2.0)
    telling.tell(log, 10)
    assert log.taken() == [Members(7, 3, ("1", "2", "3"), whole=True)]


def test_rule_1_an_empty_set_is_told_as_well() -> None:
    log = Log()
    telling = Telling(clients(), patience=PATIENCE)
    telling.watch("w", Watch(7, *PLACE), 0.0)
    telling.tell(log, 2)
    assert log.taken() == [Members(7, 1, whole=True)]


def test_rule_1_a_number_that_names_another_room_now_is_a_new_watch() -> None:
    log = Log()
    telling = Telling(lambda _namespace, room: [str(room)], patience=PATIENCE)
    telling.watch("w", Watch(7, "/", "one"), 0.0)
    telling.tell(log, 2)
    telling.watch("w", Watch(7, "/", "two"), 0.0)
    telling.tell(log, 2)
    assert [message.joined for message in log.taken()] == [("one",), ("two",)]
    telling.entered(("/", "one"), "x")
    assert not telling.due
    assert len(telling) == 1


def test_rule_2_a_join_and_a_leave_between_two_messages_cancel_out() -> None:
    """ "A join and a leave of one client between two messages cancel out." """
    log, telling = watched()
    telling.entered(PLACE, "x")
    telling.exited(PLACE, "x")
    telling.exited(PLACE, "y")
    telling.entered(PLACE, "y")
    telling.tell(log, 10)
    assert log.taken() == []
    telling.exited(PLACE, "y")
    telling.entered(PLACE, "z")
    telling.tell(log, 10)
    assert log.taken() == [Members(7, 2, ("z",), ("y",))]


def test_rule_4_what_could_not_be_sent_is_made_good_at_the_next_beat() -> None:
    """ "What could not be sent is made good with the whole set, at the next beat." """
    log, telling = watched()
    log.works = False
    telling.entered(PLACE, "x")
    telling.tell(log, 10)
    log.works = True
    telling.exited(PLACE, "x")
    assert not telling.due, "not before the beat"
    telling.beat(1.0, {"w"})
    telling.tell(log, 10)
    assert [(message.whole, message.joined) for message in log.taken()] == [(True, ("y",))]


def test_rule_5_a_renewal_is_answered_with_an_empty_message_when_nothing_has_changed() -> None:
    """ "A watch that is merely renewed is answered, too, with an empty message when nothing has changed: so the loss of
    the last message is seen with the next one."
    """
    log, telling = watched()
    telling.watch("w", Watch(7, *PLACE), 1.0)
    telling.tell(log, 10)
    assert log.taken() == [Members(7, 2)]
    telling.watch("w", Watch(7, *PLACE), 2.0)
    telling.entered(PLACE, "x")
    telling.tell(log, 10)
    assert log.taken() == [Members(7, 3, ("x",))]
    assert not telling.due


@pytest.mark.parametrize("end", ["unwatch", "bye", "patience"])
def test_rule_6_a_watch_ends_and_leaves_nothing(end: str) -> None:
    """ "A watch ends when its origin says so or says bye. It outlives an origin that is merely not live by `patience`
    seconds since it was last renewed."
    """
    log, telling = watched()
    telling.beat(PATIENCE, ())
    assert len(telling) == 1, "it was stopped for a while"
    telling.entered(PLACE, "x")
    if end == "unwatch":
        telling.unwatch("w", 8)
        assert len(telling) == 1
        telling.unwatch("w", 7)
    elif end == "bye":
        telling.bye("w")
    else:
        telling.beat(PATIENCE + 1, {"w"})
        assert len(telling) == 1
        telling.beat(PATIENCE + 1, ())
    telling.tell(log, 10)
    assert (len(telling), log.taken()) == (0, [])
    telling.entered(PLACE, "z")
    assert not telling.due


def test_rule_7_one_watch_too_many_is_refused() -> None:
    """ "At most `limit` watches are kept; one more is refused." """
    telling = Telling(clients(), patience=PATIENCE, limit=2)
    assert telling.watch("w", Watch(1, *PLACE), 0.0)
    assert telling.watch("v", Watch(1, *PLACE), 0.0)
    assert not telling.watch("w", Watch(2, *PLACE), 0.0)
    assert telling.watch("w", Watch(1, *PLACE, again=True), 0.0)
    telling.unwatch("v", 1)
    assert telling.watch("w", Watch(2, *PLACE), 0.0)
    assert len(telling) == 2


def watched() -> tuple[Log, Telling]:
    """A place with one member, "y", and a watch 7 of the node "w" that has been told so."""
    log = Log()
    telling = Telling(clients("y"), patience=PATIENCE)
    telling.watch("w", Watch(7, *PLACE), 0.0)
    telling.tell(log, 10)
    assert log.taken() == [Members(7, 1, ("y",), whole=True)]
    return log, telling


# What is known and shown: rule by rule


def test_rule_1_a_part_is_sure_once_the_whole_set_was_told_and_unsure_after_a_hole() -> None:
    """ "A node's part is sure once it has told its whole set." """
    mirror = Mirror()
    mirror.expect(["a", "b"])
    assert mirror.take("a", Members(1, 5, ("a1", "a2"), whole=True, more=True)) == []
    assert mirror.unsure == {"a", "b"}
    assert set(mirror.take("a", Members(1, 6, ("a3",)))) == {joined("a1"), joined("a2"), joined("a3")}
    assert mirror.unsure == {"b"}
    assert mirror.take("a", Members(1, 8, ("a4",))) == [], "7 is missing"
    assert mirror.unsure == {"a", "b"}
    assert mirror.take("a", Members(1, 9, ("a5",))) == [], "it was asked already"
    changes = mirror.take("a", Members(1, 10, ("a2", "a3", "a4", "a5"), whole=True))
    assert set(changes) == {left("a1"), joined("a4"), joined("a5")}
    assert mirror.unsure == {"b"}


def test_rule_3_who_is_not_expected_is_not_believed() -> None:
    mirror = Mirror()
    assert mirror.take("a", Members(1, 1, ("a1",), whole=True)) == []
    mirror.doubt("a")
    assert (mirror.left("a"), dict(mirror), mirror.unsure) == ([], {}, set())


def test_what_this_node_knows_of_itself_is_always_sure() -> None:
    mirror = Mirror()
    assert mirror.here("a", ["a1", "a2"]) == [joined("a1"), joined("a2")]
    assert mirror.here("a", ["a1"], ["a2", "a3"]) == [left("a2")]
    assert (dict(mirror), mirror.unsure) == ({"a1": "a"}, set())


def test_rule_4_until_the_first_change_is_asked_for_each_look_shows_what_is_so() -> None:
    """ "Until the first change is asked for, each look shows what is so now." """
    view = View([("a1", "a")])
    view.note([joined("a2")])
    assert view.look() == {"a1": "a", "a2": "a"}
    view.note([left("a1")])
    assert view.next() == left("a1"), "what was looked at is not told again"
    view.note([joined("a3"), left("a2")])
    assert view.look() == {"a2": "a"}
    assert [view.next(), view.next(), view.next()] == [joined("a3"), left("a2"), None]
    assert view.look() == {"a3": "a"}


def test_rule_5_a_change_and_its_reverse_that_nobody_has_seen_cancel_out() -> None:
    view = View([("a1", "a")])
    for number in range(1000):
        view.note([joined(f"a{number + 2}")])
        view.note([left(f"a{number + 2}")])
    view.note([left("a1"), joined("a1")])
    assert (len(view), view.next()) == (0, None)


# Twins with one realistic mistake each


class KeepsTheFirst(Telling):
    """Of a join and a leave in one go, the first one is told."""

    def _note(self, place: tuple[str, Room | None], sid: str, *, came: bool) -> None:
        for told in self._by_place.get(place, ()):
            if not told.whole:
                told.changes.setdefault(sid, came)
                self._due[told] = None


class Silent(Telling):
    """Renewals are not answered, and the loss of a last message stays unseen."""

    def watch(self, origin: str, watch: Watch, now: float) -> bool:
        for told in self._by_origin.get(origin, {}).values():
            if not watch.again and not told.changes and not told.whole:
                told.renewed = now
                return True
        return super().watch(origin, watch, now)


class EmptyAnswers(Telling):
    """The answer to a renewal has the version of the message before, and shows no hole."""

    def _messages(self, told: Any, page: int) -> Iterator[Members]:
        for message in super()._messages(told, page):
            if message.joined or message.left or message.whole:
                yield message
            else:
                told.version -= 1


class NoPatience(Telling):
    """Who is not live is forgotten at once."""

    def beat(self, now: float, live: Iterable[str]) -> None:  # type: ignore[override]
        super().beat(now + PATIENCE, set(live))


class Immortal(Telling):
    """Who is gone without a word is told for ever."""

    def beat(self, now: float, live: Iterable[str]) -> None:  # type: ignore[override]
        super().beat(now, {*live, "watcher"})


class EndsEachPage(Telling):
    """Each page of a whole set looks like the last one."""

    @staticmethod
    def _next(told: object, **fields: object) -> Members:
        return Telling._next(told, **(fields | {"more": False}))  # type: ignore[arg-type]


class SendsOn(Telling):
    """What failed is taken for sent: the numbers do not tell either."""

    def tell(self, send: Callable[[str, Members], bool], page: int) -> None:
        versions = {told: told.version for told in self._due}
        sent: list[Members] = []

        def try_to(origin: str, message: Members) -> bool:
            if send(origin, message):
                sent.append(message)
            return True

        super().tell(try_to, page)
        for told, version in versions.items():
            told.version = version + sum(message.number == told.number for message in sent)


@pytest.mark.parametrize(
    "twin",
    [KeepsTheFirst, Silent, EmptyAnswers, NoPatience, Immortal, EndsEachPage, SendsOn],
    ids=lambda twin: twin.__name__,
)
def test_telling(twin: type[Telling]) -> None:
    assert not escapes(make_telling=twin)


class SeesNoHole(Mirror):
    """Versions are not looked at."""

    def take(self, node: str, told: Members) -> list[Change]:
        part = self._parts.get(node)
        if part is not None:
            part.version = told.version - 1
        return super().take(node, told)


class NotesJoinsAlone(Mirror):
    """A whole set brings newcomers, and nobody goes with it."""

    def take(self, node: str, told: Members) -> list[Change]:
        return [change for change in super().take(node, told) if told.left or change.kind == "joined"]


class LeavesGhosts(Mirror):
    """A node goes, and its members stay on the screens."""

    def left(self, node: str) -> list[Change]:
        return super().left(node)[1:]


class BelievesStrangers(Mirror):
    """Who is not there is believed nevertheless."""

    def take(self, node: str, told: Members) -> list[Change]:
        self.expect({node})
        return super().take(node, told)


class BelievesWhatIsUnsure(Mirror):
    """Changes are believed while the set they belong to is not known."""

    def take(self, node: str, told: Members) -> list[Change]:
        part = self._parts.get(node)
        if part is not None and node in self.unsure and part.fresh is None and not told.whole:
            return self._update(node, part, told.joined, told.left)
        return super().take(node, told)


class GathersOn(Mirror):
    """A whole set that begins anew is put together with the one that was broken off."""

    def take(self, node: str, told: Members) -> list[Change]:
        part = self._parts.get(node)
        before = set(part.fresh or ()) if part is not None else set[str]()
        if told.whole and before:
            told = Members(told.number, told.version, (*told.joined, *before), (), whole=True, more=told.more)
        return super().take(node, told)


class NeverDoubts(Mirror):
    """What may be missing is not missed."""

    def doubt(self, node: str) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    "twin",
    [
        SeesNoHole,
        NotesJoinsAlone,
        LeavesGhosts,
        BelievesStrangers,
        BelievesWhatIsUnsure,
        GathersOn,
        NeverDoubts,
    ],
    ids=lambda twin: twin.__name__,
)
def test_mirror(twin: type[Mirror]) -> None:
    assert not escapes(make_mirror=twin)


class KeepsTheLast(View):
    """A reverse takes the place of what it reverses: somebody goes who never came."""

    def note(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self._changes[change.sid] = change


class ForgetsTheReverse(View):
    """Once a change of a client waits, later ones are dropped."""

    def note(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self._changes.setdefault(change.sid, change)


class LooksAhead(View):
    """A look takes changes away from the iteration."""

    def look(self) -> dict[str, str]:
        self._asked = False
        return super().look()


class LooksBehind(View):
    """A look shows what was so in the beginning."""

    def look(self) -> dict[str, str]:
        self._asked = True
        return super().look()


@pytest.mark.parametrize(
    "twin", [KeepsTheLast, ForgetsTheReverse, LooksAhead, LooksBehind], ids=lambda twin: twin.__name__
)
def test_view(twin: type[View]) -> None:
    assert not escapes(make_view=twin)


def escapes(**parts: type[object]) -> bool:
    """Whether the machine lets a twin pass that takes the place of the real thing."""
    try:
        hunt(type("Twin", (PresenceMachine,), parts))
    except (AssertionError, LookupError):  # what a shell would trip over counts as caught
        return False
    return True
