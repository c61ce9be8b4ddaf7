"""NATS breaks in every way it is known to break; each test proves that its fault really happened."""

# pyright: reportPrivateUsage=false
# Deafness, and a server that says what none says, can only be brought about inside.

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from roomcast.brokers.nats import NatsBroker
from roomcast.brokers.nats_inlet import Inlet
from roomcast.core.broker import Delivery, Gap, Position, Subject
from roomcast.core.errors import BrokerUnavailable, PayloadTooLarge, PublishUnconfirmed
from tests.brokers.cluster import Cluster, Event, Node, closing, gaps, outcome, payloads, send
from tests.proxy import TcpProxy
from tests.services import NatsServer
from tests.waiting import until

pytestmark = pytest.mark.fault

BEAT = 0.5
SLACK = 2.0
"""Seconds that a busy machine may add to a bound."""
DOWN = Gap("disconnected", ongoing=True)
UP = Gap("reconnected")


@pytest.fixture
async def server() -> AsyncIterator[NatsServer]:
    async with NatsServer() as server:
        yield server


@pytest.fixture
async def proxy(server: NatsServer) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(server.url) as proxy:
        yield proxy


@pytest.fixture
async def cluster(server: NatsServer, proxy: TcpProxy) -> AsyncIterator[Cluster]:
    async with closing(Cluster(NatsBroker, server.url, link=proxy)) as cluster:
        yield cluster


def configure(server: NatsServer, text: str) -> None:
    path = server.directory / "nats.conf"
    path.write_text(text)
    server.config = ("-c", str(path))


def log(server: NatsServer) -> str:
    return (server.directory / "server.log").read_text()


def inside(node: Node) -> NatsBroker:
    assert isinstance(node.broker, NatsBroker)
    return node.broker


async def published(node: Node, subject: Subject, payload: bytes) -> bool:
    return await outcome(send(node.broker, subject, payload)) is None


def link_gaps(events: list[Event]) -> list[Gap]:
    return [gap for gap in gaps(events) if gap.reason in ("disconnected", "reconnected")]


async def test_a_killed_server_comes_back(cluster: Cluster, server: NatsServer) -> None:
    near, far = await cluster.node(), await cluster.node()
    subjects = cluster.subjects(50)
    await near.broker.subscribe(subjects)
    pid = server.pid
    calls: list[asyncio.Future[Position | None]] = []
    stop = asyncio.Event()

    async def publish() -> None:
        while not stop.is_set():
            calls.append(send(far.broker, subjects[len(calls) % 50], b"%d" % len(calls)))
            await asyncio.sleep(0.001)

    publishing = asyncio.create_task(publish())
    await near.hear_payload(b"50")
    await server.kill()
    before = await near.hear_gap("disconnected")
    assert link_gaps(before) == [DOWN]
    assert not await published(far, subjects[0], b"while down")
    await server.start()
    assert (server.starts, server.pid != pid) == (2, True)
    during = await near.hear_gap("reconnected")
    await until(lambda: calls and calls[-1].done() and calls[-1].exception() is None, what="far is back")
    stop.set()
    await publishing
    after = await cluster.finish(far, subjects[:1], near)
    outcomes = [await outcome(call) for call in calls]
    assert set(outcomes) <= {None, BrokerUnavailable, PublishUnconfirmed}
    assert Counter(outcomes)[BrokerUnavailable], "some were published while the server was down"
    got = [int(payload) for payload in payloads([*before, *during, *after[0]])]
    assert got == sorted(set(got)), "once each, in order"
    assert not [n for n in got if n > 50 and outcomes[n] is BrokerUnavailable], "what failed was not sent"
    assert link_gaps(after[0]) == []


