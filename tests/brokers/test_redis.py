"""What is particular to the Redis broker; the numbered rules are in test_conformance.py."""

# pyright: reportPrivateUsage=false
# One test fills a buffer from within: which of two connections is read first is not for a test to choose.

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from roomcast.brokers.redis import RedisBroker
from roomcast.core.broker import BrokerConfig, Position, Subject
from roomcast.core.errors import (
    BrokerClosed,
    BrokerUnavailable,
    ConfigurationError,
    PublishRejected,
)
from tests.brokers.cluster import Cluster, closing, deliveries, gaps, payloads, send
from tests.proxy import TcpProxy
from tests.services import RedisServer, unavailable
from tests.waiting import until

ROOM = Subject("room")


@pytest.fixture
async def cluster(redis_url: str) -> AsyncIterator[Cluster]:
    async with TcpProxy(redis_url) as proxy, closing(Cluster(RedisBroker, redis_url, link=proxy)) as cluster:
        yield cluster


async def speaks(url: str, **parameters: str) -> None:
    """Assert that a node at this URL hears itself."""
    async with closing(Cluster(RedisBroker, url, parameters=parameters)) as cluster:
        node = await cluster.node()
        await node.broker.subscribe([ROOM])
        await node.broker.publish(ROOM, b"hello")
        assert payloads(await node.hear_payload(b"hello")) == [b"hello"]


