"""Redis breaks in every way it is known to break; each test proves that its fault really happened."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import pytest

from roomcast.brokers.redis import RedisBroker
from roomcast.core.broker import Delivery, Gap, Subject
from roomcast.core.errors import BrokerClosed, BrokerError, BrokerUnavailable, PublishUnconfirmed
from tests.brokers.cluster import Cluster, Event, Node, closing, gaps, outcome, payloads, send
from tests.proxy import TcpProxy
from tests.services import RedisServer
from tests.waiting import until

# pyright: reportPrivateUsage=false

pytestmark = pytest.mark.fault

BEAT = 0.5
SLACK = 2.0
"""Seconds that a busy machine may add to a bound."""
DOWN = Gap("disconnected", ongoing=True)
UP = Gap("reconnected")


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as server:
        yield server


@pytest.fixture
async def proxy(server: RedisServer) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(server.url) as proxy:
        yield proxy


@pytest.fixture
async def cluster(server: RedisServer, proxy: TcpProxy) -> AsyncIterator[Cluster]:
    async with closing(Cluster(RedisBroker, server.url, link=proxy)) as cluster:
        yield cluster


@contextmanager
def counted_beats() -> Generator[list[float]]:
    """The halves of a heartbeat that pass meanwhile, each as long as this loop takes for it, however busy it is."""
    beats: list[float] = []

    async def count() -> None:
        while True:
            await asyncio.sleep(BEAT / 2)
            beats.append(BEAT / 2)

    counting = asyncio.create_task(count())
    try:
        yield beats
    finally:
        counting.cancel()


async def published(node: Node, subject: Subject, payload: bytes) -> bool:
    return await outcome(send(node.broker, subject, payload)) is None


async def connections(server: RedisServer, name: str) -> list[str]:
    """Ids of the server's connections of this name."""
    return re.findall(rf"id=(\d+) .*name={name} ", await server.command("CLIENT", "LIST"))


async def stream(node: Node, subject: Subject, stop: asyncio.Event) -> dict[int, type[BrokerError] | None]:
    """Publish numbers, one every millisecond or so, until told to stop; the outcome of each."""
    outcomes: dict[int, type[BrokerError] | None] = {}
    number = 0
    while not stop.is_set():
        outcomes[number] = await outcome(send(node.broker, subject, b"%d" % number))
        number += 1
        await asyncio.sleep(0.001)
    return outcomes


def check_holes(heard: list[Event], outcomes: dict[int, type[BrokerError] | None]) -> int:
    """Assert order, no repeats, and a gap before the first delivery after each hole; count the missing."""
    expected, told, missing = 0, False, 0
    for event in heard:
        if isinstance(event, Gap):
            told = True
            continue
        if not event.payload.isdigit():
            continue
        number = int(event.payload)
        assert number >= expected, "a repeat, or out of order"
        assert outcomes[number] is not BrokerUnavailable, "sent although the error said it was not"
        lost = [n for n in range(expected, number) if outcomes[n] is None]
        assert told or not lost, f"lost without a gap: {lost}"
        missing += len(lost)
        expected, told = number + 1, False
    return missing


async def test_a_killed_and_restarted_server_loses_nothing_without_a_gap(server: RedisServer, cluster: Cluster) -> None:
    publisher, receiver = await cluster.node(), await cluster.node()
    room, end = cluster.subjects(2)
    await receiver.broker.subscribe([room, end])
    stop = asyncio.Event()
    streaming = asyncio.create_task(stream(publisher, room, stop))
    heard = await receiver.hear_payload(b"50")
    for _ in range(2):
        await server.kill()
        heard += await receiver.hear_gap("disconnected")
        await server.start()
        back = asyncio.get_running_loop().time()
        heard += await receiver.hear_gap("reconnected")
        assert asyncio.get_running_loop().time() - back < 1.0 + SLACK
        heard += await receiver.hear(lambda event: isinstance(event, Delivery), "the stream to go on")
    stop.set()
    outcomes = await streaming
    await publisher.broker.publish(end, b"end")
    heard += await receiver.hear_payload(b"end")
    check_holes(heard, outcomes)
    assert server.starts == 3
    assert gaps(heard) == [DOWN, UP, DOWN, UP]
    assert BrokerUnavailable in outcomes.values()


