"""What Node's own adapters are tested for, on three nodes with three clients each, over every broker.

Each docstring quotes the title of that test in Socket.IO's suites. Nothing here waits for things to settle: a verb
that has returned has happened, and an end that everyone hears proves who did not hear what came before.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from roomcast import AckTimeout, Answer, RequestTimeout
from roomcast.core.errors import PublishRejected
from tests.adapter.conftest import broker_url
from tests.adapter.crowd import EVERYONE, Crowd, fetched, gathered, nothing_is_left
from tests.services import SharedBrokers


@pytest.fixture
async def crowd(scheme: str, shared_brokers: SharedBrokers) -> AsyncIterator[Crowd]:
    async with gathered(broker_url(scheme, shared_brokers)) as crowd:
        yield crowd


def words(answers: list[Answer]) -> list[Any]:
    return sorted((answer.value for answer in answers), key=repr)


def answer_by_name(crowd: Crowd, event: str) -> None:
    """Let each client acknowledge an event with its name."""
    for name in EVERYONE.split():
        crowd[name].answers[event] = name


# broadcast


async def test_an_event_reaches_all_clients(crowd: Crowd) -> None:
    """broadcasts to all clients"""
    event = ("test", 1, "2", b"\3\4", {"list": [b"", None, 1.5]})
    await crowd.a.adapter.namespace("/").emit(*event)
    assert await crowd.hearers(*event) == EVERYONE


async def test_an_event_reaches_all_clients_of_its_namespace(scheme: str, shared_brokers: SharedBrokers) -> None:
    """broadcasts to all clients in a namespace"""
    async with gathered(broker_url(scheme, shared_brokers), "/custom", "/") as crowd:
        await crowd.a.adapter.namespace("/custom").emit("test", 1)
        assert await crowd.hearers("test", 1) == EVERYONE
        await crowd.b.adapter.namespace("/").emit("main")
        await crowd.b.adapter.to("room1").emit("main")
        for client in crowd.clients():
            assert await client.hear("main", "/") == [("main",)]
        assert await crowd.hearers("main", by=crowd.b) == ""


async def test_an_event_reaches_all_clients_of_a_room(crowd: Crowd) -> None:
    """broadcasts to all clients in a room"""
    await crowd.enter("room1", "b1 c2")
    await crowd.a.adapter.to("room1").emit("test")
    assert await crowd.hearers("test") == "b1 c2"


async def test_an_event_passes_by_the_clients_of_an_excepted_room(crowd: Crowd) -> None:
    """broadcasts to all clients except in room"""
    await crowd.enter("room1", "a3 b1")
    await crowd.a.adapter.except_("room1").emit("test")
    assert await crowd.hearers("test") == "a1 a2 b2 b3 c1 c2 c3"


async def test_a_client_of_several_rooms_gets_an_event_once(crowd: Crowd) -> None:
    """broadcasts to all clients once; emits to rooms avoiding dupes"""
    await crowd.enter("room1", "a1 b1 b2")
    await crowd.enter("room2", "a1 b2 c3")
    await crowd.a.adapter.to("room1", "room2").to(crowd["b2"].sid).emit("test")
    assert await crowd.hearers("test") == "a1 b1 b2 c3"
    await crowd.a.adapter.to(["room1", "room2"]).in_(["room1"]).emit("again")
    assert await crowd.hearers("again") == "a1 b1 b2 c3"


async def test_a_local_event_reaches_the_clients_of_its_node_and_is_not_published(crowd: Crowd) -> None:
    """broadcasts to local clients only"""
    await crowd.enter("room1", "a1 b1 c1")
    assert await crowd.hearers() == ""
    before = crowd.a.adapter.stats()["published"]
    await crowd.a.adapter.local.emit("test")
    await crowd.a.adapter.to("room1").local.emit("test to a room")
    assert await crowd.a.adapter.local.count() == 3
    assert await crowd.a.adapter.local.sockets_join("room2") == 3
    assert await crowd.a.adapter.local.sockets_leave("room2") == 3
    heard = await crowd.everything()
    assert heard == {name: [] for name in EVERYONE.split()} | {
        "a1": [("test",), ("test to a room",)],
        "a2": [("test",)],
        "a3": [("test",)],
    }
    await crowd.a.adapter.namespace("/").emit("end")
    await asyncio.gather(*(client.hear("end") for client in crowd.clients()))
    assert crowd.a.adapter.stats()["published"] - before == 2, "the two ends alone"


async def test_local_clients_get_an_event_that_the_broker_refuses(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """broadcasts to local clients even when publishAndReturnOffset throws"""

    async def refuse(*_args: object) -> None:
        raise PublishRejected("The broker is full.", broker="test")

    with monkeypatch.context() as patch:
        patch.setattr(crowd.a.inside._node._broker, "publish", refuse)
        await crowd.a.adapter.namespace("/").emit("test")
        assert [await client.hear("test") for client in crowd.clients("a1 a2 a3")] == [[("test",)]] * 3
    assert crowd.a.adapter.stats()["given_up"] == 1
    assert await crowd.hearers() == ""


async def test_an_event_reaches_a_single_client(crowd: Crowd) -> None:
    """broadcasts to a single client"""
    for name in ("b1", "a2"):
        await crowd.a.adapter.to(crowd[name].sid).emit("test")
        assert await crowd.hearers("test") == name


async def test_an_event_reaches_a_room_that_is_named_by_a_number(crowd: Crowd) -> None:
    """broadcasts to a numeric room"""
    await crowd.enter(123, "a1 b1")
    await crowd.enter("123", "a1 c1")
    await crowd.a.adapter.to(123).emit("number")
    assert await crowd.hearers("number") == "a1 b1"
    await crowd.a.adapter.to("123").except_(123).emit("text")
    assert await crowd.hearers("text") == "c1"


async def test_an_event_reaches_the_rest(crowd: Crowd) -> None:
    """emits to the rest; should exclude specific sockets when broadcasting"""
    await crowd.enter("room1", "a1 b1 c1 c2")
    await crowd.a.adapter.except_(crowd["a1"].sid).emit("rest")
    assert await crowd.hearers("rest") == EVERYONE.removeprefix("a1 ")
    await crowd.b.adapter.to("room1").except_(*crowd.sids("b1 c2")).emit("rest of the room")
    assert await crowd.hearers("rest of the room", by=crowd.b) == "a1 c1"
    await crowd.c.adapter.to(*crowd.sids("a1 b1")).except_("room1").emit("nobody")
    assert await crowd.hearers(by=crowd.c) == ""


async def test_an_operator_is_immutable(crowd: Crowd) -> None:
    """should return an immutable broadcast operator"""
    await crowd.enter("room1", "a1 b1")
    await crowd.enter("room2", "a1 c1")
    start = crowd.a.adapter.to("room1")
    start.to("room2")
    start.except_("room2")
    start.local.volatile.timeout(1).namespace("/other")
    await start.emit("room 1")
    assert await crowd.hearers("room 1") == "a1 b1"
    await start.except_("room2").emit("but not 2")
    assert await crowd.hearers("but not 2") == "b1"
    await crowd.a.adapter.namespace("/").volatile.except_("room2").timeout(9).to("room1").emit("any order")
    assert await crowd.hearers("any order") == "b1"


async def test_rooms_are_listed_with_their_members_while_they_have_some(crowd: Crowd) -> None:
    """returns all rooms across several nodes; keeps track of rooms; deletes empty rooms; properly cleanup left rooms"""
    await crowd.enter("room1", "a1 b1 b2")
    await crowd.enter(2, "c3")
    assert await crowd.a.adapter.all_rooms() == {"room1": 3, 2: 1}
    await crowd.b.adapter.to("room1").sockets_leave("room1")
    assert await crowd.c.adapter.all_rooms() == {2: 1}
    assert await crowd.c.adapter.all_rooms("/other") == {}
    await crowd.a.adapter.to(2).disconnect_sockets()
    assert await crowd.b.adapter.all_rooms() == {}


# broadcast with acknowledgements


async def test_every_client_acknowledges(crowd: Crowd) -> None:
    """broadcasts with multiple acknowledgements; should broadcast and expect multiple acknowledgements (promise)"""
    answer_by_name(crowd, "test")
    answers = await crowd.a.adapter.timeout(5).emit_with_ack("test")
    assert sorted(answer.value for answer in answers) == EVERYONE.split()
    assert {answer.sid: (answer.node, answer.args) for answer in answers} == {
        crowd[name].sid: (crowd.node_of(name).adapter.host_id, (name,)) for name in EVERYONE.split()
    }
    await nothing_is_left(*(node.adapter for node in crowd.nodes))


async def test_acknowledgements_may_be_binary(crowd: Crowd) -> None:
    """broadcasts with multiple acknowledgements (binary content)"""
    await crowd.enter("room1", "a1 b1 c1 c2")
    said: dict[str, Any] = {"a1": b"\1", "b1": {"deep": [b"", b"\xff" * 10]}, "c1": (b"\1", "text", b"\2"), "c2": 7}
    for name, value in said.items():
        crowd[name].answers["test"] = value
    answers = await crowd.a.adapter.to("room1").emit_with_ack("test", b"\5")
    assert {crowd.named([answer.sid]): answer.value for answer in answers} == said


async def test_an_event_for_nobody_is_acknowledged_by_nobody_at_once(crowd: Crowd) -> None:
    """broadcasts with multiple acknowledgements (no client); should broadcast and return if sent to 0 client"""
    async with asyncio.timeout(2):
        assert await crowd.a.adapter.to("nobody").timeout(9).emit_with_ack("test") == []
        assert await crowd.a.adapter.except_(*crowd.sids()).timeout(9).emit_with_ack("test") == []
        assert await crowd.a.adapter.namespace("/nowhere").timeout(9).emit_with_ack("test") == []
        assert await crowd.a.adapter.to("nobody").local.timeout(9).emit_with_ack("test") == []
    await nothing_is_left(*(node.adapter for node in crowd.nodes))


async def test_a_timeout_carries_the_answers_there_are_and_who_is_missing(crowd: Crowd) -> None:
    """broadcasts with multiple acknowledgements (timeout); should fail when a client does not acknowledge [...]"""
    answer_by_name(crowd, "test")
    silent = asyncio.Event()
    for name in ("a2", "b3"):
        crowd[name].socket.on("test", late_until(silent))
    with pytest.raises(AckTimeout) as failed:
        await crowd.a.adapter.timeout(0.5).emit_with_ack("test")
    silent.set()
    assert words(failed.value.responses) == [name for name in EVERYONE.split() if name not in ("a2", "b3")]
    assert failed.value.missing == set(crowd.sids("a2 b3"))
    assert isinstance(failed.value, TimeoutError)
    assert isinstance(failed.value, RequestTimeout)
    await nothing_is_left(crowd.a.adapter)


def late_until(event: asyncio.Event) -> Any:
    async def wait() -> str:
        await event.wait()
        return "late"

    return wait


async def test_a_single_local_client_acknowledges(crowd: Crowd) -> None:
    """broadcasts with a single acknowledgement (local)"""
    await acknowledge_alone(crowd, "a2")


async def test_a_single_remote_client_acknowledges(crowd: Crowd) -> None:
    """broadcasts with a single acknowledgement (remote)"""
    await acknowledge_alone(crowd, "c2")


async def acknowledge_alone(crowd: Crowd, name: str) -> None:
    def increased(value: int) -> int:
        return value + 1

    crowd[name].answers["test"] = increased
    (socket,) = await crowd.a.adapter.to(crowd[name].sid).fetch_sockets()
    assert await socket.emit_with_ack("test", 41) == 42
    (answer,) = await crowd.a.adapter.to(crowd[name].sid).emit_with_ack("test", 1)
    assert answer == Answer(crowd[name].sid, crowd.node_of(name).adapter.host_id, (2,))
    assert await crowd.a.sio.call("test", 2, to=crowd[name].sid) == 3
    await nothing_is_left(*(node.adapter for node in crowd.nodes))


# socketsJoin and socketsLeave


async def test_all_clients_join_a_room(crowd: Crowd) -> None:
    """makes all socket instances join the specified room"""
    assert await crowd.a.adapter.sockets_join("room1") == 9
    for node in crowd.nodes:
        await node.adapter.to("room1").emit("test")
        assert await crowd.hearers("test", by=node) == EVERYONE
    assert crowd.b.sio.rooms(crowd["b1"].sid) == [crowd["b1"].sid, "room1"]


async def test_matching_clients_join_several_rooms(crowd: Crowd) -> None:
    """makes the matching socket instances join the specified room; allows to join several rooms at once"""
    await crowd.enter("room1", "a1 c2")
    assert await crowd.b.adapter.in_("room1").sockets_join("room2", 3) == 2
    for room in ("room2", 3):
        await crowd.c.adapter.to(room).emit("test")
        assert await crowd.hearers("test", by=crowd.c) == "a1 c2"


async def test_a_given_client_joins_a_room(crowd: Crowd) -> None:
    """makes the given socket instance join the specified room"""
    assert await crowd.a.adapter.to(crowd["b2"].sid).sockets_join("room1") == 1
    await crowd.c.adapter.to("room1").emit("test")
    assert await crowd.hearers("test", by=crowd.c) == "b2"
    (socket,) = await crowd.c.adapter.to(crowd["a3"].sid).fetch_sockets()
    await socket.join("room1", "room2")
    await crowd.b.adapter.to("room2").emit("test")
    assert await crowd.hearers("test", by=crowd.b) == "a3"


async def test_all_clients_leave_a_room(crowd: Crowd) -> None:
    """makes all socket instances leave the specified room"""
    await crowd.enter("room1", "a1 b1 c1")
    assert await crowd.a.adapter.sockets_leave("room1") == 9
    for node in crowd.nodes:
        await node.adapter.to("room1").emit("test")
        assert await crowd.hearers(by=node) == ""


async def test_matching_clients_leave_rooms(crowd: Crowd) -> None:
    """makes the matching socket instances leave the specified room"""
    await crowd.enter("room1", "a1 b1 c1")
    await crowd.enter("room2", "b1 c1 c2")
    await crowd.enter("room3", "a1 b1")
    assert await crowd.c.adapter.in_("room1").sockets_leave("room2", "room3") == 3
    await crowd.a.adapter.to("room2", "room3").emit("test")
    assert await crowd.hearers("test") == "c2"


async def test_a_given_client_leaves_a_room(crowd: Crowd) -> None:
    """makes the given socket instance leave the specified room"""
    await crowd.enter("room1", "a1 b1 b2")
    assert await crowd.a.adapter.to(crowd["b1"].sid).sockets_leave("room1") == 1
    (socket,) = await crowd.b.adapter.to(crowd["a1"].sid).fetch_sockets()
    await socket.leave("room1")
    await crowd.c.adapter.to("room1").emit("test")
    assert await crowd.hearers("test", by=crowd.c) == "b2"


# disconnectSockets


async def test_all_clients_are_disconnected(crowd: Crowd) -> None:
    """makes all socket instances disconnect"""
    reasons: list[str] = []

    def parted(_sid: str, reason: str) -> None:
        reasons.append(reason)

    for node in crowd.nodes:
        node.sio.on("disconnect", parted)
    assert await crowd.a.adapter.disconnect_sockets() == 9
    assert reasons == ["server disconnect"] * 9, "the handlers are done by then"
    await asyncio.gather(*(asyncio.wait_for(client.gone.wait(), 5) for client in crowd.clients()))
    assert await crowd.b.adapter.count() == 0


async def test_matching_clients_are_disconnected(crowd: Crowd) -> None:
    """makes all socket instances in a room disconnect"""
    await crowd.enter("room1", "a1 b1 c1 c2")
    assert await crowd.a.adapter.in_("room1").except_(crowd["c2"].sid).disconnect_sockets() == 3
    await asyncio.gather(*(asyncio.wait_for(client.gone.wait(), 5) for client in crowd.clients("a1 b1 c1")))
    await crowd.b.adapter.namespace("/").emit("test")
    rest = "a2 a3 b2 b3 c2 c3"
    assert await crowd.hearers("test", by=crowd.b, among=rest) == rest
    (socket,) = await crowd.a.adapter.to("room1").fetch_sockets()
    await socket.disconnect()
    await asyncio.wait_for(crowd["c2"].gone.wait(), 5)
    assert await crowd.a.adapter.count("room1") == 0


async def test_clients_get_what_was_emitted_before_they_are_disconnected(crowd: Crowd) -> None:
    """sends a packet before all socket instances disconnect"""
    await crowd.enter("room1", "a1 b1 c1")
    first, second = (asyncio.ensure_future(crowd.a.adapter.to("room1").emit("bye", number)) for number in (1, 2))
    await asyncio.sleep(0)  # both have begun
    assert await crowd.a.adapter.to("room1").disconnect_sockets(close=True) == 3
    await asyncio.gather(first, second)
    assert await crowd.a.adapter.disconnect_sockets(close=True) == 6
    for client in crowd.clients("a1 b1 c1"):
        assert await client.hear("bye") == [("bye", 1)]
        assert await client.hear("bye") == [("bye", 2)]
        await asyncio.wait_for(client.gone.wait(), 5)


# fetchSockets


async def test_all_clients_are_fetched(crowd: Crowd) -> None:
    """returns all socket instances"""
    await crowd.enter("room1", "b1 c1")
    sockets = await fetched(crowd.a.adapter)
    assert crowd.named(sockets) == EVERYONE
    for name in EVERYONE.split():
        socket = sockets[crowd[name].sid]
        assert (socket.node, socket.namespace) == (crowd.node_of(name).adapter.host_id, "/")
        assert socket.rooms == (socket.sid, "room1") if name in ("b1", "c1") else (socket.sid,)
    assert {socket.sid async for socket in crowd.b.adapter.iter_sockets()} == set(crowd.sids())


async def test_a_single_client_is_fetched(crowd: Crowd) -> None:
    """returns a single socket instance; returns all socket instances in the given room"""
    await crowd.b.sio.save_session(crowd["b2"].sid, {"user": "ann", "n": [1, {"x": b"\0"}]})
    (socket,) = await crowd.a.adapter.to(crowd["b2"].sid).fetch_sockets()
    assert (socket.sid, socket.data) == (crowd["b2"].sid, {"user": "ann", "n": [1, {"x": b"\0"}]})
    await socket.emit("hello", 1)
    assert await crowd.hearers("hello", 1) == "b2"
    await crowd.enter("room1", "a1 b2 c3")
    assert crowd.named(await fetched(crowd.c.adapter.in_("room1").except_(crowd["a1"].sid))) == "b2 c3"
    assert await crowd.a.adapter.to(crowd["b2"].sid[:-1] + "!").fetch_sockets() == []


async def test_only_local_clients_are_fetched(crowd: Crowd) -> None:
    """returns only local socket instances"""
    assert crowd.named(await fetched(crowd.b.adapter.local)) == "b1 b2 b3"
    assert await crowd.b.adapter.local.to(crowd["a1"].sid).fetch_sockets() == []
    assert await crowd.b.adapter.to(crowd["a1"].sid).local.count() == 0
