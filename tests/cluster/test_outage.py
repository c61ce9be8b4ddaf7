"""The link breaks and comes back: what is kept, what is sent again, what is given up, and who is told."""

import asyncio

import pytest

from roomcast.core.broker import Gap
from tests.cluster.faulty import LATENCY
from tests.cluster.harness import Cluster, numbers, virtual


@virtual
async def test_what_was_emitted_during_an_outage_arrives_once_and_in_order_after_it() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        near, far = await one.client("a"), await two.client("a")
        one.broker.lose_link()
        for number in range(10):
            await one.server.emit("n", number, room="a")
        assert numbers(near) == list(range(10)), "P9: the clients of one node reach each other at once"
        await asyncio.sleep(3)
        assert numbers(far) == []
        one.broker.restore_link()
        await asyncio.sleep(2)
        assert numbers(far) == list(range(10))
        assert one.adapter.stats()["given_up"] == 0


@virtual
async def test_an_outage_longer_than_outbox_age_gives_up_what_is_too_old_and_tells() -> None:
    async with Cluster(outbox_age=8.0) as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client("a")
        await one.server.emit("n", -1, room="a")
        await asyncio.sleep(1)
        one.broker.lose_link()
        for number in range(3):
            await one.server.emit("n", number, room="a")
        await asyncio.sleep(5)
        await one.server.emit("n", 3, room="a")
        await asyncio.sleep(5)
        subject = one.core.subjects.room("/", "a")
        assert one.told("given_up") == [Gap("given_up", subject=subject, origin=one.id, missed=3)]
        assert one.adapter.stats()["given_up"] == 3
        one.broker.restore_link()
        await asyncio.sleep(2)
        assert numbers(far) == [-1, 3], "what is not too old still arrives"
        assert two.told("missed") == [Gap("missed", subject=subject, origin=one.id, missed=3)], "P5: on both sides"


@virtual
async def test_an_outbox_full_during_an_outage_gives_up_the_oldest_and_local_delivery_goes_on() -> None:
    async with Cluster(outbox_messages=5) as cluster:
        one, two = await cluster.node(), await cluster.node()
        near, far = await one.client("a"), await two.client("a")
        one.broker.lose_link()
        await asyncio.sleep(1)
        before = asyncio.get_running_loop().time()
        for number in range(20):
            await one.server.emit("n", number, room="a")
        assert asyncio.get_running_loop().time() == before, "P9: nobody waits"
        assert numbers(near) == list(range(20))
        assert sum(gap.missed or 0 for gap in one.told("given_up")) == 15 == one.adapter.stats()["given_up"]
        one.broker.restore_link()
        await asyncio.sleep(2)
        assert numbers(far) == [15, 16, 17, 18, 19]


@pytest.mark.parametrize("reach", [0, 1, 2, 3])
@pytest.mark.parametrize("partial", [0, 1, 2])
@virtual
async def test_what_was_under_way_when_the_link_broke_is_sent_again_and_nobody_gets_it_twice(
    reach: int, partial: int
) -> None:
    async with Cluster() as cluster:
        one, two, three = await cluster.node(), await cluster.node(), await cluster.node()
        clients = [await node.client("a", "b") for node in (one, two, three)]
        for number, room in enumerate(("a", "b", "a", "b")):
            await one.server.emit("n", number, room=room)
        await asyncio.sleep(0)
        one.broker.lose_link(reach=reach, partial=partial)
        await asyncio.sleep(0.1)
        one.broker.restore_link()
        await asyncio.sleep(2)
        for client in clients:
            assert numbers(client) == [0, 1, 2, 3]
        assert one.adapter.stats()["resent"] == 4
        repeated = sum(node.adapter.stats()["repeats"] for node in (two, three))
        assert repeated == 2 * reach + (0 if reach == 4 else max(0, partial - 1)), "the first to get it is the sender"
        assert not two.told("missed")
        assert not three.told("missed")


