"""Whole nodes on a log, and their clients, while a node or the server is stopped: nothing lost, repeated or reordered.

What brokers with a log go through by themselves is in test_log_faults.py.
"""

import asyncio

import pytest

from tests.adapter.servers import Client, Cluster, serving
from tests.faults.lone import lone_node
from tests.proxy import TcpProxy
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
        await burst_past_a_stopped_node(cluster, count=1500, size=8000, queue=150)


@pytest.mark.parametrize("fault", ["stall", "reset"])
@pytest.mark.parametrize("scheme", ["redis+streams", "nats+jetstream", "amqp+streams"])
async def test_a_cancelled_emit_is_delivered_everywhere_or_nowhere(
    scheme: str, fault: str, shared_brokers: SharedBrokers
) -> None:
    """P6 through a fault: whoever is cancelled, at whatever point, its event comes once or never, and in its place."""
    async with TcpProxy(shared_brokers.log_url(scheme)) as proxy, serving(proxy.url) as cluster:
        a, b = await cluster.pair(heartbeat=BEAT, peer_timeout=2 * BEAT)
        near, far = await a.client(), await b.client()
        await a.sio.enter_room(near.sid, "red")
        await b.sio.enter_room(far.sid, "red")
        emits: list[asyncio.Future[None]] = []
        for number in range(300):
            emits.append(asyncio.ensure_future(a.sio.emit("n", (number, ""), room="red")))
            if number % 6 == 1:
                emits[-1].cancel()  # before it began
            await asyncio.sleep(0)
            if number % 6 == 3:
                emits[-1].cancel()  # as it waits for its confirmation
            await asyncio.sleep(0.002)
            if number == 100 and fault == "stall":
                proxy.stall()
            elif number == 200 and fault == "stall":
                emits[-90].cancel()
                proxy.resume()
            elif number in {100, 200}:
                assert await proxy.reset() >= 2
        ended = await asyncio.gather(*emits, return_exceptions=True)
        kept = {number for number, result in enumerate(ended) if result is None}
        cancelled = {number for number, result in enumerate(ended) if isinstance(result, asyncio.CancelledError)}
        assert len(kept) + len(cancelled) == 300
        assert len(cancelled) >= 50
        await a.sio.emit("end", room="red")
        here, there = await numbers(near), await numbers(far)
        assert here == there == sorted(set(here))
        assert kept <= set(here)
        assert not {number for number in range(300) if number % 6 == 1} & set(here), "it had not begun"
        assert set(here) & cancelled, "those that had begun are delivered"
