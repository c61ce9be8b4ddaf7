"""Several NATS servers as one broker: the barrier of the whole cluster, and servers that stall, die and return.

Routes between the servers of a `Pair` go through a proxy, so that what takes microseconds between healthy servers
takes as long as a test wants it to.
"""

# pyright: reportPrivateUsage=false
# Which server a node uses, and how its barrier would be without probes, shows only inside.

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from roomcast.brokers import nats_reach
from roomcast.brokers.nats import NatsBroker
from roomcast.brokers.nats_reach import Reach
from roomcast.core.broker import Gap, Subject
from tests.adapter.servers import serving
from tests.broker_clusters import NatsCluster, clustered, members, wait
from tests.brokers.cluster import Cluster, Node, closing, gaps, payloads
from tests.faults.streams import lost, recovered, streaming
from tests.proxy import TcpProxy
from tests.services import NatsServer, free_port
from tests.waiting import until

pytestmark = pytest.mark.fault

DOWN, UP = Gap("disconnected", ongoing=True), Gap("reconnected")
DEAF, HEARS = Gap("missed", ongoing=True), Gap("missed")
LATENCY = 0.02
"""Seconds that a message takes from one server to the other, where a test says so."""


class Pair:
    """Two servers, the routes between them through a proxy, and a node on each."""

    def __init__(self, first: NatsServer, second: NatsServer, proxy: TcpProxy, cluster: Cluster) -> None:
        self.first, self.second, self.proxy, self.cluster = first, second, proxy, cluster

    async def nodes(self, **changes: Any) -> tuple[Node, Node]:
        """A node on each server, which never turns to the other one."""
        parameters = {"gossip": "0"}
        near = await self.cluster.node(url=self.first.url, parameters=parameters, **changes)
        return near, await self.cluster.node(url=self.second.url, parameters=parameters, **changes)

    async def joined(self) -> None:
        await asyncio.to_thread(
            wait, lambda: members(self.first) == members(self.second) == 2, "the two servers are one cluster"
        )


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        route = free_port()
        first = await stack.enter_async_context(NatsServer(*clustered(route, ""), "--name", "first"))
        proxy = await stack.enter_async_context(TcpProxy(f"nats://127.0.0.1:{route}"))
        second = NatsServer(*clustered(free_port(), proxy.url), "--name", "second")
        await stack.enter_async_context(second)
        cluster = await stack.enter_async_context(closing(Cluster(NatsBroker, first.url)))
        pair = Pair(first, second, proxy, cluster)
        await pair.joined()
        yield pair


@pytest.fixture
async def trio() -> AsyncIterator[NatsCluster]:
    async with NatsCluster() as trio:
        yield trio


def inside(node: Node) -> NatsBroker:
    assert isinstance(node.broker, NatsBroker)
    return node.broker


def server_of(node: Node, trio: NatsCluster) -> NatsServer:
    (found,) = [server for server in trio.servers if server.url == inside(node)._server.url]
    assert isinstance(found, NatsServer)
    return found


async def arrivals(near: Node, far: Node, subjects: list[Subject], known: Subject) -> list[Subject]:
    """Subscribe to one subject after the other, publish on each at once through the other server; which arrived."""
    arrived: list[Subject] = []
    for subject in subjects:
        await near.broker.subscribe([subject])
        await far.broker.publish(subject, b"at once")
        await far.broker.publish(known, subject.encode())
        if b"at once" in payloads(await near.hear_payload(subject.encode())):
            arrived.append(subject)
    return arrived


async def test_a_subscription_holds_in_the_whole_cluster(pair: Pair) -> None:
    """Rule 2, where servers are far apart: every publish that starts later, on any node, is delivered here."""
    near, far = await pair.nodes()
    known, *subjects = pair.cluster.subjects(12)
    await near.broker.subscribe([known])
    pair.proxy.delay = LATENCY
    assert near.broker.guarantees.barrier == "cluster"
    assert await arrivals(near, far, subjects, known) == subjects


