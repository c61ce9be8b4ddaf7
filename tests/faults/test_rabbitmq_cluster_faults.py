"""Two RabbitMQ nodes as one broker: binds reach both, and when the node in use dies the other one takes over.

The cluster takes long to start, so it begins with the run, and one node of it is killed once, for all that is to
be seen of it: by brokers and by applications, on the dying node and on the other.
"""

# pyright: reportPrivateUsage=false
# Which server a node uses shows only inside.

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from roomcast.brokers.rabbitmq import RabbitBroker
from roomcast.brokers.rabbitmq_link import Link
from roomcast.core.broker import Gap
from tests.adapter.servers import serving
from tests.broker_clusters import SharedClusters
from tests.brokers.cluster import Cluster, closing, gaps, payloads, send
from tests.faults.streams import lost, recovered, streaming
from tests.waiting import until

pytestmark = pytest.mark.fault

DOWN, UP = Gap("disconnected", ongoing=True), Gap("reconnected")


def joined(urls: list[str]) -> str:
    """One URL that names all servers."""
    head, at, _ = urls[0].partition("@")
    return f"{head}{at}{','.join(url.partition('@')[2].strip('/') for url in urls)}/"


def port_of(broker: Any) -> int:
    assert isinstance(broker, RabbitBroker)
    return broker._server.port


@pytest.mark.cluster("amqp")
async def test_a_confirmed_bind_reaches_every_node(shared_clusters: SharedClusters) -> None:
    """Rule 2: every publish that starts later, on any node, is delivered here: routed by another server, too."""
    async with closing(Cluster(RabbitBroker, shared_clusters.urls("amqp"))) as cluster:
        near, far = await cluster.node(), await cluster.node()
        assert port_of(near.broker) != port_of(far.broker)
        assert near.broker.guarantees.barrier == "cluster"
        (known,) = cluster.subjects(1)
        await near.broker.subscribe([known])
        for subject in [subject for number in range(20) for subject in cluster.subjects(8, f"r{number}")]:
            await near.broker.subscribe([subject])
            send(far.broker, subject, b"at once")
            await far.broker.publish(known, subject.encode())
            assert payloads(await near.hear_payload(subject.encode())) == [b"at once", subject.encode()]
            await near.broker.unsubscribe([subject])


async def test_bindings_in_khepri_make_a_weaker_promise(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def opened(link: Link, name: str, real: Callable[..., Any] = Link.open) -> None:
        await real(link, name)
        link._connection.server_properties = {"version": "4.2.1"}

    monkeypatch.setattr(Link, "open", opened)
    async with closing(Cluster(RabbitBroker, amqp_url)) as cluster:
        assert (await cluster.node()).broker.guarantees.barrier == "server"


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let brokers try their servers in the order of the URL."""

    def leave(_: object) -> None:
        pass

    monkeypatch.setattr("roomcast.brokers.rabbitmq.random.shuffle", leave)


@pytest.mark.cluster("amqp", "breakable")
@pytest.mark.usefixtures("in_order")
async def test_the_other_node_takes_over(
    shared_clusters: SharedClusters, record_property: Callable[[str, object], None]
) -> None:
    """Rules 1 and 8 on a cluster; for applications: received, or told as missed, in order, once."""
    stays, dies = shared_clusters.urls("amqp", "breakable")
    either = joined([dies, stays])
    async with (
        closing(Cluster(RabbitBroker, either)) as cluster,
        serving(stays) as one,
        serving(either) as other,
        streaming(one, either) as received,
        streaming(other, stays) as sent,
    ):
        near, far = await cluster.node(), await cluster.node(url=stays)
        assert port_of(near.broker) != port_of(far.broker)
        subjects = cluster.subjects(8)
        await near.broker.subscribe(subjects)
        await far.broker.subscribe(subjects)
        await far.broker.publish(subjects[0], b"before")
        await near.hear_payload(b"before")
        await far.hear_payload(b"before")

        _, pid = shared_clusters.pids("amqp", "breakable")
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        assert await near.hear_gap("reconnected") == [DOWN, UP]
        record_property("recovered_after", time.monotonic() - began)
        assert port_of(near.broker) == port_of(far.broker)
        for subject in subjects:
            await far.broker.publish(subject, subject.encode())
        await near.broker.publish(subjects[0], b"after")
        everything = [*(subject.encode() for subject in subjects), b"after"]
        for node in (near, far):
            events = await node.hear_payload(b"after")
            assert payloads(events) == everything
            assert not gaps(events)

        await until(lambda: lost(received.b) == lost(sent.a) == 1, what="the loss to be noticed")
        for stream in (received, sent):
            await recovered(stream, "RabbitMQ node killed")
            await stream.flows()
            await stream.account()
        assert [gap.reason for gap in received.gaps if gap.missed is None] == ["disconnected", "reconnected"]
        assert lost(received.a) == lost(sent.b) == 0
