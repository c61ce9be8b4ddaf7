"""Starting, waiting for a broker that is away, and closing without a trace."""

import asyncio
import gc
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import socketio

from roomcast import Adapter, BrokerClosed, BrokerUnavailable, ConfigurationError
from tests.adapter.conftest import broker_url
from tests.adapter.servers import Cluster, serving
from tests.services import NatsServer, RedisServer, Server, SharedBrokers, free_port
from tests.waiting import until

SERVERS: list[type[Server]] = [RedisServer, NatsServer]


def sockets() -> int:
    """How many sockets this process has open."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            count += str(entry.readlink()).startswith("socket:")
        except OSError:
            continue  # the descriptor that listed the directory
    return count


async def test_start_twice_and_close_twice(scheme: str, shared_brokers: SharedBrokers) -> None:
    adapter = Adapter(broker_url(scheme, shared_brokers), prefix=f"t{uuid4().hex[:12]}")
    assert not adapter.health()
    await adapter.start()
    await adapter.start()
    assert adapter.health()
    await adapter.aclose()
    await adapter.aclose()
    assert not adapter.health()
    assert "closed" in adapter.health().reason


def test_an_adapter_belongs_to_one_event_loop() -> None:
    """ "RuntimeError: it was started on another event loop." """
    adapter = Adapter("memory://")
    asyncio.run(adapter.start())
    with pytest.raises(RuntimeError, match="make another one for this loop"):
        asyncio.run(adapter.start())


async def test_an_asgi_server_says_why_it_did_not_start(caplog: pytest.LogCaptureFixture) -> None:
    """ "What is raised is also logged, because an ASGI server says no more than that startup failed." """
    adapter = Adapter(f"redis://127.0.0.1:{free_port()}", connect_timeout=0.3)
    server: Any = socketio.AsyncServer(async_mode="asgi", client_manager=adapter)
    app = socketio.ASGIApp(server, on_startup=adapter.start)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.startup"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app({"type": "lifespan"}, receive, send)
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert "not started: Redis at 127.0.0.1" in caplog.text
    await adapter.aclose()


def test_an_adapter_serves_one_server() -> None:
    """ "ConfigurationError: it is no `socketio.AsyncServer`, or the adapter serves another one." """
    adapter = Adapter("memory://")
    with pytest.raises(ConfigurationError, match="works with socketio"):
        socketio.Server(async_mode="threading", client_manager=adapter)
    server: Any = socketio.AsyncServer(async_mode="asgi", client_manager=adapter)
    adapter.set_server(server)
    with pytest.raises(ConfigurationError, match="one Adapter for each"):
        socketio.AsyncServer(async_mode="asgi", client_manager=adapter)
    assert adapter.server is server


async def test_starting_at_the_same_time(scheme: str, shared_brokers: SharedBrokers) -> None:
    adapter = Adapter(broker_url(scheme, shared_brokers), prefix=f"t{uuid4().hex[:12]}")
    await asyncio.gather(adapter.start(), adapter.start())
    assert adapter.health()
    await adapter.aclose()


async def test_aclose_leaves_no_task_and_no_socket(scheme: str, shared_brokers: SharedBrokers) -> None:
    url = broker_url(scheme, shared_brokers)
    gc.collect()
    before, tasks = sockets(), asyncio.all_tasks()
    for _ in range(3):
        async with Adapter(url, prefix=f"t{uuid4().hex[:12]}") as adapter:
            assert adapter.health()
            await adapter.emit("event", {"n": 1})
    assert asyncio.all_tasks() == tasks
    await until(lambda: sockets() <= before, within=2, what="the sockets to be closed")


async def test_what_was_emitted_before_aclose_arrives(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    far = await b.client()
    for number in range(500):
        await a.sio.emit("number", number)
    await a.adapter.aclose()
    await b.sio.emit("end")
    assert await far.hear("number")
    heard = [("number", 0), *(await far.hear("end"))]
    while ("number", 499) not in heard:
        heard += await far.hear("number")
    assert [args for event, *args in heard if event == "number"] == [[number] for number in range(500)]
    await until(lambda: not b.adapter.health().peers, within=2, what="the bye to arrive")


async def test_use_after_aclose(cluster: Cluster) -> None:
    node = await cluster.node()
    client = await node.client()
    await node.adapter.aclose()
    for call in (
        lambda: node.sio.emit("event"),
        lambda: node.sio.emit("event", room="red"),
        lambda: node.sio.close_room("red"),
        node.adapter.start,
    ):
        with pytest.raises(BrokerClosed):
            await call()
    assert node.sio.rooms(client.sid) == [client.sid]


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{}", "nats://127.0.0.1:{}", "amqp://127.0.0.1:{}/"])
async def test_an_unreachable_broker_is_unavailable_within_connect_timeout(url: str) -> None:
    adapter = Adapter(url.format(free_port()), connect_timeout=0.5)
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            await adapter.start()
        assert time.monotonic() - began < 1.0
        assert not adapter.health()
    await adapter.aclose()


@pytest.mark.parametrize("scheme", ["redis", "nats", "amqp"])
async def test_a_broker_that_accepts_and_says_nothing_is_unavailable_within_connect_timeout(scheme: str) -> None:
    accepted: list[asyncio.StreamWriter] = []

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    try:
        adapter = Adapter(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}", connect_timeout=0.5)
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            await adapter.start()
        assert time.monotonic() - began < 1.5
        assert accepted
        await adapter.aclose()
    finally:
        server.close()
        for writer in accepted:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        await server.wait_closed()


async def test_the_first_client_starts_an_adapter_that_nobody_started(cluster: Cluster) -> None:
    started = await cluster.node()
    lazy = await cluster.node(start=False)
    assert not lazy.adapter.health()
    client = await lazy.client()
    assert lazy.adapter.health()
    await cluster.meet()
    await started.sio.emit("hello", to=client.sid)
    assert await cluster.finish(started, client) == [[("hello",)]]


@pytest.mark.fault
@pytest.mark.parametrize("server_class", SERVERS, ids=lambda server: server.scheme)
async def test_a_lazy_start_while_the_broker_is_down_works_locally_and_recovers(server_class: type[Server]) -> None:
    server = server_class()
    try:
        async with serving(server.url) as cluster:
            nodes = [await cluster.node(start=False, connect_timeout=0.3) for _ in range(2)]
            clients = [await node.client() for node in nodes]
            near = await nodes[0].client()
            for node in nodes:
                assert not node.adapter.health()
            await nodes[0].sio.enter_room(near.sid, "red")
            await nodes[0].sio.emit("local", room="red")
            await nodes[0].sio.emit("local to", to=near.sid)
            assert (await near.hear("local to"))[-2:] == [("local",), ("local to",)]
            assert server.starts == 0
            await server.start()
            await until(lambda: all(node.adapter.health() for node in nodes), what="both to be healthy")
            await cluster.meet()
            await nodes[1].sio.emit("together", room="red")
            await near.hear("together")
            await nodes[0].sio.emit("everyone")
            await clients[1].hear("everyone")
    finally:
        await asyncio.to_thread(server.remove)


async def test_the_url_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    prefix = f"t{uuid4().hex[:12]}"
    monkeypatch.setenv("ROOMCAST_URL", f"{redis_url}?prefix={prefix}")
    async with Adapter() as one, Adapter(f"{redis_url}?prefix={prefix}") as two:
        await until(lambda: one.health().peers == two.health().peers == 1)
    monkeypatch.setenv("ROOMCAST_URL", "")
    async with Adapter() as adapter:
        assert adapter.health()


@pytest.mark.parametrize(
    ("url", "settings", "says"),
    [
        ("carrier-pigeon://loft", {}, "carrier-pigeon"),
        ("localhost:6379", {}, "use one of"),
        ("", {"nonsense": 1}, "nonsense"),
        ("redis://localhost?nonsense=1", {}, "nonsense"),
        ("redis://localhost?heartbeat=1&heartbeat=2", {}, "twice"),
        ("redis://localhost?heartbeat=soon", {}, "heartbeat"),
        ("redis://localhost", {"heartbeat": -1}, "heartbeat"),
        ("redis://localhost", {"heartbeat": 6}, "peer_timeout"),
        ("redis://localhost", {"prefix": "no spaces"}, "prefix"),
        ("redis://localhost", {"secret": "short"}, "secret"),
        ("redis://localhost", {"max_payload": 1}, "max_payload"),
    ],
)
def test_what_cannot_work_is_said_at_once(url: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Adapter(url, **settings)
