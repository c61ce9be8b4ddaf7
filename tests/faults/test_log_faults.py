"""Faults of servers that keep their data: nothing is lost, repeated or reordered at any node (rule 8)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from itertools import groupby
from uuid import uuid4

import pytest

from roomcast.core.broker import Delivery, Gap, Subject
from roomcast.core.errors import BrokerError
from tests.brokers.checks_log import log_of
from tests.brokers.cluster import Cluster, Event, Node, closing, gaps, payloads
from tests.brokers.test_conformance import broker_class
from tests.services import JetStreamServer, RabbitServer, RedisServer, Server
from tests.waiting import until

pytestmark = pytest.mark.fault

HEARTBEAT = 0.6
SERVERS: dict[str, Callable[[], Server]] = {
    "redis+streams": lambda: RedisServer("--appendonly", "yes", "--appendfsync", "always"),
    "nats+jetstream": JetStreamServer,
    "amqp+streams": RabbitServer,
}
DEDUPLICATES = {"redis+streams", "nats+jetstream"}


@pytest.fixture
async def server(scheme: str) -> AsyncIterator[Server]:
    async with SERVERS[scheme]() as started:
        yield started


@pytest.fixture
async def cluster(scheme: str, server: Server) -> AsyncIterator[Cluster]:
    url = f"{scheme}://{server.url.partition('://')[2]}"
    async with closing(Cluster(broker_class(scheme), url, patience=90.0)) as made:
        yield made


class Publisher:
    """Publishes numbers in order, each until it is confirmed, as the outbox does."""

    def __init__(self, node: Node, subject: Subject) -> None:
        self.confirmed = 0
        self.failures = 0
        self._node = node
        self._subject = subject
        self._origin = uuid4().hex[:8]
        self._stop = False
        self._task = asyncio.create_task(self._publish())

    async def _publish(self) -> None:
        log = log_of(self._node)
        while not self._stop:
            once = (self._origin, self.confirmed)
            try:
                await log.publish(self._subject, b"%d" % self.confirmed, once=once)
            except BrokerError:
                self.failures += 1
                await asyncio.sleep(0.01)
            else:
                self.confirmed += 1

    async def finish(self) -> None:
        self._stop = True
        await self._task


def nothing_is_lost(scheme: str, events: list[Event], count: int) -> None:
    got = [int(payload) for payload in payloads(events)]
    if scheme not in DEDUPLICATES:  # receivers drop what was sent again by its number, as the core does
        got = [one for one, _ in groupby(got)]
    assert got == list(range(count))
    assert {gap.reason for gap in gaps(events)} <= {"disconnected", "reconnected"}
    assert all(gap.missed in {None, 0} for gap in gaps(events))


def knows_its_streams(server: RabbitServer) -> bool:
    """Whether it will find its streams again. Half a second after the first one was made; how-to/choose-a-broker."""
    files = server.directory.glob("mnesia/*/coordination/*/names.dets")
    return any(b"rabbit_stream_coordinator" in file.read_bytes() for file in files)


async def through(cluster: Cluster, publisher: Publisher, fault: Callable[[], Awaitable[None]]) -> None:
    """Publish before, through and after a fault."""
    before = publisher.confirmed + 100
    await until(lambda: publisher.confirmed >= before, within=cluster.patience)
    failures = publisher.failures
    await fault()
    after = publisher.confirmed + 100
    await until(lambda: publisher.confirmed >= after, within=cluster.patience, what="publishing goes on")
    assert publisher.failures > failures, "no publish met the fault"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("scheme", SERVERS)
async def test_a_server_that_is_killed_or_stalls_loses_nothing(cluster: Cluster, scheme: str, server: Server) -> None:
    (subject,) = cluster.subjects(1)
    nodes = [await cluster.node(heartbeat=HEARTBEAT) for _ in range(2)]
    for node in nodes:
        await node.broker.subscribe([subject])

    async def restart() -> None:
        await server.kill()
        await server.start()

    async def stall() -> None:
        server.stop()
        await asyncio.sleep(3 * HEARTBEAT)  # longer than rule 12 leaves a link in doubt
        server.cont()

    if isinstance(server, RabbitServer):
        await until(partial(knows_its_streams, server), what="RabbitMQ to write down that it has streams")
    publisher = Publisher(nodes[0], subject)
    try:
        for fault in (restart, stall):
            await through(cluster, publisher, fault)
    finally:
        await publisher.finish()
    assert server.starts == 2
    heard = await cluster.finish(nodes[0], [subject], *nodes)
    for events in heard:
        assert Gap("reconnected", missed=0) in events
        nothing_is_lost(scheme, events, publisher.confirmed)
    one, other = ([event for event in events if isinstance(event, Delivery)] for events in heard)
    assert one == other, "two nodes saw different orders"
