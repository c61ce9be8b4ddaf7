"""Operators as values: what each step adds, in which order, and what is refused at the call."""

import dataclasses
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast import Adapter
from roomcast.core.address import Address
from roomcast.core.broadcast import Answer, Broadcast
from roomcast.core.cluster import Cluster
from roomcast.core.descriptions import Description, Handshake
from roomcast.core.errors import AckTimeout, RequestTimeout
from roomcast.core.messages import Selection
from roomcast.core.node import Node
from roomcast.core.operator import Operator, Verbs
from roomcast.core.options import options
from roomcast.core.subjects import Room
from roomcast.core.surveys import Surveys
from tests.core.effort import effort
from tests.core.test_messages import rooms, texts

SHAKEN = Handshake({}, "10.0.0.1", {}, None, 1.5, secure=False)

Step = Callable[[Verbs], Operator]


class Recorder:
    """Stands in for a cluster: keeps what it is asked, and answers as it was told.

    Attributes:
        asked: (what, address, *arguments) of each call.
        described: what `describe` gives, by node.
        acknowledged: what `answers` gives.
        fails: raised at the end of `describe`.
    """

    guest = False

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.described: list[tuple[str, list[Description]]] = []
        self.acknowledged: list[Answer] = []
        self.fails: Exception | None = None
        self.broadcast = self

    async def emit(self, to: Address, event: str, args: Sequence[Any]) -> None:
        self.asked.append(("emit", to, event, tuple(args)))

    async def answers(self, to: Address, event: str, args: Sequence[Any]) -> AsyncGenerator[Answer]:
        self.asked.append(("ack", to, event, tuple(args)))
        for answer in self.acknowledged:
            yield answer

    async def describe(self, to: Address) -> AsyncGenerator[tuple[str, list[Description]]]:
        self.asked.append(("describe", to))
        for part in self.described:
            yield part
        if self.fails is not None:
            raise self.fails

    async def count(self, to: Address) -> int:
        self.asked.append(("count", to))
        return 3

    async def join(self, to: Address, entered: Sequence[Room]) -> int:
        self.asked.append(("join", to, entered))
        return 3

    async def leave(self, to: Address, left: Sequence[Room]) -> int:
        self.asked.append(("leave", to, left))
        return 3

    async def disconnect(self, to: Address, *, close: bool) -> int:
        self.asked.append(("disconnect", to, close))
        return 3


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def start(recorder: Recorder) -> Operator:
    return Operator(lambda: cast("Cluster", recorder), Address())


@pytest.fixture
def everyone(recorder: Recorder) -> Operator:
    return start(recorder)


def description(sid: str, *entered: Room) -> Description:
    return Description(sid, (sid, *entered), {"name": sid}, ("photo",), SHAKEN)


# Rule 1: "Operators are immutable values: each step gives a new one, in any order, and any of them can be kept and
# reused."


def step(name: str, *args: Any) -> Step:
    """One of the steps that are called."""

    def take(start: Verbs) -> Operator:
        return cast("Operator", getattr(start, name)(*args))

    return take


several = st.lists(rooms, min_size=1, max_size=4)
namespaces = texts.filter(lambda name: "," not in name).map("/{}".format)
kinds: dict[str, st.SearchStrategy[Step]] = {
    "to": several.map(lambda names: step("to", *names)),
    "except_": several.map(lambda names: step("except_", *names)),
    "namespace": namespaces.map(lambda name: step("namespace", name)),
    "timeout": st.floats(0, 1e9, exclude_min=True).map(lambda seconds: step("timeout", seconds)),
    "volatile": st.just(lambda start: start.volatile),
    "local": st.just(lambda start: start.local),
}


def address(steps: Sequence[Step]) -> Address:
    operator = start(Recorder())
    for step in steps:
        before, kept = operator, msgspec.structs.replace(operator.address)
        operator = step(before)
        assert before.address == kept, "the step before is as it was"
    return operator.address


@given(data=st.data(), chosen=st.lists(st.sampled_from(sorted(kinds)), unique=True))
@effort(200)
def test_rule_1_the_order_of_the_steps_does_not_matter(data: st.DataObject, chosen: list[str]) -> None:
    steps = [data.draw(kinds[kind], label=kind) for kind in chosen]
    assert address(data.draw(st.permutations(steps))) == address(steps)


@given(data=st.data(), parts=st.lists(st.tuples(st.booleans(), several), max_size=5))
@effort(100)
def test_rule_1_rooms_in_several_steps_are_the_rooms_of_one(
    data: st.DataObject, parts: list[tuple[bool, list[Room]]]
) -> None:
    steps = [step("to" if wanted else "except_", *names) for wanted, names in parts]
    found = address(data.draw(st.permutations(steps)))
    for listed, kind in ((found.rooms, True), (found.excluded, False)):
        assert len(listed) == len(set(listed)), "each once"
        assert set(listed) == {room for wanted, names in parts if wanted is kind for room in names}


