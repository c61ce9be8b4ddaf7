"""Faults of RabbitMQ itself and of the link to it, each of which must be seen to have happened.

What every broker must survive (cut, refusal, silence) is in tests/brokers/checks_link.py. Here are the server's
own ways of failing, and loss under load.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from roomcast.brokers.rabbitmq import RabbitBroker
from roomcast.core.broker import Gap, Position, Subject
from roomcast.core.errors import BrokerError, BrokerUnavailable, PublishUnconfirmed
from tests.brokers.checks_delivery import losses_are_told
from tests.brokers.cluster import Cluster, Event, Node, closing, deliveries, gaps, payloads, send
from tests.proxy import TcpProxy
from tests.services import RabbitServer, unavailable

pytestmark = pytest.mark.fault

HEARTBEAT = 0.5
SLACK = 2.0  # for a machine that is busy with other things


@pytest.fixture(scope="module")
def server() -> Iterator[RabbitServer]:
    """One RabbitMQ for all tests here that break it: it takes seconds to start."""
    own = RabbitServer()
    if own.find() is None:
        unavailable(own.name, f"no {own.binary} on this machine")
    own.launch()
    yield own
    own.remove()


@pytest.fixture
async def cluster(server: RabbitServer) -> AsyncIterator[Cluster]:
    """Nodes of the server that may be broken."""
    async with closing(Cluster(RabbitBroker, server.url)) as cluster:
        yield cluster


@pytest.fixture
async def linked(amqp_url: str) -> AsyncIterator[Cluster]:
    """Nodes of the shared server, with a proxy before those that ask for one."""
    async with TcpProxy(amqp_url) as proxy, closing(Cluster(RabbitBroker, amqp_url, link=proxy)) as cluster:
        yield cluster


def now() -> float:
    return asyncio.get_running_loop().time()


async def end_of(call: "asyncio.Future[Position | None]") -> BaseException | None:
    """How a publish ended; None when it was confirmed. Bounded, and only our own errors come out."""
    async with asyncio.timeout(10):
        (end,) = await asyncio.gather(call, return_exceptions=True)
    assert end is None or isinstance(end, BrokerError), repr(end)
    return end


async def carried_again(node: Node, subject: Subject) -> list[Event]:
    """What is heard until the node hears itself on the subject again, by way of a new link."""
    heard = await node.hear_gap("reconnected")
    assert await end_of(send(node.broker, subject, b"again")) is None
    return heard + await node.hear_payload(b"again")


class Stream:
    """Publishes numbers until it is stopped, ten in each millisecond or so, and keeps how each ended."""

    def __init__(self, node: Node, subject: Subject) -> None:
        self._node = node
        self._subject = subject
        self.sent: list[bytes] = []
        self.calls: list[asyncio.Future[Position | None]] = []
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            for _ in range(10):
                self.sent.append(b"%d" % len(self.sent))
                self.calls.append(send(self._node.broker, self._subject, self.sent[-1]))
            await asyncio.sleep(0.001)

    async def stop(self) -> list[BaseException | None]:
        self._task.cancel()
        await asyncio.wait({self._task})
        return [await end_of(call) for call in self.calls]


@pytest.mark.parametrize("fault", ["cut", "reset"])
async def test_a_link_broken_under_load_loses_nothing_in_silence(linked: Cluster, fault: str) -> None:
    near, far = await linked.node(linked=True), await linked.node()
    (subject,) = linked.subjects(1)
    await near.broker.subscribe([subject])
    stream = Stream(far, subject)
    heard: list[Event] = []
    for _ in range(3):
        while len(deliveries(heard)) < 50:
            heard += await near.broker.receive()
        assert await (linked.link.cut() if fault == "cut" else linked.link.reset()) == 1
        heard += await near.hear_gap("reconnected")
        heard += await near.hear(lambda event: not isinstance(event, Gap), "a delivery after the fault")
    assert set(await stream.stop()) == {None}  # the publisher's own link was never touched
    await far.broker.publish(subject, b"end")
    heard += (await near.hear_payload(b"end"))[:-1]
    assert losses_are_told(heard, stream.sent)
    assert [gap.reason for gap in gaps(heard)] == ["disconnected", "reconnected"] * 3


@pytest.mark.parametrize("fault", ["cut", "reset", "stall", "drop_replies"])
async def test_what_is_in_flight_at_a_fault_is_delivered_or_fails_and_never_twice(linked: Cluster, fault: str) -> None:
    near = await linked.node()
    far = await linked.node(linked=True, heartbeat=HEARTBEAT, connect_timeout=1.0)
    (subject,) = linked.subjects(1)
    await near.broker.subscribe([subject])
    stream = Stream(far, subject)
    await near.hear_payload(b"50")
    match fault:
        case "cut":
            assert await linked.link.cut() == 1
        case "reset":
            assert await linked.link.reset() == 1
        case "stall":
            linked.link.stall()
        case _:
            linked.link.drop_replies()
    await far.hear_gap("disconnected")
    ends = await stream.stop()
    linked.link.resume()
    await far.hear_gap("reconnected")
    assert await end_of(send(far.broker, subject, b"end")) is None
    arrived = payloads(await near.hear_payload(b"end"))[:-1]
    assert len(set(arrived)) == len(arrived)
    assert arrived == sorted(arrived, key=int)
    fates = dict(zip(stream.sent, ends, strict=True))
    assert {type(fate) for fate in ends} <= {type(None), PublishUnconfirmed, BrokerUnavailable}
    assert not {one for one in stream.sent if isinstance(fates[one], BrokerUnavailable)} & set(arrived)
    confirmed = {one for one in stream.sent if fates[one] is None and int(one) > 50}
    assert confirmed <= set(arrived)
    if fault == "drop_replies":  # the fault: delivered, and the confirm was lost
        assert [one for one in arrived if isinstance(fates[one], PublishUnconfirmed)]


async def test_a_publish_in_the_gap_fails_at_once_and_is_never_sent_late(linked: Cluster) -> None:
    near, far = await linked.node(), await linked.node(linked=True)
    (subject,) = linked.subjects(1)
    await near.broker.subscribe([subject])
    linked.link.refuse()
    assert await linked.link.cut() == 1
    await far.hear_gap("disconnected")
    call = send(far.broker, subject, b"in the gap")
    assert call.done()
    assert isinstance(await end_of(call), BrokerUnavailable)
    await linked.link.accept()
    await far.hear_gap("reconnected")
    assert await end_of(send(far.broker, subject, b"end")) is None
    assert payloads(await near.hear_payload(b"end")) == [b"end"]


async def test_a_stall_shorter_than_the_heartbeat_only_delays(linked: Cluster) -> None:
    node = await linked.node(linked=True, heartbeat=2.0)
    (subject,) = linked.subjects(1)
    await node.broker.subscribe([subject])
    linked.link.stall()
    call = send(node.broker, subject, b"late")
    await asyncio.wait({call}, timeout=0.5)
    assert not call.done()
    linked.link.resume()
    assert await end_of(call) is None
    assert [type(event) for event in await node.hear_payload(b"late")] != [Gap]


DELETE_QUEUE = "rabbit_amqqueue:with(Queue, fun(Q) -> rabbit_amqqueue:delete(Q, false, false, <<1>>) end)"
DELETE_EXCHANGE = "rabbit_exchange:delete(Exchange, false, <<1>>)"
UNBIND = "rabbit_binding:remove({binding, Exchange, <<NAME>>, Queue, []}, <<1>>)"  # the pulse alone


@pytest.mark.parametrize("fault", [DELETE_QUEUE, DELETE_EXCHANGE, UNBIND], ids=["queue", "exchange", "binding"])
async def test_what_an_operator_deletes_is_made_again(cluster: Cluster, server: RabbitServer, fault: str) -> None:
    node = await cluster.node(heartbeat=HEARTBEAT)
    subjects = cluster.subjects(8)
    await node.broker.subscribe(subjects)
    (name,) = [name for name in (await server.ctl("list_queues", "name")).split() if name.startswith(cluster.prefix)]
    code = f"""
        Queue = rabbit_misc:r(<<"/">>, queue, <<"{name}">>),
        Exchange = rabbit_misc:r(<<"/">>, exchange, <<"{cluster.prefix}">>),
        {fault.replace("NAME", f'"{name}"')}.
    """
    done, heard = await asyncio.gather(server.ctl("eval", code), node.hear_gap("disconnected"))
    assert "ok" in done
    heard += await carried_again(node, subjects[-1])
    assert [gap.reason for gap in gaps(heard)] == ["disconnected", "reconnected"]
    assert name not in (await server.ctl("list_queues", "name")).split()
    for subject in subjects:
        assert await end_of(send(node.broker, subject, subject.encode())) is None
    heard = await node.hear_payload(subjects[-1].encode())
    assert [delivery.subject for delivery in deliveries(heard)] == subjects


async def test_a_killed_server_is_found_again_when_it_returns(cluster: Cluster, server: RabbitServer) -> None:
    near, far = await cluster.node(), await cluster.node()
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    stream = Stream(far, subject)
    heard = await near.hear_payload(b"50")
    await server.kill()
    assert not server.running
    await near.hear_gap("disconnected")
    await far.hear_gap("disconnected")
    ends = await stream.stop()
    assert isinstance(ends[-1], BrokerUnavailable)
    starts = server.starts
    await server.start()
    assert server.starts == starts + 1
    await far.hear_gap("reconnected")
    heard = await near.hear_gap("reconnected")
    assert not deliveries(heard)
    for number in range(10):
        assert await end_of(send(far.broker, subject, b"new %d" % number)) is None
    assert payloads(await near.hear_payload(b"new 9")) == [b"new %d" % number for number in range(10)]


async def test_a_halted_server_is_lost_within_two_heartbeats(cluster: Cluster, server: RabbitServer) -> None:
    node = await cluster.node(heartbeat=HEARTBEAT, connect_timeout=1.0)
    (subject,) = cluster.subjects(1)
    await node.broker.subscribe([subject])
    server.stop()
    try:
        started = now()
        call = send(node.broker, subject, b"into the void")
        await node.hear_gap("disconnected")
        assert now() - started < 2 * HEARTBEAT + SLACK
        assert isinstance(await end_of(call), PublishUnconfirmed)
        assert isinstance(await end_of(send(node.broker, subject, b"later")), BrokerUnavailable)
    finally:
        server.cont()
    await carried_again(node, subject)


async def test_a_memory_alarm_fails_publishes_and_is_survived(
    cluster: Cluster, server: RabbitServer, caplog: pytest.LogCaptureFixture
) -> None:
    node = await cluster.node(heartbeat=HEARTBEAT, connect_timeout=1.0)
    (subject,) = cluster.subjects(1)
    await node.broker.subscribe([subject])
    await server.ctl("set_vm_memory_high_watermark", "0.000001")
    try:
        assert "memory" in await server.ctl("eval", "rabbit_alarm:get_alarms().")
        call = send(node.broker, subject, b"blocked")
        await node.hear_gap("disconnected")
        assert "the server blocks publishers" in caplog.text
        assert isinstance(await end_of(call), PublishUnconfirmed | BrokerUnavailable)
        assert isinstance(await end_of(send(node.broker, subject, b"later")), BrokerUnavailable)
        newcomer = cluster.unstarted(connect_timeout=1.0)
        started = now()
        with pytest.raises(BrokerUnavailable, match="alarm"):
            await newcomer.broker.start()
        assert now() - started < 1.0 + SLACK
    finally:
        await server.ctl("set_vm_memory_high_watermark", "0.4")
    assert not [event for event in payloads(await carried_again(node, subject)) if event != b"again"]


async def test_connections_closed_by_an_operator_come_back(cluster: Cluster, server: RabbitServer) -> None:
    node = await cluster.node()
    subjects = cluster.subjects(8)
    await node.broker.subscribe(subjects)
    await server.ctl("close_all_connections", "maintenance")
    assert [gap.reason for gap in gaps(await carried_again(node, subjects[-1]))] == ["disconnected", "reconnected"]
    for subject in subjects:
        assert await end_of(send(node.broker, subject, subject.encode())) is None
    heard = await node.hear_payload(subjects[-1].encode())
    assert [delivery.subject for delivery in deliveries(heard)] == subjects


async def test_nothing_is_left_on_the_server(cluster: Cluster, server: RabbitServer) -> None:
    nodes = [await cluster.node() for _ in range(3)]
    for node in nodes:
        await node.broker.subscribe(cluster.subjects(4))

    async def left(what: str, column: str = "name") -> list[str]:
        return [name for name in (await server.ctl(what, column)).split() if name.startswith(cluster.prefix)]

    assert len(await left("list_queues")) == 3
    assert await left("list_exchanges") == [cluster.prefix]
    for node in nodes:
        await node.broker.aclose()
    assert await left("list_queues") == []
    assert await left("list_exchanges") == []
    assert cluster.prefix not in await server.ctl("list_connections", "client_properties")
    log = (server.directory / "server.log").read_text()
    assert f"{cluster.prefix}.n0" in log
    assert not [line for line in log.splitlines() if cluster.prefix in line and "unexpectedly" in line]