async def test_a_reset_tells_what_is_certain(cluster: Cluster, proxy: TcpProxy) -> None:
    near, far = await cluster.node(), await cluster.node(linked=True)
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    proxy.drop_replies()  # the server handles the publish, but its echo does not come
    written = send(far.broker, subject, b"written")
    await near.hear_payload(b"written")
    written_too = send(far.broker, subject, b"written too")
    await near.hear_payload(b"written too")
    assert await proxy.reset() >= 1
    assert await outcome(written) is PublishUnconfirmed
    assert await outcome(written_too) is PublishUnconfirmed
    proxy.resume()
    assert link_gaps(await far.hear_gap("reconnected")) == [DOWN, UP]
    await far.broker.publish(subject, b"after")
    assert payloads(await near.hear_payload(b"after")) == [b"after"]


@pytest.mark.parametrize("way", ["proxy", "SIGSTOP"])
async def test_silence_is_a_lost_link(cluster: Cluster, server: NatsServer, proxy: TcpProxy, way: str) -> None:
    node = await cluster.node(linked=True, heartbeat=BEAT)
    (subject,) = cluster.subjects(1)
    await node.broker.subscribe([subject])
    started = time.monotonic()
    proxy.stall() if way == "proxy" else server.stop()
    hanging = send(node.broker, subject, b"into the void")
    await node.hear_gap("disconnected")
    assert time.monotonic() - started < 2 * BEAT + SLACK
    assert await outcome(hanging) is PublishUnconfirmed
    proxy.resume() if way == "proxy" else server.cont()
    await node.hear_gap("reconnected")
    await node.broker.publish(subject, b"after")
    await node.hear_payload(b"after")
    assert proxy.connections >= 2


async def test_a_line_that_nobody_understands_ends_the_link_at_once(cluster: Cluster) -> None:
    """Rule 12: what comes behind it may be anything."""
    node = await cluster.node(heartbeat=30.0)
    (subject,) = cluster.subjects(1)
    await node.broker.subscribe([subject])
    protocol = transport(node).get_protocol()
    assert isinstance(protocol, Inlet)
    protocol.data_received(b"WHAT\r\n")
    events = await node.hear_gap("reconnected")
    assert link_gaps(events) == [DOWN, UP]
    await works(node, subject)


def transport(node: Node) -> asyncio.Transport:
    """The socket of the node's link."""
    broker = inside(node)
    assert broker._life.link is not None
    found = broker._life.link._connection._transport
    assert isinstance(found, asyncio.Transport)
    return found


async def works(node: Node, subject: Subject) -> None:
    await node.broker.publish(subject, b"hello")
    await node.hear_payload(b"hello")


async def test_deafness_is_noticed_by_the_echo(cluster: Cluster) -> None:
    """Rule 12: a socket from which nothing is read looks as well as any other."""
    node = await cluster.node(heartbeat=BEAT)
    (subject,) = cluster.subjects(1)
    await node.broker.subscribe([subject])
    started = time.monotonic()
    transport(node).pause_reading()
    events = await node.hear_gap("reconnected")
    assert link_gaps(events) == [DOWN, UP]
    assert time.monotonic() - started < 2 * BEAT + SLACK
    await works(node, subject)


async def test_a_busy_loop_is_no_lost_link(cluster: Cluster) -> None:
    node, far = await cluster.node(heartbeat=0.3), await cluster.node(heartbeat=0.3)
    (subject,) = cluster.subjects(1)
    await node.broker.subscribe([subject])
    for _ in range(3):
        await asyncio.sleep(0.25)  # into the time in which an echo is out
        time.sleep(1.0)  # noqa: ASYNC251 - the fault: the application blocks the loop
        await far.broker.publish(subject, b"tick")
    (events,) = await cluster.finish(far, [subject], node)
    assert gaps(events) == []
    assert payloads(events) == [b"tick"] * 3


async def test_a_slow_consumer_is_cut_and_told(cluster: Cluster, server: NatsServer, proxy: TcpProxy) -> None:
    await server.kill()
    configure(server, f'listen: "127.0.0.1:{server.port}"\nmax_pending: 1MB\nwrite_deadline: "500ms"\n')
    await server.start()
    near, far = await cluster.node(linked=True, heartbeat=30.0), await cluster.node()
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    proxy.stall()
    block = bytes(250_000)
    for number in range(200):
        await far.broker.publish(subject, b"%d " % number + block)
        if "Slow Consumer" in log(server):
            break
    else:
        pytest.fail("the server cut nobody")
    proxy.resume()
    events = await near.hear_gap("reconnected")
    got = [int(payload.split()[0]) for payload in payloads(events)]
    assert got == list(range(len(got))), "what came before the cut came in order"
    assert link_gaps(events) == [DOWN, UP]
    await far.broker.publish(subject, b"after")
    (after,) = payloads(await near.hear_payload(b"after"))
    assert after == b"after"


