"""What travels in a packet: serializers, a custom json module, and data that no packet can carry."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from roomcast import EncodeError, PayloadTooLarge
from tests.adapter.servers import Cluster

DATA = (1, {"text": "☃", "blob": [b"\x00\xff", b""], "none": None, "float": 0.5}, [True, "x"])


class Colour(Enum):
    RED = "red"


async def test_msgpack_throughout(cluster: Cluster) -> None:
    a, b = await cluster.node(server={"serializer": "msgpack"}), await cluster.node(server={"serializer": "msgpack"})
    clients = [await node.client(serializer="msgpack") for node in (a, b)]
    await b.sio.enter_room(clients[1].sid, "red")
    await a.sio.emit("data", DATA)
    await a.sio.emit("room", DATA, room="red")
    assert await cluster.finish(a, *clients) == [[("data", *DATA)], [("data", *DATA), ("room", *DATA)]]
    clients[1].answers["ask"] = DATA
    assert await a.sio.call("ask", DATA, to=clients[1].sid) == DATA


async def test_nodes_with_different_serializers_understand_each_other(cluster: Cluster) -> None:
    a, b = await cluster.node(), await cluster.node(server={"serializer": "msgpack"})
    here, far = await a.client(), await b.client(serializer="msgpack")
    for node, other in ((a, far), (b, here)):
        await node.sio.emit("data", DATA)
        await node.sio.emit("chat", "text", to=other.sid)
        heard = dict(zip((here, far), await cluster.finish(node, here, far), strict=True))
        assert heard.pop(other) == [("data", *DATA), ("chat", "text")]
        assert list(heard.values()) == [[("data", *DATA)]]
        other.answers["ask"] = (b"\x01", {"a": [1]})
        assert await node.sio.call("ask", b"\x02", to=other.sid) == (b"\x01", {"a": [1]})
        assert await other.hear("ask") == [("ask", b"\x02")]


async def test_a_custom_json_module(alone: Cluster) -> None:
    def dumps(*args: Any, **kwargs: Any) -> str:
        return json.dumps(*args, default=str, **kwargs)

    module = SimpleNamespace(dumps=dumps, loads=json.loads)
    # socketio gives the module to the packet class, which all servers of the process share
    import socketio.packet as sio_packet  # noqa: PLC0415

    before: Any = sio_packet.Packet.json  # pyright: ignore[reportUnknownMemberType]
    try:
        a, b = await alone.node(server={"json": module}), await alone.node(server={"json": module})
        clients = [await a.client(), await b.client()]
        moment = datetime(2026, 1, 2, tzinfo=UTC)
        await a.sio.emit("custom", {"at": moment, "blob": b"\x00", "id": UUID(int=1)})
        expected = {"at": str(moment), "blob": b"\x00", "id": str(UUID(int=1))}
        assert await alone.finish(a, *clients) == [[("custom", expected)]] * 2
    finally:
        sio_packet.Packet.json = before


@pytest.mark.parametrize("serializer", ["default", "msgpack"])
@pytest.mark.parametrize(
    "data",
    [datetime.now(UTC), {1, 2}, object(), Colour.RED, {"deep": [b"blob", {1}]}],
    ids=lambda data: type(data).__name__,
)
async def test_data_that_no_packet_carries_is_an_error_before_any_client_sees_it(
    alone: Cluster, serializer: str, data: Any
) -> None:
    a, b = await alone.node(server={"serializer": serializer}), await alone.node(server={"serializer": serializer})
    clients = [await a.client(serializer=serializer), await b.client(serializer=serializer)]
    emits: list[Callable[[], Any]] = [
        lambda: a.sio.emit("bad", data),
        lambda: a.sio.emit("bad", (b"blob", data), room="red"),
        lambda: a.sio.emit("bad", data, to=clients[1].sid),
        lambda: a.sio.emit("bad", data, callback=print),
        lambda: a.sio.call("bad", data, to=clients[1].sid),
    ]
    for emit in emits:
        with pytest.raises(EncodeError):
            await emit()
    assert await alone.finish(a, *clients) == [[], []]
    assert not len(a.inside._broadcast.acks)


async def test_a_text_that_was_cut_in_an_emoji_reaches_everyone(alone: Cluster) -> None:
    """A browser's `text.slice(0, n)` makes one, and sends it."""
    a, b = await alone.pair()
    clients = [await a.client(), await b.client()]
    await a.sio.emit("said", "\U0001f600\ud83d")
    await a.sio.emit("said", (b"blob", "\ud83d"))
    expected = [("said", "\U0001f600\ud83d"), ("said", b"blob", "\ud83d")]
    assert await alone.finish(a, *clients) == [expected] * 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), {("a", "b"): 1}], ids=repr)
async def test_what_json_does_not_have_is_an_error(alone: Cluster, bad: Any) -> None:
    a, b = await alone.pair()
    clients = [await a.client(), await b.client()]
    with pytest.raises(EncodeError):
        await a.sio.emit("bad", {"n": [bad]})
    with pytest.raises(EncodeError):
        await a.sio.emit("bad", (b"blob", bad))
    assert await alone.finish(a, *clients) == [[], []]


@pytest.mark.parametrize("room", [Colour.RED, 1.5, b"red", ("red", None), True, "\ud800", 2**64, {"red": 1}], ids=repr)
async def test_what_is_no_room_is_an_error_at_the_caller(alone: Cluster, room: Any) -> None:
    a, b = await alone.pair()
    clients = [await a.client(), await b.client()]
    calls: list[Callable[[], Any]] = [
        lambda: a.sio.emit("bad", room=room),
        lambda: a.sio.emit("bad", room=[clients[0].sid, room]),
        lambda: a.sio.enter_room(clients[0].sid, room),
        lambda: a.sio.enter_room(clients[1].sid, room),
        lambda: a.sio.leave_room(clients[1].sid, room),
        lambda: a.sio.close_room(room),
    ]
    for call in calls:
        with pytest.raises(TypeError):
            await call()
    with pytest.raises(TypeError):
        await a.sio.emit(Colour.RED)
    with pytest.raises(TypeError):
        await a.sio.emit("bad", skip_sid=7)
    assert await alone.finish(a, *clients) == [[], []]


async def test_what_is_too_large_is_an_error_at_the_caller_and_what_just_fits_arrives(cluster: Cluster) -> None:
    a, b = await cluster.pair(max_payload=200_000)
    clients = [await a.client(), await b.client()]
    with pytest.raises(PayloadTooLarge) as caught:
        await a.sio.emit("large", b"x" * 200_000)
    assert caught.value.limit == 200_000
    await a.sio.emit("fits", b"x" * 199_000)
    assert await cluster.finish(a, *clients) == [[("fits", b"x" * 199_000)]] * 2