def test_rule_1_an_operator_can_be_kept_and_reused(everyone: Operator) -> None:
    lobby = everyone.to("lobby")
    quiet, volatile = lobby.except_("muted"), lobby.volatile
    assert lobby.address == Address(rooms=("lobby",))
    assert quiet.address == Address(rooms=("lobby",), excluded=("muted",))
    assert volatile.address == Address(rooms=("lobby",), volatile=True)
    assert lobby == everyone.to("lobby")
    assert len({lobby, everyone.to("lobby"), quiet}) == 2, "values can be keys"


@pytest.mark.parametrize("attribute", ["address", "source"])
def test_rule_1_an_operator_cannot_be_changed(everyone: Operator, attribute: str) -> None:
    with pytest.raises(AttributeError):
        setattr(everyone, attribute, None)
    with pytest.raises(AttributeError):
        everyone.address.rooms = ("other",)  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def test_the_last_namespace_and_the_last_timeout_count(everyone: Operator) -> None:
    operator = everyone.namespace("/a").timeout(1).namespace("/b").timeout(2)
    assert operator.address == Address(namespace="/b", timeout=2.0)


def test_an_adapter_begins_from_everyone() -> None:
    adapter = Adapter("memory://")
    assert adapter.to("a").address == adapter.in_("a").address == Address(rooms=("a",))
    assert adapter.except_("a").address == Address(excluded=("a",))
    assert adapter.local.address == Address(local=True)
    assert adapter.volatile.address == Address(volatile=True)
    assert adapter.timeout(3).address == Address(timeout=3.0)
    assert adapter.namespace("/chat").address == Address("/chat")
    assert adapter.to("a") == adapter.to("a") != Adapter("memory://").to("a"), "the clients of another cluster"


def test_an_operator_tells_whom_it_addresses_and_not_how(everyone: Operator) -> None:
    assert repr(everyone.to("lobby")) == f"Operator({Address(rooms=('lobby',))!r})"


# Rule 2: "`to` and `in_` add rooms: a client in several of them is addressed once."


def test_rule_2_rooms_are_named_one_by_one_or_in_collections(recorder: Recorder) -> None:
    everyone: Any = start(recorder)
    operator = everyone.to("a", ["b", ("c", {"d"})]).in_(frozenset({7}), "a")
    assert operator.address.rooms == ("a", "b", "c", "d", 7)
    assert everyone.except_(["a", "b"]).address.excluded == ("a", "b")


def test_rule_2_the_integer_1_and_the_text_1_are_two_rooms(everyone: Operator) -> None:
    assert everyone.to(1, "1").address.rooms == (1, "1")


def test_rule_2_the_selection_is_what_other_nodes_are_told(everyone: Operator) -> None:
    operator = everyone.namespace("/chat").to("a").except_("b").volatile.timeout(1)
    assert operator.address.selection == Selection("/chat", ("a",), ("b",))


# Rule 3: "What is wrong in an address is said when it is built: `TypeError` and `ValueError` name it."


@pytest.mark.parametrize("step", ["to", "in_", "except_"])
@pytest.mark.parametrize("room", [None, True, 1.5, b"bytes", object(), 2**64, "\ud800", ["a", None], {"a": 1}])
def test_rule_3_what_is_no_room_is_refused_at_the_call(everyone: Operator, step: str, room: Any) -> None:
    with pytest.raises(TypeError, match=r"[Rr]oom"):
        getattr(everyone, step)("good", room)


@pytest.mark.parametrize("step", ["to", "in_", "except_"])
@pytest.mark.parametrize("nobody", [(), ([],), ([], ())])
def test_rule_3_no_room_at_all_is_refused(everyone: Operator, step: str, nobody: tuple[Any, ...]) -> None:
    """An empty list must not mean everyone: it comes from a query that found nobody."""
    with pytest.raises(ValueError, match="at least one room"):
        getattr(everyone, step)(*nobody)


@pytest.mark.parametrize(
    ("namespace", "error"),
    [(7, TypeError), (None, TypeError), ("chat", ValueError), ("", ValueError), ("/a,b", ValueError)],
)
def test_rule_3_what_is_no_namespace_is_refused(everyone: Operator, namespace: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="namespace"):
        everyone.namespace(namespace)


