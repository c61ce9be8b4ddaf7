"""Nodes that come, go, are lost by mistake or do not fit; and losses that only numbers can tell."""

import asyncio

import msgspec
import pytest

from roomcast.core.broker import Gap, Subject
from roomcast.core.errors import BrokerClosed, BrokerUnavailable, RequestTimeout, WireError
from roomcast.core.messages import Bye, encode_message
from roomcast.core.node import Node
from roomcast.core.options import options
from roomcast.core.wire import Envelope, Wire
from tests.cluster.faulty import LATENCY
from tests.cluster.harness import Cluster, numbers, virtual


@virtual
async def test_a_peer_that_was_lost_by_mistake_still_gets_everything_and_is_back_with_its_next_heartbeat() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        near, far = await one.client("a"), await two.client("a")
        two.broker.stall()  # nothing of it is heard any more, and it hears everything
        await asyncio.sleep(16)
        assert two.id not in one.core.peers
        await one.server.emit("n", 0, room="a")
        await one.server.emit("n", 1, to=far.sid)
        await asyncio.sleep(0.1)
        assert numbers(far) == [0, 1]
        two.broker.stall(stalled=False)
        await asyncio.sleep(6)
        assert two.id in one.core.peers
        await two.server.emit("n", 2, room="a")
        await asyncio.sleep(0.1)
        assert numbers(near) == [0, 2]
        assert one.told("missed") == two.told("missed") == []


@virtual
async def test_with_partitions_an_emit_to_a_sid_of_a_node_not_known_arrives_once() -> None:
    async with Cluster(url="faulty://hub?partitions=1") as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client("a")
        two.broker.stall()
        await asyncio.sleep(16)
        assert two.id not in one.core.peers
        await one.server.emit("n", 0, to=far.sid)
        await asyncio.sleep(0.1)
        assert numbers(far) == [0]
        two.broker.stall(stalled=False)
        await asyncio.sleep(1)


@virtual
async def test_nodes_that_disagree_on_partitions_refuse_each_other_while_both_are_there() -> None:
    async with Cluster() as cluster:
        one = await cluster.node()
        odd = await cluster.node("faulty://hub?partitions=8")
        await asyncio.sleep(6)
        for node in (one, odd):
            assert "partitions" in node.adapter.health().reason or "subjects" in node.adapter.health().reason
            assert not node.adapter.health()
            assert node.adapter.health().peers == 0
        odd.broker.lose_link()
        await asyncio.sleep(1)
        odd.broker.restore_link()
        await asyncio.sleep(20)
        assert not odd.adapter.health(), "a reconnection changes nothing"
        await odd.adapter.aclose()
        await asyncio.sleep(1)
        assert one.adapter.health(), "it is gone"


@virtual
async def test_aclose_flushes_what_was_emitted_and_says_bye() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client("a")
        for number in range(50):
            await one.server.emit("n", number, room="a")
        await one.adapter.aclose()
        await asyncio.sleep(LATENCY)
        assert numbers(far) == list(range(50))
        assert one.id not in two.core.peers
        with pytest.raises(BrokerClosed):
            await one.server.emit("n", 50, room="a")
        await one.adapter.aclose()


@virtual
async def test_aclose_at_a_stalled_broker_ends_and_tells_what_it_gives_up() -> None:
    async with Cluster(outbox_messages=2, emit_timeout=3.0) as cluster:
        one = await cluster.node()
        one.broker.stall()
        emits = [asyncio.ensure_future(one.server.emit("n", number, room="a")) for number in range(4)]
        await asyncio.sleep(0)
        before = asyncio.get_running_loop().time()
        await one.adapter.aclose()
        assert asyncio.get_running_loop().time() - before < 6
        outcomes = await asyncio.gather(*emits, return_exceptions=True)
        assert [type(outcome).__name__ for outcome in outcomes[:2]] == ["NoneType", "NoneType"]
        assert all(isinstance(outcome, Exception) for outcome in outcomes[2:]), outcomes
        assert sum(gap.missed or 0 for gap in one.told("given_up")) == 2 == one.adapter.stats()["given_up"]


@virtual
async def test_aclose_without_a_link_does_not_wait_for_it() -> None:
    async with Cluster() as cluster:
        one = await cluster.node()
        one.broker.lose_link()
        await one.server.emit("n", 0, room="a")
        before = asyncio.get_running_loop().time()
        await one.adapter.aclose()
        assert asyncio.get_running_loop().time() - before < 1.5
        assert one.adapter.stats()["given_up"] == 1


