"""Whole nodes on a log, and their clients, while a node or the server is stopped: nothing lost, repeated or reordered.

What brokers with a log go through by themselves is in test_log_faults.py.
"""

import asyncio

import pytest

from tests.adapter.servers import Client, Cluster, serving
from tests.faults.lone import lone_node
from tests.services import SharedBrokers

pytestmark = pytest.mark.fault

BEAT = 1.0


async def numbers(client: Client) -> list[int]:
    """What a client heard until the end."""
    return [number for _, number, _ in (await client.hear("end"))[:-1]]


async def burst_past_a_stopped_node(cluster: Cluster, *, count: int, size: int, queue: int, pause: float = 1.5) -> None:
    """A burst on one node while another is stopped, whose clients' queues cannot hold what it has missed."""
    settings = f"&client_queue={queue}" if "?" in cluster.url else f"?client_queue={queue}"
    async with lone_node(Cluster(cluster.url + settings, cluster.prefix), heartbeat=BEAT) as lone:
        node = await cluster.node(heartbeat=BEAT, peer_timeout=2 * BEAT, client_queue=2 * count)  # one loop for all
        near = await node.client()
        await node.sio.enter_room(near.sid, "near")
        filler = "x" * size
        await lone.stop()
        until = asyncio.get_running_loop().time() + pause
        for first in range(0, count, 100):
            burst = range(first, min(first + 100, count))
            emits = [node.sio.emit("n", (number, filler), room="red") for number in burst]
            emits += [node.sio.emit("n", (number, ""), room="near") for number in burst]
            await asyncio.gather(*emits)
        await asyncio.sleep(max(0.0, until - asyncio.get_running_loop().time()))
        assert lone.stopped()
        lone.go_on()
        await node.sio.emit("end")
        assert await numbers(near) == list(range(count))
        assert await numbers(lone.client) == list(range(count))
        stats = await lone.stats()
        assert not any(stats[name] for name in ("clients_cut", "missed", "gaps", "repeats"))


@pytest.mark.parametrize("scheme", ["redis+streams", "nats+jetstream", "amqp+streams"])
async def test_a_stopped_node_brings_its_clients_all_of_a_burst(scheme: str, shared_brokers: SharedBrokers) -> None:
    async with serving(shared_brokers.log_url(scheme)) as cluster:
        await burst_past_a_stopped_node(cluster, count=3000, size=4000, queue=300)
