"""Events from server to server, and who the servers are; over every broker."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from roomcast import EncodeError, NodeAnswer, NodeInfo, RequestTimeout
from tests.adapter.conftest import broker_url
from tests.adapter.crowd import left_behind, nothing_is_left, started
from tests.adapter.servers import Cluster, Node, serving
from tests.services import SharedBrokers
from tests.waiting import until


@pytest.fixture
async def trio(scheme: str, shared_brokers: SharedBrokers) -> AsyncIterator[tuple[Node, Node, Node]]:
    """Three servers; no one needs clients to talk to the others."""
    async with serving(broker_url(scheme, shared_brokers)) as cluster:
        a, b, c = await started(cluster, 3)
        yield a, b, c


def recording(calls: list[tuple[Any, ...]]) -> Callable[..., None]:
    def record(*args: Any) -> None:
        calls.append(args)

    return record


def recorder(nodes: tuple[Node, ...], event: str) -> list[list[tuple[Any, ...]]]:
    """What each node's handler of an event is called with."""
    heard: list[list[tuple[Any, ...]]] = [[] for _ in nodes]
    for node, calls in zip(nodes, heard, strict=True):
        node.adapter.on(event, recording(calls))
    return heard


async def test_an_event_reaches_the_other_servers(trio: tuple[Node, Node, Node]) -> None:
    """sends an event to other server instances"""
    a, b, c = trio
    heard = recorder(trio, "hello")
    await a.adapter.server_side_emit("hello", 1, "two", b"\3", [4, {"five": None}])
    await until(lambda: heard[1] and heard[2])
    await b.adapter.server_side_emit_with_ack("hello", "end")
    await c.adapter.server_side_emit_with_ack("hello", "end")
    first = (1, "two", b"\3", [4, {"five": None}])
    assert heard == [[("end",), ("end",)], [first, ("end",)], [first, ("end",)]]


async def test_an_event_is_answered_by_the_other_servers(trio: tuple[Node, Node, Node]) -> None:
    """sends an event and receives a response from the other server instances"""
    a, b, c = trio

    @b.adapter.on("ask")
    def increased(number: int) -> int:
        return number + 1

    async def answer(number: int) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"n": number, "bytes": b"\0"}

    c.adapter.on("ask", answer)
    assert await a.adapter.server_side_emit_with_ack("ask", 1) == {
        b.adapter.host_id: NodeAnswer(2),
        c.adapter.host_id: NodeAnswer({"n": 1, "bytes": b"\0"}),
    }
    await nothing_is_left(*(node.adapter for node in trio))


async def test_a_slow_server_makes_a_timeout_with_the_other_s_answer(trio: tuple[Node, Node, Node]) -> None:
    """sends an event but timeout if one server does not respond"""
    a, b, c = trio
    go_on, over = asyncio.Event(), asyncio.Event()
    b.adapter.on("ask", lambda: "b")

    @c.adapter.on("ask")
    async def slow() -> str:
        await go_on.wait()
        asyncio.get_running_loop().call_soon(over.set)
        return "late"

    with pytest.raises(RequestTimeout) as failed:
        await a.adapter.server_side_emit_with_ack("ask", timeout=0.3)
    assert failed.value.replies == {b.adapter.host_id: NodeAnswer("b")}
    assert failed.value.missing == {c.adapter.host_id}
    assert left_behind(a.adapter) == {}
    go_on.set()
    await over.wait()
    await until(lambda: a.adapter.stats()["stray_replies"] == 1, what="the late answer to be counted")


async def test_an_event_is_answered_although_a_server_leaves(trio: tuple[Node, Node, Node]) -> None:
    """succeeds even if an instance leaves the cluster"""
    a, b, c = trio
    asked = asyncio.Event()
    b.adapter.on("ask", lambda: "b")

    @c.adapter.on("ask")
    async def never() -> None:
        asked.set()
        await asyncio.Event().wait()

    asking = asyncio.ensure_future(a.adapter.server_side_emit_with_ack("ask", timeout=30))
    await asyncio.wait_for(asked.wait(), 5)
    await c.adapter.aclose()
    async with asyncio.timeout(5):
        assert await asking == {b.adapter.host_id: NodeAnswer("b")}


async def test_a_handler_that_raises_and_a_server_without_one_answer_so(trio: tuple[Node, Node, Node]) -> None:
    a, b, c = trio

    @b.adapter.on("ask")
    def wrong() -> None:
        raise LookupError("no such robot")

    async with asyncio.timeout(5):
        answers = await a.adapter.server_side_emit_with_ack("ask", timeout=30)
    assert answers[b.adapter.host_id].value is None
    assert answers[b.adapter.host_id].error == "LookupError: no such robot"
    assert "no handler" in answers[c.adapter.host_id].error
    assert b.adapter.stats()["faults"] == 1
    assert not c.adapter.stats()["faults"]