@virtual
async def test_a_start_that_fails_leaves_nothing_and_can_be_repeated() -> None:
    async with Cluster() as cluster:
        one = cluster.make()
        one.broker.unreachable = True
        with pytest.raises(BrokerUnavailable):
            await one.adapter.start()
        assert not one.adapter.health()
        await one.adapter.start()
        assert one.adapter.health()


@virtual
async def test_a_request_to_a_node_that_does_not_answer_ends_at_the_deadline() -> None:
    async with Cluster(request_timeout=2.0) as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client()
        two.broker.lose_link()
        before = asyncio.get_running_loop().time()
        with pytest.raises(RequestTimeout) as raised:
            await one.server.enter_room(far.sid, "a")
        assert asyncio.get_running_loop().time() - before == pytest.approx(2.0)
        assert raised.value.missing == {two.id}


@pytest.mark.parametrize("lost", [1, 2, 5])
@pytest.mark.parametrize("target", ["room", "everyone", "sid"])
@virtual
async def test_a_loss_that_no_broker_tells_is_told_with_its_size_before_what_follows(lost: int, target: str) -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client("a")
        room = {"room": "a", "everyone": None, "sid": far.sid}[target]
        heard: list[object] = []
        far.on_event = lambda event: heard.append(event[1])
        two.on_gap = lambda gap: heard.append(gap.missed)
        for number in range(lost + 2):
            if number == 1:
                two.broker.lose(lost)
            await one.server.emit("n", 100 + number, room=room)
            await asyncio.sleep(0.01)  # one payload each
        assert heard == [100, lost, 100 + lost + 1]
        subjects = one.core.subjects
        subject = {"room": subjects.room("/", "a"), "everyone": subjects.namespace("/"), "sid": subjects.inbox(two.id)}
        assert two.gaps == [Gap("missed", subject=subject[target], origin=one.id, missed=lost)]
        assert two.adapter.stats()["missed"] == lost


@virtual
async def test_a_lost_batch_is_counted_in_messages() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client("a")
        await one.server.emit("n", 0, room="a")
        await asyncio.sleep(0.01)
        two.broker.lose(1)
        for number in range(1, 11):
            await one.server.emit("n", number, room="a")
        await asyncio.sleep(0.01)
        await one.server.emit("n", 11, room="a")
        await asyncio.sleep(0.01)
        assert numbers(far) == [0, 11]
        assert [gap.missed for gap in two.gaps] == [10]


@pytest.mark.parametrize("secret", [None, "a secret of the tests"])
@virtual
async def test_a_delivery_that_comes_twice_is_dropped_and_counted(secret: str | None) -> None:
    async with Cluster(secret=secret) as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client("a")
        for number in range(3):
            two.broker.repeat(1)
            await one.server.emit("n", number, room="a")
            await asyncio.sleep(0.01)
        assert numbers(far) == [0, 1, 2]
        stats = two.adapter.stats()
        assert stats["repeats"] + stats["refused"].get("replayed", 0) == 3
        assert two.gaps == []


@virtual
async def test_a_late_delivery_of_one_publisher_holds_up_its_own_and_nobody_elses() -> None:
    async with Cluster() as cluster:
        one, two, three = [await cluster.node() for _ in range(3)]
        far = await three.client("a", "b")
        three.broker.delay(1.0)
        await one.server.emit("n", 0, room="a")
        await asyncio.sleep(0.01)
        await one.server.emit("n", 1, room="b")
        await two.server.emit("n", 2, room="a")
        await asyncio.sleep(0.01)
        assert numbers(far) == [2]
        await asyncio.sleep(1)
        assert numbers(far) == [2, 0, 1]


@virtual
async def test_an_overflow_is_told_and_its_size_is_known_by_the_numbers() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client("a")
        await one.server.emit("n", 0, room="a")
        await asyncio.sleep(0.01)
        two.broker.overflow(3)
        for number in range(1, 5):
            await one.server.emit("n", number, room="a")
            await asyncio.sleep(0.01)
        assert numbers(far) == [0, 4]
        assert two.told("missed")[0].missed == 3
        assert two.told("overflow")


def test_what_a_log_held_for_a_node_that_was_away_is_not_stale() -> None:
    secret, now, subject = "a secret of the cluster", 1_700_000_000_000_000, Subject("roomcast.control")
    bye = [msgspec.Raw(encode_message(Bye()))]
    said = Wire((secret,), max_payload=1 << 20).seal(subject, Envelope("other1", now - 100_000_000, 7, 1, bye))
    settings = options({"secret": secret})
    assert Node("memory+log://held?retention=2m", settings).wire.open(subject, said, now).origin == "other1"
    with pytest.raises(WireError, match=r"100\.0 s ago"):
        Node("memory://held", settings).wire.open(subject, said, now)
