"""What is particular to the RabbitMQ broker; the numbered rules are in test_conformance.py."""

import asyncio
import importlib
import logging
import ssl
import sys
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from urllib.parse import urlsplit

import aiormq
import pytest
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelNotFoundEntity
from pamqp.common import FieldTable

from roomcast.brokers.rabbitmq import RabbitBroker
from roomcast.brokers.rabbitmq_link import Link
from roomcast.brokers.rabbitmq_servers import servers
from roomcast.core.broker import Broker, BrokerConfig, Subject
from roomcast.core.errors import (
    BrokerUnavailable,
    ConfigurationError,
    PublishUnconfirmed,
    RoomcastError,
)
from tests.brokers.checks_delivery import losses_are_told
from tests.brokers.cluster import Cluster, closing, deliveries, gaps, payloads, send
from tests.proxy import TcpProxy
from tests.services import free_port, unavailable


@pytest.fixture
async def cluster(amqp_url: str) -> AsyncIterator[Cluster]:
    async with TcpProxy(amqp_url) as proxy, closing(Cluster(RabbitBroker, amqp_url, link=proxy)) as cluster:
        yield cluster


@pytest.fixture
async def operator(amqp_url: str) -> AsyncIterator[AbstractChannel]:
    """A channel of somebody else's connection."""
    async with await aiormq.connect(amqp_url) as connection:
        yield await connection.channel()


def broker_at(url: str, **settings: str) -> RabbitBroker:
    return RabbitBroker(BrokerConfig(url=url, parameters=settings, connect_timeout=2.0))


async def exists(url: str, exchange: str) -> bool:
    async with await aiormq.connect(url) as connection:
        try:
            await (await connection.channel()).exchange_declare(exchange, passive=True)
        except ChannelNotFoundEntity:
            return False
        return True


@pytest.mark.parametrize(
    ("url", "parameters"),
    [
        ("amqp://u:s3cret@host:port", {}),
        ("amqp://u:s3cret/with/slash@host", {}),
        ("amqp://u@host:s3cret", {}),
        ("amqp://u:s3cret#x@host", {}),
        ("amqp://u:s3cret@a,b:port", {}),
        ("amqp://u:s3cret@a,,b", {}),
        ("amqp://u:s3cret@a,other:s3cret@b", {}),
        ("amqp://u:s3cret@[::1", {}),
        ("http://u:s3cret@host", {}),
        ("amqp://u:s3cret@host", {"auth": "guess"}),
        ("amqps://u:s3cret@host", {"cafile": "/nowhere/ca.pem"}),
        ("amqps://u:s3cret@host", {"no_verify_ssl": "perhaps"}),
    ],
)
def test_a_url_that_cannot_work_is_refused_without_showing_credentials(url: str, parameters: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        broker_at(url, **parameters)
    error: BaseException | None = caught.value
    while error is not None:
        assert "s3cret" not in str(error)
        error = error.__cause__


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("amqp://", ["amqp://localhost:5672"]),
        ("amqp://host/shop", ["amqp://host:5672/shop"]),
        ("amqps://u:p%2C@host", ["amqps://u:p%2C@host:5671"]),
        ("amqp://u:p@a,b:7,[::1]:9,a:5672/", [f"amqp://u:p@{host}/" for host in ("a:5672", "b:7", "[::1]:9")]),
        ("amqp://u:p@a,u:p@b", ["amqp://u:p@a:5672", "amqp://u:p@b:5672"]),
    ],
)
def test_a_url_names_servers_and_one_login(url: str, found: list[str]) -> None:
    parsed = servers(url, {}, 5.0)
    assert [server.url.partition("?")[0] for server in parsed] == found
    assert "u:p" not in f"{parsed!r} {[str(server) for server in parsed]}"


async def test_the_next_server_is_tried(amqp_url: str) -> None:
    head, at, hosts = amqp_url.partition("@")
    for _ in range(4):  # where it begins is random
        broker = broker_at(f"{head}{at}127.0.0.1:{free_port()},{hosts}")
        await broker.start()
        await broker.publish(Subject("roomcast.nobody"), b"x")
        await broker.aclose()


async def test_when_no_server_answers_start_says_so_in_time() -> None:
    broker = broker_at(f"amqp://127.0.0.1:{free_port()},127.0.0.1:{free_port()}")
    with pytest.raises(BrokerUnavailable, match="cannot be reached"):
        await broker.start()
    await broker.aclose()


