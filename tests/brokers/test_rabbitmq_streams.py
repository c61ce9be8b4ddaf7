"""What is particular to a log in RabbitMQ; what every log promises is in test_logs.py."""

import asyncio
import contextlib
import importlib
import sys
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any
from unittest import mock

import pytest
from pamqp import commands

from roomcast.brokers.log_settings import log_settings
from roomcast.brokers.rabbitmq_streams import RabbitStreamsBroker, RabbitStreamsDriver
from roomcast.brokers.rabbitmq_streams_link import StreamsLink
from roomcast.brokers.rabbitmq_streams_messages import NotYet, not_open
from roomcast.core.broker import BrokerConfig, Delivery, Gap, Subject
from roomcast.core.errors import BrokerUnavailable, ConfigurationError, ReplayUnavailable
from tests.brokers.checks_log import at, log_of, patient, replayed
from tests.brokers.cluster import Cluster, Event, Node, closing, deleted, deliveries, gaps, payloads, send
from tests.brokers.log_tampers import RabbitTamper, amqp_channel
from tests.proxy import TcpProxy
from tests.services import SharedBrokers

ARGUMENTS: dict[str, Any] = {
    "x-queue-type": "stream",
    "x-max-age": "300s",
    "x-max-length-bytes": 256 * 1024**2,
    "x-stream-max-segment-size-bytes": 32 * 1024**2,
}
"""Of a stream with the default settings."""


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


@pytest.mark.parametrize(
    ("text", "opening"),
    [
        ("NOT_FOUND - home node 'rabbit@a' of durable queue 'x.log.0' in vhost '/' is down or inaccessible", True),
        ("INTERNAL_ERROR - stream queue 'x.log.0' in vhost '/' does not have a replica on this node", True),
        ("NOT_FOUND - no queue 'x.log.0' in vhost '/'", False),
    ],
)
def test_a_server_that_does_not_serve_a_stream_yet_is_told_from_one_that_has_none(text: str, opening: bool) -> None:
    assert not_open(text) == opening


@pytest.mark.parametrize(("asked", "starts"), [(3, True), (None, False)], ids=["soon", "never"])
async def test_a_server_that_does_not_serve_the_log_yet_is_asked_again_for_connect_timeout(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, *, starts: bool
) -> None:
    config = BrokerConfig(url="amqp+streams://localhost", connect_timeout=0.5)
    driver = RabbitStreamsDriver(config, log_settings({}))
    attempts = 0

    async def attempt(*_: object) -> str:
        nonlocal attempts
        attempts += 1
        if attempts != asked:
            raise NotYet("not yet", broker="amqp+streams")
        return "link"

    monkeypatch.setattr(driver, "_open", attempt)
    with contextlib.nullcontext() if starts else pytest.raises(BrokerUnavailable):
        await driver.dial(mock.Mock(), mock.Mock())
    assert attempts == asked if starts else attempts > 2


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


SMALL = {"max_bytes": "1mb"}
"""Of a log with segments of 128 kB."""


async def fill(node: Node, subject: Subject, rounds: int) -> list[bytes]:
    """Publish so many times 100 kB: a segment ends with a chunk, and what is published at once becomes one."""
    sent = [b"%06d" % number + bytes(10_000) for number in range(10 * rounds)]
    for first in range(0, len(sent), 10):
        await asyncio.gather(*(send(node.broker, subject, payload) for payload in sent[first : first + 10]))
    return sent


async def test_what_rabbitmq_writes_into_a_stream_itself_is_no_hole(cluster: Cluster) -> None:
    """At the head of each segment but the first; it takes an offset and is given to nobody."""
    (subject,) = cluster.subjects(1)
    near, far = await cluster.node(parameters=SMALL, everything=True), await cluster.node(parameters=SMALL)
    await far.broker.publish(subject, b"begin")
    sent = [b"begin", *await fill(far, subject, 7), b"end"]
    await far.broker.publish(subject, b"end")
    events = await near.hear_payload(b"end")
    assert payloads(events) == sent
    assert not gaps(events)
    assert own(events) >= 2, "RabbitMQ wrote nothing itself"
    late = await cluster.node(parameters=SMALL)
    assert [delivery.payload for page in await replayed(late, 60.0) for delivery in page] == sent


@pytest.mark.parametrize("streams", ["1", "3"])
async def test_what_rabbitmq_wrote_itself_while_the_link_was_down_is_no_hole(cluster: Cluster, streams: str) -> None:
    parameters = {"max_bytes": f"{streams}mb", "streams": streams}
    (subject,) = cluster.subjects(1)
    near, far, heard = await away(cluster, subject, parameters=parameters)
    sent = [*await fill(far, subject, 7), b"end"]
    await far.broker.publish(subject, b"end")
    await cluster.link.accept()
    events = await near.hear_payload(b"end")
    assert gaps(events) == [Gap("reconnected", missed=0)]
    assert payloads(events) == sent
    assert own([heard[-1], *deliveries(events)]) >= 2, "RabbitMQ wrote nothing itself"


async def test_what_is_trimmed_while_a_node_lags_is_told(cluster: Cluster) -> None:
    """The same jumps of offsets, and this time something is gone."""
    (subject,) = cluster.subjects(1)
    near, far = await cluster.node(parameters=SMALL, everything=True, buffer=4), await cluster.node(parameters=SMALL)
    sent = [*await fill(far, subject, 30), b"end"]
    await far.broker.publish(subject, b"end")
    events = await near.hear_payload(b"end")
    assert {gap.reason for gap in gaps(events)} == {"trimmed"}
    latest = 0
    for event in events:
        if isinstance(event, Gap):
            latest += event.missed or 0  # at most
        else:
            index = sent.index(event.payload)
            assert index <= latest, "more is missing than was told"
            latest = index + 1


