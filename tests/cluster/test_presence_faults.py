"""Who is in a room on all nodes, whatever happens to the nodes, their links and their messages."""

import asyncio

import pytest

from roomcast.core.messages import Members
from tests.cluster.harness import Cluster, virtual
from tests.cluster.watching import PEER_TIMEOUT, Watching, inside, joined, left, told, upcoming, watched, who

# Nodes that come and go


@virtual
async def test_the_members_of_a_node_that_joins_later_are_joins() -> None:
    async with Cluster() as cluster:
        one = await cluster.node()
        async with one.adapter.presence("a") as watch:
            two = cluster.make()
            far = await two.client("a")  # before it has joined
            await two.adapter.start()
            before = asyncio.get_running_loop().time()
            assert await upcoming(watch) == joined(far)
            assert asyncio.get_running_loop().time() - before < 0.1
            late = await two.client("a")
            assert await upcoming(watch) == joined(late)
            assert watch.present == who(far, late)


@virtual
async def test_a_node_that_says_bye_takes_its_members_along_at_once() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client("a")
        async with one.adapter.presence("a") as watch:
            await two.adapter.aclose()
            before = asyncio.get_running_loop().time()
            assert await upcoming(watch) == left(far)
            assert asyncio.get_running_loop().time() - before < 0.1


@virtual
async def test_after_a_crash_presence_is_exact_again_within_the_peer_timeout() -> None:
    async with Cluster() as cluster:
        one, two, three = [await cluster.node() for _ in range(3)]
        gone, stays = [await two.client("a") for _ in range(3)], await three.client("a")
        async with one.adapter.presence("a") as watch:
            two.broker.lose_link()
            crashed = asyncio.get_running_loop().time()
            assert {await upcoming(watch) for _ in gone} == {left(client) for client in gone}
            assert asyncio.get_running_loop().time() - crashed <= PEER_TIMEOUT + 1
            assert watch.present == who(stays)
            two.broker.restore_link()
            assert {await upcoming(watch) for _ in gone} == {joined(client) for client in gone}, "it was not dead"


@virtual
async def test_what_a_node_keeps_for_one_that_crashed_is_dropped() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        async with one.adapter.presence("a"):
            one.broker.lose_link()
            await asyncio.sleep(PEER_TIMEOUT + 1)
            assert told(two) == 1, "it may have been stopped for a while"
            await asyncio.sleep(2 * PEER_TIMEOUT)
            assert told(two) == 0
            one.broker.restore_link()
            await asyncio.sleep(1)
            assert told(two) == 1


@virtual
@pytest.mark.parametrize("silence", [15.0, 60.0])
async def test_a_watcher_that_others_took_for_lost_misses_nothing(silence: float) -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        first = await two.client("a")
        async with one.adapter.presence("a") as watch:
            follower = Watching(watch)
            one.broker.stall()  # it hears everything, and nothing of it is heard
            await asyncio.sleep(silence)
            assert one.id not in two.core.peers
            await first.leave()
            late = await two.client("a")
            one.broker.stall(stalled=False)
            await asyncio.sleep(6)
            assert follower.copy == who(late)
            assert told(two) == 1


@virtual
async def test_a_node_that_was_taken_for_lost_is_shown_again_when_it_is_heard() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        first = await two.client("a")
        async with one.adapter.presence("a") as watch:
            follower = Watching(watch)
            two.broker.stall()
            await asyncio.sleep(16)
            assert follower.copy == {}
            late = await two.client("a")
            two.broker.stall(stalled=False)
            await asyncio.sleep(6)
            assert follower.copy == who(first, late)


# Links and losses


@virtual
async def test_while_this_node_has_no_link_what_it_shows_stays_and_is_mended_with_the_link() -> None:
    async with Cluster() as cluster:
        one, two, three = [await cluster.node() for _ in range(3)]
        first, other = await two.client("a"), await three.client("a")
        async with one.adapter.presence("a") as watch:
            follower = Watching(watch)
            one.broker.lose_link()
            await first.leave()
            second = await two.client("a")
            near = await one.client("a")
            await asyncio.sleep(8)
            assert follower.copy == who(first, other, near), "its own clients it knows"
            one.broker.restore_link()
            await asyncio.sleep(0.5)
            assert follower.copy == who(second, other, near)


@virtual
async def test_changes_that_waited_for_the_link_of_their_node_arrive_with_it() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        first = await two.client("a")
        async with one.adapter.presence("a") as watch:
            follower = Watching(watch)
            two.broker.lose_link()
            await first.leave()
            second = await two.client("a")
            await asyncio.sleep(5)
            assert follower.copy == who(first)
            two.broker.restore_link()
            await asyncio.sleep(2)
            assert follower.changes == [joined(second), left(first)], "of one moment: those who came come first"


@virtual
async def test_a_restart_of_the_broker_mends_every_watch_of_every_node() -> None:
    async with Cluster() as cluster:
        nodes = [await cluster.node() for _ in range(3)]
        clients = [await node.client("a") for node in nodes]
        watches = [node.adapter.presence("a") for node in nodes]
        followers = [Watching(await watch.__aenter__()) for watch in watches]
        cluster.lose_links()
        for client in clients[:2]:
            await client.leave()
        newcomers = [await node.client("a") for node in nodes[1:]]
        await asyncio.sleep(5)
        cluster.restore_links()
        await asyncio.sleep(6)
        for follower, watch in zip(followers, watches, strict=True):
            assert follower.copy == who(clients[2], *newcomers)
            await watch.__aexit__(None, None, None)
            await follower.over()
        await asyncio.sleep(0.1)
        assert [(watched(node), told(node)) for node in nodes] == [(0, 0)] * 3


