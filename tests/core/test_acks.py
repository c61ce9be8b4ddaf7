"""Callbacks that wait for clients anywhere, against dictionaries."""

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
    """What the model knows of a callback."""

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

    def settle(self, number: int) -> None:
        expected = self.model[number]
        if not expected.nodes and not expected.clients:
            del self.model[number]

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
        number = self.real.begin(wanted, asked)
        assert number > self.begun
        self.begun = number
        if len(self.model) == LIMIT:  # rule 3: the oldest
            del self.model[min(self.model)]
            self.forgotten += 1
        self.model[number] = Expected(wanted, set(asked))

    @rule(back=backs, node=nodes, reached=st.sampled_from([(), ("s1",), SIDS, SIDS]))
    def expect(self, back: int, node: str, reached: tuple[str, ...]) -> None:
        """A node says it once, whether it was asked or joined since."""
        number = self.begun - back
        expected = self.model.get(number)
        if expected is None:
            self.real.expect(number, node, reached)
        elif node not in expected.told:
            self.real.expect(number, node, reached)
            expected.told.add(node)
            expected.nodes.discard(node)
            expected.clients |= {(node, sid) for sid in reached}
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


def test_callbacks_wait_for_those_who_can_still_answer() -> None:
    run(AcksMachine, 150)


def test_rule_1_each_client_acknowledges_once() -> None:
    """ "A node that was given an emit with a request says which sids it reached; each of them then acknowledges or
    goes away, once."
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
    """ "A callback is forgotten when nobody it waits for is left." """
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


def test_rule_3_at_most_limit_callbacks_wait() -> None:
    """ "At most `limit` callbacks wait; beyond it the oldest is forgotten and counted." """
    acks = Acks(limit=2)
    first, second, third = (acks.begin(callback(), ["a"]) for _ in range(3))
    assert (len(acks), acks.forgotten) == (2, 1)
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
