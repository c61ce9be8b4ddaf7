"""What is particular to a Redis Cluster; the numbered rules of brokers are in test_conformance.py."""

import asyncio
from pathlib import Path

import pytest

from roomcast.brokers.redis_cluster import RedisClusterBroker
from roomcast.brokers.redis_slots import slot_of
from roomcast.core.broker import BrokerConfig, Position, Subject
from roomcast.core.errors import BrokerUnavailable, ConfigurationError, PublishRejected
from tests.brokers.cluster import Cluster, Node, closing, payloads, send
from tests.brokers.test_redis import certificate
from tests.redis_groups import ClusterGroup, ask
from tests.services import RedisServer, SharedBrokers, free_port


@pytest.fixture
def url(shared_brokers: SharedBrokers) -> str:
    return shared_brokers.url("redis+cluster")


def ports_of(url: str) -> list[int]:
    return [int(host.partition(":")[2]) for host in url.partition("://")[2].split(",")]


async def hears_itself(cluster: Cluster, node: Node, count: int = 12) -> None:
    """Assert that a node hears what it publishes on subjects of every server."""
    subjects = cluster.subjects(count)
    await node.broker.subscribe(subjects)
    for subject in subjects:
        await node.broker.publish(subject, subject.encode())
        assert payloads(await node.hear_payload(subject.encode()))[-1:] == [subject.encode()]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+cluster://:s3cret@", "A URL of a Redis Cluster is"),
        ("redis+cluster://:s3cret@one,", "A URL of a Redis Cluster is"),
        ("redis+cluster://:s3cret@one:port", "A URL of a Redis Cluster is"),
        ("redis+cluster://:s3cret@one,:s3cret@two", "A URL of a Redis Cluster is"),
        ("redis+cluster://:s3cret@one two", "A URL of a Redis Cluster is"),
        ("redis+cluster://:s3cret@one/1", "one database, and its URL no path"),
        ("redis+cluster://:s3cret@one?ssl_cert_reqs=none", "Only rediss:// takes ssl_cert_reqs"),
        ("redis+cluster://:s3cret@one?address_map=a=b=c", "address_map is"),
    ],
)
def test_a_url_that_cannot_work_says_what_to_write_and_shows_no_credentials(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        RedisClusterBroker(BrokerConfig(url=url))
    assert "s3cret" not in f"{caught.value} {caught.value.__cause__}"


async def test_one_server_in_the_url_is_enough(url: str) -> None:
    dead = free_port()
    last = ports_of(url)[-1]
    seeds = f"redis+cluster://127.0.0.1:{dead},127.0.0.1:{last}"
    async with closing(Cluster(RedisClusterBroker, seeds)) as cluster:
        node = await cluster.node()
        await hears_itself(cluster, node)
        assert node.broker.guarantees.order == "subject"


async def test_each_owner_has_one_reader_and_one_writer_and_its_share_of_the_subjects(url: str) -> None:
    async with closing(Cluster(RedisClusterBroker, url)) as cluster:
        node = await cluster.node()
        subjects = cluster.subjects(60)
        await node.broker.subscribe(subjects)
        channels: list[str] = []
        for port in ports_of(url):
            clients = await asyncio.to_thread(ask, port, "CLIENT", "LIST")
            assert clients.count(f"name={cluster.prefix}:n0:hears") == 1
            assert clients.count(f"name={cluster.prefix}:n0:tells") == 1
            mine = await asyncio.to_thread(ask, port, "PUBSUB", "SHARDCHANNELS", f"{cluster.prefix}.*")
            assert 5 <= len(mine) <= 40
            channels += mine
        assert sorted(channels) == sorted(subjects)
        await node.broker.unsubscribe(subjects)
        for port in ports_of(url):
            assert not await asyncio.to_thread(ask, port, "PUBSUB", "SHARDCHANNELS", f"{cluster.prefix}.*")


async def test_a_single_server_is_no_cluster(redis_url: str) -> None:
    broker = RedisClusterBroker(BrokerConfig(url=f"redis+cluster://{redis_url.partition('://')[2]}"))
    with pytest.raises(ConfigurationError, match="no server of a Redis Cluster: use redis://"):
        await broker.start()
    await broker.aclose()


async def test_no_server_that_answers_is_unavailable() -> None:
    broker = RedisClusterBroker(BrokerConfig(url=f"redis+cluster://127.0.0.1:{free_port()}"))
    with pytest.raises(BrokerUnavailable, match="No server of the Redis Cluster"):
        await broker.start()
    await broker.aclose()


async def test_slots_without_an_owner_are_unavailable() -> None:
    async with RedisServer("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        broker = RedisClusterBroker(BrokerConfig(url=f"redis+cluster://127.0.0.1:{server.port}"))
        with pytest.raises(BrokerUnavailable, match="slots of the Redis Cluster have no owner"):
            await broker.start()
        await asyncio.to_thread(ask, server.port, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        await broker.start()  # it can be tried again
        await broker.aclose()


async def test_a_user_confined_to_the_prefix_is_enough_and_what_it_may_not_do_is_an_error() -> None:
    rules = "on >pw resetchannels &app.* -@all +spublish +ssubscribe +sunsubscribe +ping +cluster|slots +cluster|nodes"
    async with ClusterGroup() as group:
        for server in group.servers:
            await asyncio.to_thread(ask, server.port, "ACL", "SETUSER", "node", *rules.split())
        url = group.url.replace("://", "://node:pw@")
        async with closing(Cluster(RedisClusterBroker, url)) as cluster:
            node = await cluster.node(prefix="app")
            mine = [Subject(f"app.{number}") for number in range(6)]
            foreign = Subject("other.room")
            await node.broker.subscribe(mine)
            with pytest.raises(PublishRejected, match=r"NOPERM|permission"):
                await node.broker.publish(foreign, b"no")
            with pytest.raises(ConfigurationError, match="let its user hear"):
                await node.broker.subscribe([*mine[:2], foreign])
            await node.broker.subscribe(mine)
            for subject in mine:
                await node.broker.publish(subject, subject.encode())
                await node.hear_payload(subject.encode())
            wrong = cluster.unstarted(url=group.url.replace("://", "://node:wr0ng@"))
            with pytest.raises(ConfigurationError, match="refuses this user") as caught:
                await wrong.broker.start()
            assert "wr0ng" not in f"{caught.value} {caught.value.__cause__}"


async def test_tls_to_every_server(tmp_path: Path) -> None:
    key, cert = await certificate(tmp_path)
    files = ("--tls-cert-file", str(cert), "--tls-key-file", str(key), "--tls-ca-cert-file", str(cert))
    group = ClusterGroup(config=(*files, "--tls-auth-clients", "no", "--tls-cluster", "yes"))
    ports = [free_port() for _ in group.masters]
    for server, port in zip(group.masters, ports, strict=True):
        server.config = (*server.config, "--tls-port", str(port))
    async with group:
        hosts = ",".join(f"localhost:{port}" for port in ports)
        parameters = {"ssl_ca_certs": str(cert), "ssl_check_hostname": "false"}  # the servers announce 127.0.0.1
        async with closing(Cluster(RedisClusterBroker, f"rediss+cluster://{hosts}")) as cluster:
            await hears_itself(cluster, await cluster.node(parameters=parameters))


async def test_publishes_stay_in_order_while_their_slot_moves() -> None:
    """Rule 4, through the refusals of the old owner; nothing is repeated, and nothing fails that was refused."""
    async with ClusterGroup() as group, closing(Cluster(RedisClusterBroker, group.url)) as cluster:
        node = await cluster.node()
        (room,) = cluster.subjects(1)
        source = group.master_of(room)
        target = next(master for master in group.masters if master is not source)
        slot = slot_of(room.encode())
        calls: list[asyncio.Future[Position | None]] = []
        for _ in range(4):
            moving = asyncio.create_task(asyncio.to_thread(group.move, slot, source, target))
            while not moving.done():
                calls += [send(node.broker, room, b"%d" % len(calls)) for _ in range(5)]
                await asyncio.sleep(0)
            await moving
            source, target = target, source
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(end) for end in ends} == {type(None)}, "a publish that was refused was not sent on"
        refused = [await asyncio.to_thread(ask, server.port, "INFO", "errorstats") for server in group.masters]
        assert sum("errorstat_MOVED" in stats for stats in refused) == 2, "nothing was published while the slot moved"
