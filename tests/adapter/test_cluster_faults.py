"""Requests and acknowledgements while a node dies, freezes, joins or loses its link; over every broker.

A victim's link runs through a proxy that can be made a black hole: to the others that is a process that was stopped,
or killed without a word. A memory broker has no link, so there the victim is cut out of it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from roomcast import AckTimeout, NodeAnswer, NodeInfo, RequestTimeout
from roomcast.core.options import Settings
from tests.adapter.conftest import broker_url
from tests.adapter.crowd import fetched, nothing_is_left
from tests.adapter.servers import Client, Cluster, Node, serving
from tests.proxy import TcpProxy
from tests.services import SharedBrokers
from tests.waiting import until

pytestmark = pytest.mark.fault

BEAT = 0.3
DEATH = 4 * BEAT + 2.0
"""Seconds within which a frozen node is surely declared lost: its timeout, a tick of the clock, a busy machine."""
QUICK: Settings = {"heartbeat": BEAT, "peer_timeout": 3 * BEAT, "linger": 0.05, "emit_timeout": 0.5}


class Scene:
    """Nodes `a` and `b`, and a `victim`; each has one client.

    Attributes:
        here, there, lost: the clients of `a`, of `b` and of the victim.
    """

    def __init__(self, cluster: Cluster, nodes: list[Node], clients: list[Client], proxy: TcpProxy | None) -> None:
        self.cluster = cluster
        self.a, self.b, self.victim = nodes
        self.here, self.there, self.lost = clients
        self._proxy = proxy

    def freeze(self) -> None:
        """From now on nobody hears the victim, and it hears nobody."""
        if self._proxy is not None:
            self._proxy.stall()
            return
        broker = self.victim.inside._node._broker
        broker._arrivals.put = _drop
        broker.publish = _swallow

    def thaw(self) -> None:
        """Let the victim's link go on; a memory broker's victim stays what it is."""
        if self._proxy is not None:
            self._proxy.resume()

    async def until_lost(self) -> None:
        await until(lambda: self.victim.adapter.host_id not in self.a.inside._node.peers, within=DEATH)


def _drop(_delivery: object) -> None:
    """Nothing arrives."""


async def _swallow(_subject: str, _payload: bytes, /) -> None:
    return None


@pytest.fixture
async def scene(scheme: str, shared_brokers: SharedBrokers) -> AsyncIterator[Scene]:
    url = broker_url(scheme, shared_brokers)
    async with AsyncExitStack() as stack:
        proxy = None if scheme == "memory" else await stack.enter_async_context(TcpProxy(url))
        cluster = await stack.enter_async_context(serving(url))
        nodes = [
            await cluster.node(**QUICK),
            await cluster.node(**QUICK),
            await cluster.node(url=proxy.url if proxy else None, **QUICK),
        ]
        clients = [await node.client() for node in nodes]
        scene = Scene(cluster, nodes, clients, proxy)
        yield scene
        scene.thaw()


async def at_death(asking: Awaitable[Any]) -> Any:
    """What a request comes to once the victim is declared lost; long before its own timeout."""
    async with asyncio.timeout(DEATH):
        return await asking


# A node dies


async def test_a_fetch_returns_the_others_sockets_when_a_node_dies_during_it(scene: Scene) -> None:
    assert await scene.b.adapter.sockets_join("room0") == 3
    scene.freeze()
    everyone = scene.a.adapter.timeout(30)
    sockets, rooms, count, left = await at_death(
        asyncio.gather(
            everyone.fetch_sockets(), scene.b.adapter.all_rooms(), everyone.count(), everyone.sockets_leave("room1")
        )
    )
    assert {socket.sid for socket in sockets} == {scene.here.sid, scene.there.sid}
    assert (rooms, count, left) == ({"room0": 2}, 2, 2)
    await nothing_is_left(scene.a.adapter, scene.b.adapter)


async def test_acknowledgements_of_a_node_that_dies_are_not_waited_for(scene: Scene) -> None:
    for client, name in ((scene.here, "here"), (scene.there, "there"), (scene.lost, "lost")):
        client.answers["ask"] = name
    assert len(await scene.a.adapter.emit_with_ack("ask")) == 3
    scene.freeze()
    answers = await at_death(scene.a.adapter.timeout(30).emit_with_ack("ask"))
    assert sorted(answer.value for answer in answers) == ["here", "there"]
    await nothing_is_left(scene.a.adapter, scene.b.adapter)


async def test_clients_that_were_asked_before_their_node_died_are_not_waited_for(scene: Scene) -> None:
    asked, never = asyncio.Event(), asyncio.Event()

    async def hesitate() -> None:
        asked.set()
        await never.wait()

    scene.lost.socket.on("ask", hesitate)
    scene.here.answers["ask"] = "here"
    scene.there.answers["ask"] = "there"
    asking = scene.a.adapter.timeout(30).acks("ask")
    assert sorted([(await anext(asking)).value, (await anext(asking)).value]) == ["here", "there"]
    await asyncio.wait_for(asked.wait(), 5)
    scene.freeze()
    with pytest.raises(StopAsyncIteration):
        await at_death(anext(asking))
    never.set()
    await nothing_is_left(scene.a.adapter, scene.b.adapter)


async def test_an_answer_that_came_before_its_node_died_is_kept(scene: Scene) -> None:
    silent = asyncio.Event()
    scene.there.socket.on("ask", _until(silent, "there"))
    scene.lost.answers["ask"] = "lost"
    scene.here.answers["ask"] = "here"
    asking = scene.a.adapter.timeout(30).acks("ask")
    first = [await anext(asking), await anext(asking)]
    assert sorted(answer.value for answer in first) == ["here", "lost"]
    scene.freeze()
    await scene.until_lost()
    silent.set()
    assert [answer.value async for answer in asking] == ["there"]


async def test_a_single_client_whose_node_dies_is_gone(scene: Scene) -> None:
    (socket,) = await scene.a.adapter.to(scene.lost.sid).fetch_sockets()
    scene.freeze()
    asking = [
        asyncio.ensure_future(socket.emit_with_ack("ask", timeout=30)),
        asyncio.ensure_future(scene.a.sio.enter_room(socket.sid, "room1")),
        asyncio.ensure_future(scene.a.adapter.to(socket.sid).timeout(30).fetch_sockets()),
        asyncio.ensure_future(scene.a.adapter.to(socket.sid).timeout(30).disconnect_sockets()),
    ]
    gone, unknown, sockets, disconnected = await at_death(asyncio.gather(*asking, return_exceptions=True))
    assert isinstance(gone, AckTimeout)
    assert gone.missing == {socket.sid}
    assert isinstance(unknown, ValueError)
    assert (sockets, disconnected) == ([], 0)
    async with asyncio.timeout(2):
        with pytest.raises(ValueError, match="not connected"):
            await scene.a.sio.enter_room(socket.sid, "room1")
    await nothing_is_left(scene.a.adapter)


async def test_server_side_answers_of_the_others_are_kept_when_a_node_dies(scene: Scene) -> None:
    left: list[tuple[str, str]] = []

    @scene.a.adapter.on("node_left")
    def tell(info: NodeInfo, why: str) -> None:
        left.append((info.id, why))

    for node in (scene.b, scene.victim):
        node.adapter.on("ask", lambda: "alive")
    scene.freeze()
    answers = await at_death(scene.a.adapter.server_side_emit_with_ack("ask", timeout=30))
    assert answers == {scene.b.adapter.host_id: NodeAnswer("alive")}
    await until(lambda: left == [(scene.victim.adapter.host_id, "lost")])
    assert await scene.a.adapter.server_count() == 2


async def test_a_timeout_before_the_death_names_the_node(scene: Scene) -> None:
    scene.freeze()
    victim = scene.victim.adapter.host_id
    with pytest.raises(RequestTimeout) as failed:
        await scene.a.adapter.timeout(BEAT / 2).fetch_sockets()
    assert failed.value.missing == {victim}
    assert {node: [socket.sid for socket in sockets] for node, sockets in failed.value.replies.items()} == {
        scene.b.adapter.host_id: [scene.there.sid]
    } | {node: [scene.here.sid] for node in failed.value.replies if node == scene.a.adapter.host_id}


async def test_a_node_that_closes_during_a_request_is_not_waited_for(scene: Scene) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_sid: str, _reason: str) -> None:
        entered.set()
        await go_on.wait()

    scene.victim.sio.on("disconnect", slow)
    asking = asyncio.ensure_future(scene.a.adapter.timeout(30).disconnect_sockets())
    await entered.wait()
    await scene.victim.adapter.aclose()
    async with asyncio.timeout(5):
        assert await asking == 2
    go_on.set()


async def test_one_s_own_node_that_closes_ends_its_requests(scene: Scene) -> None:
    silent = asyncio.Event()
    scene.there.socket.on("ask", _until(silent, "late"))
    scene.freeze()
    requests: list[asyncio.Task[Any]] = [
        asyncio.create_task(scene.a.adapter.timeout(30).fetch_sockets()),
        asyncio.create_task(scene.a.adapter.timeout(30).emit_with_ack("ask")),
        asyncio.create_task(scene.a.adapter.server_side_emit_with_ack("ask", timeout=30)),
    ]
    await until(lambda: len(scene.a.inside._surveys) and len(scene.a.inside._broadcast.acks))
    await scene.a.adapter.aclose()
    async with asyncio.timeout(5):
        ended = await asyncio.gather(*requests, return_exceptions=True)
    assert [isinstance(result, Exception) for result in ended] == [True] * 3, ended
    silent.set()


# A node joins, or comes back


async def test_a_node_that_joins_during_a_request_is_not_waited_for_and_is_asked_by_the_next(scene: Scene) -> None:
    go_on = asyncio.Event()
    asked: list[Node] = []

    def handler(node: Node) -> Callable[[], Awaitable[str]]:
        async def answer() -> str:
            asked.append(node)
            await go_on.wait()
            return "done"

        return answer

    for node in (scene.b, scene.victim):
        node.adapter.on("ask", handler(node))
    asking = asyncio.ensure_future(scene.a.adapter.server_side_emit_with_ack("ask", timeout=10))
    await until(lambda: len(asked) == 2)
    new = await scene.cluster.node(**QUICK)
    go_on.set()
    assert set(await asking) == {scene.b.adapter.host_id, scene.victim.adapter.host_id}
    client = await new.client()
    assert client.sid in await fetched(scene.a.adapter)
    assert new.adapter.host_id in await scene.a.adapter.server_side_emit_with_ack("ask")


async def test_a_new_node_knows_everyone_for_its_first_request(scene: Scene) -> None:
    """Nothing is waited for but the start itself: the first thing that a node asks, everyone answers."""
    for _ in range(3):
        new = scene.cluster.unstarted(**QUICK)
        await new.start()
        assert set(await fetched(new.adapter)) == {scene.here.sid, scene.there.sid, scene.lost.sid}
        assert await new.adapter.sockets_join("room1") == 3
        for client in (scene.here, scene.there, scene.lost):
            client.answers["ask"] = client.sid
        assert len(await new.adapter.to("room1").emit_with_ack("ask")) == 3
        await new.stop()


async def test_nodes_that_start_at_once_find_one_another_for_their_first_requests(
    scheme: str, shared_brokers: SharedBrokers
) -> None:
    async with serving(broker_url(scheme, shared_brokers)) as cluster:
        nodes = [cluster.unstarted(**QUICK) for _ in range(5)]
        await asyncio.gather(*(node.start() for node in nodes))
        await until(lambda: all(node.adapter.health().peers == 4 for node in nodes), what="the hellos to arrive")
        counts = await asyncio.gather(*(node.adapter.server_count() for node in nodes))
        assert counts == [5] * 5
        answers = await asyncio.gather(*(node.adapter.server_side_emit_with_ack("ask") for node in nodes))
        assert [len(answer) for answer in answers] == [4] * 5


@pytest.mark.parametrize("scheme", ["redis", "nats", "amqp"])  # a memory broker has no link that could come back
async def test_a_frozen_node_that_comes_back_is_asked_again(scene: Scene) -> None:
    scene.freeze()
    await scene.until_lost()
    assert set(await fetched(scene.a.adapter)) == {scene.here.sid, scene.there.sid}
    scene.thaw()
    await until(lambda: scene.victim.adapter.host_id in scene.a.inside._node.peers, what="the node to be back")
    await until(lambda: all(node.adapter.health().peers == 2 for node in (scene.a, scene.b, scene.victim)))
    for node in (scene.a, scene.victim):
        sockets = await fetched(node.adapter.timeout(5))
        assert set(sockets) == {scene.here.sid, scene.there.sid, scene.lost.sid}
    assert await scene.b.adapter.to(scene.lost.sid).sockets_join("room1") == 1
    await scene.b.adapter.to("room1").emit("back")
    await scene.lost.hear("back")
    await nothing_is_left(*(node.adapter for node in (scene.a, scene.b, scene.victim)))


async def test_a_frozen_node_itself_does_not_hang(scene: Scene) -> None:
    """The victim is alive: its own requests end within their timeouts, and its own clients are within reach."""
    scene.freeze()
    with pytest.raises(RequestTimeout) as failed:
        await scene.victim.adapter.timeout(BEAT).fetch_sockets()
    assert failed.value.missing <= {scene.a.adapter.host_id, scene.b.adapter.host_id}
    assert failed.value.missing
    async with asyncio.timeout(2):
        assert set(await fetched(scene.victim.adapter.local)) == {scene.lost.sid}
        await scene.victim.adapter.local.emit("local")
        await scene.lost.hear("local")


def _until(event: asyncio.Event, answer: str) -> Callable[[], Awaitable[str]]:
    async def wait() -> str:
        await event.wait()
        return answer

    return wait
