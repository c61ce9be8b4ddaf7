"""Who a client is that comes back, what is stored with it, and whose handlers run when."""

import asyncio
from typing import Any

import pytest

import roomcast
from roomcast.core.messages import Fetch
from tests.adapter.homes import (
    LONG,
    Home,
    emit,
    events,
    free,
    told,
)
from tests.adapter.servers import Cluster
from tests.waiting import until


async def test_a_client_that_came_back_is_reached_by_its_old_name_from_every_node(home: Home) -> None:
    nodes = await home.nodes(3)
    client = await home.client(nodes[0])
    sid = client.sid
    await home.away(nodes[0], client)
    await client.connect(nodes[1])
    async with roomcast.Emitter(home.cluster.url, prefix=home.cluster.prefix) as emitter:
        await emitter.to(sid).emit("n", 0)
        assert [answer.args for answer in await emitter.to(sid).emit_with_ack("question", 1)] == [(1,)]
    assert await client.hear("question") == [*events([0]), ("question", 1)]
    for number, node in enumerate(nodes):
        await node.sio.emit("n", number, to=sid)
        await node.sio.enter_room(sid, f"room {number}")
        assert await node.sio.call("question", number, to=sid) == number
        (socket,) = await node.adapter.to(sid).fetch_sockets()
        assert (socket.sid, socket.node) == (sid, nodes[1].adapter.host_id)
        await node.sio.leave_room(sid, "red")
        assert await client.hear("question") == [*events([number]), ("question", number)]
    assert set(nodes[1].sio.rooms(sid)) == {sid, "room 0", "room 1", "room 2"}
    await nodes[2].sio.disconnect(sid)
    await asyncio.wait_for(client.over.wait(), 5)
    await client.connect(nodes[0])
    assert not client.recovered


async def test_a_node_without_recovery_reaches_the_clients_of_those_that_have_it(home: Home) -> None:
    """As in the middle of a rolling upgrade; also a client that has moved since."""
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    await client.drop()
    assert (await client.connect(nodes[1])).recovered
    without = await home.cluster.node(**home.settings)
    assert without.inside._node.roams
    await without.sio.enter_room(client.sid, "blue")
    await without.sio.leave_room(client.sid, "red")
    await emit(without, [1], to="red")
    await emit(without, [2], to="blue")
    assert await home.end(without, client) == [events([2])]
    with pytest.raises(ValueError, match="not connected"):
        await without.sio.enter_room(client.sid[::-1], "blue")
    await without.sio.disconnect(client.sid)
    await client.over.wait()


async def test_what_is_stored_with_a_client_is_read_on_every_node_and_comes_back(home: Home) -> None:
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    sid = client.sid
    async with nodes[0].sio.session(sid) as session:
        session.update(name="Ann", tags=("a", 1), secret=object())
    stored = {"name": "Ann", "tags": ["a", 1]}
    assert [await node.adapter.get_session(sid) for node in nodes] == [stored, stored]
    await home.away(nodes[0], client)
    await until(lambda: free(nodes[1]) == 1, what="the session to be free")
    assert [await node.adapter.get_session(sid) for node in nodes] == [stored, stored]
    await client.connect(nodes[1])
    assert await nodes[1].sio.get_session(sid) == stored
    assert [await node.adapter.get_session(sid) for node in nodes] == [stored, stored]
    async with roomcast.Emitter(home.cluster.url, prefix=home.cluster.prefix) as emitter:
        assert await emitter.get_session(sid) == stored
    with pytest.raises(ValueError, match="There is no client 'nobody'"):
        await nodes[0].adapter.get_session("nobody")


@pytest.mark.parametrize("how", ["lost", "left", "sent away"])
async def test_what_is_stored_with_a_client_is_read_in_its_disconnect_handler(home: Home, how: str) -> None:
    """Also on a node that did not give it its sid, and when all have read that the node serves it no longer."""
    nodes = await home.nodes()
    table = nodes[1].inside._recoveries.reader.table
    read: list[Any] = []
    done = asyncio.Event()

    async def disconnect(sid: str, _reason: str) -> None:
        await until(lambda: not table.serves(nodes[1].adapter.host_id), what="the session not to be served")
        read.append(await nodes[1].adapter.get_session(sid))
        done.set()

    nodes[1].sio.on("disconnect", disconnect)
    client = await home.client(nodes[0])
    await nodes[0].sio.save_session(client.sid, {"name": "Ann"})
    await client.drop()
    assert (await client.connect(nodes[1])).recovered
    if how == "lost":
        await client.drop()
    elif how == "left":
        await client.leave()
    else:
        await nodes[0].sio.disconnect(client.sid)
    await asyncio.wait_for(done.wait(), 5)
    assert read == [{"name": "Ann"}]


async def test_what_is_stored_with_a_client_that_goes_as_its_node_is_asked_is_read_all_the_same(home: Home) -> None:
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    await nodes[0].sio.save_session(client.sid, {"name": "Ann"})
    await told(nodes[1], client)
    nodes[0].inside._node.publisher.hold(link_down=True)
    await client.drop()
    await until(lambda: nodes[0].inside._rooms.client("/", client.sid) is None, what="the client to be gone")
    reading = asyncio.ensure_future(nodes[1].adapter.get_session(client.sid))
    handled = nodes[0].inside._node.handlers
    answered, fetch = asyncio.Event(), handled[Fetch]

    def answer(origin: str, message: Any) -> None:
        fetch(origin, message)
        answered.set()

    handled[Fetch] = answer
    await asyncio.wait_for(answered.wait(), 5)
    nodes[0].inside._node.publisher.release()
    assert await reading == {"name": "Ann"}