async def test_the_servers_limit_is_the_limit(cluster: Cluster, server: NatsServer) -> None:
    await server.kill()
    configure(server, f'listen: "127.0.0.1:{server.port}"\nmax_payload: 20KB\n')
    await server.start()
    node = await cluster.node(max_payload=1_000_000)
    (subject,) = cluster.subjects(1)
    await node.broker.subscribe([subject])
    limit = node.broker.guarantees.max_payload
    assert 20_000 <= limit <= 20 * 1024
    await node.broker.publish(subject, bytes(limit))
    with pytest.raises(PayloadTooLarge) as caught:
        await node.broker.publish(subject, bytes(limit + 1))
    assert caught.value.limit == limit
    await server.kill()
    configure(server, f'listen: "127.0.0.1:{server.port}"\nmax_payload: 10KB\n')
    await server.start()
    assert link_gaps(await node.hear_gap("reconnected")) == [DOWN, UP]
    with pytest.raises(PayloadTooLarge) as caught:
        await node.broker.publish(subject, bytes(limit))
    assert caught.value.limit <= 10 * 1024
    await node.broker.publish(subject, b"small")
    events = await node.hear_payload(b"small")
    assert [event for event in events if isinstance(event, Delivery)] == [Delivery(subject, b"small")]


async def test_a_lame_duck_is_left_in_time(cluster: Cluster, server: NatsServer) -> None:
    await server.kill()
    listen = f'listen: "127.0.0.1:{server.port}"'
    configure(server, f'{listen}\nlame_duck_grace_period: "1s"\nlame_duck_duration: "30s"\n')
    await server.start()
    node = await cluster.node()
    (subject,) = cluster.subjects(1)
    await node.broker.subscribe([subject])
    server.signal(signal.SIGUSR2)
    await node.broker.publish(subject, b"still served")
    await node.hear_payload(b"still served")
    await node.hear_gap("disconnected")
    assert "lame duck" in log(server).lower()
    await server.kill()
    await server.start()
    await node.hear_gap("reconnected")
    await works(node, subject)


async def test_another_server_takes_over(cluster: Cluster, server: NatsServer) -> None:
    async with NatsServer() as second:
        node = await cluster.node(url=f"nats://127.0.0.1:{server.port},127.0.0.1:{second.port}")
        (subject,) = cluster.subjects(1)
        await node.broker.subscribe([subject])
        broker = inside(node)
        for _ in range(3):
            here = server if broker._server.url == server.url else second
            started = time.monotonic()
            await here.kill()
            await node.hear_gap("reconnected")
            assert time.monotonic() - started < 1.0 + SLACK
            await works(node, subject)
            await here.start()


async def test_credentials_stay_out_of_everything(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    await server.kill()
    server.config = ("--auth", "s3cret")
    await server.start()
    caplog.set_level("DEBUG")
    async with closing(Cluster(NatsBroker, f"nats://s3cret@127.0.0.1:{server.port}")) as cluster:
        node = await cluster.node()
        (subject,) = cluster.subjects(1)
        await server.kill()
        await node.hear_gap("disconnected")
        failed = await asyncio.gather(node.broker.publish(subject, b""), return_exceptions=True)
        server.config = ("--auth", "other")
        await server.start()
        await until(lambda: "uthorization" in caplog.text, what="the server refuses the old login")
        assert "s3cret" not in caplog.text + repr(failed) + repr(node.config)
        await server.kill()
        server.config = ("--auth", "s3cret")
        await server.start()
        await node.hear_gap("reconnected")
