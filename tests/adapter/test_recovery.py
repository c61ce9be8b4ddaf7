"""Clients that come back: their session, and exactly what they missed, on every node."""

import gc
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import pytest

from roomcast import Recovery
from tests.adapter.returning import Event, Returning
from tests.adapter.servers import Cluster, Node, serving

WINDOW = 30.0
PATIENCE = 0.6  # of a node that asks for a session; its client is given a third of it to answer a ping


class Home:
    """A cluster whose nodes restore clients, and clients that come and go."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.clients: list[Returning] = []
        self.environs: list[bool] = []

    async def nodes(self, count: int = 2, **recovery: Any) -> list[Node]:
        """So many nodes; each joins a new client to the room it asks for in `auth`, before it is accepted."""
        return [await self.node(**recovery) for _ in range(count)]

    async def node(self, *, url: str | None = None, server: dict[str, Any] | None = None, **recovery: Any) -> Node:
        settings: dict[str, Any] = {"window": WINDOW, "patience": PATIENCE} | recovery
        node = await self.cluster.node(
            url=url, server=server, recovery=Recovery(**settings), heartbeat=1.0, peer_timeout=2.0
        )

        async def connect(sid: str, environ: dict[str, Any], auth: Any = None) -> bool | None:
            self.environs.append(environ["roomcast.recovered"])
            assert not set(auth or ()) & {"pid", "offset"}, "the application does not see what recovery adds"
            if not environ["roomcast.recovered"] and auth and "room" in auth:
                await node.sio.enter_room(sid, auth["room"])
            return not (auth and auth.get("refuse"))

        node.sio.on("connect", connect)
        return node

    async def client(self, node: Node, *, room: str = "red", namespace: str = "/", **auth: Any) -> Returning:
        """A connected client in a room."""
        client = Returning(namespace, {"room": room} | auth if namespace == "/" else auth or None)
        self.clients.append(client)
        await client.connect(node)
        assert client.pid
        assert not client.recovered
        return client

    async def end(self, node: Node, *clients: Returning) -> list[list[Event]]:
        """What each client heard before an event that `node` emits to all now."""
        mark = f"end {uuid4().hex}"
        for namespace in dict.fromkeys(client.namespace for client in clients):
            await node.sio.emit(mark, namespace=namespace)
        return [(await client.hear(mark))[:-1] for client in clients]

    async def aclose(self) -> None:
        for client in self.clients:
            await client.aclose()


async def emit(node: Node, numbers: Sequence[int], **to: Any) -> None:
    for number in numbers:
        await node.sio.emit("n", number, **to)


def events(numbers: Sequence[int]) -> list[Event]:
    return [("n", number) for number in numbers]


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    """A home on a log in memory."""
    async with serving(f"memory+log://m{uuid4().hex[:12]}") as cluster:
        home = Home(cluster)
        yield home
        await home.aclose()
    gc.collect()


@pytest.mark.parametrize("to", [0, 1], ids=["same node", "another node"])
async def test_a_client_that_comes_back_gets_its_sid_its_rooms_and_exactly_what_it_missed(home: Home, to: int) -> None:
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    sid = client.sid
    await emit(nodes[1], [1, 2], to="red")
    assert await client.hear("n") + await client.hear("n") == events([1, 2])
    await client.drop()
    await emit(nodes[0], [3, 4], to="red")
    await emit(nodes[1], [5])
    await emit(nodes[1], [6], to=sid)
    await emit(nodes[0], [99], to="blue")
    await emit(nodes[1], [99], skip_sid=sid)
    await client.connect(nodes[to])
    assert client.recovered
    assert client.sid == sid
    await emit(nodes[0], [7], to="red")
    await emit(nodes[1 - to], [8], to=sid)
    assert await home.end(nodes[0], client) == [events([3, 4, 5, 6, 7, 8])]
    assert home.environs == [False, True]