async def test_without_recovery_what_is_stored_with_a_client_is_read_on_every_node(alone: Cluster) -> None:
    a, b = await alone.pair()
    client = await a.client()
    await a.sio.save_session(client.sid, {"name": "Ann"})
    read: list[Any] = []
    done = asyncio.Event()

    async def disconnect(sid: str, _reason: str) -> None:
        read.append(await a.adapter.get_session(sid))
        done.set()

    a.sio.on("disconnect", disconnect)
    for node in (a, b):
        assert await node.adapter.get_session(client.sid) == {"name": "Ann"}
        with pytest.raises(ValueError, match="There is no client"):
            await node.adapter.get_session(client.sid, namespace="/chat")
    await client.socket.disconnect()
    await asyncio.wait_for(done.wait(), 5)
    assert read == [{"name": "Ann"}]


async def test_the_disconnect_handler_is_done_before_the_client_is_back(home: Home) -> None:
    nodes = await home.nodes(patience=LONG)
    order: list[str] = []
    handling = asyncio.Event()

    async def disconnect(_sid: str, _reason: str) -> None:
        handling.set()
        await asyncio.sleep(0.05)
        order.append("disconnected")

    nodes[0].sio.on("disconnect", disconnect)
    client = await home.client(nodes[0])
    await client.drop()
    await handling.wait()
    for to in (1, 0):
        await client.connect(nodes[to])
        order.append(f"back on {to}")
        assert client.recovered
        await client.drop()
    assert order == ["disconnected", "back on 1", "back on 0"]


async def test_a_disconnect_handler_that_takes_long_does_not_end_the_session_again(home: Home) -> None:
    (node,) = await home.nodes(1)
    going, go = asyncio.Event(), asyncio.Event()

    async def disconnect(_sid: str, _reason: str) -> None:
        going.set()
        await go.wait()

    node.sio.on("disconnect", disconnect)
    client = await home.client(node)
    await client.drop()
    await going.wait()
    await client.connect(node)
    assert client.recovered
    go.set()
    await asyncio.sleep(0)
    await emit(node, [1], to=client.sid)
    assert await home.end(node, client) == [events([1])]


@pytest.mark.parametrize("agrees", [True, False])
async def test_a_connect_handler_that_ends_when_its_client_has_come_back_again_has_no_say_in_that(
    home: Home, *, agrees: bool
) -> None:
    (node,) = await home.nodes(1)
    client = await home.client(node)
    begun, go = [asyncio.Event(), asyncio.Event()], [asyncio.Event(), asyncio.Event()]
    ended = asyncio.Event()
    calls = iter((0, 1))

    async def connect(_sid: str, _environ: Any, _auth: Any) -> bool:
        call = next(calls)
        begun[call].set()
        await go[call].wait()
        return agrees or call == 1

    async def basic(eio_sid: str, packet: Any) -> None:
        await send(eio_sid, packet)
        ended.set()

    node.sio.on("connect", connect)
    for call in (0, 1):
        await client.drop()
        await client.ask(node)
        await begun[call].wait()
    send, node.sio._send_packet = node.sio._send_packet, basic
    go[0].set()
    await ended.wait()
    await asyncio.sleep(0)
    assert node.inside.is_pre_connected(client.sid, "/"), "nobody has agreed to this connection yet"
    go[1].set()
    await client.answered()
    assert client.recovered
    await emit(node, [1], to=client.sid)
    assert await home.end(node, client) == [events([1])]


async def test_always_connect_refuses_nobody_who_has_come_back_again_meanwhile(home: Home) -> None:
    node = await home.node(server={"always_connect": True})
    client = await home.client(node)
    begun, go = [asyncio.Event(), asyncio.Event()], asyncio.Event()
    calls = iter((0, 1))

    async def connect(_sid: str, _environ: Any, _auth: Any) -> bool:
        call = next(calls)
        begun[call].set()
        await go.wait()
        return call == 1

    node.sio.on("connect", connect)
    for call in (0, 1):
        await client.drop()
        await client.ask(node)
        await begun[call].wait()
    go.set()
    await emit(node, [1], to=client.sid)
    assert await home.end(node, client) == [events([1])]
    assert client.recovered


async def test_what_a_disconnect_handler_began_can_still_disconnect_its_client_once_that_is_back(home: Home) -> None:
    (node,) = await home.nodes(1)
    go = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def send_away(sid: str) -> None:
        await go.wait()
        await node.sio.disconnect(sid)

    async def disconnect(sid: str, _reason: str) -> None:
        tasks.append(asyncio.ensure_future(send_away(sid)))

    node.sio.on("disconnect", disconnect)
    client = await home.client(node)
    await client.drop()
    assert (await client.connect(node)).recovered
    go.set()
    await tasks[0]
    assert node.inside.eio_sid_from_sid(client.sid, "/") is None
    await client.drop()
    assert not (await client.connect(node)).recovered