@pytest.mark.parametrize("role", ["hears", "tells"])
async def test_a_killed_connection_is_a_lost_link_and_both_are_made_anew(
    server: RedisServer, cluster: Cluster, role: str
) -> None:
    node, other = await cluster.node(), await cluster.node()
    room = cluster.subjects(1)
    await node.broker.subscribe(room)
    names = [f"{cluster.prefix}:n0:{which}" for which in ("hears", "tells")]
    before = [await connections(server, name) for name in names]
    (victim,) = before[role == "tells"]
    assert await server.command("CLIENT", "KILL", "ID", victim) == ":1"
    assert await node.hear_gap("reconnected") == [DOWN, UP]
    await until(partial(can_publish, node))
    after = [await connections(server, name) for name in names]
    assert [len(ids) for ids in after] == [1, 1]
    assert not set(before[0] + before[1]) & set(after[0] + after[1])
    await other.broker.publish(room[0], b"again")
    assert await node.hear_payload(b"again") == [Delivery(room[0], b"again")]


def can_publish(node: Node) -> bool:
    return node.broker._life.link is not None  # type: ignore[attr-defined]


async def test_a_reset_leaves_the_written_unconfirmed_and_the_unwritten_never_sent(
    proxy: TcpProxy, cluster: Cluster
) -> None:
    node, witness = await cluster.node(linked=True), await cluster.node()
    room, end = cluster.subjects(2)
    await witness.broker.subscribe([room, end])
    proxy.stall()
    futures = [send(node.broker, room, b"%d:" % number) for number in range(20_000)]  # more than may be unconfirmed
    await until(lambda: proxy.bytes_held > 500_000)
    assert await proxy.reset() == 2
    proxy.resume()
    outcomes = [await outcome(future) for future in futures]
    assert set(outcomes) == {PublishUnconfirmed, BrokerUnavailable}
    assert await node.hear_gap("reconnected") == [DOWN, UP]
    await node.broker.publish(end, b"end")
    numbers = [int(payload.split(b":")[0]) for payload in payloads(await witness.hear_payload(b"end"))[:-1]]
    assert [outcomes[number] for number in numbers] == [PublishUnconfirmed] * len(numbers)


async def test_a_black_hole_is_declared_lost_within_two_heartbeats(proxy: TcpProxy, cluster: Cluster) -> None:
    node = await cluster.node(linked=True, heartbeat=BEAT)
    *room, unheard = cluster.subjects(2)
    await node.broker.subscribe(room)
    await node.broker.publish(unheard, b"x")  # so both have answered what they were asked
    proxy.stall()
    with counted_beats() as beats:
        publishing = send(node.broker, room[0], b"into the hole")
        assert await node.hear_gap("disconnected") == [DOWN]
    assert 1 <= len(beats) <= 4, "halves of a heartbeat"
    assert await outcome(publishing) is PublishUnconfirmed
    assert await outcome(send(node.broker, room[0], b"down")) is BrokerUnavailable
    assert proxy.bytes_held > 0
    proxy.resume()
    assert await node.hear_gap("reconnected") == [UP]
    assert await published(node, room[0], b"up")
    await node.hear_payload(b"up")


async def test_a_stall_shorter_than_a_heartbeat_is_no_loss(proxy: TcpProxy, cluster: Cluster) -> None:
    node = await cluster.node(linked=True, heartbeat=1.0)
    room = cluster.subjects(1)
    await node.broker.subscribe(room)
    proxy.stall()
    futures = [send(node.broker, room[0], b"%d" % number) for number in range(100)]
    await asyncio.sleep(0.7)  # the fault itself, not a wait for it
    assert proxy.bytes_held > 0
    assert not any(future.done() for future in futures)
    proxy.resume()
    assert [await outcome(future) for future in futures] == [None] * 100
    assert payloads(await node.hear_payload(b"99")) == [b"%d" % number for number in range(100)]


async def test_a_node_that_was_held_up_itself_does_not_blame_the_link(cluster: Cluster) -> None:
    node = await cluster.node(heartbeat=0.2)
    room = cluster.subjects(1)
    await node.broker.subscribe(room)
    for number in range(3):
        publishing = send(node.broker, room[0], b"%d" % number)
        held_up(0.5)
        assert await outcome(publishing) is None
        await asyncio.sleep(0.07 * number)  # another phase of the heartbeat each time
    assert payloads(await node.hear_payload(b"2")) == [b"0", b"1", b"2"]


def held_up(seconds: float) -> None:
    """The event loop runs nothing for so long."""
    time.sleep(seconds)


async def test_a_stopped_server_is_declared_lost_within_two_heartbeats(server: RedisServer, cluster: Cluster) -> None:
    node, idle = await cluster.node(heartbeat=BEAT), await cluster.node(heartbeat=BEAT)
    room = cluster.subjects(1)
    await node.broker.subscribe(room)
    server.stop()
    try:
        futures = [send(node.broker, room[0], b"%d" % number) for number in range(100)]
        with counted_beats() as beats:
            await asyncio.gather(node.hear_gap("disconnected"), idle.hear_gap("disconnected"))
        assert 1 <= len(beats) <= 4, "halves of a heartbeat"
        outcomes = {await outcome(future) for future in futures}
        assert PublishUnconfirmed in outcomes
        assert outcomes <= {None, PublishUnconfirmed}
    finally:
        server.cont()
    await asyncio.gather(node.hear_gap("reconnected"), idle.hear_gap("reconnected"))
    assert await published(node, room[0], b"up")
    await node.hear_payload(b"up")