def test_without_the_client_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiormq.exceptions", None)
    monkeypatch.delitem(sys.modules, "roomcast.brokers.rabbitmq")
    monkeypatch.delitem(sys.modules, "roomcast.brokers.rabbitmq_link")
    with pytest.raises(ConfigurationError, match=r'pip install "roomcast\[rabbitmq\]"'):
        importlib.import_module("roomcast.brokers.rabbitmq")


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("amqp://guest:wr0ng@{}/", ConfigurationError, "refused the login"),
        ("amqp://nob0dy:wr0ng@{}/", ConfigurationError, "refused the login"),
        ("amqp://guest:guest@{}/no-such-vhost", BrokerUnavailable, "does the virtual host exist"),
    ],
)
async def test_a_refused_login_says_what_to_check(
    amqp_url: str, url: str, error: type[RoomcastError], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    parts = urlsplit(amqp_url)
    broker = broker_at(url.format(f"{parts.hostname}:{parts.port or 5672}"))
    with pytest.raises(error, match=words) as caught:
        await broker.start()
    assert "wr0ng" not in f"{caught.value} {caught.value.__cause__!r} {broker!r} {caplog.text}"
    await broker.aclose()


async def test_an_exchange_of_another_kind_is_a_configuration_error(
    cluster: Cluster, operator: AbstractChannel
) -> None:
    await operator.exchange_declare(cluster.prefix, exchange_type="fanout", durable=True)
    try:
        with pytest.raises(ConfigurationError, match="choose another prefix"):
            await cluster.node()
    finally:
        await operator.exchange_delete(cluster.prefix)


async def test_the_last_node_out_leaves_no_exchange(amqp_url: str) -> None:
    cluster = Cluster(RabbitBroker, amqp_url)
    first, second = await cluster.node(), await cluster.node()
    await first.broker.aclose()
    assert await exists(amqp_url, cluster.prefix)
    await second.broker.aclose()
    assert not await exists(amqp_url, cluster.prefix)


async def test_an_exchange_that_goes_with_another_node_is_declared_again(cluster: Cluster) -> None:
    async def come_and_go() -> None:
        for _ in range(10):
            node = await cluster.node()
            await node.broker.aclose()

    await asyncio.gather(*(come_and_go() for _ in range(4)))


async def test_a_payload_may_span_frames_and_may_be_empty(cluster: Cluster) -> None:
    near, far = await cluster.node(), await cluster.node()
    subject, other = cluster.subjects(2)
    await near.broker.subscribe([subject])
    frame = 131_072 - 8
    sent = [bytes([size % 251]) * size for size in (0, 1, frame - 1, frame, frame + 1, 2 * frame, 1024 * 1024, 0)]
    for payload in sent:
        send(far.broker, subject, payload)
        send(far.broker, other, payload)
    await far.broker.publish(subject, b"end")
    assert payloads(await near.hear_payload(b"end")) == [*sent, b"end"]


async def test_an_unroutable_publish_is_confirmed(cluster: Cluster) -> None:
    node = await cluster.node()
    assert await node.broker.publish(Subject(f"{cluster.prefix}.nobody"), b"x") is None


async def test_many_publishes_are_in_flight_together(amqp_url: str) -> None:
    async with TcpProxy(amqp_url, delay=0.02) as proxy, closing(Cluster(RabbitBroker, amqp_url, link=proxy)) as slow:
        node = await slow.node(linked=True)
        subject = Subject(f"{slow.prefix}.nobody")
        loop = asyncio.get_running_loop()
        started = loop.time()
        await asyncio.gather(*(send(node.broker, subject, b"x") for _ in range(1000)))
        assert loop.time() - started < 1000 * 0.04 / 10  # one at a time takes a round trip of 0.04 s each


async def test_a_nack_is_indefinite_and_costs_no_link(cluster: Cluster, operator: AbstractChannel) -> None:
    node = await cluster.node()
    full, free = cluster.subjects(2)
    queue = f"{cluster.prefix}.full"
    limits: FieldTable = {"x-max-length": 1, "x-overflow": "reject-publish"}
    await operator.queue_declare(queue, exclusive=True, arguments=limits)
    await operator.queue_bind(queue, cluster.prefix, routing_key=full)
    await node.broker.subscribe([full])
    sent = [send(node.broker, subject, b"x") for subject in (full, free, full, free, full)]
    ended = await asyncio.gather(*sent, return_exceptions=True)
    assert [isinstance(end, PublishUnconfirmed) for end in ended] == [False, False, True, False, True]
    assert [end for end in ended if end is not None and not isinstance(end, PublishUnconfirmed)] == []
    await node.broker.subscribe([free])
    await node.broker.publish(free, b"still up")
    events = await node.hear_payload(b"still up")
    assert payloads(events) == [b"x", b"x", b"x", b"still up"], "the other queues have what one of them refused"
    assert not gaps(events)


async def test_a_caller_that_stops_waiting_disturbs_no_other(cluster: Cluster) -> None:
    near, far = await cluster.node(), await cluster.node()
    subjects = cluster.subjects(8)
    calls = [asyncio.create_task(near.broker.subscribe(subjects)) for _ in range(3)]
    await asyncio.sleep(0)
    calls[0].cancel()
    await asyncio.gather(*calls[1:])
    sent = [send(far.broker, subject, subject.encode()) for subject in subjects]
    sent[3].cancel()
    await asyncio.gather(*sent, return_exceptions=True)
    heard = await near.hear_payload(subjects[-1].encode())
    assert [delivery.subject for delivery in deliveries(heard)] == subjects  # the order has no hole


async def test_a_subject_dropped_and_taken_again_is_heard(cluster: Cluster) -> None:
    near, far = await cluster.node(), await cluster.node()
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    for number in range(20):
        dropping = asyncio.create_task(near.broker.unsubscribe([subject]))
        await asyncio.sleep(0)
        await near.broker.subscribe([subject])
        await far.broker.publish(subject, b"%d" % number)
        await near.hear_payload(b"%d" % number)
        await dropping


async def test_what_comes_while_subjects_are_bound_again_is_part_of_the_loss(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 8: one subject is heard again a moment before the other; the gap comes after what that one had."""
    near, far = await cluster.node(linked=True), await cluster.node()
    first, second = cluster.subjects(2)
    await near.broker.subscribe([first, second])
    sent = [(second, b"0"), (first, b"1"), (second, b"2"), (second, b"3")]
    await far.broker.publish(*sent[0])
    heard = await near.hear_payload(b"0")
    bind = Link.bind

    async def bind_one_by_one(link: Link, subjects: Iterable[Subject]) -> None:
        for subject in sorted(subjects):
            await bind(link, [subject])
            if subject == first:
                for one in sent[1:3]:
                    await far.broker.publish(*one)

    monkeypatch.setattr(Link, "bind", bind_one_by_one)
    await cluster.link.cut()
    heard += await near.hear_gap("reconnected")
    await far.broker.publish(*sent[3])
    heard += await near.hear_payload(b"3")
    assert losses_are_told(heard, [payload for _, payload in sent])


async def test_an_outage_that_nobody_receives_takes_bounded_memory(cluster: Cluster) -> None:
    node = await cluster.node(linked=True, buffer=4)
    (subject,) = cluster.subjects(1)
    await node.broker.subscribe([subject])
    for _ in range(8):
        await asyncio.gather(*(send(node.broker, subject, b"x") for _ in range(6)))
        assert await cluster.link.cut() == 1
        await until_accepted(node.broker, subject)
    events = await node.broker.receive()
    told = gaps(events)
    assert deliveries(events) == list(events[:4])
    assert len(told) <= 4
    assert sum(gap.missed or 0 for gap in told) > 6
    assert [gap.reason for gap in told if gap.reason != "overflow"] == ["disconnected", "reconnected"]


async def until_accepted(broker: Broker, subject: Subject) -> None:
    """Publish until the broker accepts: its link is up again."""
    async with asyncio.timeout(10):
        while True:
            (end,) = await asyncio.gather(send(broker, subject, b"y"), return_exceptions=True)
            if end is None:
                return
            assert isinstance(end, BrokerUnavailable | PublishUnconfirmed)
            await asyncio.sleep(0.01)


async def test_a_loop_that_was_blocked_does_not_lose_its_link(cluster: Cluster) -> None:
    node = await cluster.node(heartbeat=0.3)
    (subject,) = cluster.subjects(1)
    await node.broker.subscribe([subject])
    for number in range(3):
        time.sleep(0.8)  # noqa: ASYNC251 - the application's fault, not the link's
        await node.broker.publish(subject, b"%d" % number)
        assert not gaps(await node.hear_payload(b"%d" % number))
        await asyncio.sleep(0.2 + 0.05 * number)  # so that the next one hits another part of the watchdog's turn
    await node.broker.publish(subject, b"end")
    assert not gaps(await node.hear_payload(b"end"))


async def test_tls_checks_the_server_unless_told_otherwise(amqp_url: str, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    await make_certificate(certificate, key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    parts = urlsplit(amqp_url)
    plain = (parts.hostname or "127.0.0.1", parts.port or 5672)
    server = await asyncio.start_server(Terminator(*plain).serve, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        for host, parameters in (
            ("localhost", {"cafile": str(certificate)}),
            ("127.0.0.1", {"no_verify_ssl": "1"}),
        ):
            trusting = broker_at(f"amqps://guest:guest@{host}:{port}/", **parameters)
            await trusting.start()
            await trusting.publish(Subject("roomcast.nobody"), b"x")
            await trusting.aclose()
        for host, parameters in (("localhost", {}), ("127.0.0.1", {"cafile": str(certificate)})):
            with pytest.raises(BrokerUnavailable, match="TLS"):
                await broker_at(f"amqps://guest:guest@{host}:{port}/", **parameters).start()


class Terminator:
    """Takes TLS off a connection and forwards it."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(*self._address)
        await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(65_536):
            writer.write(chunk)
            await writer.drain()
    except ConnectionError:
        pass  # the other end went away in its own manner
    finally:
        writer.close()


async def make_certificate(certificate: Path, key: Path) -> None:
    words = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {certificate}"
    try:
        process = await asyncio.create_subprocess_exec(
            "openssl", *words.split(), "-addext", "subjectAltName=DNS:localhost", stderr=asyncio.subprocess.DEVNULL
        )
    except FileNotFoundError:
        unavailable("openssl", "not installed")
    assert await process.wait() == 0
