"""What can be learnt about clients elsewhere, and what is done to them, in the awkward cases.

Over every broker, but for what no broker can change: what a web server and a session give.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, cast
from uuid import uuid4

import aiohttp
import pytest

from roomcast import Adapter, BrokerUnavailable, RemoteSocket, RequestTimeout
from tests.adapter.conftest import broker_url
from tests.adapter.crowd import (
    Crowd,
    fetched,
    gathered,
    left_behind,
    nothing_is_left,
    started,
    swarming,
)
from tests.adapter.servers import Cluster, Web
from tests.cluster.harness import SimClient
from tests.services import SharedBrokers
from tests.waiting import until

MANY = 10_000


@pytest.fixture
async def crowd(scheme: str, shared_brokers: SharedBrokers) -> AsyncIterator[Crowd]:
    async with gathered(broker_url(scheme, shared_brokers)) as crowd:
        yield crowd


# What a socket tells


async def test_what_cannot_be_serialised_in_a_session_is_left_out_by_name(crowd: Crowd) -> None:
    class Custom:
        pass

    recursive: list[Any] = []
    recursive.append(recursive)
    bad: dict[Any, Any] = {
        "object": Custom(),
        "deep": {"in": [Custom()]},
        "lock": asyncio.Lock(),
        "huge": 2**70,
        "loop": recursive,
    }
    good: dict[Any, Any] = {"user": "ann", "tags": {"a"}, "none": None, "blob": b"\0", "tuple": (1, 2)}
    await crowd.b.sio.save_session(crowd["b1"].sid, {**good, **bad, 7: "seven"})
    for node in crowd.nodes:
        (socket,) = await node.adapter.to(crowd["b1"].sid).fetch_sockets()
        assert set(socket.omitted) == set(bad)
        assert {name: socket.data[name] for name in good} == good | {"tags": ["a"], "tuple": [1, 2]}
        assert socket.data["7"] == "seven"
    assert not crowd.b.adapter.stats()["faults"]


async def test_a_session_that_is_no_dictionary_is_left_out(alone: Cluster) -> None:
    a, b = await started(alone, 2)
    client = await a.client()
    await a.sio.save_session(client.sid, ["a", "list"])
    (socket,) = await b.adapter.to(client.sid).fetch_sockets()
    assert (socket.data, socket.omitted) == ({}, ("session",))


@pytest.mark.parametrize("web", ["uvicorn", "aiohttp"])
async def test_the_handshake_is_what_the_client_sent(alone: Cluster, web: Web) -> None:
    a, b = await alone.node(), await alone.node(web=web)
    before = time.time()
    auth = {"token": "t", "deep": [1, {"x": None}]}
    client = await b.client("/", "/chat", auth=auth, query="?color=red&empty=&color=blue&sn=%E2%98%83")
    plain = await b.client(transport="polling")
    (socket,) = await a.adapter.to(client.sid).fetch_sockets()
    shaken = socket.handshake
    assert shaken.auth == auth
    assert {name: shaken.query[name] for name in ("color", "empty", "sn")} == {"color": "blue", "empty": "", "sn": "☃"}
    assert shaken.query["transport"] == "websocket"
    assert shaken.headers["host"] == f"127.0.0.1:{b.port}"
    assert shaken.headers["upgrade"].lower() == "websocket"
    assert all(name == name.lower() and "_" not in name for name in shaken.headers)
    assert shaken.address == "127.0.0.1"
    assert before <= shaken.time <= time.time()
    assert shaken.secure is False
    (elsewhere,) = await a.adapter.namespace("/chat").fetch_sockets()
    assert (elsewhere.sid, elsewhere.namespace) == (client.sid_in("/chat"), "/chat")
    assert elsewhere.handshake.auth == auth
    (socket,) = await a.adapter.to(plain.sid).fetch_sockets()
    assert socket.handshake.auth == {}, "what this client sends when it was given nothing"
    assert socket.handshake.query["transport"] == "polling"


async def test_one_hostile_header_does_not_hide_the_others(alone: Cluster) -> None:
    """aiohttp hands on bytes that are no UTF-8 as lone surrogates, which cannot be serialised."""
    a, b = await alone.node(), await alone.node(web="aiohttp")
    await b.client()
    client = await b.client()
    b.sio.environ[client.socket.eio.sid]["HTTP_X_EVIL"] = "caf\udce9"
    b.sio.environ[client.socket.eio.sid]["QUERY_STRING"] = "evil=\udce9"
    sockets = await a.adapter.timeout(2).fetch_sockets()
    assert len(sockets) == 2
    assert not b.adapter.stats()["faults"]


# Namespaces and connections


async def test_a_connection_in_two_namespaces_is_two_clients(cluster: Cluster) -> None:
    a, b = await started(cluster, 2)
    client = await b.client("/", "/chat")
    here, chat = a.adapter, a.adapter.namespace("/chat")
    assert await here.sockets_join("room1") == 1
    assert await chat.sockets_join("room2") == 1
    assert set(await here.all_rooms("/")) == {"room1"}
    assert set(await here.all_rooms("/chat")) == {"room2"}
    assert [await here.count("room1"), await here.count("room1", namespace="/chat")] == [1, 0]
    await chat.to("room1").emit("nobody")
    await here.to("room2").emit("nobody")
    await here.to(client.sid_in("/chat")).emit("nobody")
    await chat.to("room2").emit("chat")
    await here.to("room1").emit("main")
    assert await client.hear("chat", "/chat") == [("chat",)]
    assert await client.hear("main", "/") == [("main",)]
    assert await here.to(client.sid_in("/chat")).fetch_sockets() == []


async def test_without_close_a_connection_lives_on_in_its_other_namespaces(cluster: Cluster) -> None:
    a, b = await started(cluster, 2)
    client = await b.client("/", "/chat")
    assert await a.adapter.disconnect_sockets() == 1
    assert await a.adapter.namespace("/chat").count() == 1
    await a.adapter.namespace("/chat").emit("still here")
    assert await client.hear("still here", "/chat") == [("still here",)]
    assert client.socket.eio.sid in b.sio.eio.sockets
    assert client.socket.connected


async def test_with_close_the_connection_ends_and_so_do_its_other_namespaces(cluster: Cluster) -> None:
    a, b = await started(cluster, 2)
    client, other = await b.client("/", "/chat"), await b.client()
    eio_sid = client.socket.eio.sid
    reasons: list[tuple[str, str]] = []
    sids = (client.sid, client.sid_in("/chat"))

    def parted(sid: str, reason: str) -> None:
        reasons.append((sid, reason))

    for namespace in ("/", "/chat"):
        b.sio.on("disconnect", parted, namespace=namespace)
    assert await a.adapter.to(client.sid).disconnect_sockets(close=True) == 1
    await asyncio.wait_for(client.gone.wait(), 5)
    await until(lambda: eio_sid not in b.sio.eio.sockets and len(reasons) == 2, what="the connection to be forgotten")
    assert sorted(sid for sid, _ in reasons) == sorted(sids)
    assert await a.adapter.namespace("/chat").count() == 0
    assert set(await fetched(a.adapter)) == {other.sid}


@pytest.mark.parametrize("close", [False, True])
async def test_a_polling_client_gets_its_last_events_before_it_is_disconnected(alone: Cluster, close: bool) -> None:
    a, b = await started(alone, 2)
    async with aiohttp.ClientSession(f"{b.url}/socket.io/") as http:

        async def poll() -> list[str]:
            async with http.get("", params=query) as response:
                return (await response.text()).split("\x1e")

        query = {"EIO": "4", "transport": "polling"}
        (opening,) = await poll()
        query["sid"] = json.loads(opening[1:])["sid"]
        async with http.post("", params=query, data="40"):
            pass
        (connected,) = await poll()
        sid = json.loads(connected[2:])["sid"]
        await a.adapter.to(sid).emit("last words")
        disconnecting = asyncio.ensure_future(a.adapter.to(sid).disconnect_sockets(close=close))
        await until(lambda: not b.sio.manager.is_connected(sid, "/"), what="the request to arrive")
        heard: list[str] = []
        while len(heard) < 2:
            heard += await poll()
        assert heard == ['42["last words"]', "41"]
        assert await disconnecting == 1
        if close:
            await until(lambda: not b.inside._node._tasks, within=5, what="the closing to end")
            socket = b.sio.eio.sockets.get(query["sid"])
            assert socket is None or socket.closed
        else:
            assert query["sid"] in b.sio.eio.sockets
            async with http.post("", params=query, data="1"):
                pass


async def test_disconnect_sockets_returns_when_slow_handlers_are_done_and_faulty_ones_do_not_matter(
    cluster: Cluster,
) -> None:
    a, b = await started(cluster, 2)
    sids = [(await b.client()).sid for _ in range(3)]
    done: list[str] = []
    go_on = asyncio.Event()

    async def slow(sid: str, _reason: str) -> None:
        if sid == sids[1]:
            raise LookupError("a fault of the application")
        await go_on.wait()
        done.append(sid)

    b.sio.on("disconnect", slow)
    with pytest.raises(RequestTimeout) as failed:
        await a.adapter.timeout(0.3).disconnect_sockets()
    assert failed.value.missing == {b.adapter.host_id}
    assert done == []
    again = asyncio.ensure_future(a.adapter.disconnect_sockets())
    go_on.set()
    assert await again == 0, "they are being disconnected already"
    await until(lambda: len(done) == 2)
    assert await a.adapter.count() == 0


async def test_a_disconnect_handler_may_ask_the_cluster(cluster: Cluster) -> None:
    a, b = await started(cluster, 2)
    for node in (a, b):
        for _ in range(2):
            await node.client()
    counted: list[int] = []

    async def count(_sid: str, _reason: str) -> None:
        counted.append(await a.adapter.count())
        await b.adapter.sockets_join("room1")
        await b.adapter.disconnect_sockets()

    for node in (a, b):
        node.sio.on("disconnect", count)
    async with asyncio.timeout(4):
        assert await b.adapter.timeout(30).disconnect_sockets() <= 4
    await until(lambda: len(counted) == 4)
    assert await a.adapter.count() == 0


async def test_a_connect_handler_may_ask_the_cluster(cluster: Cluster) -> None:
    a, b = await started(cluster, 2)
    seen: list[tuple[set[str], int]] = []

    async def ask(sid: str, _environ: object) -> None:
        joined = await b.adapter.to(sid).sockets_join("room1")
        seen.append((set(await fetched(b.adapter)), joined))
        await a.adapter.to("room1").emit("welcome", sid)

    b.sio.on("connect", ask)
    one = await b.client()
    two = await b.client()
    assert seen == [({one.sid}, 1), ({one.sid, two.sid}, 1)]
    assert await one.hear("welcome") == [("welcome", one.sid)]


async def test_a_room_that_is_a_client_s_own_cannot_be_joined_and_nobody_is_put_anywhere(crowd: Crowd) -> None:
    for own in crowd.sids("a1 b1"):
        with pytest.raises(ValueError, match=r"own|sid room"):
            await crowd.a.adapter.sockets_join("room1", own)
    wrongs: list[Any] = [(), ([],), (None,), (1.5,), (b"room",), (True,)]
    for wrong in wrongs:
        with pytest.raises((TypeError, ValueError)):
            await crowd.a.adapter.sockets_join(*wrong)
        with pytest.raises((TypeError, ValueError)):
            crowd.a.adapter.to(*wrong)
    assert await crowd.a.adapter.all_rooms() == {}
    assert await crowd.a.adapter.to(crowd["b1"].sid).sockets_join("room1") == 1
    assert await crowd.a.adapter.all_rooms() == {"room1": 1}
    assert left_behind(crowd.a.adapter) == {}


async def test_an_adapter_that_was_not_started_says_so(scheme: str, shared_brokers: SharedBrokers) -> None:
    adapter = Adapter(broker_url(scheme, shared_brokers))
    for call in (adapter.fetch_sockets, adapter.count, adapter.nodes, adapter.emit_with_ack, adapter.sockets_join):
        with pytest.raises(BrokerUnavailable):
            await cast("Any", call)(*(("x",) if call in (adapter.emit_with_ack, adapter.sockets_join) else ()))
    await adapter.aclose()


# Thousands


class Sizes:
    """The largest payload that a node's broker was given."""

    def __init__(self, node: Any, patch: pytest.MonkeyPatch) -> None:
        self.largest = 0
        self.count = 0
        broker = node.core._broker
        publish: Callable[[str, bytes], Any] = broker.publish

        async def measured(subject: str, payload: bytes, /) -> Any:
            self.largest = max(self.largest, len(payload))
            self.count += 1
            return await publish(subject, payload)

        patch.setattr(broker, "publish", measured)


