"""What python-socketio's server, and applications, rely on in its own client managers, asked of the adapter."""

import asyncio
from typing import Any

import pytest

from roomcast import Adapter
from tests.adapter.servers import Cluster
from tests.waiting import until


@pytest.fixture
def adapter() -> Adapter:
    """An adapter without a server and without a broker: the bare table of clients."""
    return Adapter("memory://")


async def connected(adapter: Adapter, eio_sid: str, namespace: str) -> str:
    sid = await adapter.connect(eio_sid, namespace)
    assert sid is not None
    return sid


async def test_connect_and_the_view_of_rooms(adapter: Adapter) -> None:
    sid = await connected(adapter, "123", "/foo")
    rooms: Any = adapter.rooms
    assert None in rooms["/foo"]
    assert sid in rooms["/foo"]
    assert dict(rooms["/foo"][None]) == dict(rooms["/foo"][sid]) == {sid: "123"}
    assert adapter.sid_from_eio_sid("123", "/foo") == sid
    assert adapter.sid_from_eio_sid("123", "/bar") is None
    assert adapter.eio_sid_from_sid(sid, "/bar") is None
    assert await adapter.connect("123", "/foo") is None


async def test_disconnecting_takes_two_steps(adapter: Adapter) -> None:
    one, two = await connected(adapter, "123", "/foo"), await connected(adapter, "456", "/foo")
    assert adapter.pre_disconnect(one, "/foo") == "123"
    assert not adapter.is_connected(one, "/foo")
    assert adapter.is_connected(two, "/foo")
    assert not await adapter.can_disconnect(one, "/foo")
    assert await adapter.can_disconnect(two, "/foo")
    await adapter.disconnect(one, "/foo", ignore_queue=True)
    await adapter.disconnect(one, "/foo", ignore_queue=True)
    assert dict(adapter.rooms["/foo"][None]) == {two: "456"}
    await adapter.disconnect(two, "/foo", ignore_queue=True)
    assert adapter.rooms == {}
    assert adapter.pre_disconnect(two, "/foo") is None


async def test_one_connection_in_two_namespaces(adapter: Adapter) -> None:
    one, two = await connected(adapter, "123", "/"), await connected(adapter, "123", "/foo")
    assert sorted(adapter.get_namespaces()) == ["/", "/foo"]
    assert adapter.is_connected(one, "/")
    assert not adapter.is_connected(one, "/foo")
    await adapter.disconnect(one, "/", ignore_queue=True)
    assert not adapter.is_connected(one, "/")
    assert adapter.is_connected(two, "/foo")
    assert list(adapter.get_namespaces()) == ["/foo"]


async def test_rooms_are_left_on_disconnect(adapter: Adapter) -> None:
    one, two = await connected(adapter, "123", "/foo"), await connected(adapter, "456", "/foo")
    await adapter.enter_room(one, "/foo", "bar")
    await adapter.enter_room(two, "/foo", "baz")
    assert adapter.get_rooms(one, "/foo") == [one, "bar"]
    await adapter.disconnect(one, "/foo", ignore_queue=True)
    assert "bar" not in adapter.rooms["/foo"]
    assert adapter.get_rooms(one, "/foo") == []
    assert dict(adapter.rooms["/foo"]["baz"]) == {two: "456"}
    assert list(adapter.get_participants("/foo", None)) == [(two, "456")]


async def test_leaving_what_was_never_entered_is_nothing(adapter: Adapter) -> None:
    sid = await connected(adapter, "123", "/foo")
    await adapter.leave_room(sid, "/foo", "baz")
    await adapter.leave_room(sid, "/bar", "baz")
    with pytest.raises(ValueError, match="not connected"):
        await adapter.enter_room(sid, "/bar", "baz")
    assert adapter.get_rooms("123", "/foo") == []


async def test_acknowledgements_that_nobody_waits_for_are_ignored(alone: Cluster) -> None:
    node = await alone.node()
    client = await node.client()
    called: list[object] = []
    client.answers["ask"] = "answer"
    await node.sio.emit("ask", to=client.sid, callback=called.append)
    await until(lambda: called == ["answer"])
    for sid, number in (("nobody", 1), (client.sid, 1), (client.sid, 99), (client.sid, 0)):
        await node.sio.manager.trigger_callback(sid, number, ["again"])
    assert called == ["answer"]


async def test_a_callback_is_dropped_with_its_client(alone: Cluster) -> None:
    a, b = await alone.pair()
    called: list[object] = []
    silent = await b.client()
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def wait(*_args: object) -> None:
        asked.set()
        await go_on.wait()

    silent.socket.on("ask", wait)
    await a.sio.emit("ask", to=silent.sid, callback=called.append)
    await a.sio.emit("ask", to="a room without members", callback=called.append)
    await until(lambda: len(a.inside._broadcast.acks) == 1, what="the callback of the empty room to be forgotten")
    await asked.wait()
    await b.sio.disconnect(silent.sid)
    await until(lambda: len(a.inside._broadcast.acks) == 0, what="the callback of the client to be forgotten")
    go_on.set()
    assert not called


@pytest.mark.parametrize(
    ("namespace", "room"), [("/", "nobody is here"), ("/nobody", None), ("/nobody", "here"), ("/", ["a", "b"])]
)
async def test_emitting_to_nobody_is_not_an_error(alone: Cluster, namespace: str, room: Any) -> None:
    a, b = await alone.pair()
    clients = [await a.client(), await b.client()]
    await a.sio.emit("event", {"n": 1}, namespace=namespace, room=room)
    assert await alone.finish(a, *clients) == [[], []]


async def test_the_caller_may_change_the_data_once_emit_has_returned(alone: Cluster) -> None:
    a, b = await alone.pair()
    clients = [await a.client(), await b.client()]
    numbers, blob = [1], bytearray(b"abc")
    await a.sio.emit("event", {"list": numbers, "blob": blob})
    numbers.clear()
    blob[:] = b"xyz"
    assert await alone.finish(a, *clients) == [[("event", {"list": [1], "blob": b"abc"})]] * 2