async def test_a_subscriber_cut_for_being_slow_is_told() -> None:
    limit = ("--client-output-buffer-limit", "pubsub 100kb 0 0")
    async with (
        RedisServer(*limit) as server,
        TcpProxy(server.url) as proxy,
        closing(Cluster(RedisBroker, server.url, link=proxy)) as cluster,
    ):
        slow, publisher = await cluster.node(linked=True), await cluster.node()
        room, end = cluster.subjects(2)
        await slow.broker.subscribe([room, end])
        proxy.stall()
        name = f"{cluster.prefix}:n0:hears"
        count = 0
        while await connections(server, name):
            assert count < 2_000, "the server cut nobody"
            for _ in range(20):
                assert await published(publisher, room, b"%d:" % count + b"x" * 60_000)
                count += 1
        proxy.resume()
        heard = await slow.hear_gap("disconnected")
        numbers = [int(payload.split(b":")[0]) for payload in payloads(heard)]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) < count
        assert await slow.hear_gap("reconnected") == [UP]
        await publisher.broker.publish(end, b"end")
        assert payloads(await slow.hear_payload(b"end")) == [b"end"]


async def test_a_lost_reply_is_unconfirmed_and_the_message_is_not_sent_twice(proxy: TcpProxy, cluster: Cluster) -> None:
    node, witness = await cluster.node(linked=True, heartbeat=BEAT), await cluster.node()
    room = cluster.subjects(1)
    await witness.broker.subscribe(room)
    proxy.drop_replies()
    assert await outcome(send(node.broker, room[0], b"once")) is PublishUnconfirmed
    assert proxy.bytes_dropped > 0
    proxy.resume()
    assert await node.hear_gap("reconnected") == [DOWN, UP]
    await node.broker.publish(room[0], b"end")
    assert payloads(await witness.hear_payload(b"end")) == [b"once", b"end"]


async def test_a_server_that_cuts_each_new_link_is_not_stormed(server: RedisServer, cluster: Cluster) -> None:
    node = await cluster.node(linked=True)
    await node.broker.subscribe(cluster.subjects(1))
    kills = 0
    loop = asyncio.get_running_loop()
    until_then = loop.time() + 1.5
    while loop.time() < until_then:
        kills += int((await server.command("CLIENT", "KILL", "TYPE", "pubsub")).removeprefix(":"))
    assert kills >= 3
    assert cluster.link.connections <= 2 * 12
    await until(partial(can_publish, node))


async def test_aclose_is_bounded_in_a_black_hole(proxy: TcpProxy, cluster: Cluster) -> None:
    node = await cluster.node(linked=True)
    (room,) = cluster.subjects(1)
    proxy.stall()
    publishing = [send(node.broker, room, b"x") for _ in range(20_000)]  # more than may be unconfirmed
    subscribing = asyncio.create_task(node.broker.subscribe([room]))
    receiving = asyncio.create_task(node.broker.receive())
    await until(lambda: proxy.bytes_held > 500_000)
    async with asyncio.timeout(10.0):  # it flushes for a second; without a bound it would wait for ever
        await node.broker.aclose()
    assert {await outcome(future) for future in publishing} == {PublishUnconfirmed, BrokerClosed}
    for blocked in (subscribing, receiving):
        with pytest.raises(BrokerClosed):
            await blocked
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("roomcast-redis")]


async def test_a_server_that_sends_and_does_not_answer_is_found_out(cluster: Cluster) -> None:
    node, other = await cluster.node(heartbeat=0.2), await cluster.node()
    (subject,) = cluster.subjects(1)
    await node.broker.subscribe([subject])
    link: Any = node.broker
    hears = link._life.link._hears
    swallowed = mock.Mock()
    hears._transport.write = swallowed  # what we ask does not arrive any more; the other line is whole

    async def talk() -> None:
        while True:
            await published(other, subject, b"still here")
            await asyncio.sleep(0.02)

    talking = asyncio.create_task(talk())
    try:
        heard = await node.hear_gap("disconnected")
        assert gaps(heard) == [DOWN]
        assert swallowed.called
        assert len(payloads(heard)) > 2, "it was heard all the time"
        await node.hear_gap("reconnected")
    finally:
        talking.cancel()