async def test_a_handler_that_is_called_wrongly_or_returns_nonsense_answers_so(trio: tuple[Node, Node, Node]) -> None:
    a, b, c = trio

    @b.adapter.on("ask")
    def two_arguments(one: int, two: int) -> list[int]:
        return [one, two]

    @c.adapter.on("ask")
    def nonsense(_one: int) -> object:
        return object()

    async with asyncio.timeout(5):
        answers = await a.adapter.server_side_emit_with_ack("ask", 1, timeout=30)
    assert "TypeError" in answers[b.adapter.host_id].error
    assert "cannot be serialised" in answers[c.adapter.host_id].error
    b.adapter.on("large", lambda: "x" * 2_000_000)
    c.adapter.on("large", lambda: "small")
    async with asyncio.timeout(5):
        answers = await a.adapter.server_side_emit_with_ack("large", timeout=30)
    assert "larger" in answers[b.adapter.host_id].error
    assert answers[c.adapter.host_id] == NodeAnswer("small")


async def test_a_handler_that_is_cancelled_is_not_a_timeout(trio: tuple[Node, Node, Node]) -> None:
    a, b, c = trio

    @b.adapter.on("ask")
    async def cancelled() -> None:
        raise asyncio.CancelledError

    c.adapter.on("ask", lambda: "c")
    async with asyncio.timeout(5):
        answers = await a.adapter.server_side_emit_with_ack("ask", timeout=2)
    assert answers[c.adapter.host_id] == NodeAnswer("c")
    assert answers[b.adapter.host_id].error


async def test_reserved_names_and_bad_data_are_refused_at_the_call(trio: tuple[Node, Node, Node]) -> None:
    a, b, _ = trio
    for name in ("connect", "connection", "disconnect", "new_namespace", "node_joined", "node_left", "evicted"):
        with pytest.raises(ValueError, match=name):
            await a.adapter.server_side_emit(name)
        with pytest.raises(ValueError, match=name):
            await a.adapter.server_side_emit_with_ack(name)
    for name in ("connect", "disconnect"):
        with pytest.raises(ValueError, match=name):
            a.adapter.on(name, print)
    b.adapter.on("ask", print)
    with pytest.raises(ValueError, match="handler already"):
        b.adapter.on("ask", repr)
    for call in (a.adapter.server_side_emit, a.adapter.server_side_emit_with_ack):
        with pytest.raises(TypeError):
            await call(cast("Any", 7))
        with pytest.raises(EncodeError):
            await call("ask", object())
    assert left_behind(a.adapter) == {}


async def test_handlers_may_ask_back(trio: tuple[Node, Node, Node]) -> None:
    """A handler that asks the cluster while it is asked by it does not wait for itself."""
    for node in trio:
        node.adapter.on("deep", deepen(node))
    answers = await trio[0].adapter.server_side_emit_with_ack("deep", 2)
    assert [answer.value for answer in answers.values()] == [2 + 2 * (1 + 2 * 1)] * 2, "two others at each level"


def deepen(node: Node) -> Any:
    async def deep(levels: int) -> int:
        if not levels:
            return 1
        answers = await node.adapter.server_side_emit_with_ack("deep", levels - 1)
        return levels + sum(int(answer.value) for answer in answers.values())

    return deep


async def test_a_server_alone_is_answered_by_nobody(alone: Cluster) -> None:
    (node,) = await started(alone, 1)
    node.adapter.on("ask", lambda: "myself")
    assert await node.adapter.server_side_emit_with_ack("ask") == {}
    await node.adapter.server_side_emit("ask")
    assert await node.adapter.server_count() == 1


async def test_servers_know_one_another_and_tell_who_came_and_went(cluster: Cluster) -> None:
    a, b = await cluster.node(name="first"), await cluster.node()
    told: list[tuple[Any, ...]] = []

    @a.adapter.on("node_joined")
    def joined(info: NodeInfo) -> None:
        told.append(("joined", info.id, info.name))

    @a.adapter.on("node_left")
    def left(info: NodeInfo, why: str) -> None:
        told.append(("left", info.id, why))

    c = await cluster.node(name="third")
    client = await c.client()
    await c.sio.enter_room(client.sid, "room1")
    await until(lambda: told == [("joined", c.adapter.host_id, "third")])
    ids = [node.adapter.host_id for node in (a, b, c)]
    for node in (a, b, c):
        nodes = await node.adapter.nodes()
        assert [info.id for info in nodes] == ids, "the oldest first"
        assert [info.name for info in nodes if info.id in (ids[0], ids[2])] == ["first", "third"]
        assert await node.adapter.server_count() == 3
    (own,) = [info for info in await c.adapter.nodes() if info.id == ids[2]]
    assert (own.clients, own.rooms) == (1, 1)
    await client.aclose()
    await c.adapter.aclose()
    await until(lambda: ("left", ids[2], "bye") in told)
    assert await a.adapter.server_count() == 2
