"""A cluster whose nodes restore the clients that come back, and such clients."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast
from uuid import uuid4

from roomcast import Recovery
from roomcast.brokers.memory_log import memory_logs
from tests.adapter.returning import Event, Returning
from tests.adapter.servers import Cluster, Node
from tests.waiting import until

WINDOW = 30.0
PATIENCE = 0.6  # of a node that asks for a session; its client is given a third of it to answer a ping
LONG = 9.0
"""The same where the client does answer, or its handler does end, however busy the machine is."""


class Home:
    """A cluster whose nodes restore clients, and clients that come and go."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.clients: list[Returning] = []
        self.environs: list[bool] = []
        self.settings: dict[str, Any] = {"heartbeat": 1.0, "peer_timeout": 2.0}

    async def nodes(self, count: int = 2, **recovery: Any) -> list[Node]:
        """So many nodes; each joins a new client to the room it asks for in `auth`, before it is accepted."""
        return [await self.node(**recovery) for _ in range(count)]

    async def node(
        self, *, server: dict[str, Any] | None = None, settings: dict[str, Any] | None = None, **recovery: Any
    ) -> Node:
        """A node that has met the others."""
        recovering: dict[str, Any] = {"window": WINDOW, "patience": PATIENCE} | recovery
        named: Any = self.settings | (settings or {})
        node = await self.cluster.node(server=server, recovery=Recovery(**recovering), **named)

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

    async def stop(self, node: Node) -> None:
        """Stop a node as an operator does."""
        self.cluster.nodes.remove(node)
        await node.stop()

    @property
    def stream(self) -> Any:
        """What the log in memory consists of."""
        return memory_logs()[self.cluster.url.removeprefix("memory+log://")].streams[0]

    async def away(self, node: Node, client: Returning, *numbers: int, **to: Any) -> None:
        """Lose a client, and emit to it."""
        await client.drop()
        await emit(node, numbers, **(to or {"to": "red"}))

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
    """Emit at once, so that several events share an entry of the log."""
    await asyncio.gather(*(node.sio.emit("n", number, **to) for number in numbers))


def kill(node: Node) -> None:
    """Stop a node in the middle of everything: it says nothing any more, and its connections are cut."""
    inside: Any = node.inside._node
    inside.publisher.hold(link_down=True)
    for loop in inside._loops:
        loop.cancel()
    inside._closed = True


def free(node: Node) -> int:
    """How many sessions are free, as far as a node has read."""
    return cast("int", node.inside._recoveries.reader.table.free)


async def told(node: Node, client: Returning) -> None:
    """Return once a node knows of the client what its owner knows now."""
    table = node.inside._recoveries.reader.table
    await until(lambda: len(table.get(client.pid).keep.data) > 1, what="the session data to be known")


def user_of(_environ: Any, auth: Any) -> str:
    return (auth or {}).get("user", "")  # type: ignore[no-any-return]


async def never(_served: Any) -> None:
    """Test no connection, and come to no end."""
    await asyncio.Event().wait()


def accept(_sid: str, _environ: Any, _auth: Any) -> None:
    """A connect handler."""


def has_no_room(_environ: Any, auth: Any) -> bool:
    return "room" not in (auth or {})


def events(numbers: Sequence[int]) -> list[Event]:
    return [("n", number) for number in numbers]
