"""What is particular to a log in Redis; what every log promises is in test_logs.py."""

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator

import pytest

from roomcast.brokers.redis_streams import RedisStreamsBroker
from roomcast.core.broker import BrokerConfig, Gap, Position, Subject
from roomcast.core.errors import ConfigurationError, PublishRejected, ReplayUnavailable
from tests.brokers.checks_log import at, log_of, patient, replayed
from tests.brokers.cluster import Cluster, closing, deleted, deliveries, gaps, payloads, send
from tests.brokers.log_tampers import redis_command
from tests.proxy import TcpProxy
from tests.services import RedisServer


@pytest.fixture
async def cluster(redis_url: str) -> AsyncIterator[Cluster]:
    url = redis_url.replace("redis://", "redis+streams://", 1)
    async with TcpProxy(url) as proxy, deleted(Cluster(RedisStreamsBroker, url, link=proxy)) as made, closing(made):
        yield made


def log_at(server: RedisServer, credentials: str = "") -> Cluster:
    return Cluster(RedisStreamsBroker, f"redis+streams://{credentials}127.0.0.1:{server.port}")


async def number(cluster: Cluster, *words: str) -> int:
    return int(str(await redis_command(cluster, *words)))


@pytest.mark.parametrize(
    ("url", "parameters"),
    [
        ("redis+streams://:s3cret@host:port", {}),
        ("redis+streams://:s3cret@host/first", {}),
        ("redis+streams://:s3cret@host", {"ssl_cert_reqs": "none"}),
        ("rediss+streams://:s3cret@host", {"ssl_ca_certs": "/nowhere/ca.pem"}),
        ("unix+streams://s3cret/path", {}),
        ("redis+streams://:s3cret@host", {"retention": "long"}),
    ],
)
def test_a_url_that_cannot_work_is_refused_without_showing_credentials(url: str, parameters: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisStreamsBroker(BrokerConfig(url=url, parameters=parameters))
    assert "s3cret" not in str(caught.value)


def test_without_the_client_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    for module in ("redis_streams", "redis_streams_link", "redis_link", "redis_servers"):
        monkeypatch.delitem(sys.modules, f"roomcast.brokers.{module}")
    with pytest.raises(ConfigurationError, match=r'pip install "roomcast\[redis\]"'):
        importlib.import_module("roomcast.brokers.redis_streams")


async def test_what_is_sent_again_is_not_appended_again(cluster: Cluster) -> None:
    node = await cluster.node(everything=True)
    log = log_of(node)
    (subject,) = cluster.subjects(1)
    first = await log.publish(subject, b"1", once=("me", 1))
    await log.publish(subject, b"2", once=("me", 2))
    assert first is not None
    for again in (1, 2, 1):
        assert await log.publish(subject, b"again", once=("me", again)) is None
    await log.publish(subject, b"mine", once=("another", 1))
    await log.publish(subject, b"3", once=("me", 3))
    assert payloads(await node.hear_payload(b"3")) == [b"1", b"2", b"mine", b"3"]
    assert 0 < await number(cluster, "PTTL", f"{cluster.prefix}:log:from:me") <= 600_000
    await redis_command(cluster, "DEL", f"{cluster.prefix}:log:from:me", f"{cluster.prefix}:log:from:another")


async def test_an_abandoned_log_goes_and_live_nodes_keep_it(cluster: Cluster) -> None:
    node = await cluster.node(heartbeat=0.2)
    (subject,) = cluster.subjects(1)
    await node.broker.publish(subject, b"hello")
    keys = (f"{cluster.prefix}:log", f"{cluster.prefix}:log:0")
    for key in keys:
        await redis_command(cluster, "PERSIST", key)
    for key in keys:
        left = -1
        async with asyncio.timeout(cluster.patience):
            while left < 0:  # until the next heartbeat
                left = await number(cluster, "PTTL", key)
                await asyncio.sleep(0.01)
        assert 3_600_000 < left <= 3_900_000


async def test_what_is_too_much_is_trimmed_by_memory(cluster: Cluster) -> None:
    parameters = {"max_bytes": "1mb"}
    node = await cluster.node(parameters=parameters)
    (subject,) = cluster.subjects(1)
    for _ in range(6):
        await asyncio.gather(*(send(node.broker, subject, bytes(4000)) for _ in range(200)))
    assert await number(cluster, "MEMORY", "USAGE", f"{cluster.prefix}:log:0") < 1.4 * 1024**2
    late = await cluster.node(parameters=parameters)
    with pytest.raises(ReplayUnavailable, match="max_bytes") as caught:
        await replayed(late, 60.0)
    assert caught.value.reason == "trimmed"


async def test_what_is_too_old_is_trimmed_and_a_replay_of_less_is_complete(cluster: Cluster) -> None:
    parameters = {"retention": "1s"}
    node = await cluster.node(parameters=parameters)
    (subject,) = cluster.subjects(1)
    await asyncio.gather(*(send(node.broker, subject, b"old") for _ in range(1000)))
    await asyncio.sleep(1.1)  # the retention
    await asyncio.gather(*(send(node.broker, subject, b"new") for _ in range(64)))
    assert await number(cluster, "XLEN", f"{cluster.prefix}:log:0") < 300
    late = await cluster.node(parameters=parameters)
    assert set(payloads(event for page in await replayed(late, 0.9) for event in page)) <= {b"new"}
    with pytest.raises(ReplayUnavailable):
        await replayed(late, 60.0)


async def test_a_server_that_forgot_its_end_gives_the_log_another_epoch(cluster: Cluster) -> None:
    """As after a restart from an older snapshot: the offsets behind it are used a second time."""
    nodes = [await cluster.node(linked=True, everything=True) for _ in range(2)]
    (subject,) = cluster.subjects(1)
    keys = [f"{cluster.prefix}:log", f"{cluster.prefix}:log:0"]
    await nodes[0].broker.publish(subject, b"kept")
    for key in keys:
        await redis_command(cluster, "COPY", key, f"{key}:snapshot")
    await nodes[0].broker.publish(subject, b"forgotten")
    for node in nodes:
        await node.hear_payload(b"forgotten")
    cluster.link.refuse()
    await cluster.link.cut()
    for key in keys:
        await redis_command(cluster, "RENAME", f"{key}:snapshot", key)
    await cluster.link.accept()
    for node in nodes:
        assert Gap("trimmed") in gaps(await node.hear_gap("trimmed"))
    await patient(cluster, lambda: nodes[0].broker.publish(subject, b"after"))
    heard = [await node.hear_payload(b"after") for node in nodes]
    assert [payloads(events) for events in heard] == [[b"after"]] * 2
    assert at(heard[0][-1]) == at(heard[1][-1]) == Position(at(heard[0][-1]).epoch, "1")
    late = await cluster.node()
    with pytest.raises(ReplayUnavailable):  # what was forgotten is missing in the middle
        await replayed(late, 60.0)


async def test_scripts_that_are_forgotten_are_loaded_again() -> None:
    async with RedisServer() as server, closing(log_at(server)) as own:
        node = await own.node(everything=True)
        (subject,) = own.subjects(1)
        await server.command("SCRIPT", "FLUSH")
        await patient(own, lambda: node.broker.publish(subject, b"hello"))
        events = await node.hear_payload(b"hello")
        assert [gap.reason for gap in gaps(events)] == ["disconnected", "reconnected"]
        assert len(deliveries(events)) == 1


async def test_a_user_confined_to_the_prefix_is_enough_and_what_it_may_not_do_is_an_error() -> None:
    rules = (
        "on >pw ~app:log* -@all +eval +evalsha +script|load +time +ping +xread +xrange +xrevrange +xadd +xtrim +xlen "
        "+memory|usage +hget +hset +hmget +hdel +hincrby +get +set +pexpire +del"
    )
    async with RedisServer() as server, closing(log_at(server, "node:pw@")) as cluster:
        await server.command("ACL", "SETUSER", "node", *rules.split())
        node = await cluster.node(prefix="app", everything=True)
        subject = Subject("app.room")
        for size in (1, 70_000):  # the second one trims
            await node.broker.publish(subject, bytes(size))
        await node.broker.publish(subject, b"end")
        assert len(payloads(await node.hear_payload(b"end"))) == 3
        with pytest.raises(ConfigurationError, match="does not let this user"):
            await cluster.node(prefix="other")
        await server.command("ACL", "SETUSER", "node", "-xadd")
        with pytest.raises(PublishRejected, match=r"can't run this command|permission"):
            await node.broker.publish(subject, b"no")
        await server.command("ACL", "SETUSER", "node", "+xadd")
        await node.broker.publish(subject, b"yes")
        assert not gaps(await node.hear_payload(b"yes")), "what was refused leaves no hole"


async def test_operators_see_whose_connections_these_are() -> None:
    async with RedisServer() as server, closing(log_at(server)) as cluster:
        await cluster.node()
        clients = await server.command("CLIENT", "LIST")
        assert f"name={cluster.prefix}:n0:reads" in clients
        assert f"name={cluster.prefix}:n0:appends" in clients
