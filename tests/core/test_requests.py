"""Requests that wait on a set of nodes, whatever happens in whatever order."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from roomcast.core.requests import Request, Requests
from roomcast.core.wire import Reply
from tests.core.effort import run

NODES = ("a", "b", "c")

nodes = st.sampled_from((*NODES, "joined later"))
backs = st.integers(0, 3)  # how many requests ago


@dataclass
class Expected:
    """What the model knows of a request."""

    real: Request
    deadline: int
    waiting: set[str]
    replies: dict[str, Reply] = field(default_factory=dict[str, Reply])
    gone: set[str] = field(default_factory=set[str])
    ended: bool = False

    @property
    def pending(self) -> bool:
        return bool(self.waiting) and not self.ended


class RequestsMachine(RuleBasedStateMachine):
    """Replies, repeated replies, replies of the unasked, deaths and deadlines, in any order."""

    make: ClassVar[type[Requests]] = Requests

    def __init__(self) -> None:
        super().__init__()
        self.real = self.make()
        self.now = 0
        self.model: dict[int, Expected] = {}

    @rule(asked=st.sets(st.sampled_from(NODES)), seconds=st.integers(1, 5))
    def begin(self, asked: set[str], seconds: int) -> None:
        request = self.real.begin(asked, self.now + seconds)
        assert request.number not in self.model, "unique for this node"
        self.model[request.number] = Expected(request, self.now + seconds, set(asked))

    @rule(node=nodes, back=backs, value=st.integers(0, 3))
    def reply(self, node: str, back: int, value: int) -> None:
        number = len(self.model) - back
        expected = self.model.get(number)
        answer = Reply(number, value)
        if expected is None or not expected.pending or node not in expected.waiting:
            assert self.is_stray(node, answer), "rule 3"
            return
        over = self.real.reply(node, answer)
        expected.waiting.remove(node)
        expected.replies[node] = answer
        assert over is (None if expected.waiting else expected.real)

    def is_stray(self, node: str, answer: Reply) -> bool:
        try:
            self.real.reply(node, answer)
        except KeyError:
            return True
        return False

    @rule(node=nodes)
    def node_leaves(self, node: str) -> None:
        over: list[Request] = []
        for expected in self.model.values():
            if expected.pending and node in expected.waiting:
                expected.waiting.remove(node)
                expected.gone.add(node)
                if not expected.waiting:
                    over.append(expected.real)
        assert self.real.left(node) == over

    @rule(back=backs)
    def caller_gives_up(self, back: int) -> None:
        if (expected := self.model.get(len(self.model) - back)) is not None:
            self.real.end(expected.real)
            expected.ended = True

    @rule(seconds=st.integers(0, 3))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        late = [expected for expected in self.model.values() if expected.pending and expected.deadline <= self.now]
        assert self.real.expire(self.now) == [expected.real for expected in late]
        for expected in late:
            expected.ended = True

    @invariant()
    def same(self) -> None:
        assert len(self.real) == sum(expected.pending for expected in self.model.values())
        for expected in self.model.values():
            assert expected.real.waiting == expected.waiting
            assert expected.real.replies == expected.replies
            assert expected.real.gone == expected.gone
            assert expected.real.missing == expected.waiting | expected.gone


def test_a_request_waits_on_its_set_and_on_nothing_else() -> None:
    run(RequestsMachine, 100)


def test_rule_1_each_reply_departure_and_deadline_takes_nodes_out() -> None:
    """ "A request waits on the nodes it was addressed to; each reply, departure and deadline takes nodes out." """
    requests = Requests()
    request = requests.begin(["a", "b"], 5.0)
    assert requests.reply("a", Reply(request.number, value=7)) is None
    assert request.missing == {"b"}
    assert requests.left("b") == [request]
    assert len(requests) == 0


def test_rule_2_what_a_departed_node_had_answered_is_kept() -> None:
    """ "A node that leaves is dropped from every set at once; what it had answered is kept." """
    requests = Requests()
    one, two = requests.begin(["a", "b"], 5.0), requests.begin(["a"], 5.0)
    requests.reply("a", Reply(one.number, value=7))
    assert requests.left("a") == [two]
    assert one.replies == {"a": Reply(one.number, value=7)}
    assert one.missing == {"b"}
    assert two.missing == {"a"}, "it never answered the second"


@pytest.mark.parametrize("node", ["a", "left", "unasked"])
def test_rule_3_a_stray_reply_changes_nothing(node: str) -> None:
    """ "A late, repeated or unasked reply changes nothing and is reported as such." """
    requests = Requests()
    request = requests.begin(["a", "b", "left"], 5.0)
    requests.reply("a", Reply(request.number, value=1))
    requests.left("left")
    for number in (request.number, 999):
        with pytest.raises(KeyError):
            requests.reply(node, Reply(number, value=2))
    assert request.replies == {"a": Reply(request.number, value=1)}
    assert request.missing == {"b", "left"}


def test_rule_4_over_when_its_deadline_has_passed() -> None:
    """ "A request is over when its set is empty or its deadline has passed, and is then forgotten." """
    requests = Requests()
    request = requests.begin(["a"], 5.0)
    assert requests.expire(4.9) == []
    assert requests.expire(5.0) == [request]
    assert (requests.expire(6.0), len(requests)) == ([], 0)
    with pytest.raises(KeyError):
        requests.reply("a", Reply(request.number))


def test_a_request_to_nobody_is_over_at_once() -> None:
    requests = Requests()
    assert requests.begin([], 5.0).missing == frozenset()
    assert len(requests) == 0
