"""Plain calls, from one thread and from many; whole programs are in `test_sync_programs`."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from typing import Any, TypeVar, Unpack

import pytest

from roomcast import (
    AckTimeout,
    BrokerClosed,
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    RequestTimeout,
    SyncEmitter,
    SyncRemoteSocket,
)
from roomcast.core.options import Settings
from tests.adapter.conftest import OUTSIDE
from tests.adapter.servers import Client, Cluster, serving
from tests.services import NatsServer, RedisServer, Server, free_port
from tests.waiting import until

T = TypeVar("T")


@pytest.fixture(params=OUTSIDE)
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def portals() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "roomcast-portal"]


async def elsewhere(work: Callable[[], T]) -> T:
    """What plain code returns that runs on a thread beside the nodes."""
    return await asyncio.to_thread(work)


@contextmanager
def beside(cluster: Cluster, **settings: Unpack[Settings]) -> Generator[SyncEmitter]:
    """An emitter of the cluster, closed at the end; for use in `elsewhere`."""
    settings.setdefault("prefix", cluster.prefix)
    emitter = SyncEmitter(cluster.url, **settings)
    try:
        yield emitter
    finally:
        emitter.close()
        assert portals() == []


async def clients_in(cluster: Cluster, *rooms: str) -> list[Client]:
    """A client in these rooms on each of two nodes."""
    clients: list[Client] = []
    for node in await cluster.pair():
        client = await node.client()
        clients.append(client)
        for room in rooms:
            await node.sio.enter_room(client.sid, room)
    return clients


async def heard(client: Client) -> list[object]:
    """What the events that a client got before the end carried."""
    return [event[1] for event in await client.hear("end") if event[0] == "event"]


async def silent(heard_it: asyncio.Event | None = None) -> None:
    """What a client does that never answers."""
    if heard_it is not None:
        heard_it.set()
    await asyncio.Event().wait()


# Rule 1: the same verbs


async def test_each_verb_does_what_the_emitters_does(cluster: Cluster) -> None:
    near, far = await clients_in(cluster, "red")
    a, b = cluster.nodes
    near.answers["ask"], far.answers["ask"] = "near", ("far", 2)
    await b.sio.save_session(far.sid, {"user": "far"})
    for node in (a, b):
        node.adapter.on("load", lambda: 7)

    def program() -> None:
        with beside(cluster) as emitter:
            assert {node.id for node in emitter.nodes()} == {a.adapter.host_id, b.adapter.host_id}
            assert emitter.server_count() == 2
            emitter.emit("event", 0)
            emitter.to("red").except_(far.sid).emit("event", 1)
            emitter.in_(far.sid, near.sid).emit("event", 2)
            emitter.to("nobody").volatile.emit("event", -1)
            assert emitter.to("red").sockets_join("blue") == 2
            emitter.to("blue").emit("event", 3)
            assert emitter.to(near.sid).sockets_leave("blue") == 1
            emitter.to("blue").emit("event", 4)
            assert (emitter.count(), emitter.count("blue"), emitter.to("red").count()) == (2, 1, 2)
            assert emitter.all_rooms() == {"red": 2, "blue": 1}
            acked = emitter.to("red").timeout(5).emit_with_ack("ask")
            assert {(answer.sid, answer.value) for answer in acked} == {(near.sid, "near"), (far.sid, ("far", 2))}
            assert [answer.args for answer in emitter.to(far.sid).acks("ask")] == [("far", 2)]
            fetched = {socket.sid: socket for socket in emitter.fetch_sockets()}
            assert {socket.sid for socket in emitter.iter_sockets()} == set(fetched) == {near.sid, far.sid}
            socket = fetched[far.sid]
            assert isinstance(socket, SyncRemoteSocket)
            assert (socket.data, socket.node, socket.rooms) == (
                {"user": "far"},
                b.adapter.host_id,
                (far.sid, "red", "blue"),
            )
            assert emitter.get_session(far.sid) == socket.data
            socket.emit("event", 5)
            assert socket.emit_with_ack("ask", timeout=5) == ("far", 2)
            socket.join("green")
            assert emitter.count("green") == 1
            socket.leave("green")
            assert emitter.count("green") == 0
            answered = emitter.server_side_emit_with_ack("load", timeout=5)
            assert {node: answer.value for node, answer in answered.items()} == dict.fromkeys(
                [a.adapter.host_id, b.adapter.host_id], 7
            )
            emitter.server_side_emit("load")
            with pytest.raises(ValueError, match="local"):
                _ = emitter.local
            emitter.emit("end")
            assert emitter.health()
            assert emitter.stats()["refused"] == {}
            assert emitter.namespace("/chat").count() == emitter.count(namespace="/chat") == 0
            socket.disconnect(close=True)
            assert emitter.disconnect_sockets() == 1

    await elsewhere(program)
    assert await heard(near) == [0, 1, 2, 3]
    assert await heard(far) == [0, 2, 3, 4, 5]
    await far.gone.wait()


async def test_the_first_request_sees_every_node(cluster: Cluster) -> None:
    await clients_in(cluster, "red")

    def program() -> None:
        for _ in range(3):
            with beside(cluster) as emitter:
                emitter.start()
                began = time.monotonic()
                assert emitter.count("red") == 2
                assert time.monotonic() - began < 0.9

    await elsewhere(program)


async def test_errors_carry_what_the_emitters_do(on_redis: Cluster) -> None:
    near, far = await clients_in(on_redis, "red")
    a, b = on_redis.nodes
    near.answers["ask"] = "near"
    far.socket.on("ask", silent)

    def program() -> None:
        with beside(on_redis) as emitter:
            with pytest.raises(AckTimeout) as late:
                emitter.to("red").timeout(0.3).emit_with_ack("ask")
            assert [answer.value for answer in late.value.responses] == ["near"]
            assert late.value.missing == {far.sid}
            for wrong, kind in ((None, TypeError), (1.5, TypeError)):
                with pytest.raises(kind, match="room"):
                    emitter.to(wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            with pytest.raises(TypeError, match="serial"):
                emitter.emit("event", object())
            emitter.nodes()
            b.inside._node.handlers = {}  # it hears everything, and says nothing
            with pytest.raises(RequestTimeout) as missing:
                emitter.to("red").timeout(0.3).fetch_sockets()
            assert missing.value.missing == {b.adapter.host_id}
            [found] = missing.value.replies[a.adapter.host_id]
            assert isinstance(found, SyncRemoteSocket)
            assert found.sid == near.sid

    await elsewhere(program)


async def test_many_threads_at_once_each_in_its_own_order(on_redis: Cluster) -> None:
    [client, _] = await clients_in(on_redis, "red")

    def program() -> None:
        with beside(on_redis) as emitter:
            together = threading.Barrier(12)

            def work(number: int) -> None:
                together.wait(10)
                for n in range(50):
                    emitter.to("red").emit("event", [number, n])
                    if n % 10 == 0:
                        assert emitter.count("red") == 2

            threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            emitter.emit("end")

    await elsewhere(program)
    got: list[Any] = await heard(client)
    assert len(got) == 12 * 50
    for number in range(12):
        assert [n for thread, n in got if thread == number] == list(range(50))


async def test_a_call_inside_a_running_loop_works(on_redis: Cluster) -> None:
    [client, _] = await clients_in(on_redis, "red")

    async def view(emitter: SyncEmitter) -> int:
        emitter.to("red").emit("event", 1)
        emitter.emit("end")
        return emitter.count("red")

    def program() -> None:
        with beside(on_redis) as emitter:
            assert asyncio.run(view(emitter)) == 2

    await elsewhere(program)
    assert await heard(client) == [1]


async def test_a_call_from_the_emitters_own_thread_raises_and_a_look_does_not(on_redis: Cluster) -> None:
    def program() -> None:
        with beside(on_redis) as emitter:
            emitter.start()
            told: list[object] = []

            async def hook() -> None:
                told.append(bool(emitter.health()))
                told.append(emitter.stats()["faults"])
                try:
                    emitter.emit("event")
                except RuntimeError as exc:
                    told.append(str(exc))

            emitter._current().portal.call(hook)  # pyright: ignore[reportPrivateUsage]
            assert told[:2] == [True, 0]
            assert "own thread" in str(told[2])

    await elsewhere(program)


async def test_iterators_that_are_abandoned_end_at_once_elsewhere_too(on_redis: Cluster) -> None:
    near, far = await clients_in(on_redis, "red")
    a, b = on_redis.nodes
    near.answers["ask"] = "near"
    far.socket.on("ask", silent)
    for _ in range(6):
        other = await a.client()
        await a.sio.save_session(other.sid, {"text": "x" * 40_000})

    def program() -> None:
        with beside(on_redis) as emitter:
            broadcast = emitter._current().emitter._broadcast  # pyright: ignore[reportPrivateUsage]
            answers = emitter.to("red").timeout(60).acks("ask")
            assert next(answers).value == "near"
            assert len(broadcast.acks) == 1
            del answers
            gc.collect()
            asyncio.run(until(lambda: not broadcast.acks, what="the question to be forgotten"))
            with closing(emitter.iter_sockets()) as sockets:
                next(sockets)
                assert len(a.inside._answers._parts) == 1
            asyncio.run(until(lambda: not a.inside._answers._parts, what="the answer to be forgotten"))
            assert len(list(emitter.iter_sockets())) == 8
            assert a.inside._answers._parts == b.inside._answers._parts == {}
            assert emitter.acks("nobody") is not None, "never begun, never sent"

    await elsewhere(program)


# Rule 2: it connects with its first call


def test_making_one_and_addressing_starts_nothing() -> None:
    emitter = SyncEmitter(f"redis://127.0.0.1:{free_port()}")
    everyone = emitter.to("a").except_("b").in_("c").timeout(1).volatile
    assert everyone.address.rooms == ("a", "c")
    assert everyone == emitter.to("a", "c").volatile.except_("b").timeout(1)
    assert not emitter.health()
    assert emitter.stats()["published"] == 0
    emitter.on_gap(print)
    assert portals() == []
    emitter.close()
    with pytest.raises(BrokerClosed):
        everyone.emit("event")
    assert portals() == []


def test_what_cannot_work_is_said_when_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROOMCAST_URL", raising=False)
    with pytest.raises(ConfigurationError, match="ROOMCAST_URL"):
        SyncEmitter()
    with pytest.raises(ConfigurationError, match="memory"):
        SyncEmitter("memory://")
    with pytest.raises(ConfigurationError, match="heartbeat"):
        SyncEmitter("redis://localhost", heartbeat=-1)


@pytest.mark.parametrize("scheme", ["redis", "nats", "amqp"])
def test_an_unreachable_broker_is_told_to_all_callers_within_connect_timeout(scheme: str) -> None:
    emitter = SyncEmitter(f"{scheme}://127.0.0.1:{free_port()}", connect_timeout=1.0)
    told: list[BaseException] = []

    def work() -> None:
        try:
            emitter.to("red").emit("event")
        except BrokerUnavailable as exc:
            told.append(exc)

    threads = [threading.Thread(target=work) for _ in range(8)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 8
    assert time.monotonic() - began < 2.5, "they wait for one attempt"
    with pytest.raises(BrokerUnavailable):
        emitter.start()
    began = time.monotonic()
    emitter.close()
    assert time.monotonic() - began < 2
    assert portals() == []


@pytest.mark.fault
@pytest.mark.parametrize("server_class", [RedisServer, NatsServer], ids=lambda server: server.scheme)
async def test_it_outlives_its_broker(server_class: type[Server]) -> None:
    async with server_class() as server, serving(server.url) as cluster:
        [client, _] = await clients_in(cluster, "red")
        loop = asyncio.get_running_loop()

        def run(step: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(step, loop).result(60)

        def program() -> None:
            with beside(cluster, emit_timeout=2.0) as emitter:
                gaps: list[str] = []
                emitter.on_gap(lambda gap: gaps.append(gap.reason))
                emitter.to("red").emit("event", 0)
                run(server.kill())
                with pytest.raises(BrokerError):
                    emitter.to("red").emit("event", 1)
                assert gaps[:1] == ["disconnected"]
                run(server.start())
                run(until(lambda: all(node.adapter.health() for node in cluster.nodes), what="the nodes to be back"))
                run(until(emitter.health, what="the emitter to be back"))
                emitter.to("red").emit("event", 2)
                assert emitter.count("red") == 2

        await elsewhere(program)
        *_, last = await client.hear("event")
        while last[1] != 2:
            *_, last = await client.hear("event")


@pytest.mark.fault
def test_closing_beside_a_broker_that_hangs_ends() -> None:
    server = RedisServer()
    try:
        server.launch()
        emitter = SyncEmitter(server.url, confirm=False, emit_timeout=1.0, connect_timeout=1.0)
        emitter.start()
        server.stop()
        emitter.emit("event")
        began = time.monotonic()
        emitter.close()
        assert time.monotonic() - began < 8
        assert portals() == []
    finally:
        server.cont()
        server.remove()


# Rule 4: close


async def test_close_flushes_and_later_calls_are_told(on_redis: Cluster) -> None:
    [client, _] = await clients_in(on_redis, "red")

    def program() -> None:
        with beside(on_redis, confirm=False) as emitter:
            for number in range(500):
                emitter.to("red").emit("event", number)
            red = emitter.to("red")
        for call in (lambda: emitter.emit("event"), red.count, emitter.nodes, emitter.start, red.fetch_sockets):
            with pytest.raises(BrokerClosed):
                call()
        with pytest.raises(BrokerClosed):
            next(red.acks("ask"))
        assert not emitter.health()
        assert emitter.stats()["published"] >= 500
        emitter.close()

    await elsewhere(program)
    await on_redis.nodes[1].sio.emit("end")
    got = await heard(client)
    assert got == list(range(500))


async def test_closing_while_others_call_tells_them(on_redis: Cluster) -> None:
    clients = await clients_in(on_redis, "red")
    asked = threading.Event()

    async def never() -> None:
        asked.set()
        await silent()

    for client in clients:
        client.socket.on("ask", never)

    def program() -> None:
        with beside(on_redis) as emitter:
            told: list[str] = []

            def work() -> None:
                try:
                    emitter.to("red").timeout(60).emit_with_ack("ask")
                except BrokerClosed as exc:
                    told.append(str(exc))

            thread = threading.Thread(target=work)
            thread.start()
            assert asked.wait(10)
            began = time.monotonic()
            emitter.close()
            thread.join(10)
            assert time.monotonic() - began < 5
            assert "closed" in told[0]

    await elsewhere(program)


async def test_one_that_nobody_holds_any_more_ends_by_itself(on_redis: Cluster) -> None:
    [client, _] = await clients_in(on_redis, "red")

    def program() -> None:
        emitter = SyncEmitter(on_redis.url, prefix=on_redis.prefix, confirm=False)
        emitter.to("red").emit("event", 1)
        [thread] = portals()
        del emitter
        gc.collect()
        thread.join(10)
        assert not thread.is_alive()

    await elsewhere(program)
    await on_redis.nodes[1].sio.emit("end")
    assert await heard(client) == [1]
