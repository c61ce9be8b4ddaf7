"""Requests that wait on a set of nodes, whatever happens in whatever order."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from roomcast.core.messages import Reply
from roomcast.core.requests import Request, Requests
from tests.core.effort import run

NODES = ("a", "b", "c")

nodes = st.sampled_from((*NODES, "joined later"))
backs = st.integers(0, 3)  # how many requests ago
often = st.sampled_from((True, True, False))


@dataclass
class Expected:
    """What the model knows of a request.

    Attributes:
        middle: the nodes in the middle of an answer, and whether they were asked to go on.
    """

    real: Request
    waiting: set[str]
    arrived: deque[tuple[str, Reply]] = field(default_factory=deque[tuple[str, Reply]])
    middle: dict[str, bool] = field(default_factory=dict[str, bool])
    gone: set[str] = field(default_factory=set[str])
    ended: bool = False

    @property
    def pending(self) -> bool:
        return bool(self.waiting) and not self.ended

    def welcome(self, node: str) -> bool:
        """Whether something of this node is waited for now."""
        return self.pending and node in self.waiting and self.middle.get(node, True)


class RequestsMachine(RuleBasedStateMachine):
    """Replies and parts of them, repeated, unasked and late ones, deaths, and callers that take, ask on or give up."""

    make: ClassVar[type[Requests]] = Requests

    def __init__(self) -> None:
        super().__init__()
        self.real = self.make()
        self.model: dict[int, Expected] = {}
        self.said = 0

    @property
    def waited_for(self) -> list[tuple[int, str]]:
        """Requests and nodes they wait on."""
        return [(number, node) for number, one in self.model.items() if one.pending for node in sorted(one.waiting)]

    @property
    def to_take(self) -> list[int]:
        """Requests for which something has arrived."""
        return [number for number, one in self.model.items() if one.arrived]

    @precondition(lambda self: len({number for number, _ in self.waited_for}) < 3)
    @rule(asked=st.sets(st.sampled_from(NODES)))
    def begin(self, asked: set[str]) -> None:
        request = self.real.begin(frozenset(asked))
        assert request.number not in self.model, "unique for this node"
        self.model[request.number] = Expected(request, set(asked))

    @rule(node=nodes, back=backs, more=st.booleans())
    def anyone_replies(self, node: str, back: int, more: bool) -> None:
        self.reply(len(self.model) - back, node, more=more)

    @precondition(lambda self: self.waited_for)
    @rule(data=st.data(), more=often, times=st.integers(1, 2))
    def one_who_was_asked_replies(self, data: st.DataObject, more: bool, times: int) -> None:
        """A reply, or a part of one; often twice."""
        number, node = data.draw(st.sampled_from(self.waited_for))
        for _ in range(times):
            self.reply(number, node, more=more)

    def reply(self, number: int, node: str, *, more: bool) -> None:
        self.said += 1
        answer = Reply(number, self.said, more=more)
        expected = self.model.get(number)
        if expected is None or not expected.welcome(node):
            assert self.is_stray(node, answer), "rules 3 and 4"
            return
        assert self.real.reply(node, answer) is expected.real, "the request that was meant"
        expected.arrived.append((node, answer))
        if more:
            expected.middle[node] = False
        else:
            expected.middle.pop(node, None)
            expected.waiting.remove(node)

    def is_stray(self, node: str, answer: Reply) -> bool:
        try:
            self.real.reply(node, answer)
        except KeyError:
            return True
        return False

    @precondition(lambda self: self.to_take)
    @rule(data=st.data(), asks_on=often)
    def caller_takes(self, data: st.DataObject, asks_on: bool) -> None:
        expected = self.model[data.draw(st.sampled_from(self.to_take))]
        node, answer = expected.arrived.popleft()
        assert expected.real.arrived.popleft() == (node, answer), "in the order of arrival"
        if answer.more and asks_on:
            self.ask_on(expected, node)

    @precondition(lambda self: any(one.middle for one in self.model.values()))
    @rule(data=st.data())
    def caller_asks_on_later(self, data: st.DataObject) -> None:
        untaken = {(number, node) for number, one in self.model.items() for node, _ in one.arrived}
        middle = {(number, node) for number, one in self.model.items() for node in one.middle} - untaken
        if middle:
            number, node = data.draw(st.sampled_from(sorted(middle)))
            self.ask_on(self.model[number], node)

    def ask_on(self, expected: Expected, node: str) -> None:
        self.real.more(expected.real, node)
        if node in expected.middle:
            expected.middle[node] = True

    @rule(node=nodes)
    def node_leaves(self, node: str) -> None:
        affected: list[Request] = []
        for expected in self.model.values():
            if expected.pending and node in expected.waiting:
                expected.waiting.remove(node)
                expected.middle.pop(node, None)
                expected.gone.add(node)
                affected.append(expected.real)
        assert self.real.left(node) == affected, "those that waited on it, whether it was the last one or not"

    @rule(back=backs)
    def caller_gives_up(self, back: int) -> None:
        if (expected := self.model.get(len(self.model) - back)) is not None:
            self.real.end(expected.real)
            expected.ended = True

    @invariant()
    def same(self) -> None:
        assert len(self.real) == sum(expected.pending for expected in self.model.values()), "rule 5"
        for number, expected in self.model.items():
            real = expected.real
            assert real.number == number
            assert real.waiting == expected.waiting
            assert real.arrived == expected.arrived, "rule 2: what it had answered is kept"
            assert real.begun == expected.middle
            assert real.gone == expected.gone
            assert max(Counter(node for node, _ in real.arrived).values(), default=0) <= 1, "rule 4"


def test_a_request_waits_on_its_set_and_on_nothing_else() -> None:
    run(RequestsMachine, 200)


def test_rule_1_the_last_reply_or_the_departure_of_a_node_takes_it_out() -> None:
    """ "A request waits on the nodes it was addressed to; a node's last reply, or its departure, takes it out of the
    set."
    """
    requests = Requests()
    request = requests.begin(["a", "b", "c"])
    assert requests.reply("a", Reply(request.number, 7)) is request
    assert request.waiting == {"b", "c"}
    requests.reply("b", Reply(request.number, more=True))
    assert request.waiting == {"b", "c"}, "not its last one"
    assert requests.left("c") == [request]
    requests.more(request, "b")
    requests.reply("b", Reply(request.number))
    assert (request.waiting, request.gone, len(requests)) == (set(), {"c"}, 0)


def test_rule_1_the_set_is_the_requests_own() -> None:
    requests, nodes = Requests(), {"a"}
    request = requests.begin(nodes)
    nodes.add("joined")
    assert request.waiting == {"a"}


def test_rule_2_what_a_departed_node_had_answered_is_kept() -> None:
    """ "A node that leaves is dropped from every set at once; what it had answered is kept." """
    requests = Requests()
    done, middle, waiting = requests.begin(["a", "b"]), requests.begin(["a", "b"]), requests.begin(["a"])
    last, part = Reply(done.number, 7), Reply(middle.number, 8, more=True)
    requests.reply("a", last)
    requests.reply("a", part)
    assert requests.left("a") == [middle, waiting], "the first one did not wait on it any more"
    assert [list(one.arrived) for one in (done, middle, waiting)] == [[("a", last)], [("a", part)], []]
    assert [one.waiting for one in (done, middle, waiting)] == [{"b"}, {"b"}, set()]
    assert [one.gone for one in (done, middle, waiting)] == [set(), {"a"}, {"a"}]
    assert (middle.begun, len(requests)) == ({}, 2)
    requests.more(middle, "a")
    assert middle.begun == {}, "nobody is there to be asked on"


@pytest.mark.parametrize("node", ["answered", "left", "unasked", "begun"])
def test_rule_3_a_stray_reply_changes_nothing(node: str) -> None:
    """ "A late, repeated or unasked reply changes nothing and is reported as such." """
    requests = Requests()
    request = requests.begin(["answered", "left", "begun", "silent"])
    requests.reply("answered", Reply(request.number, 1))
    requests.reply("begun", Reply(request.number, 2, more=True))
    requests.left("left")
    before = list(request.arrived)
    for stray in (Reply(request.number, 9), Reply(request.number, 9, more=True), Reply(999)):
        with pytest.raises(KeyError):
            requests.reply(node, stray)
    assert list(request.arrived) == before
    assert (request.waiting, request.begun) == ({"begun", "silent"}, {"begun": False})


def test_rule_4_a_part_that_was_not_asked_for_is_no_answer() -> None:
    """ "Each part but the first must have been asked for, so one part of each node waits to be taken, whatever the size
    of the answer."
    """
    requests = Requests()
    request = requests.begin(["a", "b"])
    requests.reply("a", Reply(request.number, 1, more=True))
    with pytest.raises(KeyError):
        requests.reply("a", Reply(request.number, 2, more=True))
    requests.reply("b", Reply(request.number, 3))
    requests.more(request, "a")
    requests.reply("a", Reply(request.number, 2, more=True))
    with pytest.raises(KeyError):
        requests.reply("a", Reply(request.number, 4))
    requests.more(request, "a")
    requests.reply("a", Reply(request.number, 4))
    assert [(node, reply.value) for node, reply in request.arrived] == [("a", 1), ("b", 3), ("a", 2), ("a", 4)]
    assert len(requests) == 0


def test_rule_4_who_has_not_begun_cannot_be_asked_on() -> None:
    requests = Requests()
    request = requests.begin(["a", "b"])
    requests.reply("b", Reply(request.number))
    for node in ("a", "b", "unasked"):
        requests.more(request, node)
    assert request.begun == {}


def test_rule_5_over_when_its_set_is_empty_or_its_caller_ends_it() -> None:
    """ "A request is over when its set is empty, or when its caller ends it, and is then forgotten." """
    requests = Requests()
    answered, ended = requests.begin(["a"]), requests.begin(["a"])
    requests.reply("a", Reply(answered.number))
    assert len(requests) == 1
    requests.end(ended)
    requests.end(ended)
    assert len(requests) == 0
    for over in (answered, ended):
        with pytest.raises(KeyError):
            requests.reply("a", Reply(over.number))
    assert requests.left("a") == []


def test_rule_5_a_request_to_nobody_is_over_at_once() -> None:
    requests = Requests()
    assert requests.begin([]).waiting == set()
    assert len(requests) == 0


def test_nothing_grows_when_replies_never_come() -> None:
    requests = Requests()
    for _ in range(1000):
        requests.end(requests.begin(["a", "b"]))
    assert len(requests) == 0
