"""Slots move, masters die and are replaced, a part of the cluster falls silent; each test proves that it happened."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from roomcast.brokers.redis_cluster import RedisClusterBroker
from roomcast.brokers.redis_slots import slot_of
from roomcast.core.broker import Gap, Subject
from roomcast.core.errors import BrokerUnavailable
from roomcast.core.subjects import Subjects
from tests.adapter.servers import serving
from tests.brokers.cluster import Cluster, Event, Node, closing, gaps, payloads
from tests.faults.streams import lost, streaming
from tests.faults.test_redis_faults import SLACK, UP, check_holes, stream
from tests.redis_groups import ClusterGroup, ClusterServer, Proxies, ask
from tests.waiting import until

pytestmark = pytest.mark.fault

BEAT = 0.4
FAILOVER = 30.0
"""Seconds that a replica may take on a busy machine to take over; about two where nothing else runs."""
PARTLY = Gap("disconnected", ongoing=True, partial=True)


@pytest.fixture
async def group() -> AsyncIterator[ClusterGroup]:
    """Three masters."""
    async with ClusterGroup() as group:
        yield group


@pytest.fixture
async def doubled() -> AsyncIterator[ClusterGroup]:
    """Three masters with a replica each."""
    async with ClusterGroup(replicas=True) as group:
        yield group


def apart(cluster: Cluster, group: ClusterGroup) -> list[Subject]:
    """One subject of each master."""
    found: dict[ClusterServer, Subject] = {}
    for subject in cluster.subjects(100):
        found.setdefault(group.master_of(subject), subject)
    return [found[master] for master in group.masters]


def of(subject: Subject, events: list[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, Gap) or event.subject == subject]


def names(server: ClusterServer, prefix: str) -> int:
    """How many connections of nodes with this prefix the server has."""
    return str(ask(server.port, "CLIENT", "LIST")).count(f"name={prefix}:")


async def test_a_slot_that_moves_takes_its_subject_along_and_the_others_go_on(group: ClusterGroup) -> None:
    async with closing(Cluster(RedisClusterBroker, group.url)) as cluster:
        publisher, receiver = await cluster.node(), await cluster.node()
        moving, staying, _ = apart(cluster, group)
        source, target, _ = group.masters
        await receiver.broker.subscribe([moving, staying])
        stop = asyncio.Event()
        streams = [asyncio.create_task(stream(publisher, subject, stop)) for subject in (moving, staying)]
        heard = await receiver.hear_payload(b"20")
        for _ in range(2):
            await asyncio.to_thread(group.move, slot_of(moving.encode()), source, target)
            heard += await receiver.hear_gap("reconnected")
            assert await asyncio.to_thread(ask, target.port, "PUBSUB", "SHARDCHANNELS", f"{cluster.prefix}.*")
            source, target = target, source
        stop.set()
        outcomes = await asyncio.gather(*streams)
        for subject in (moving, staying):
            await publisher.broker.publish(subject, b"end")
            heard += await receiver.hear_payload(b"end")
        assert gaps(heard) == [PARTLY, UP] * 2
        missing = [
            check_holes(of(subject, heard), ends) for subject, ends in zip((moving, staying), outcomes, strict=True)
        ]
        assert missing[1] == 0, "a subject was touched that did not move"
        assert set(outcomes[1].values()) == {None}
        assert set(outcomes[0].values()) == {None}, "a refused publish was not sent on to the new owner"
        print(f"slot moved: {missing[0]} of {len(outcomes[0])} missed")  # noqa: T201 - a measurement


async def test_a_killed_master_is_replaced_by_its_replica_and_the_others_go_on(doubled: ClusterGroup) -> None:
    async with closing(Cluster(RedisClusterBroker, doubled.url, patience=FAILOVER)) as cluster:
        publisher, receiver = await cluster.node(heartbeat=BEAT), await cluster.node(heartbeat=BEAT)
        subjects = apart(cluster, doubled)
        await receiver.broker.subscribe(subjects)
        stop = asyncio.Event()
        streams = [asyncio.create_task(stream(publisher, subject, stop)) for subject in subjects]
        heard = await receiver.hear_payload(b"20")
        victim, replica = doubled.masters[0], doubled.replicas[0]
        began = asyncio.get_running_loop().time()
        await victim.kill()
        assert not victim.running
        heard += await receiver.hear_gap("disconnected")
        with pytest.raises(BrokerUnavailable):
            await publisher.broker.publish(subjects[0], b"down")
        for subject in subjects[1:]:
            await publisher.broker.publish(subject, b"go on")
            heard += await receiver.hear_payload(b"go on")
        assert gaps(heard) == [PARTLY]
        await receiver.broker.subscribe(subjects[1:])  # a barrier, where it can be one
        heard += await receiver.hear_gap("reconnected")
        print(f"cluster failover: {asyncio.get_running_loop().time() - began:.2f} s")  # noqa: T201 - a measurement
        await until(lambda: names(replica, cluster.prefix) == 4, within=FAILOVER)
        stop.set()
        outcomes = await asyncio.gather(*streams)
        await publisher.hear_gap("reconnected")
        for subject in subjects:
            await publisher.broker.publish(subject, b"end")
            heard += await receiver.hear_payload(b"end")
        assert gaps(heard) == [PARTLY, UP]
        for subject, ends in zip(subjects, outcomes, strict=True):
            assert check_holes(of(subject, heard), ends) == 0 or subject == subjects[0]
        assert [set(ends.values()) == {None} for ends in outcomes] == [False, True, True]


async def test_a_master_that_hands_over_is_left_although_it_keeps_its_connections(doubled: ClusterGroup) -> None:
    async with closing(Cluster(RedisClusterBroker, doubled.url, patience=FAILOVER)) as cluster:
        node = await cluster.node(heartbeat=BEAT)
        subjects = apart(cluster, doubled)
        await node.broker.subscribe(subjects)
        old, new = doubled.masters[0], doubled.replicas[0]
        await asyncio.to_thread(ask, new.port, "CLUSTER", "FAILOVER")
        assert await node.hear_gap("reconnected") == [PARTLY, UP]
        # A server that has not heard of it yet may have sent the node back to the old master, which still takes it.
        await until(lambda: (names(old, cluster.prefix), names(new, cluster.prefix)) == (0, 2), within=FAILOVER)
        assert (await asyncio.to_thread(ask, old.port, "ROLE"))[0] == "slave"
        await hears(node, subjects)
        for subject in subjects:
            await node.broker.publish(subject, b"again")
            heard = await node.hear_payload(b"again")
            assert payloads(heard) == [b"again"]
            assert set(gaps(heard)) <= {PARTLY, UP}


async def hears(node: Node, subjects: list[Subject]) -> None:
    """Return once the node hears all of these, where their slots are now."""
    async with asyncio.timeout(FAILOVER):
        while True:
            try:
                return await node.broker.subscribe(subjects)
            except BrokerUnavailable:
                await asyncio.sleep(0.02)


async def test_one_silent_server_is_noticed_within_two_heartbeats_and_the_others_go_on(group: ClusterGroup) -> None:
    ports = [master.port for master in group.masters]
    async with (
        Proxies(group.url, ports) as proxies,
        closing(Cluster(RedisClusterBroker, group.url, link=proxies)) as cluster,
    ):
        node, far = await cluster.node(linked=True, heartbeat=BEAT), await cluster.node()
        subjects = apart(cluster, group)
        await node.broker.subscribe(subjects)
        silent = proxies.each[ports[0]]
        silent.stall()
        began = asyncio.get_running_loop().time()
        assert await node.hear_gap("disconnected") == [PARTLY]
        assert asyncio.get_running_loop().time() - began <= 2 * BEAT + SLACK
        with pytest.raises(BrokerUnavailable):
            await node.broker.publish(subjects[0], b"into the hole")
        await node.broker.unsubscribe(subjects[:1])
        with pytest.raises(BrokerUnavailable):
            await node.broker.subscribe(subjects[:1])
        for subject in subjects[1:]:
            await far.broker.publish(subject, b"go on")
            assert await node.hear_payload(b"go on")
        assert silent.bytes_held > 0
        for other in ports[1:]:
            proxies.each[other].refuse()
            await proxies.each[other].cut()
        assert await node.hear_gap("disconnected") == [Gap("disconnected", ongoing=True)]
        await proxies.accept()  # but for the first
        assert await node.hear_gap("reconnected") == [Gap("reconnected", ongoing=True, partial=True)]
        silent.resume()
        assert await node.hear_gap("reconnected") == [UP]
        await far.broker.publish(subjects[0], b"heard")
        assert payloads(await node.hear_payload(b"heard")) == [b"heard"]


async def test_a_stream_of_events_through_a_failover(doubled: ClusterGroup) -> None:
    """What was sent is received, or told as missed; in order, once. Rooms of other servers go on meanwhile."""
    async with serving(doubled.url) as cluster, streaming(cluster) as events:
        subjects = Subjects(cluster.prefix)
        victim = doubled.master_of(subjects.room("/", "red"))
        blue = next(room for room in map(str, range(100)) if doubled.master_of(subjects.room("/", room)) is not victim)
        await events.b.sio.enter_room(events.far.sid, blue)
        began = asyncio.get_running_loop().time()
        await victim.kill()
        await until(lambda: not events.a.adapter.health() and not events.b.adapter.health())
        health = events.a.adapter.health()
        assert health.connected
        assert "a part of the broker" in health.reason
        await events.a.sio.emit("blue", room=blue)
        await events.far.only("blue")
        assert not events.a.adapter.health(), "the failover was too quick to show anything"
        await until(
            lambda: events.a.adapter.health() and events.b.adapter.health(), within=FAILOVER, what="a new master"
        )
        took = asyncio.get_running_loop().time() - began
        await events.flows()
        await events.account()
        missed = sum(gap.missed or 0 for gap in events.gaps)
        print(f"cluster failover: healthy after {took:.2f} s, {missed} missed")  # noqa: T201 - a measurement
        assert (lost(events.a), lost(events.b)) == (1, 1)
        assert [gap.reason for gap in events.gaps if gap.missed is None] == ["disconnected", "reconnected"]