async def test_an_echo_alone_would_lose_what_is_published_at_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with the barrier of one server, to show what the test above is worth."""
    near, far = await pair.nodes()
    known, *subjects = pair.cluster.subjects(12)
    await near.broker.subscribe([known])
    monkeypatch.setattr(Reach, "beyond", False)
    pair.proxy.delay = LATENCY
    assert len(await arrivals(near, far, subjects, known)) < len(subjects) // 2


async def test_a_new_node_knows_what_others_have_subscribed_to(pair: Pair) -> None:
    """Rule 2 from the other side: what a node publishes first goes to all that subscribed before it started."""
    near, _ = await pair.nodes()
    (subject,) = pair.cluster.subjects(1)
    pair.proxy.delay = LATENCY
    await near.broker.subscribe([subject])
    late = await pair.cluster.node(url=pair.second.url, parameters={"gossip": "0"})
    await late.broker.publish(subject, b"the first")
    assert payloads(await near.hear_payload(b"the first")) == [b"the first"]


async def test_order_holds_through_a_cluster(pair: Pair) -> None:
    """Rule 9: order is FIFO per publishing node across all its subjects; between servers it is one connection."""
    near, far = await pair.nodes()
    subjects = pair.cluster.subjects(40)
    await near.broker.subscribe(subjects)
    pair.proxy.delay = LATENCY / 4
    sent = [b"%d" % number for number in range(2000)]
    await asyncio.gather(*(far.broker.publish(subjects[n * 7 % 40], payload) for n, payload in enumerate(sent)))
    assert payloads(await near.hear_payload(sent[-1])) == sent


async def test_a_server_that_falls_silent_holds_nobody_up_for_long_and_is_told(pair: Pair) -> None:
    """Rule 8: a subscription that may not have reached a server is a gap, until that server answers again."""
    near, far = await pair.nodes(heartbeat=0.5)
    first, second, third = pair.cluster.subjects(3)
    pair.proxy.stall()
    await near.broker.subscribe([first])
    assert pair.proxy.bytes_held > 0
    assert await near.hear_gap("missed") == [DEAF]
    began = time.monotonic()
    await near.broker.subscribe([second])
    assert time.monotonic() - began < 0.5, "a silent server is waited for once"
    await far.broker.publish(first, b"lost or late")
    pair.proxy.resume()
    await near.hear(lambda event: event == HEARS, "the end of the gap")
    pair.proxy.delay = LATENCY
    await near.broker.subscribe([third])  # waits for the other server again
    await far.broker.publish(third, b"heard")
    events = await near.hear_payload(b"heard")
    assert not gaps(events)


async def test_a_server_that_dies_under_a_barrier_is_not_waited_for(pair: Pair) -> None:
    near, _ = await pair.nodes(heartbeat=5.0)
    first, second = pair.cluster.subjects(2)
    pair.proxy.stall()
    subscribing = asyncio.create_task(near.broker.subscribe([first]))
    await until(lambda: pair.proxy.bytes_held > 0, what="the barrier to be under way")
    await pair.second.kill()
    await pair.proxy.cut()  # what the proxy has not noticed yet
    async with asyncio.timeout(5):  # half of what a server that is only silent gets
        await subscribing
        await near.broker.subscribe([second])
    await near.broker.publish(second, b"works")
    assert not gaps(await near.hear_payload(b"works"))


async def test_a_leaf_node_counts_as_another_server(pair: Pair, tmp_path: Path) -> None:
    """A server that stands alone may get leaf nodes later: it is looked for with every heartbeat."""
    port = free_port()
    hub_config, leaf_config = tmp_path / "hub.conf", tmp_path / "leaf.conf"
    hub_config.write_text(f'leafnodes {{ listen: "127.0.0.1:{port}" }}\n')
    async with NatsServer("-c", str(hub_config)) as hub, TcpProxy(f"nats://127.0.0.1:{port}") as proxy:
        near = await pair.cluster.node(url=hub.url, heartbeat=0.3)
        known, *subjects = pair.cluster.subjects(6)
        await near.broker.subscribe([known])
        leaf_config.write_text(f'leafnodes {{ remotes: [{{ url: "{proxy.url}" }}] }}\n')
        async with NatsServer("-c", str(leaf_config)) as leaf:
            await until(lambda: proxy.open > 0, what="the leaf node to connect")
            far = await pair.cluster.node(url=leaf.url)
            link = inside(near)._life.link
            assert link is not None
            await until(lambda: link._reach is not None and link._reach.beyond, what="the leaf node to be seen")
            proxy.delay = LATENCY
            assert await arrivals(near, far, subjects, known) == subjects
            await far.broker.aclose()


async def test_servers_that_do_not_trace_make_a_weaker_promise(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nats_reach, "FIRST_TRACING", [99, 0])
    near, far = await pair.nodes()
    (subject,) = pair.cluster.subjects(1)
    assert near.broker.guarantees.barrier == "server"
    assert "2.11" in caplog.text
    await near.broker.subscribe([subject])
    await near.broker.publish(subject, b"mine")
    await near.hear_payload(b"mine")
    async with NatsServer() as alone:
        assert (await pair.cluster.node(url=alone.url)).broker.guarantees.barrier == "cluster"
    assert far.broker.guarantees.barrier == "server"


async def test_a_server_without_a_system_account_makes_a_weaker_promise(caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncExitStack() as stack:
        server = NatsServer()
        path = server.directory / "nats.conf"
        path.write_text(f'no_sys_acc: true\ncluster {{ name: "x", listen: "127.0.0.1:{free_port()}" }}\n')
        server.config = ("-c", str(path))
        await stack.enter_async_context(server)
        cluster = await stack.enter_async_context(closing(Cluster(NatsBroker, server.url)))
        node = await cluster.node(connect_timeout=2.0)
        assert node.broker.guarantees.barrier == "server"
        assert "does not trace" in caplog.text
        (subject,) = cluster.subjects(1)
        await node.broker.subscribe([subject])
        await node.broker.publish(subject, b"works")
        await node.hear_payload(b"works")


async def test_the_next_server_takes_over(trio: NatsCluster, record_property: Callable[[str, object], None]) -> None:
    """Rule 1 on a cluster: killing the server in use is one told loss, and the first retry goes elsewhere at once."""
    async with closing(Cluster(NatsBroker, trio.url)) as cluster:
        near, far = await cluster.node(), await cluster.node()
        subjects = cluster.subjects(20)
        await near.broker.subscribe(subjects)
        for _ in range(3):
            await far.broker.publish(subjects[0], b"before")
            await near.hear_payload(b"before")
            used = server_of(near, trio)
            shared = server_of(far, trio) is used
            began = time.monotonic()
            await used.kill()
            assert gaps(await near.hear_gap("reconnected")) == [DOWN, UP]
            took = time.monotonic() - began
            record_property("recovered_after", took)
            assert server_of(near, trio) is not used
            if shared:
                await far.hear_gap("reconnected")
            for subject in subjects:
                await far.broker.publish(subject, subject.encode())
            assert payloads(await near.hear_payload(subjects[-1].encode())) == [one.encode() for one in subjects]
            await used.start()


@pytest.mark.parametrize("gossip", ["1", "0"])
async def test_servers_that_the_cluster_names_are_a_fallback(trio: NatsCluster, gossip: str) -> None:
    first = trio.servers[0]
    async with closing(Cluster(NatsBroker, first.url, parameters={"gossip": gossip})) as cluster:
        node = await cluster.node()
        (subject,) = cluster.subjects(1)
        await node.broker.subscribe([subject])
        await first.kill()
        if gossip == "0":
            await node.hear_gap("disconnected")
            await until(lambda: len(inside(node)._servers) == 1)
            await first.start()
        await node.hear_gap("reconnected")
        assert (inside(node)._server.url == first.url) is (gossip == "0")
        await node.broker.publish(subject, b"works")
        await node.hear_payload(b"works")


@pytest.mark.parametrize("whose", ["the sender's", "the receiver's", "a third"])
async def test_an_application_goes_on_when_a_server_dies(trio: NatsCluster, whose: str) -> None:
    """Two adapters on two servers: what was sent is received, or told as missed; in order, once."""
    first, second, third = trio.servers
    victim = {"the sender's": first, "the receiver's": second, "a third": third}[whose]
    async with serving(first.url) as cluster, streaming(cluster, second.url) as stream:
        await victim.kill()
        expected = [victim is first, victim is second]
        await until(lambda: [lost(stream.a), lost(stream.b)] == expected, what="the loss to be noticed")
        await recovered(stream, f"{whose} NATS server killed")
        await stream.flows()
        await stream.account()
        told = [gap.reason for gap in stream.gaps if gap.reason in {"disconnected", "reconnected"}]
        assert told == (["disconnected", "reconnected"] if victim is second else [])
