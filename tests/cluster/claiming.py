"""Claims as an application makes them, and a look at what the nodes keep of them."""

import asyncio
from typing import Any

from roomcast import Claimed
from roomcast.core.tickets import Policy
from tests.cluster.harness import Cluster, SimClient, SimNode

KEY = "user:42"


async def claim(client: SimClient, limit: int = 1, policy: Policy = "refuse", key: str = KEY) -> Claimed:
    return await client.node.adapter.claim(client.sid, key, limit, policy, client.namespace)


async def race(*clients: SimClient, limit: int = 1, policy: Policy = "refuse") -> list[Claimed]:
    return await asyncio.gather(*(claim(client, limit, policy) for client in clients))


def tickets(node: SimNode) -> Any:
    return node.adapter._claims._tickets  # pyright: ignore[reportPrivateUsage]


def holders(cluster: Cluster, key: str = KEY) -> list[str]:
    """Who holds a key, as the nodes themselves see it."""
    return [ticket.sid for node in cluster.nodes for ticket in tickets(node).held() if ticket.key == key]


def at_rest(cluster: Cluster) -> bool:
    """Nothing is under way on any node."""
    claims: list[Any] = [node.adapter._claims for node in cluster.nodes]  # pyright: ignore[reportPrivateUsage]
    tables = [one for c in claims for one in (c._own, c._waiters, c._evictions, c._unchecked, c._tickets._under_way)]
    return not any(tables) and not any(one._tickets.waiting for one in claims)


def remember(node: SimNode, told: list[str]) -> None:
    """Note who is told of an eviction."""

    @node.adapter.on("evicted")
    def evicted(sid: str, _key: str) -> None:
        told.append(sid)


async def three(cluster: Cluster) -> tuple[SimNode, SimNode, SimNode]:
    return await cluster.node(), await cluster.node(), await cluster.node()
