"""The official JavaScript client, as it is, loses its connection and comes back: `tests/js/returning.mjs`."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from signal import SIGTERM
from typing import Any

import pytest

from roomcast import Emitter, Recovery
from tests.adapter.servers import Node, serving
from tests.demo.returning import Event, Returning
from tests.demo.running import Program
from tests.proxy import TcpProxy
from tests.services import RedisServer, SharedBrokers
from tests.waiting import until

pytestmark = pytest.mark.browser

APPLICATION = "tests.demo.recovering:app"
LOGS = ["redis+streams", "nats+jetstream", "amqp+streams"]

AT_ONCE = {"timeout_graceful_shutdown": 0}
"""For uvicorn: python-engineio leaves the long poll of a client that is gone waiting."""


class Home:
    """Two nodes behind one address.

    Attributes:
        nodes: the nodes.
        balancer: that address; it sends clients to the first node until it is told otherwise.
        told: `environ["roomcast.recovered"]` at each run of a connect handler, with the name in the client's `auth`.
    """

    def __init__(self, nodes: tuple[Node, Node], balancer: TcpProxy) -> None:
        self.nodes = nodes
        self.balancer = balancer
        self.told: list[tuple[str, bool]] = []
        for node in nodes:
            for namespace in ("/", "/chat"):
                node.sio.on("connect", self._handler(node, namespace), namespace=namespace)

    def _handler(self, node: Node, namespace: str) -> Any:
        async def connect(sid: str, environ: dict[str, Any], auth: dict[str, str]) -> None:
            self.told.append((auth["name"], environ["roomcast.recovered"]))
            if not environ["roomcast.recovered"]:
                await node.sio.save_session(sid, {"name": auth["name"]}, namespace=namespace)
                await node.sio.enter_room(sid, auth["room"], namespace=namespace)

        return connect


@asynccontextmanager
async def home(url: str, *, window: float) -> AsyncGenerator[Home]:
    settings: Any = {"recovery": Recovery(window=window, patience=1.0), "server": {"uvicorn_options": AT_ONCE}}
    async with serving(url) as cluster:
        nodes = await cluster.node(**settings), await cluster.node(**settings)
        async with TcpProxy(nodes[0].url) as balancer:
            yield Home(nodes, balancer)


def crowd(node_js: str, home: Home) -> Returning:
    """One in a room by websocket, one by polling, one in another namespace, and one whose room is a silent one."""
    return Returning(
        node_js,
        home.balancer.url,
        ada={"name": "ada", "room": "red"},
        bob={"name": "bob", "room": "red", "transport": "polling"},
        eve={"name": "eve", "room": "red", "namespace": "/chat"},
        mute={"name": "mute", "room": "silent"},
    )


def events(*numbers: int) -> list[Event]:
    return [("n", number) for number in numbers]


@pytest.mark.parametrize("log", LOGS)
async def test_clients_that_change_nodes_miss_nothing(node_js: str, log: str, shared_brokers: SharedBrokers) -> None:
    async with home(shared_brokers.log_url(log), window=60.0) as at:
        one, two = at.nodes
        async with crowd(node_js, at) as clients:
            first = await clients.connected()
            sids = {name: sid for name, (sid, _) in first.items()}
            await one.sio.emit("n", 1, room="red")
            for name in ("ada", "bob"):
                assert await clients.heard(name, "n") == []

            # the network is cut; the balancer sends who comes back to the other node
            at.balancer.refuse()
            await at.balancer.cut()
            await clients.lost()
            await two.sio.emit("n", 2, room="red")
            await one.sio.emit("n", b"\x03\x00", room="red")
            await two.sio.emit("n", 4)
            await one.sio.emit("n", 5, to=sids["ada"])
            await two.sio.emit("n", 6, room="red", skip_sid=sids["bob"])
            await one.sio.emit("n", 7, room="red", namespace="/chat")
            await two.sio.emit("n", 8, room="silent")
            assert await two.adapter.get_session(sids["mute"]) == {"name": "mute"}
            at.balancer.point(two.url)
            await at.balancer.accept()
            assert await clients.connected() == {name: (sid, True) for name, sid in sids.items()}
            binary = ("n", {"hex": "0300"})
            for namespace in ("/", "/chat"):
                await one.sio.emit("n", 9, room="red", namespace=namespace)
                await two.sio.emit("end", namespace=namespace)
            assert await clients.heard("ada", "end") == [("n", 2), binary, *events(4, 5, 6, 9)]
            assert await clients.heard("bob", "end") == [("n", 2), binary, *events(4, 9)]
            assert await clients.heard("eve", "end") == events(7, 9)
            assert await clients.heard("mute", "end") == events(4, 8)

            # each closes its connection and comes back at once, to the first node again, while events go on
            at.balancer.point(one.url)
            for number in range(40):
                for namespace in ("/", "/chat"):
                    await at.nodes[number % 2].sio.emit("n", number, namespace=namespace)
                    if number == 9:
                        await two.sio.emit("drop", namespace=namespace)
            assert await clients.connected() == {name: (sid, True) for name, sid in sids.items()}
            for namespace in ("/", "/chat"):
                await two.sio.emit("end", namespace=namespace)
            for name in clients.names:
                assert await clients.heard(name, "end") == [*events(*range(10)), ("drop",), *events(*range(10, 40))]
            assert (await one.sio.get_session(sids["ada"]))["name"] == "ada"
            assert sorted(name for name, recovered in at.told if not recovered) == sorted(clients.names)


async def test_who_comes_too_late_gets_a_fresh_session_and_the_application_knows(node_js: str, redis_url: str) -> None:
    async with home(f"redis+streams{redis_url.removeprefix('redis')}", window=1.0) as at:
        one, two = at.nodes
        async with Returning(node_js, at.balancer.url, ada={"name": "ada", "room": "red"}) as clients:
            sid, _ = (await clients.connected())["ada"]
            at.balancer.refuse()
            await at.balancer.cut()
            await clients.lost()
            await one.sio.emit("n", 1)
            await until(lambda: two.inside._known(sid, "/") is None, what="the window is over")
            with pytest.raises(ValueError, match="no client"):
                await two.adapter.get_session(sid)
            at.balancer.point(two.url)
            await at.balancer.accept()
            fresh, recovered = (await clients.connected())["ada"]
            assert fresh != sid
            assert not recovered
            assert at.told == [("ada", False), ("ada", False)]
            await one.sio.emit("n", 2, to=sid)  # nobody is there under the old name
            await one.sio.emit("n", 3, room="red")
            await one.sio.emit("end")
            assert await clients.heard("ada", "end") == events(3)


async def process(stack: AsyncExitStack, url: str) -> tuple[Program, str]:
    """A node of its own process, and its address."""
    argv = [sys.executable, "-m", "uvicorn", "--port", "0", "--timeout-graceful-shutdown", "1", APPLICATION]
    program = await stack.enter_async_context(Program(argv, {"ROOMCAST_URL": url}))
    return program, (await program.says(r"Uvicorn running on (http://\S+)")).group(1)


def session(name: str, visits: int) -> dict[str, Any]:
    return {"name": name, "visits": visits}


@pytest.mark.fault
async def test_clients_outlive_their_nodes_and_a_restart_of_the_broker(node_js: str) -> None:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer("--appendonly", "yes", "--appendfsync", "always"))
        url = f"redis+streams{redis.url.removeprefix('redis')}"
        (killed, first), (stopped, second) = await asyncio.gather(process(stack, url), process(stack, url))
        emitter = await stack.enter_async_context(Emitter(url))
        balancer = await stack.enter_async_context(TcpProxy(first))
        clients = await stack.enter_async_context(
            Returning(
                node_js,
                balancer.url,
                ada={"name": "ada", "room": "red"},
                bob={"name": "bob", "room": "red", "transport": "polling"},
                mute={"name": "mute", "room": "silent"},
            )
        )
        sids = {name: sid for name, (sid, _) in (await clients.connected()).items()}
        for name in clients.names:
            assert await clients.heard(name, "came") == []
        people = await emitter.to("red").fetch_sockets()  # so what its node said before is in the log
        assert {person.sid for person in people} == {sids["ada"], sids["bob"]}

        balancer.refuse()
        killed.process.kill()
        await clients.lost()
        for number in (1, 2):
            await emitter.to("red").emit("n", number)
        await emitter.to(sids["mute"]).emit("n", 3)
        balancer.point(second)
        await balancer.accept()
        assert await clients.connected() == {name: (sid, True) for name, sid in sids.items()}
        await emitter.emit("end")
        for name, missed in (("ada", events(1, 2)), ("bob", events(1, 2)), ("mute", events(3))):
            assert await clients.heard(name, "end") == [*missed, ("came", True, session(name, 2))]

        balancer.refuse()
        stopped.process.terminate()
        assert await stopped.ended() in (0, -SIGTERM)
        await clients.lost()
        await emitter.emit("n", 4)
        await redis.kill()
        await redis.start()
        await emitter.emit("n", b"\x05")
        _, third = await process(stack, url)  # knows nothing but what is in the log
        balancer.point(third)
        await balancer.accept()
        assert await clients.connected() == {name: (sid, True) for name, sid in sids.items()}
        await emitter.to(list(sids.values())).emit("n", 6)
        await emitter.emit("end")
        for name in clients.names:
            came = ("came", True, session(name, 3))
            assert await clients.heard(name, "end") == [("n", 4), ("n", {"hex": "05"}), came, ("n", 6)]