@pytest.mark.parametrize(
    ("url", "parameters"),
    [
        ("redis://u:s3cret@host:port", {}),
        ("redis://:s3cret/with/slash@host", {}),
        ("redis://:s3cret@host/first", {}),
        ("redis://:s3cret@host/-1", {}),
        ("redis://:s3cret@host", {"db": "first"}),
        ("redis://:s3cret@host", {"ssl_cert_reqs": "none"}),
        ("rediss://:s3cret@host", {"ssl_cert_reqs": "never"}),
        ("rediss://:s3cret@host", {"ssl_check_hostname": "perhaps"}),
        ("rediss://:s3cret@host", {"ssl_check_hostname": "true", "ssl_cert_reqs": "none"}),
        ("rediss://:s3cret@host", {"ssl_ca_certs": "/nowhere/ca.pem"}),
        ("unix://:s3cret@", {}),
        ("unix://s3cret/path", {}),
    ],
)
def test_a_url_that_cannot_work_is_refused_without_showing_credentials(url: str, parameters: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisBroker(BrokerConfig(url=url, parameters=parameters))
    error: BaseException | None = caught.value
    while error is not None:
        assert "s3cret" not in str(error)
        error = error.__cause__


def test_without_the_client_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.delitem(sys.modules, "roomcast.brokers.redis")
    monkeypatch.delitem(sys.modules, "roomcast.brokers.redis_link")
    monkeypatch.delitem(sys.modules, "roomcast.brokers.redis_servers")
    with pytest.raises(ConfigurationError, match=r'pip install "roomcast\[redis\]"'):
        importlib.import_module("roomcast.brokers.redis")


async def test_a_password_is_used_and_a_wrong_or_missing_one_is_a_configuration_error() -> None:
    async with RedisServer("--requirepass", "s3cret:/@") as server:
        await speaks(f"redis://:s3cret%3A%2F%40@127.0.0.1:{server.port}/3")
        for credentials in ("", ":wr0ng@", "user:wr0ng@"):
            broker = RedisBroker(BrokerConfig(url=f"redis://{credentials}127.0.0.1:{server.port}"))
            with pytest.raises(ConfigurationError, match="refuses this user") as caught:
                await broker.start()
            assert "wr0ng" not in f"{caught.value} {caught.value.__cause__} {broker!r}"
            await broker.aclose()


async def test_a_database_that_does_not_exist_is_a_configuration_error(redis_url: str) -> None:
    broker = RedisBroker(BrokerConfig(url=f"{redis_url}/100000"))
    with pytest.raises(ConfigurationError, match="out of range"):
        await broker.start()
    await broker.aclose()


async def test_a_user_confined_to_the_prefix_is_enough_and_what_it_may_not_do_is_an_error() -> None:
    rules = "on >pw resetchannels &app.* -@all +publish +subscribe +unsubscribe +ping"
    async with (
        RedisServer() as server,
        closing(Cluster(RedisBroker, f"redis://node:pw@127.0.0.1:{server.port}")) as cluster,
    ):
        await server.command("ACL", "SETUSER", "node", *rules.split())
        node = await cluster.node(prefix="app")
        mine, foreign = Subject("app.room"), Subject("other.room")
        await node.broker.subscribe([mine])
        with pytest.raises(PublishRejected, match=r"NOPERM|permission"):
            await node.broker.publish(foreign, b"no")
        with pytest.raises(ConfigurationError, match="let its user hear"):
            await node.broker.subscribe([foreign])
        await node.broker.publish(mine, b"yes")
        assert payloads(await node.hear_payload(b"yes")) == [b"yes"]
        await server.command("CLIENT", "KILL", "TYPE", "pubsub")  # the refused subject is not to be restored
        await node.hear_gap("reconnected")
        await node.broker.publish(mine, b"again")
        await node.hear_payload(b"again")


async def test_a_unix_socket_carries_it(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    async with RedisServer("--unixsocket", str(path)):
        await until(path.exists)
        await speaks(f"unix://{path}", db="2")


async def certificate(directory: Path) -> tuple[Path, Path]:
    key, cert = directory / "key.pem", directory / "cert.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    words += f" -addext subjectAltName=DNS:localhost -keyout {key} -out {cert}"
    try:
        process = await asyncio.create_subprocess_exec("openssl", *words.split(), stderr=asyncio.subprocess.DEVNULL)
    except FileNotFoundError:
        unavailable("openssl", "not installed")
    assert await process.wait() == 0
    return key, cert


async def test_tls_verifies_the_server_unless_told_otherwise(tmp_path: Path) -> None:
    key, cert = await certificate(tmp_path)
    tls = RedisServer()
    tls_port = RedisServer().port
    tls.config = (
        *("--tls-port", str(tls_port), "--tls-cert-file", str(cert), "--tls-key-file", str(key)),
        *("--tls-ca-cert-file", str(cert), "--tls-auth-clients", "optional"),
    )
    async with tls:
        await speaks(f"rediss://localhost:{tls_port}", ssl_ca_certs=str(cert))
        await speaks(f"rediss://127.0.0.1:{tls_port}", ssl_ca_certs=str(cert), ssl_check_hostname="false")
        await speaks(f"rediss://127.0.0.1:{tls_port}", ssl_cert_reqs="none")
        for url, parameters in (
            (f"rediss://localhost:{tls_port}", {}),
            (f"rediss://127.0.0.1:{tls_port}", {"ssl_ca_certs": str(cert)}),
            (f"redis://localhost:{tls_port}", {}),
        ):
            broker = RedisBroker(BrokerConfig(url=url, parameters=parameters, connect_timeout=2.0))
            with pytest.raises(BrokerUnavailable):
                await broker.start()
            await broker.aclose()


async def test_operators_see_whose_connections_these_are() -> None:
    async with RedisServer() as server, closing(Cluster(RedisBroker, server.url)) as cluster:
        await cluster.node()
        clients = await server.command("CLIENT", "LIST")
        assert f"name={cluster.prefix}:n0:hears" in clients
        assert f"name={cluster.prefix}:n0:tells" in clients


def held_more(proxy: TcpProxy, than: int) -> bool:
    return proxy.bytes_held > than


async def test_batches_are_written_while_earlier_ones_are_unconfirmed(cluster: Cluster) -> None:
    node = await cluster.node(linked=True)
    proxy = cluster.link
    assert isinstance(proxy, TcpProxy)
    proxy.stall()
    futures: list[asyncio.Future[Position | None]] = []
    for batch in range(1, 6):
        before = proxy.bytes_held
        futures += [send(node.broker, ROOM, b"%d" % batch) for _ in range(100)]
        await until(partial(held_more, proxy, before), what=f"batch {batch} to be written")
    assert not any(future.done() for future in futures)
    proxy.resume()
    assert await asyncio.gather(*futures) == [None] * 500


async def test_what_a_closed_connection_did_not_take_is_unsent(cluster: Cluster) -> None:
    """Rule 5, before the loss is noticed: who is told that nothing was sent may send it again."""
    node = await cluster.node()
    broker: Any = node.broker
    broker._life.link._tells._transport.abort()
    futures = [send(node.broker, ROOM, b"%d" % number) for number in range(3)]
    errors = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(error) for error in errors] == [BrokerUnavailable] * 3


async def test_many_subjects_are_subscribed_restored_and_unsubscribed(cluster: Cluster) -> None:
    node = await cluster.node(linked=True)
    subjects = cluster.subjects(3_000)
    await node.broker.subscribe(subjects)
    await cluster.link.cut()
    await node.hear_gap("reconnected")
    heard = await cluster.finish(node, subjects, node)
    assert heard == [[]]
    await node.broker.unsubscribe(subjects[1:])
    for subject in subjects:
        await node.broker.publish(subject, subject.encode())
    assert payloads((await cluster.finish(node, subjects[:1], node))[0]) == [subjects[0].encode()]


async def test_a_subscription_that_changes_while_down_is_what_is_restored(cluster: Cluster) -> None:
    node = await cluster.node(linked=True)
    kept, gone, new = cluster.subjects(3)
    await node.broker.subscribe([kept, gone])
    cluster.link.refuse()
    await cluster.link.cut()
    await node.hear_gap("disconnected")
    with pytest.raises(BrokerUnavailable):
        await node.broker.subscribe([new])
    await node.broker.unsubscribe([gone])
    await cluster.link.accept()
    await node.hear_gap("reconnected")
    for subject in (gone, new, kept):
        await node.broker.publish(subject, subject.encode())
    heard = deliveries(await node.hear_payload(kept.encode()))
    assert [delivery.subject for delivery in heard] == [new, kept]


async def test_cancelling_a_subscribe_or_a_publish_harms_nobody(cluster: Cluster) -> None:
    node = await cluster.node(linked=True)
    first, second = cluster.subjects(2)
    cluster.link.stall()
    subscribing = asyncio.create_task(node.broker.subscribe([first]))
    other = asyncio.create_task(node.broker.subscribe([second]))
    publishing = asyncio.ensure_future(node.broker.publish(first, b"cancelled"))
    await asyncio.sleep(0)
    subscribing.cancel()
    publishing.cancel()
    cluster.link.resume()
    await other
    await node.broker.publish(first, b"one")
    await node.broker.publish(second, b"two")
    heard = await node.hear_payload(b"two")
    assert payloads(heard)[-2:] == [b"one", b"two"]
    assert not gaps(heard)


async def test_start_gives_up_on_a_server_that_says_nothing(cluster: Cluster) -> None:
    cluster.link.stall()
    node = cluster.unstarted(linked=True, connect_timeout=0.2)
    with pytest.raises(BrokerUnavailable, match=r"did not answer within 0\.2 s"):
        await node.broker.start()


async def test_aclose_ends_a_start_that_waits(cluster: Cluster) -> None:
    cluster.link.stall()
    node = cluster.unstarted(linked=True)
    starting = asyncio.create_task(node.broker.start())
    await until(lambda: cluster.link.connections)
    await node.broker.aclose()
    with pytest.raises(BrokerClosed):
        await starting


async def test_start_can_be_tried_again(redis_url: str) -> None:
    async with TcpProxy(redis_url) as proxy:
        proxy.refuse()
        broker = RedisBroker(BrokerConfig(url=proxy.url))
        with pytest.raises(BrokerUnavailable, match="cannot be reached"):
            await broker.start()
        await proxy.accept()
        await broker.start()
        await broker.publish(ROOM, b"up")
        await broker.aclose()