@virtual
async def test_a_message_whose_confirm_alone_was_lost_is_a_repeat_even_after_its_room_was_left_and_joined_again() -> (
    None
):
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client("a")
        await one.server.emit("n", 0, room="a")
        await asyncio.sleep(1.5 * LATENCY)
        one.broker.lose_link()
        await asyncio.sleep(0.1)
        await two.server.leave_room(far.sid, "a")
        await asyncio.sleep(3)  # the linger is over: nobody listens, and the numbers are not followed
        await two.server.enter_room(far.sid, "a")
        one.broker.restore_link()
        await asyncio.sleep(3)
        await one.server.emit("n", 1, room="a")
        await asyncio.sleep(0.1)
        assert numbers(far) == [0, 1]


@virtual
async def test_after_an_outage_of_all_links_publishing_waits_for_the_peers() -> None:
    async with Cluster() as cluster:
        one, two, three = await cluster.node(), await cluster.node(), await cluster.node()
        clients = [await node.client("a") for node in (two, three)]
        cluster.lose_links()
        await one.server.emit("n", 0, room="a")
        await asyncio.sleep(1)
        one.broker.restore_link()
        await asyncio.sleep(0.4)
        two.broker.restore_link()
        await asyncio.sleep(0.4)
        assert [numbers(client) for client in clients] == [[], []]
        three.broker.restore_link()
        await asyncio.sleep(0.05)
        assert [numbers(client) for client in clients] == [[0], [0]], "released once the last one is back"


@virtual
async def test_publishing_waits_for_peers_no_longer_than_regroup_timeout() -> None:
    async with Cluster(regroup_timeout=0.7) as cluster:
        one, two, three = await cluster.node(), await cluster.node(), await cluster.node()
        far = await two.client("a")
        cluster.lose_links()
        await one.server.emit("n", 0, room="a")
        await asyncio.sleep(1)
        cluster.restore_links(one, two)
        await asyncio.sleep(0.69)
        assert numbers(far) == []
        await asyncio.sleep(0.02)
        assert numbers(far) == [0]
        three.broker.restore_link()
        await asyncio.sleep(2)


@virtual
async def test_a_publish_that_failed_with_the_link_does_not_end_the_wait_for_the_peers() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client("a")
        await one.server.emit("n", 0, room="a")
        await asyncio.sleep(0)  # under way
        cluster.lose_links()
        await one.server.emit("n", 1, room="a")
        await asyncio.sleep(0.1)
        one.broker.restore_link()
        await asyncio.sleep(0.5)
        two.broker.restore_link()
        await asyncio.sleep(3)
        assert numbers(far) == [0, 1]


@virtual
async def test_a_join_during_an_outage_is_heard_with_the_link() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        two.broker.lose_link()
        far = await two.client("a")
        await two.server.emit("n", 0, room="a")
        assert numbers(far) == [0], "P9: the join holds at once on its own node"
        two.broker.restore_link()
        await asyncio.sleep(2)
        await one.server.emit("n", 1, room="a")
        await asyncio.sleep(0.1)
        assert numbers(far) == [0, 1]


@virtual
async def test_health_is_false_while_a_node_is_deaf() -> None:
    async with Cluster() as cluster:
        one, _two = await cluster.node(), await cluster.node()
        assert one.adapter.health()
        assert one.adapter.health().peers == 1
        one.broker.lose_link()
        await asyncio.sleep(0)
        health = one.adapter.health()
        assert not health
        assert not health.connected
        assert health.reason
        one.broker.restore_link()
        await asyncio.sleep(0.01)
        assert one.adapter.health()


@virtual
async def test_nobody_is_lost_while_this_node_is_deaf() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        one.broker.lose_link()
        await asyncio.sleep(60)
        assert two.id in one.core.peers
        assert one.id not in two.core.peers, "the others see the silence"
        one.broker.restore_link()
        await asyncio.sleep(0.1)
        assert one.id in two.core.peers
