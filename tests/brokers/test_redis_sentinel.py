"""What is particular to Redis with Sentinel; the numbered rules of brokers are in test_conformance.py."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from roomcast.brokers.redis_sentinel import RedisSentinelBroker
from roomcast.core.broker import BrokerConfig, Subject
from roomcast.core.errors import BrokerUnavailable, ConfigurationError
from tests.brokers.cluster import Cluster, Node, closing, payloads
from tests.brokers.test_redis import certificate
from tests.redis_groups import SentinelGroup, ask
from tests.services import SharedBrokers, free_port

ROOM = Subject("room")


@pytest.fixture
def url(shared_brokers: SharedBrokers) -> str:
    return shared_brokers.url("redis+sentinel")


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where connections are accepted and nothing is said."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


async def hears_itself(node: Node) -> None:
    await node.broker.subscribe([ROOM])
    await node.broker.publish(ROOM, b"hello")
    assert payloads(await node.hear_payload(b"hello")) == [b"hello"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+sentinel://:s3cret@host", "A URL of Redis Sentinel is"),
        ("redis+sentinel://:s3cret@host/main/0/1", "A URL of Redis Sentinel is"),
        ("redis+sentinel://:s3cret@/main", "A URL of Redis Sentinel is"),
        ("redis+sentinel://:s3cret@host,/main", "A URL of Redis Sentinel is"),
        ("redis+sentinel://:s3cret@host:port/main", "A URL of Redis Sentinel is"),
        ("redis+sentinel://:s3cret@one,:s3cret@two/main", "A URL of Redis Sentinel is"),
        ("redis+sentinel://:s3cret@[::1/main", "A URL of Redis Sentinel is"),
        ("redis+sentinel://:s3cret@host/main/first", "database is a number"),
        ("redis+sentinel://:s3cret@host/main?ssl_cert_reqs=none", r"Only rediss:// takes ssl_cert_reqs"),
        ("rediss+sentinel://:s3cret@host/main?ssl_ca_certs=/nowhere", "names no file"),
        ("redis+sentinel://:s3cret@host/main?address_map=here", "address_map is"),
        ("redis+sentinel://:s3cret@host/main?address_map=here:port=there", "address_map is"),
    ],
)
def test_a_url_that_cannot_work_says_what_to_write_and_shows_no_credentials(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        RedisSentinelBroker(BrokerConfig(url=url))
    assert "s3cret" not in f"{caught.value} {caught.value.__cause__}"


async def test_one_sentinel_that_answers_is_enough(url: str, silent: int) -> None:
    """Rule 1: ... else the answer ... of all that can be had."""
    _, _, tail = url.rpartition("127.0.0.1:")
    for dead in (silent, free_port()):
        hosts = f"127.0.0.1:{dead},127.0.0.1:{dead},127.0.0.1:{tail}"
        async with closing(Cluster(RedisSentinelBroker, f"redis+sentinel://{hosts}")) as cluster:
            await hears_itself(await cluster.node())


async def test_no_sentinel_that_answers_is_unavailable(silent: int) -> None:
    for port, says in ((free_port(), "refused|Connect call failed"), (silent, "did not answer")):
        hosts = f"127.0.0.1:{port}"
        async with closing(Cluster(RedisSentinelBroker, f"redis+sentinel://{hosts}/main")) as cluster:
            node = cluster.unstarted(connect_timeout=0.3)
            with pytest.raises(BrokerUnavailable, match=f"None of the sentinels at {hosts}.*({says})"):
                await node.broker.start()


async def test_a_service_that_no_sentinel_knows_is_a_configuration_error(url: str) -> None:
    async with closing(Cluster(RedisSentinelBroker, url.replace("/main", "/mian"))) as cluster:
        with pytest.raises(ConfigurationError, match="know no service 'mian'"):
            await cluster.node()


async def test_database_and_address_map_are_followed(url: str) -> None:
    sentinel = int(url.partition("127.0.0.1:")[2].partition(",")[0])
    _, master = ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
    nowhere = free_port()
    async with closing(Cluster(RedisSentinelBroker, f"{url}/3")) as cluster:
        await hears_itself(await cluster.node())
        assert "db=3" in ask(int(master), "CLIENT", "LIST")
        lost = cluster.unstarted(parameters={"address_map": f"127.0.0.1:{master}=127.0.0.1:{nowhere}"})
        with pytest.raises(BrokerUnavailable, match=f"Redis at 127.0.0.1:{master} cannot be reached.*{nowhere}"):
            await lost.broker.start()


async def test_servers_and_sentinels_have_credentials_of_their_own() -> None:
    group = SentinelGroup(
        config=("--requirepass", "s3cret:/@"),
        sentinel_config=("requirepass keeper", "sentinel auth-pass main s3cret:/@"),
    )
    async with group:
        url = group.url.replace("://", "://:s3cret%3A%2F%40@")
        async with closing(Cluster(RedisSentinelBroker, url)) as cluster:
            await hears_itself(await cluster.node(parameters={"sentinel_password": "keeper"}))
            for other, parameters in (
                (url, {"sentinel_password": "wr0ng"}),
                (url, {}),
                (group.url, {"sentinel_password": "keeper"}),
                (url.replace("s3cret", "wr0ng"), {"sentinel_password": "keeper"}),
            ):
                node = cluster.unstarted(url=other, parameters=parameters)
                with pytest.raises(ConfigurationError, match="refuses this user") as caught:
                    await node.broker.start()
                assert "wr0ng" not in f"{caught.value} {caught.value.__cause__}"


async def test_tls_to_servers_and_sentinels(tmp_path: Path) -> None:
    key, cert = await certificate(tmp_path)
    files = {"tls-cert-file": cert, "tls-key-file": key, "tls-ca-cert-file": cert, "tls-auth-clients": "no"}
    group = SentinelGroup()
    (master,) = group.members
    tls_ports = [free_port() for _ in group.servers]
    ports = dict(zip(group.servers, tls_ports, strict=True))
    for server in group.servers:
        options = {**files, "tls-port": ports[server]}
        if server is master:
            server.config = tuple(word for name, value in options.items() for word in (f"--{name}", str(value)))
        else:
            server.config = (*server.config, *(f"{name} {value}" for name, value in options.items()))
    async with group:
        hosts = ",".join(f"localhost:{ports[sentinel]}" for sentinel in group.sentinels)
        parameters = {
            "ssl_ca_certs": str(cert),
            # the sentinels watch the plain port here; what they announce is mapped to the one with TLS
            "address_map": f"127.0.0.1:{master.port}=localhost:{ports[master]}",
        }
        async with closing(Cluster(RedisSentinelBroker, f"rediss+sentinel://{hosts}/main")) as cluster:
            await hears_itself(await cluster.node(parameters=parameters))
            untrusting = cluster.unstarted(parameters={"address_map": parameters["address_map"]})
            with pytest.raises(BrokerUnavailable, match="certificate verify failed"):
                await untrusting.broker.start()


async def test_a_replica_is_never_used() -> None:
    """Rule 2: a server is used only if it calls itself a master."""
    async with SentinelGroup(replicas=1) as group, closing(Cluster(RedisSentinelBroker, group.url)) as cluster:
        master, replica = group.members
        mapped = {"address_map": f"127.0.0.1:{master.port}=127.0.0.1:{replica.port}"}
        misled = cluster.unstarted(parameters=mapped)
        with pytest.raises(BrokerUnavailable, match="no master now"):
            await misled.broker.start()
        await asyncio.to_thread(ask, replica.port, "REPLICAOF", "NO", "ONE")
        await misled.broker.start()
        await hears_itself(misled)
