"""An emitter beside whole nodes, on every broker."""

import asyncio
import gc
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Unpack
from uuid import uuid4

import pytest

from roomcast import BrokerError, BrokerUnavailable, ConfigurationError, Emitter
from roomcast.core.options import Settings
from tests.adapter.conftest import SCHEMES
from tests.adapter.servers import Client, Cluster, Node, serving
from tests.adapter.test_lifecycle import sockets
from tests.services import NatsServer, RedisServer, Server, free_port
from tests.waiting import until


@pytest.fixture(params=(*SCHEMES, "embedded"))
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def beside(cluster: Cluster, **settings: Unpack[Settings]) -> Emitter:
    """An emitter of the cluster."""
    settings.setdefault("prefix", cluster.prefix)
    return Emitter(cluster.url, **settings)


async def client_in(node: Node, *rooms: str) -> Client:
    client = await node.client()
    for room in rooms:
        await node.sio.enter_room(client.sid, room)
    return client


async def heard(emitter: Emitter, *clients: Client) -> list[list[object]]:
    """What each client got, as the first argument of each event, until an end that the emitter emits now."""
    await emitter.emit("end")
    return [[event[1] for event in (await client.hear("end"))[:-1]] for client in clients]


def load_of(node: Node) -> Callable[[int], list[int]]:
    return lambda number: [number, node.port]


def putter(queue: "asyncio.Queue[tuple[int, str]]", number: int) -> Callable[[str], None]:
    return lambda text: queue.put_nowait((number, text))