async def populate(swarm: Any, count: int) -> set[str]:
    """So many clients, spread over the nodes, with something stored; their sids."""
    sids: set[str] = set()
    for number in range(count):
        node = swarm.nodes[number % len(swarm.nodes)]
        client = SimClient(node, "/")
        await client.connect()
        client.events.clear()
        await node.server.save_session(client.sid, {"number": number, "name": f"client {number}"})
        sids.add(client.sid)
    return sids


async def test_ten_thousand_sockets_are_fetched_in_small_messages(
    scheme: str, shared_brokers: SharedBrokers, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 65_536
    async with swarming(broker_url(scheme, shared_brokers), max_payload=limit) as swarm:
        sids = await populate(swarm, MANY)
        sizes = [Sizes(node, monkeypatch) for node in swarm.nodes]
        asker = swarm.nodes[0].adapter
        began = time.monotonic()
        sockets = await asker.fetch_sockets()
        took = time.monotonic() - began
        print(f"{scheme}: {MANY} sockets fetched in {took:.2f} s")  # noqa: T201 - a measurement
        assert len(sockets) == MANY
        assert {socket.sid for socket in sockets} == sids
        assert {socket.data["number"] for socket in sockets} == set(range(MANY))
        assert max(size.largest for size in sizes) <= limit
        assert await asker.count() == MANY
        half: list[RemoteSocket] = []
        async for socket in (iterator := asker.iter_sockets()):
            half.append(socket)
            if len(half) == MANY // 2:
                break
        await iterator.aclose()
        assert len({socket.sid for socket in half}) == MANY // 2
        await nothing_is_left(*(node.adapter for node in swarm.nodes))


async def test_many_rooms_and_many_fetches_at_once_are_answered(scheme: str, shared_brokers: SharedBrokers) -> None:
    async with swarming(broker_url(scheme, shared_brokers), nodes=2, max_payload=4096) as swarm:
        one, two = swarm.nodes
        client = await two.client()
        rooms = [f"room {number} {'x' * 50}" for number in range(300)]
        assert await one.adapter.to(client.sid).sockets_join(*rooms[:40]) == 1
        await asyncio.gather(*(two.server.enter_room(client.sid, room) for room in rooms))
        assert await one.adapter.all_rooms() == dict.fromkeys(rooms, 1)
        sids = await populate(swarm, 100)
        answers = await asyncio.gather(*(one.adapter.fetch_sockets() for _ in range(100)))
        assert all({socket.sid for socket in answer} == sids | {client.sid} for answer in answers)
        await nothing_is_left(one.adapter, two.adapter)


async def test_a_burst_of_fetches_does_not_break_those_under_way() -> None:
    """As when many clients reconnect at once, and the application fetches in its connect handler."""
    async with swarming(f"memory://m{uuid4().hex[:12]}", nodes=2, max_payload=4096) as swarm:
        one, two = swarm.nodes
        sids = {(await two.client()).sid for _ in range(100)}
        answers = await asyncio.gather(*(one.adapter.timeout(20).fetch_sockets() for _ in range(400)))
        assert all({socket.sid for socket in answer} == sids for answer in answers)
        await nothing_is_left(one.adapter, two.adapter)


async def test_clients_that_come_and_go_during_a_fetch_do_not_disturb_it(
    scheme: str, shared_brokers: SharedBrokers
) -> None:
    async with swarming(broker_url(scheme, shared_brokers), nodes=2, max_payload=4096) as swarm:
        one, two = swarm.nodes
        stay = [await two.client() for _ in range(100)]
        go = [await two.client() for _ in range(100)]
        seen: list[str] = []
        async for socket in one.adapter.iter_sockets():
            if not seen:
                for client in go:
                    await client.leave()
                for _ in range(50):
                    await two.client()
            seen.append(socket.sid)
        assert len(set(seen)) == len(seen)
        assert {client.sid for client in stay} <= set(seen)
        assert await one.adapter.count() == 150
        await nothing_is_left(one.adapter, two.adapter)