@virtual
async def test_what_a_full_buffer_dropped_is_asked_for_again() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        async with one.adapter.presence("a") as watch:
            follower = Watching(watch)
            one.broker.overflow(2)
            first = await two.client("a")
            await asyncio.sleep(0.01)
            second = await two.client("a")
            await asyncio.sleep(0.5)
            assert one.told("overflow")
            assert follower.copy == who(first, second)


@virtual
async def test_a_message_lost_in_silence_is_missed_with_the_next_one() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        first = await two.client("a")
        async with one.adapter.presence("a") as watch:
            follower = Watching(watch)
            one.broker.lose(1)
            await first.leave()
            await asyncio.sleep(0.01)
            assert follower.copy == who(first)
            second = await two.client("a")
            await asyncio.sleep(0.1)
            assert follower.copy == who(second)


@virtual
async def test_the_last_message_lost_in_silence_is_missed_with_the_next_heartbeat() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        first = await two.client("a")
        async with one.adapter.presence("a") as watch:
            follower = Watching(watch)
            one.broker.lose(1)
            await first.leave()
            await asyncio.sleep(5.5)
            assert follower.copy == {}


@virtual
@pytest.mark.parametrize("reaches", ["nobody", "one node"])
async def test_a_request_lost_in_silence_is_repeated_with_the_next_heartbeat(reaches: str) -> None:
    async with Cluster(request_timeout=10.0) as cluster:
        one, two, three = [await cluster.node() for _ in range(3)]
        far, farther = await two.client("a"), await three.client("a")
        two.broker.lose(1)
        if reaches == "nobody":
            three.broker.lose(1)
        before = asyncio.get_running_loop().time()
        async with one.adapter.presence("a") as watch:
            assert watch.present == who(far, farther)
            assert asyncio.get_running_loop().time() - before < 6


@virtual
async def test_a_request_for_what_was_missed_that_is_lost_as_well_is_repeated_with_the_next_heartbeat() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        first = await two.client("a")
        async with one.adapter.presence("a") as watch:
            follower = Watching(watch)
            one.broker.lose(1)
            await first.leave()
            await asyncio.sleep(0.01)
            two.broker.lose(1)
            second = await two.client("a")
            await asyncio.sleep(1)
            assert follower.copy == who(first)
            await asyncio.sleep(5)
            assert follower.copy == who(second)


@virtual
async def test_an_end_lost_in_silence_is_said_again_when_somebody_tells() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        async with one.adapter.presence("a"):
            two.broker.lose(1)
        await asyncio.sleep(0.5)
        assert told(two) == 1
        for _ in range(20):
            await two.client("a")
        await asyncio.sleep(0.5)
        assert told(two) == 0


@virtual
async def test_what_the_outbox_of_the_watched_node_gave_up_is_made_good() -> None:
    async with Cluster(outbox_messages=5) as cluster:
        one, two = await cluster.node(), await cluster.node()
        clients = [await two.client("a") for _ in range(3)]
        async with one.adapter.presence("a") as watch:
            follower = Watching(watch)
            two.broker.lose_link()
            for client in clients[:2]:
                await client.leave()
                await asyncio.sleep(0.01)
            for number in range(10):  # takes the places of what is to be told
                await two.server.emit("n", number, room="a")
            await asyncio.sleep(3)
            assert two.told("given_up")
            two.broker.restore_link()
            await asyncio.sleep(6)
            assert follower.copy == who(clients[2])


@virtual
async def test_what_found_no_place_in_the_outbox_is_made_good_with_the_next_heartbeat() -> None:
    async with Cluster(outbox_messages=2) as cluster:
        one, two = await cluster.node(), await cluster.node()
        clients = [await two.client("a") for _ in range(8)]
        async with one.adapter.presence("a") as watch:
            follower = Watching(watch)
            two.broker.stall()
            for client in clients[:6]:
                await client.leave()
                await asyncio.sleep(0.01)
            assert two.told("given_up"), "the outbox is more than full"
            two.broker.stall(stalled=False)
            await asyncio.sleep(6)
            assert follower.copy == who(*clients[6:])


@virtual
async def test_watches_by_the_thousand_are_renewed_in_turns_and_mended_after_an_outage() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client(*range(1200))
        watches = [one.adapter.presence(number) for number in range(1200)]
        for watch in watches:
            await watch.__aenter__()
        assert told(two) == 1200
        before = two.adapter.stats()["received"]
        await asyncio.sleep(5)
        assert 500 <= two.adapter.stats()["received"] - before < 510
        one.broker.lose_link()
        await far.leave()
        late = await two.client(7)
        await asyncio.sleep(1)
        one.broker.restore_link()
        await asyncio.sleep(1)
        assert [watch.present for watch in watches] == [who(late) if n == 7 else {} for n in range(1200)]
        for watch in watches:
            await watch.__aexit__(None, None, None)
        await asyncio.sleep(0.5)
        assert told(two) == 0


# Strangers


@virtual
async def test_what_a_stranger_tells_is_refused_and_counted() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client("a")
        async with one.adapter.presence("a") as watch:
            number = inside(one)._number  # pyright: ignore[reportPrivateUsage]
            say = two.core.answer
            say(one.id, Members(number, 2, (f"{one.id}{'x' * 14}",)))
            await asyncio.sleep(0.1)
            assert one.adapter.stats()["refused"] == {"foreign": 1}
            say(one.id, Members(number, 99, (f"{two.id}{'x' * 14}",)))
            say(one.id, Members(number, 100, (), (far.sid,)))
            await asyncio.sleep(0.5)
            assert watch.present == who(far)