async def test_a_link_that_cannot_ask_what_was_trimmed_is_lost_and_the_next_one_reads_on(cluster: Cluster) -> None:
    (subject,) = cluster.subjects(1)
    near, far = await cluster.node(parameters=SMALL, everything=True), await cluster.node(parameters=SMALL)

    async def silence(_stream: int) -> int:
        raise TimeoutError

    broker: Any = near.broker
    broker._life.link._survey.first = silence
    sent = [*await fill(far, subject, 7), b"end"]
    await far.broker.publish(subject, b"end")
    events = await near.hear_payload(b"end")
    assert gaps(events) == [Gap("disconnected", ongoing=True), Gap("reconnected", missed=0)]
    assert payloads(events) == sent


def own(events: Sequence[Event]) -> int:
    """How many offsets between the first and the last of these deliveries none of them has."""
    offsets = [int(at(event).offset) for event in deliveries(events)]
    return offsets[-1] - offsets[0] + 1 - len(offsets)


@pytest.mark.parametrize("count", [1, 60])
async def test_a_log_that_begins_again_while_the_link_is_down_is_another_one(cluster: Cluster, count: int) -> None:
    """Its offsets begin again too: whoever waited at the old place would wait for ever, or begin in the middle."""
    (subject,) = cluster.subjects(1)
    near, far, _ = await away(cluster, subject)
    await RabbitTamper().delete(cluster)
    sent = [b"after %d" % number for number in range(count)]
    for payload in sent:
        await patient(cluster, partial(far.broker.publish, subject, payload))
    await cluster.link.accept()
    events = await near.hear_payload(sent[-1])
    assert gaps(events) == [Gap("reconnected", missed=0), Gap("trimmed")]
    assert payloads(events) == sent


@pytest.mark.parametrize("count", [0, 60])
async def test_a_log_that_lost_its_end_begins_again(cluster: Cluster, count: int) -> None:
    """As a disk that was set back has it: the same life, with fewer entries, or with others where some were read."""
    (subject,) = cluster.subjects(1)
    near, far, heard = await away(cluster, subject)
    await far.broker.aclose()  # it would make the stream anew
    await RabbitTamper().delete(cluster)
    queue, epoch = f"{cluster.prefix}.log.0", at(heard[-1]).epoch
    async with amqp_channel(cluster) as channel:
        await channel.queue_declare(queue, durable=True, arguments=ARGUMENTS)
        for number in range(1 + count):
            properties = commands.Basic.Properties(
                delivery_mode=2, message_type=subject, app_id=epoch, correlation_id=str(number + 1)
            )
            await channel.basic_publish(b"other", routing_key=queue, properties=properties)
    await cluster.link.accept()
    await near.hear_gap("reconnected")
    assert gaps(await near.hear_gap("trimmed")) == [Gap("trimmed")]
    late = await cluster.node()
    await late.broker.publish(subject, b"end")
    heard = await near.hear_payload(b"end")
    assert payloads(heard) == [b"end"]
    assert at(heard[-1]).epoch != epoch


@pytest.mark.parametrize("streams", ["1", "3"])
async def test_a_log_that_is_as_it_was_is_read_on_without_another_look(
    cluster: Cluster, streams: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link is back after few round trips; what was missed comes behind the gap that tells of it (rule 8)."""
    subjects = cluster.subjects(5)
    near, far, _ = await away(cluster, *subjects, parameters={"streams": streams}, buffer=16)
    missed = [b"missed %d" % number for number in range(20)]
    for number, payload in enumerate(missed):
        await far.broker.publish(subjects[number % 5], payload)
    monkeypatch.setattr(StreamsLink, "look", None)
    for _ in range(2):
        await cluster.link.accept()
        back, *events = await near.hear_gap("reconnected")
        assert (back, events) == (Gap("reconnected", missed=0), [])
        for number, subject in enumerate(subjects):
            await far.broker.publish(subject, b"end %d" % number)
        heard: list[Event] = []
        for _ in subjects:
            heard += await near.hear(
                lambda event: isinstance(event, Delivery) and event.payload[:3] == b"end", "an end"
            )
        assert not gaps(heard)
        assert {payload for payload in payloads(heard) if payload[:3] != b"end"} == set(missed)
        assert len(payloads(heard)) == len(missed) + len(subjects)
        missed.clear()
        await lose(cluster, near)


async def away(cluster: Cluster, *subjects: Subject, **changes: Any) -> tuple[Node, Node, list[Event]]:
    """A node that has read something and lost its link, and one that keeps its own."""
    near, far = await cluster.node(linked=True, everything=True, **changes), await cluster.node(**changes)
    for number in range(20):
        await near.broker.publish(subjects[number % len(subjects)], b"%d" % number)
    heard: list[Event] = []
    while len(heard) < 20:
        heard += await near.hear(lambda event: isinstance(event, Delivery), "what it sent")
    await lose(cluster, near)
    return near, far, heard


async def lose(cluster: Cluster, near: Node) -> None:
    cluster.link.refuse()
    await cluster.link.cut()
    await near.hear_gap("disconnected")


async def test_a_queue_of_another_kind_is_refused(cluster: Cluster) -> None:
    async with amqp_channel(cluster) as channel:
        await channel.queue_declare(f"{cluster.prefix}.log.0", durable=True)
    with pytest.raises(ConfigurationError):
        await cluster.node()
