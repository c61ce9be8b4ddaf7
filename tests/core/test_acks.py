"""Waits for clients anywhere, against dictionaries."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from roomcast.core.acks import Acks
from tests.core.effort import run

NODES = ("a", "b", "c")
SIDS = ("s1", "s2")
LIMIT = 3

nodes = st.sampled_from(NODES)
sids = st.sampled_from(SIDS)
backs = st.integers(0, LIMIT)  # how many callbacks ago


def callback() -> Callable[..., None]:
    """A callback like no other."""

    def called(*_args: object) -> None:
        """Do nothing: identity is all that is looked at."""

    return called


@dataclass
class Expected:
    """What the model knows of a wait."""

    callback: Callable[..., None]
    nodes: set[str]
    clients: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    told: set[str] = field(default_factory=set[str])


class AcksMachine(RuleBasedStateMachine):
    """Nodes say whom they reached; clients answer, answer twice or go away; nodes leave; callers give up."""

    make: ClassVar[type[Acks]] = Acks

    def __init__(self) -> None:
        super().__init__()
        self.real = self.make(LIMIT)
        self.model: dict[int, Expected] = {}
        self.forgotten = 0
        self.begun = 0
        self.over: list[tuple[int, frozenset[str]]] = []
        self.told: list[tuple[int, frozenset[str]]] = []

    def settle(self, number: int) -> None:
        expected = self.model[number]
        if not expected.nodes and not expected.clients:
            del self.model[number]
            self.over.append((number, frozenset()))

    def take(self, number: int, node: str, sid: str) -> Callable[..., None] | None:
        expected = self.model.get(number)
        if expected is None or (node, sid) not in expected.clients:
            return None
        expected.clients.remove((node, sid))
        self.settle(number)
        return expected.callback

    @rule(asked=st.sets(nodes, min_size=1))
    def begin(self, asked: set[str]) -> None:
        wanted = callback()
        expected = self.begun + 1
        number = self.real.begin(wanted, asked, lambda missing: self.told.append((expected, missing)))
        assert number == expected
        self.begun = number
        if len(self.model) == LIMIT:  # rule 3: the oldest
            oldest = min(self.model)
            given_up = self.model.pop(oldest)
            self.over.append((oldest, frozenset(given_up.nodes | {sid for _, sid in given_up.clients})))
            self.forgotten += 1
        self.model[number] = Expected(wanted, set(asked))

    @rule(back=backs, node=nodes, reached=st.sampled_from([(), ("s1",), SIDS, SIDS]), more=st.booleans())
    def expect(self, back: int, node: str, reached: tuple[str, ...], more: bool) -> None:
        """A node that was asked, or joined since, says it in parts; what comes after the last part changes nothing."""
        number = self.begun - back
        expected = self.model.get(number)
        self.real.expect(number, node, reached, more=more)
        if expected is not None and node not in expected.told:
            expected.clients |= {(node, sid) for sid in reached}
            if not more:
                expected.told.add(node)
                expected.nodes.discard(node)
            self.settle(number)

    @rule(back=backs, node=nodes, sid=sids)
    def client_answers(self, back: int, node: str, sid: str) -> None:
        number = self.begun - back
        assert self.real.answer(number, node, sid) is self.take(number, node, sid)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), times=st.integers(1, 2))
    def client_who_was_asked_answers(self, data: st.DataObject, times: int) -> None:
        asked = [(number, *client) for number, one in self.model.items() for client in sorted(one.clients)]
        if asked:
            number, node, sid = data.draw(st.sampled_from(asked))
            for _ in range(times):
                assert self.real.answer(number, node, sid) is self.take(number, node, sid)

    @rule(back=backs, node=nodes, sid=sids)
    def client_goes(self, back: int, node: str, sid: str) -> None:
        number = self.begun - back
        self.real.gone(number, node, sid)
        self.take(number, node, sid)

    @rule(node=nodes)
    def node_leaves(self, node: str) -> None:
        self.real.left(node)
        for number, expected in list(self.model.items()):
            expected.nodes.discard(node)
            expected.told.add(node)
            expected.clients = {client for client in expected.clients if client[0] != node}
            self.settle(number)

    @rule(back=backs)
    def emit_fails(self, back: int) -> None:
        number = self.begun - back
        self.real.cancel(number)
        self.model.pop(number, None)

    @invariant()
    def waits_for_nobody_who_is_gone(self) -> None:
        assert len(self.real) == len(self.model) <= LIMIT
        assert self.real.forgotten == self.forgotten
        assert self.told == self.over, "once each, when the last one was gone, and not when the caller gave up"
        for number in range(max(0, self.begun - LIMIT), self.begun + 1):
            expected = self.model.get(number)
            missing = set[str]() if expected is None else expected.nodes | {sid for _, sid in expected.clients}
            assert self.real.missing(number) == missing


def test_who_waits_waits_for_those_who_can_still_answer() -> None:
    run(AcksMachine, 150)


def test_rule_1_each_client_acknowledges_once() -> None:
    """ "A node that was given an emit with a request says which sids it reached (`expect`); each of them then
    acknowledges or goes away, once."
    """
    acks = Acks()
    wanted = callback()
    number = acks.begin(wanted, ["a"])
    assert acks.answer(number, "a", "s1") is None, "nobody said that this one was reached"
    acks.expect(number, "a", ["s1", "s2"])
    assert acks.answer(number, "b", "s1") is None, "another node's client"
    assert acks.answer(number, "a", "s1") is wanted
    assert acks.answer(number, "a", "s1") is None
    assert acks.answer(number, "a", "s2") is wanted
    assert len(acks) == 0


def test_rule_2_forgotten_when_nobody_is_left() -> None:
    """ "A wait is over, and forgotten, when nobody it waits for is left: the last client acknowledged or went away, or
    its node left."
    """
    acks = Acks()
    reached_nobody = acks.begin(callback(), ["a", "b"])
    acks.expect(reached_nobody, "a", [])
    assert len(acks) == 1
    acks.expect(reached_nobody, "b", [])
    assert len(acks) == 0

    number = acks.begin(callback(), ["a", "b"])
    acks.expect(number, "a", ["s1"])
    acks.gone(number, "a", "s1")
    acks.left("b")
    assert len(acks) == 0


def test_rule_2_a_node_leaves_with_all_its_clients() -> None:
    acks = Acks()
    number = acks.begin(callback(), ["a"])
    acks.expect(number, "a", ["s1", "s2"])
    acks.left("a")
    assert len(acks) == 0
    assert acks.answer(number, "a", "s1") is None
    acks.gone(number, "a", "s2")


def test_rule_2_over_is_called_once_and_only_when_the_last_one_is_gone() -> None:
    """ "over: called when the wait is over (rule 2)." """
    acks = Acks()
    over: list[str] = []
    number = acks.begin("waiter", ["a", "b"], lambda _missing: over.append("over"))
    acks.expect(number, "a", ["s1", "s2"])
    acks.expect(number, "b", [])
    assert acks.answer(number, "a", "s1") == "waiter"
    assert over == []
    assert acks.answer(number, "a", "s2") == "waiter", "the last answer is told as well"
    assert over == ["over"]
    acks.left("a")
    acks.gone(number, "a", "s2")
    acks.expect(number, "b", ["s3"])
    acks.cancel(number)
    assert over == ["over"]


def test_who_has_gone_is_not_told_that_the_wait_is_over() -> None:
    acks = Acks()
    over: list[str] = []
    number = acks.begin("waiter", ["a"], lambda _missing: over.append("over"))
    acks.cancel(number)
    acks.left("a")
    assert over == []


def test_missing_names_clients_and_nodes_that_have_not_said_whom_they_reached() -> None:
    """ "Who is still waited for: sids, and ids of nodes that have not said whom they reached." """
    acks = Acks()
    number = acks.begin("waiter", ["a", "b", "c"])
    acks.expect(number, "a", ["s1", "s2"])
    acks.expect(number, "b", ["s3"], more=True)
    assert acks.missing(number) == {"s1", "s2", "s3", "b", "c"}, "b has not said all"
    acks.answer(number, "a", "s1")
    acks.left("c")
    acks.expect(number, "b", [])
    assert acks.missing(number) == {"s2", "s3"}
    acks.cancel(number)
    assert acks.missing(number) == frozenset() == acks.missing(99)


def test_a_node_that_has_not_said_all_is_waited_for() -> None:
    """ "with `more`, it has not said all yet" """
    acks = Acks()
    number = acks.begin("waiter", ["a"])
    acks.expect(number, "a", ["s1"], more=True)
    acks.answer(number, "a", "s1")
    assert len(acks) == 1
    acks.expect(number, "a", ["s2"])
    acks.answer(number, "a", "s2")
    assert len(acks) == 0


def test_rule_3_at_most_limit_waits_are_kept() -> None:
    """ "At most `limit` waits are kept; beyond it the oldest is given up and counted." """
    acks = Acks(limit=2)
    over: list[str] = []
    first = acks.begin(callback(), ["a"], lambda missing: over.extend(["first", *missing]))
    second, third = (acks.begin(callback(), ["a"], lambda _missing: over.append("another")) for _ in range(2))
    assert (len(acks), acks.forgotten) == (2, 1)
    assert over == ["first", "a"], "over: called when the wait is given up, with who is still waited for then"
    for number in (first, second, third):
        acks.expect(number, "a", ["s1"])
    assert acks.answer(first, "a", "s1") is None
    assert acks.answer(second, "a", "s1") is not None
    assert acks.answer(third, "a", "s1") is not None


def test_an_emit_that_did_not_happen_waits_for_nobody() -> None:
    acks = Acks()
    number = acks.begin(callback(), ["a"])
    acks.cancel(number)
    acks.cancel(number)
    assert len(acks) == 0


def test_a_node_says_once_whom_it_reached_and_not_at_all_once_it_has_left() -> None:
    """Rule 1: each of them then acknowledges or goes away, once."""
    acks = Acks()
    number = acks.begin(print, {"a", "b"})
    acks.expect(number, "a", ["s1"])
    assert acks.answer(number, "a", "s1") is print
    acks.expect(number, "a", ["s1"])  # repeated: nobody is waited for again
    assert acks.answer(number, "a", "s1") is None
    acks.left("b")
    assert len(acks) == 0
    number = acks.begin(print, {"a", "b"})
    acks.left("b")
    acks.expect(number, "b", ["s2"])  # late: its clients are gone with it
    acks.expect(number, "a", [])
    assert len(acks) == 0
