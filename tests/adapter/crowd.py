"""Three nodes and three clients on each: the stage of the scenarios. And crowds of clients without a network."""

import asyncio
import gc
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Unpack
from uuid import uuid4

from roomcast import Adapter, Operator, RemoteSocket
from roomcast.core.options import Settings
from tests.adapter.servers import PATIENCE, Client, Cluster, Heard, Node, acquaint, serving
from tests.cluster.faulty import Hub
from tests.cluster.harness import SimClient, SimNode
from tests.waiting import until

NAMES = tuple(f"{node}{number}" for node in "abc" for number in "123")
EVERYONE = " ".join(NAMES)


class Crowd:
    """Nodes `a`, `b` and `c`; `crowd["b2"]` is the second client of node `b`."""

    def __init__(self, cluster: Cluster, nodes: Sequence[Node], clients: Sequence[Client]) -> None:
        self.cluster = cluster
        self.a, self.b, self.c = nodes
        self.nodes = tuple(nodes)
        self._clients = dict(zip(NAMES, clients, strict=True))

    def __getitem__(self, name: str) -> Client:
        return self._clients[name]

    def node_of(self, name: str) -> Node:
        """The node that a client is connected to."""
        return self.nodes["abc".index(name[0])]

    def clients(self, names: str = EVERYONE) -> list[Client]:
        """Clients by name: "a1 b2"."""
        return [self[name] for name in names.split()]

    def sids(self, names: str = EVERYONE) -> list[str]:
        """Their sids."""
        return [client.sid for client in self.clients(names)]

    def named(self, sids: Iterable[str]) -> str:
        """The names that belong to sids, sorted; a sid that is there twice gives its name twice."""
        names = {client.sid: name for name, client in self._clients.items()}
        return " ".join(sorted(names[sid] for sid in sids))

    async def enter(self, room: str | int, names: str) -> None:
        """Put clients into a room, each by its own server."""
        for name in names.split():
            await self.node_of(name).sio.enter_room(self[name].sid, room, namespace=self[name].namespace)

    async def everything(self, by: Node | None = None, among: str = EVERYONE) -> dict[str, list[Heard]]:
        """What each client heard since the last time, of what node `by` (or `a`) has emitted until now."""
        heard = await self.cluster.finish(by or self.a, *self.clients(among))
        return dict(zip(among.split(), heard, strict=True))

    async def hearers(self, *event: Any, by: Node | None = None, among: str = EVERYONE) -> str:
        """Who heard this event of node `by`, once; and nobody heard anything else."""
        heard = await self.everything(by, among)
        assert all(events in ([], [event]) for events in heard.values()), heard
        return " ".join(name for name, events in heard.items() if events)


async def started(cluster: Cluster, count: int, **settings: Unpack[Settings]) -> list[Node]:
    """So many nodes, one after the other, that know one another."""
    return [await cluster.node(**settings) for _ in range(count)]


@asynccontextmanager
async def gathered(url: str, *namespaces: str, **settings: Unpack[Settings]) -> AsyncGenerator[Crowd]:
    """A crowd on a broker."""
    async with serving(url) as cluster:
        nodes = [cluster.unstarted(**settings) for _ in range(3)]
        await asyncio.gather(*(node.start() for node in nodes))
        await cluster.meet()
        clients = await asyncio.gather(*(node.client(*namespaces) for node in nodes for _ in range(3)))
        yield Crowd(cluster, nodes, clients)
    gc.collect()  # what was not closed is told here, not in a later test


def left_behind(adapter: Adapter) -> dict[str, int]:
    """What a node still keeps for requests and acknowledgements, its own and those of others."""
    inside: Any = adapter
    kept = {
        "acks it waits for": len(inside._broadcast.acks),
        "surveys": len(inside._surveys),
        "requests": len(inside._surveys._requests),
        "answers it is in the middle of": len(inside._answers._parts),
        "acks its clients owe": sum(
            len(client.acks or ())
            for namespace in inside._rooms.namespaces()
            for client in inside._rooms.members(namespace, None)
        ),
    }
    return {what: count for what, count in kept.items() if count}


async def nothing_is_left(*adapters: Adapter) -> None:
    """Return once no node keeps anything for a request."""
    try:
        await until(lambda: not any(left_behind(adapter) for adapter in adapters), within=5)
    except AssertionError:
        raise AssertionError(f"left behind: {[left_behind(adapter) for adapter in adapters]}") from None


async def fetched(operator: Operator | Adapter) -> dict[str, RemoteSocket]:
    """The addressed clients by sid, each of them once."""
    sockets = await operator.fetch_sockets()
    found = {socket.sid: socket for socket in sockets}
    assert len(found) == len(sockets)
    return found


class Swarm:
    """Nodes on a real broker whose clients have no network: cheap enough for thousands of them.

    Attributes:
        nodes: each an adapter in a `socketio.AsyncServer`.
    """

    def __init__(self, nodes: Sequence[SimNode]) -> None:
        self.nodes = list(nodes)

    async def finish(self, node: SimNode, *clients: SimClient) -> list[list[Heard]]:
        """What each client got until an end that `node` emits now to the clients' namespaces (see `Cluster`)."""
        mark = f"end {uuid4().hex}"
        for namespace in dict.fromkeys(client.namespace for client in clients):
            await node.server.emit(mark, namespace=namespace)
        await until(lambda: all((mark,) in client.events[-3:] for client in clients), within=PATIENCE, what="the end")
        taken: list[list[Heard]] = []
        for client in clients:
            at = client.events.index((mark,))
            taken.append(client.events[:at])
            del client.events[: at + 1]
        return taken


@asynccontextmanager
async def swarming(url: str, nodes: int = 3, **settings: Any) -> AsyncGenerator[Swarm]:
    """Nodes that know one another."""
    settings.setdefault("prefix", f"t{uuid4().hex[:12]}")
    made = [SimNode(Hub(), url, settings) for _ in range(nodes)]
    try:
        await asyncio.gather(*(node.adapter.start() for node in made))
        await until(lambda: all(node.adapter.health().peers == nodes - 1 for node in made), what="the nodes to meet")
        acquaint(*(node.adapter for node in made))
        yield Swarm(made)
    finally:
        await asyncio.gather(*(node.adapter.aclose() for node in made))


def acknowledging(client: SimClient, json: str = "[]") -> SimClient:
    """Let a client acknowledge whatever wants it."""

    def heard(_event: Heard) -> None:
        while client.acks_wanted:
            client.node.core.spawn(client.ack(client.acks_wanted.pop(0), json))

    client.on_event = heard
    return client