@pytest.mark.parametrize(
    ("seconds", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("3", TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
)
def test_rule_3_what_is_no_timeout_is_refused(everyone: Operator, seconds: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="timeout"):
        everyone.timeout(seconds)


async def test_rule_3_a_process_without_clients_has_nobody_local() -> None:
    node = Node("memory://", options({}), guest=True)
    cluster = Cluster(node, Broadcast(node), Surveys(node))
    everyone = Operator(lambda: cluster, Address())
    with pytest.raises(ValueError, match="nobody local"):
        _ = everyone.to("a").local
    assert everyone.to("a").address == Address(rooms=("a",))
    await node.aclose()


# The verbs hand on the whole address


async def test_each_verb_asks_for_what_is_addressed(recorder: Recorder, everyone: Operator) -> None:
    operator = everyone.namespace("/chat").to("a").except_("b").timeout(3)
    to = Address("/chat", ("a",), ("b",), timeout=3.0)
    await operator.emit("event", 1, [2])
    assert await operator.emit_with_ack("event") == []
    assert await operator.fetch_sockets() == []
    assert [socket async for socket in operator.iter_sockets()] == []
    assert await operator.count() == 3
    assert await operator.sockets_join("c", 7) == 3
    assert await operator.sockets_leave("c") == 3
    assert await operator.disconnect_sockets() == 3
    assert await operator.disconnect_sockets(close=True) == 3
    assert recorder.asked == [
        ("emit", to, "event", (1, [2])),
        ("ack", to, "event", ()),
        ("describe", to),
        ("describe", to),
        ("count", to),
        ("join", to, ("c", 7)),
        ("leave", to, ("c",)),
        ("disconnect", to, False),
        ("disconnect", to, True),
    ]


@pytest.mark.parametrize("verb", ["sockets_join", "sockets_leave"])
async def test_a_verb_that_needs_a_room_refuses_none(recorder: Recorder, everyone: Operator, verb: str) -> None:
    with pytest.raises(ValueError, match="at least one room"):
        await getattr(everyone, verb)()
    with pytest.raises(TypeError, match="room"):
        await getattr(everyone, verb)("good", None)
    assert recorder.asked == []


async def test_answers_come_with_all_their_arguments(recorder: Recorder, everyone: Operator) -> None:
    recorder.acknowledged = [Answer("s1", "n1", ("yes", 1)), Answer("s2", "n2", ("no",)), Answer("s3", "n2", ())]
    answers = await everyone.emit_with_ack("ask")
    assert answers == recorder.acknowledged
    assert [answer.value for answer in answers] == [("yes", 1), "no", None]
    assert [answer async for answer in everyone.acks("ask")] == answers


async def test_sockets_are_gathered_by_node(recorder: Recorder, everyone: Operator) -> None:
    recorder.described = [("n1", [description("s1", "a")]), ("n2", [description("s2")]), ("n1", [description("s3")])]
    sockets = await everyone.namespace("/chat").fetch_sockets()
    assert [(socket.sid, socket.node) for socket in sockets] == [("s1", "n1"), ("s3", "n1"), ("s2", "n2")]
    one = sockets[0]
    assert (one.namespace, one.rooms, one.data, one.omitted) == ("/chat", ("s1", "a"), {"name": "s1"}, ("photo",))
    assert one.handshake == SHAKEN
    streamed = [socket async for socket in everyone.namespace("/chat").iter_sockets()]
    assert [socket.sid for socket in streamed] == ["s1", "s2", "s3"], "as they arrive"


async def test_sockets_that_did_arrive_are_not_thrown_away(recorder: Recorder, everyone: Operator) -> None:
    """ "`replies` has the clients of the others, by node" """
    recorder.described = [("n1", [description("s1")])]
    recorder.fails = RequestTimeout("too late", replies={}, missing={"n2"})
    with pytest.raises(RequestTimeout) as raised:
        await everyone.fetch_sockets()
    assert raised.value.missing == {"n2"}
    assert [socket.sid for socket in raised.value.replies["n1"]] == ["s1"]
    sockets = everyone.iter_sockets()
    assert (await anext(sockets)).sid == "s1"
    with pytest.raises(RequestTimeout):
        await anext(sockets)


async def test_a_remote_socket_addresses_itself_alone(recorder: Recorder, everyone: Operator) -> None:
    recorder.described = [("n1", [description("s1", "a")])]
    recorder.acknowledged = [Answer("s1", "n1", ("yes",))]
    (one,) = await everyone.namespace("/chat").to("a").except_("b").volatile.timeout(3).fetch_sockets()
    recorder.asked.clear()
    to = Address("/chat", ("s1",), timeout=3.0)
    await one.emit("event", 1)
    assert await one.emit_with_ack("event") == "yes"
    assert await one.emit_with_ack("event", timeout=1) == "yes"
    await one.join("b")
    await one.leave("b", 7)
    await one.disconnect()
    await one.disconnect(close=True)
    assert recorder.asked == [
        ("emit", to, "event", (1,)),
        ("ack", to, "event", ()),
        ("ack", msgspec.structs.replace(to, timeout=1.0), "event", ()),
        ("join", to, ("b",)),
        ("leave", to, ("b", 7)),
        ("disconnect", to, False),
        ("disconnect", to, True),
    ]


async def test_a_remote_socket_that_is_gone_does_not_acknowledge(recorder: Recorder, everyone: Operator) -> None:
    recorder.described = [("n1", [description("s1")])]
    (one,) = await everyone.fetch_sockets()
    with pytest.raises(AckTimeout) as raised:
        await one.emit_with_ack("event")
    assert raised.value.missing == {"s1"}
    assert raised.value.responses == []


async def test_a_remote_socket_cannot_be_changed_and_shows_what_it_is(recorder: Recorder, everyone: Operator) -> None:
    recorder.described = [("n1", [description("s1")])]
    (one,) = await everyone.fetch_sockets()
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.sid = "s2"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    assert "sid='s1'" in repr(one)
    assert "Operator" not in repr(one)