async def test_events_reach_whom_they_are_meant_for_in_order(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    near, far, other = await client_in(a, "red"), await client_in(b, "red", "blue"), await client_in(b)
    chat = await b.client("/chat")
    async with beside(cluster) as emitter:
        await emitter.emit("event", 0)
        await emitter.to("red").emit("event", 1)
        await emitter.to("red", "blue").emit("event", 2)
        await emitter.to("red").except_("blue").emit("event", 3)
        await emitter.to(other.sid).emit("event", 4)
        await emitter.except_(other.sid).emit("event", 5)
        await emitter.in_("blue").emit("event", 6)
        await emitter.namespace("/chat").emit("event", b"\0bytes", {"k": [1, None]})
        assert await heard(emitter, near, far, other) == [[0, 1, 2, 3, 5], [0, 1, 2, 5, 6], [0, 4]]
        assert await chat.hear("event") == [("event", b"\0bytes", {"k": [1, None]})]


async def test_it_asks_all_nodes_and_is_none_of_them(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    near, far = await client_in(a, "red"), await client_in(b, "red", "blue")
    near.answers["ask"], far.answers["ask"] = "near", ("far", 2)
    await b.sio.save_session(far.sid, {"user": "far"})
    for node in (a, b):
        node.adapter.on("load", load_of(node))
    async with beside(cluster) as emitter:
        acked = await emitter.to("red").emit_with_ack("ask", 1)
        assert {(answer.sid, answer.value) for answer in acked} == {(near.sid, "near"), (far.sid, ("far", 2))}
        async with aclosing(emitter.to(far.sid).acks("ask", 1)) as answers:
            assert [answer.args async for answer in answers] == [("far", 2)]
        fetched = {socket.sid: socket for socket in await emitter.fetch_sockets()}
        assert set(fetched) == {near.sid, far.sid}
        assert fetched[far.sid].data == {"user": "far"}
        assert fetched[far.sid].node == b.adapter.host_id
        assert await fetched[near.sid].emit_with_ack("ask", 2) == "near"
        assert [socket.sid async for socket in emitter.to("blue").iter_sockets()] == [far.sid]
        assert (await emitter.count(), await emitter.count("blue"), await emitter.to("red").count()) == (2, 1, 2)
        assert await emitter.all_rooms() == {"red": 2, "blue": 1}
        assert {node.id for node in await emitter.nodes()} == {a.adapter.host_id, b.adapter.host_id}
        assert await emitter.server_count() == await a.adapter.server_count() == await b.adapter.server_count() == 2
        loads = await emitter.server_side_emit_with_ack("load", 7)
        assert {node: answer.value for node, answer in loads.items()} == {
            a.adapter.host_id: [7, a.port],
            b.adapter.host_id: [7, b.port],
        }
        assert a.adapter.health().peers == b.adapter.health().peers == 1
        for node in (a, b):
            assert node.adapter.stats()["refused"] == {}
        assert emitter.stats()["refused"] == {}


async def test_it_moves_and_disconnects_clients_and_its_later_emits_find_them_moved(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    near, far = await client_in(a, "red"), await client_in(b, "red")
    async with beside(cluster) as emitter:
        for number in range(20):
            room = f"room {number}"
            assert await emitter.to("red").sockets_join(room) == 2
            await emitter.to(room).emit("event", number)
            assert await emitter.to(near.sid).sockets_leave(room) == 1
            await emitter.to(room).emit("event", -number)
        there = [sign * number for number in range(20) for sign in (1, -1)]
        assert await heard(emitter, near, far) == [list(range(20)), there]
        assert await emitter.to(far.sid).disconnect_sockets(close=True) == 1
        await far.gone.wait()
        [left] = await emitter.fetch_sockets()
        await left.disconnect()
        await near.gone.wait()
        assert await emitter.count() == 0


async def test_an_event_from_server_to_server_reaches_every_node(cluster: Cluster) -> None:
    got: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
    for number, node in enumerate(await cluster.pair()):
        node.adapter.on("news", putter(got, number))
    async with beside(cluster) as emitter:
        await emitter.server_side_emit("news", "new")
        assert {await asyncio.wait_for(got.get(), 5) for _ in range(2)} == {(0, "new"), (1, "new")}
        with pytest.raises(ValueError, match="reserved"):
            await emitter.server_side_emit("node_joined")


async def test_the_first_request_of_a_new_emitter_sees_every_node_without_waiting_for_the_second(
    cluster: Cluster,
) -> None:
    for _ in range(3):
        await client_in(await cluster.node(), "red")
    for _ in range(5):
        async with beside(cluster) as emitter:
            began = time.monotonic()
            assert await emitter.count("red") == 3
            assert time.monotonic() - began < 0.9


async def test_without_any_node_the_first_request_waits_a_second(cluster: Cluster) -> None:
    async with beside(cluster) as emitter:
        began = time.monotonic()
        await emitter.emit("event")
        assert time.monotonic() - began < 0.9
        assert await emitter.fetch_sockets() == []
        assert 0.9 < time.monotonic() - began < 3
        assert await emitter.emit_with_ack("ask") == []
        assert await emitter.nodes() == []


async def test_aclose_flushes(cluster: Cluster) -> None:
    client = await client_in(await cluster.node(), "red")
    async with beside(cluster, confirm=False) as emitter:
        for number in range(1000):
            await emitter.to("red").emit("event", number)
    async with beside(cluster) as emitter:
        assert await heard(emitter, client) == [list(range(1000))]


async def test_aclose_leaves_no_task_and_no_socket(cluster: Cluster) -> None:
    gc.collect()
    before, tasks = sockets(), asyncio.all_tasks()
    for _ in range(3):
        async with beside(cluster) as emitter:
            await emitter.emit("event", 1)
            asking = asyncio.ensure_future(emitter.count())
        assert isinstance((await asyncio.gather(asking, return_exceptions=True))[0], BrokerError)
    assert asyncio.all_tasks() == tasks
    await until(lambda: sockets() <= before, within=5, what="the sockets to be closed")


@pytest.mark.parametrize("scheme", ["redis", "nats", "amqp"])
async def test_an_unreachable_broker_is_told_within_connect_timeout(scheme: str) -> None:
    emitter = Emitter(f"{scheme}://127.0.0.1:{free_port()}", connect_timeout=0.5)
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            await emitter.start()
        assert time.monotonic() - began < 1.0
    await emitter.aclose()


async def test_the_broker_must_be_named(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    monkeypatch.delenv("ROOMCAST_URL", raising=False)
    with pytest.raises(ConfigurationError, match="ROOMCAST_URL"):
        Emitter()
    monkeypatch.setenv("ROOMCAST_URL", redis_url)
    async with Emitter(prefix=f"t{uuid4().hex[:12]}") as emitter:
        assert emitter.health()
    with pytest.raises(ConfigurationError, match="nonsense"):
        Emitter("redis://localhost?nonsense=1")


@pytest.mark.fault
@pytest.mark.parametrize("server_class", [RedisServer, NatsServer], ids=lambda server: server.scheme)
async def test_it_outlives_its_broker(server_class: type[Server]) -> None:
    async with server_class() as server, serving(server.url) as cluster:
        node = await cluster.node()
        client = await client_in(node, "red")
        async with beside(cluster, emit_timeout=2.0) as emitter:
            await emitter.to("red").emit("event", 0)
            await server.kill()
            began = time.monotonic()
            with pytest.raises(BrokerError):
                await emitter.to("red").emit("event", 1)
            assert time.monotonic() - began < 4
            await server.start()
            await until(lambda: emitter.health() and node.adapter.health(), what="the links to be back")
            await emitter.to("red").emit("event", 2)
            *_, last = await client.hear("event")
            while last[1] != 2:
                *_, last = await client.hear("event")
            assert await emitter.count("red") == 1
