"""What is particular to a log in RabbitMQ; what every log promises is in test_logs.py."""

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator

import pytest

from roomcast.brokers.rabbitmq_streams import RabbitStreamsBroker
from roomcast.core.broker import BrokerConfig, Gap
from roomcast.core.errors import ConfigurationError, ReplayUnavailable
from tests.brokers.checks_log import at, log_of, patient, replayed
from tests.brokers.cluster import Cluster, closing, deleted, gaps, payloads, send
from tests.brokers.log_tampers import RabbitTamper, amqp_channel
from tests.proxy import TcpProxy
from tests.services import SharedBrokers


@pytest.fixture
async def cluster(shared_brokers: SharedBrokers) -> AsyncIterator[Cluster]:
    url = shared_brokers.log_url("amqp+streams")
    async with TcpProxy(url) as proxy, deleted(Cluster(RabbitStreamsBroker, url, link=proxy)) as made, closing(made):
        yield made


@pytest.mark.parametrize(
    ("url", "parameters"),
    [
        ("amqp+streams://u:s3cret@host:port", {}),
        ("amqp+streams://u:s3cret@host", {"auth": "magic"}),
        ("amqp+streams://u:s3cret@host", {"max_bytes": "much"}),
        ("amqps+streams://u:s3cret@host", {"cafile": "/nowhere/ca.pem"}),
    ],
)
def test_a_url_that_cannot_work_is_refused_without_showing_credentials(url: str, parameters: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RabbitStreamsBroker(BrokerConfig(url=url, parameters=parameters))
    assert "s3cret" not in str(caught.value)


def test_without_the_client_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("roomcast.brokers.rabbitmq")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiormq.exceptions", None)
    with pytest.raises(ConfigurationError, match=r'pip install "roomcast\[rabbitmq\]"'):
        importlib.import_module("roomcast.brokers.rabbitmq_streams")


async def test_the_epoch_is_that_of_the_first_message_for_whoever_comes_later(cluster: Cluster) -> None:
    nodes = await asyncio.gather(*(cluster.node(everything=True) for _ in range(4)))  # all make the log at once
    (subject,) = cluster.subjects(1)
    await nodes[0].broker.publish(subject, b"hello")
    nodes.append(await cluster.node(everything=True))
    await nodes[0].broker.publish(subject, b"end")
    heard = [await node.hear_payload(b"end") for node in nodes]
    assert len({at(events[-1]) for events in heard}) == 1


async def test_what_is_sent_again_is_appended_again(cluster: Cluster) -> None:
    """AMQP has no numbers of publishers: receivers drop repeats."""
    node = await cluster.node(everything=True)
    (subject,) = cluster.subjects(1)
    for _ in range(2):
        await log_of(node).publish(subject, b"1", once=("me", 1))
    await node.broker.publish(subject, b"end")
    assert payloads(await node.hear_payload(b"end")) == [b"1", b"1", b"end"]


async def test_what_is_trimmed_with_its_segment_is_counted_and_not_replayed_as_if_it_were_all(
    cluster: Cluster,
) -> None:
    parameters = {"max_bytes": "1mb"}
    near = await cluster.node(parameters=parameters, everything=True, linked=True)
    far = await cluster.node(parameters=parameters)
    (subject,) = cluster.subjects(1)
    cluster.link.refuse()
    await cluster.link.cut()
    await near.hear_gap("disconnected")
    for _ in range(30):  # a segment ends with a chunk
        await asyncio.gather(*(send(far.broker, subject, bytes(10_000)) for _ in range(20)))
    await cluster.link.accept()
    await far.broker.publish(subject, b"end")
    events = await near.hear_payload(b"end")
    assert gaps(events)[0] == Gap("reconnected", missed=0)
    told = [gap.missed or 0 for gap in gaps(events) if gap.reason == "trimmed"]
    assert told
    assert all(told)
    assert sum(told) + len(payloads(events)) >= 601
    late = await cluster.node(parameters=parameters)
    with pytest.raises(ReplayUnavailable) as caught:
        await replayed(late, 60.0)
    assert caught.value.reason == "trimmed"


async def test_a_log_that_begins_again_while_the_link_is_down_is_another_one(cluster: Cluster) -> None:
    """Its offsets begin again too: whoever waited at the old place would wait for ever."""
    near = await cluster.node(linked=True, everything=True)
    (subject,) = cluster.subjects(1)
    for number in range(20):
        await near.broker.publish(subject, b"%d" % number)
    await near.hear_payload(b"19")
    cluster.link.refuse()
    await cluster.link.cut()
    await near.hear_gap("disconnected")
    await RabbitTamper().delete(cluster)
    far = await cluster.node()
    await patient(cluster, lambda: far.broker.publish(subject, b"after"))
    await cluster.link.accept()
    events = await near.hear_payload(b"after")
    assert gaps(events) == [Gap("reconnected", missed=0), Gap("trimmed")]
    assert payloads(events) == [b"after"]


async def test_a_queue_of_another_kind_is_refused(cluster: Cluster) -> None:
    async with amqp_channel(cluster) as channel:
        await channel.queue_declare(f"{cluster.prefix}.log.0", durable=True)
    with pytest.raises(ConfigurationError):
        await cluster.node()
