"""The master of a service dies, is demoted, and is replaced; each test proves that it really happened."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from roomcast.brokers.redis_sentinel import RedisSentinelBroker
from roomcast.core.errors import BrokerUnavailable
from tests.adapter.servers import serving
from tests.brokers.cluster import Cluster, closing, gaps, outcome, payloads
from tests.faults.streams import lost, streaming
from tests.faults.test_redis_faults import DOWN, SLACK, UP, check_holes, stream
from tests.redis_groups import SentinelGroup, ask
from tests.services import RedisServer
from tests.waiting import until

pytestmark = pytest.mark.fault

BEAT = 0.4
FAILOVER = 20.0
"""Seconds that sentinels may take on a busy machine to agree on a new master; they retry after 6."""


@pytest.fixture
async def group() -> AsyncIterator[SentinelGroup]:
    """A master, a replica, and sentinels that take a silent master for dead after 0.3 s."""
    async with SentinelGroup(replicas=1, down_after=0.3) as group:
        yield group


@pytest.fixture
async def calm() -> AsyncIterator[SentinelGroup]:
    """A master, a replica, and sentinels that change nothing by themselves while a test lasts."""
    async with SentinelGroup(replicas=1, down_after=60) as group:
        yield group


async def command(server: RedisServer, *words: str) -> object:
    return await asyncio.to_thread(ask, server.port, *words)


def is_replica(server: RedisServer) -> bool:
    try:
        return bool(ask(server.port, "ROLE")[0] == "slave")
    except (OSError, RuntimeError):  # it is not up yet
        return False


def names(server: RedisServer, prefix: str) -> int:
    """How many connections of nodes with this prefix the server has."""
    return str(ask(server.port, "CLIENT", "LIST")).count(f"name={prefix}:")


async def test_a_killed_master_is_replaced_and_not_used_when_it_comes_back_as_a_replica(group: SentinelGroup) -> None:
    async with closing(Cluster(RedisSentinelBroker, group.url, patience=FAILOVER)) as cluster:
        publisher, receiver = await cluster.node(heartbeat=BEAT), await cluster.node(heartbeat=BEAT)
        room, end = cluster.subjects(2)
        await receiver.broker.subscribe([room, end])
        stop = asyncio.Event()
        streaming = asyncio.create_task(stream(publisher, room, stop))
        heard = await receiver.hear_payload(b"20")
        old, replica = group.members
        began = asyncio.get_running_loop().time()
        await old.kill()
        assert not old.running
        heard += await receiver.hear_gap("disconnected")
        assert gaps(heard) == [DOWN]
        heard += await receiver.hear_gap("reconnected")
        print(f"sentinel failover: {asyncio.get_running_loop().time() - began:.2f} s")  # noqa: T201 - a measurement
        old.config = (*old.config, "--replicaof", f"127.0.0.1 {replica.port}")  # as the sentinels make it in 10 s
        await old.start()
        await until(partial(is_replica, old), within=FAILOVER, what="the old master to come back as a replica")
        assert not is_replica(replica)
        await command(replica, "CLIENT", "KILL", "TYPE", "pubsub")  # now that the old one is there to be mistaken
        heard += await receiver.hear_gap("reconnected")
        assert names(old, cluster.prefix) == 0
        assert names(replica, cluster.prefix) == 4
        stop.set()
        outcomes = await streaming
        await publisher.broker.publish(end, b"end")
        heard += await receiver.hear_payload(b"end")
        check_holes(heard, outcomes)
        assert set(outcomes.values()) > {None}


async def test_a_master_that_is_demoted_is_left_although_it_keeps_its_connections(calm: SentinelGroup) -> None:
    master, replica = calm.members
    async with closing(Cluster(RedisSentinelBroker, calm.url)) as cluster:
        node = await cluster.node(heartbeat=BEAT)
        (room,) = cluster.subjects(1)
        await node.broker.subscribe([room])
        await command(replica, "REPLICAOF", "NO", "ONE")
        began = asyncio.get_running_loop().time()
        await command(master, "REPLICAOF", "127.0.0.1", str(replica.port))
        assert names(master, cluster.prefix) == 2, "it was cut, which is not what is tested here"
        assert await node.hear_gap("disconnected") == [DOWN]
        assert asyncio.get_running_loop().time() - began <= 2 * BEAT + SLACK
        with pytest.raises(BrokerUnavailable):
            await node.broker.publish(room, b"to a replica")
        await command(master, "REPLICAOF", "NO", "ONE")
        assert await node.hear_gap("reconnected") == [UP]
        assert await outcome(asyncio.ensure_future(node.broker.publish(room, b"again"))) is None
        assert payloads(await node.hear_payload(b"again")) == [b"again"]


async def test_the_sentinels_name_another_master_while_the_old_one_goes_on(calm: SentinelGroup) -> None:
    """As after a partition in which this node was on the side of the old master."""
    master, replica = calm.members
    async with closing(Cluster(RedisSentinelBroker, calm.url)) as cluster:
        node = await cluster.node(heartbeat=BEAT)
        (room,) = cluster.subjects(1)
        await node.broker.subscribe([room])
        await command(replica, "REPLICAOF", "NO", "ONE")
        first, *others = calm.sentinels
        await name_master(first, replica)
        await asyncio.sleep(3 * BEAT)  # the fault itself: one sentinel alone says so, for some heartbeats
        await node.broker.publish(room, b"one is not enough")
        assert not gaps(await node.hear_payload(b"one is not enough"))
        for sentinel in others:
            await name_master(sentinel, replica)
        assert await node.hear_gap("reconnected") == [DOWN, UP]
        assert (names(master, cluster.prefix), names(replica, cluster.prefix)) == (0, 2)


async def name_master(sentinel: RedisServer, server: RedisServer) -> None:
    """Let a sentinel call another server the master."""
    await command(sentinel, "SENTINEL", "REMOVE", "main")
    await command(sentinel, "SENTINEL", "MONITOR", "main", "127.0.0.1", str(server.port), "2")


async def test_a_stream_of_events_through_a_failover(group: SentinelGroup) -> None:
    """What was sent is received, or told as missed; in order, once."""
    async with serving(group.url) as cluster, streaming(cluster) as events:
        began = asyncio.get_running_loop().time()
        await group.members[0].kill()
        await until(lambda: not events.a.adapter.health() and not events.b.adapter.health())
        await until(
            lambda: events.a.adapter.health() and events.b.adapter.health(), within=FAILOVER, what="a new master"
        )
        took = asyncio.get_running_loop().time() - began
        await events.flows()
        missed = sum(gap.missed or 0 for gap in events.gaps)
        print(f"sentinel failover: healthy after {took:.2f} s, {missed} missed")  # noqa: T201 - a measurement
        assert (lost(events.a), lost(events.b)) == (1, 1)
        await events.account()
        reasons = [gap.reason for gap in events.gaps if gap.missed is None]
        assert reasons == ["disconnected", "reconnected"]
