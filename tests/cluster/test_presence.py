"""Who is in a room on all nodes, whatever happens to the nodes, their links and their messages."""

import asyncio
from typing import Any

import pytest

import roomcast
from roomcast.core.errors import Backpressure
from roomcast.core.messages import Members
from roomcast.core.presence import Presence
from tests.cluster.harness import Cluster, SimClient, SimNode, virtual

PEER_TIMEOUT = 10.0  # the default; a crash is noticed within it, and a second at most


def inside(node: SimNode) -> Presence:
    return node.adapter._presence  # pyright: ignore[reportPrivateUsage]


def told(node: SimNode) -> int:
    """How many watches of others a node keeps."""
    return len(inside(node)._telling)  # pyright: ignore[reportPrivateUsage]


def watched(node: SimNode) -> int:
    """How many rooms a node watches."""
    presence: Any = inside(node)
    assert len(presence._watched) == len(presence._places)
    return len(presence._watched)


def who(*clients: SimClient) -> dict[str, str]:
    return {client.sid: client.node.id for client in clients}


def joined(client: SimClient) -> roomcast.Change:
    return roomcast.Change("joined", client.sid, client.node.id)


def left(client: SimClient) -> roomcast.Change:
    return roomcast.Change("left", client.sid, client.node.id)


async def upcoming(watch: roomcast.PresenceWatch) -> roomcast.Change:
    """The next change, which comes within a minute."""
    async with asyncio.timeout(60):
        return await anext(watch)


class Watching:
    """Someone who watches as an application does, and keeps a copy.

    Attributes:
        copy: the present set at first, brought forward by each change.
        changes: all changes so far.
        ended: how it ended.
    """

    def __init__(self, watch: roomcast.PresenceWatch) -> None:
        self.copy = dict(watch.present)
        self.changes: list[roomcast.Change] = []
        self.ended: Exception | None = None
        self._watch = watch
        self._task = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        try:
            async for change in self._watch:
                self.changes.append(change)
                if change.kind == "joined":
                    assert change.sid not in self.copy
                    self.copy[change.sid] = change.node
                else:
                    del self.copy[change.sid]
                assert self.copy == self._watch.present
        except roomcast.BrokerClosed as exc:
            self.ended = exc

    async def over(self) -> None:
        """Wait for its end."""
        await asyncio.wait_for(self._task, 1)


# The present set, and what changes


@virtual
async def test_a_watch_shows_who_is_there_on_all_nodes_and_then_who_comes_and_goes() -> None:
    async with Cluster() as cluster:
        one, two, three = [await cluster.node() for _ in range(3)]
        near, far, other = await one.client("a"), await two.client("a"), await two.client("b")
        async with three.adapter.presence("a") as watch:
            assert watch.present == who(near, far)
            late = await two.client("a")
            assert await upcoming(watch) == joined(late)
            await two.server.leave_room(far.sid, "a")
            assert await upcoming(watch) == left(far)
            await one.server.enter_room(other.sid, "a")
            assert await upcoming(watch) == joined(other)
            await near.leave()
            assert await upcoming(watch) == left(near)
            await two.server.close_room("a")
            assert {(await upcoming(watch)).sid for _ in range(2)} == {late.sid, other.sid}
            assert watch.present == {}


@virtual
async def test_a_namespace_the_room_of_a_sid_and_a_room_named_by_a_number_can_be_watched() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        near, far = await one.client(1), await two.client("1", 1)
        aside = await two.client(1, namespace="/aside")
        async with (
            one.adapter.presence(None) as everyone,
            one.adapter.presence(far.sid) as alone,
            one.adapter.presence(1) as number,
            one.adapter.presence("1") as text,
            one.adapter.presence(None, namespace="/aside") as elsewhere,
        ):
            assert everyone.present == who(near, far)
            assert alone.present == who(far) == text.present
            assert number.present == who(near, far)
            assert elsewhere.present == who(aside)
            await far.leave()
            for watch in (everyone, alone, number, text):
                assert await upcoming(watch) == left(far)
            newcomer = await two.client()
            assert await upcoming(everyone) == joined(newcomer)


def test_what_is_no_room_or_no_namespace_is_refused_at_the_call() -> None:
    adapter = roomcast.Adapter("memory://")
    with pytest.raises(TypeError, match="named by text"):
        adapter.presence(("a", "b"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="begins with"):
        adapter.presence("a", namespace="chat")


@virtual
async def test_ten_thousand_members_are_told_in_messages_of_a_size_that_any_broker_carries() -> None:
    async with Cluster(max_payload=4096) as cluster:
        one, two = await cluster.node(), await cluster.node()
        sids = [f"{two.id}{number:014}" for number in range(10_000)]
        for sid in sids:
            two.adapter._admit("/", sid, f"eio-{sid}")  # pyright: ignore[reportPrivateUsage]
            two.adapter.basic_enter_room(sid, "/", "a")
        async with one.adapter.presence("a") as watch:
            assert watch.present == dict.fromkeys(sids, two.id)
            before = two.adapter.stats()["published"]
            await one.server.close_room("a")
            assert {(await upcoming(watch)).sid for _ in sids} == set(sids)
            await asyncio.sleep(0.1)
            assert two.adapter.stats()["published"] - before < 100, "they are told together"
            assert watch.present == {}


@virtual
async def test_until_it_is_iterated_over_a_watch_shows_who_is_there_at_each_look() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        async with one.adapter.presence("a") as watch:
            first = await two.client("a")
            await asyncio.sleep(0.1)
            assert watch.present == who(first)
            second = await two.client("a")
            await first.leave()
            await asyncio.sleep(0.1)
            assert watch.present == who(second)
            await second.leave()
            assert await upcoming(watch) == left(second), "what was looked at is not told again"


@virtual
async def test_who_reads_slowly_is_not_told_of_those_who_came_and_went_meanwhile() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        stays = await two.client("a")
        async with one.adapter.presence("a") as watch:
            other = await two.client("a")
            assert await upcoming(watch) == joined(other)
            for _ in range(100):
                await (await two.client("a")).leave()
                await asyncio.sleep(0.01)
            await stays.leave()
            await asyncio.sleep(0.1)
            assert watch.present == who(stays, other), "as it was told so far"
            assert await upcoming(watch) == left(stays)
            assert watch.present == who(other)


@virtual
async def test_whoever_gets_a_message_knows_the_joins_that_came_before_it() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        near = await one.client("news")
        far = [await two.client("warm") for _ in range(20)]
        async with one.adapter.presence("warm") as warm, one.adapter.presence("cold") as cold:
            seen: list[tuple[int, int]] = []
            near.on_event = lambda _event: seen.append((len(warm.present), len(cold.present)))
            for client in far:
                await two.server.leave_room(client.sid, "warm")
                await two.server.enter_room(client.sid, "cold")
                await two.server.emit("moved", room="news")
            await asyncio.sleep(0.5)
            assert seen == [(19 - number, 1 + number) for number in range(20)]


@virtual
async def test_a_watch_of_a_second_tab_shares_what_the_first_one_knows() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client("a")
        async with one.adapter.presence("a") as first:
            published = one.broker.published
            async with one.adapter.presence("a") as second:
                assert one.broker.published == published, "nobody is asked again"
                assert first.present == second.present == who(far)
                assert (watched(one), told(two)) == (1, 1)
                late = await two.client("a")
                assert await upcoming(first) == await upcoming(second) == joined(late)
            await asyncio.sleep(0.1)
            assert (watched(one), told(two)) == (1, 1), "the first one goes on"
            await late.leave()
            assert await upcoming(first) == left(late)
        await asyncio.sleep(0.1)
        assert (watched(one), told(two)) == (0, 0)


# Entering and leaving


@virtual
async def test_nothing_is_left_on_any_node_when_watches_are_left() -> None:
    async with Cluster() as cluster:
        nodes = [await cluster.node() for _ in range(3)]
        for _ in range(3):
            for node in nodes:
                async with node.adapter.presence("a"), node.adapter.presence(None), node.adapter.presence("a"):
                    assert [told(other) for other in nodes if other is not node] == [2, 2]
            await asyncio.sleep(0.1)
            assert [(watched(node), told(node)) for node in nodes] == [(0, 0)] * 3


@virtual
async def test_a_node_that_does_not_tell_in_time_is_named_and_nothing_is_left() -> None:
    async with Cluster(request_timeout=2.0) as cluster:
        one, two, three = [await cluster.node() for _ in range(3)]
        two.broker.stall()
        with pytest.raises(roomcast.RequestTimeout) as caught:
            async with one.adapter.presence("a"):
                pytest.fail("not complete")
        assert caught.value.missing == {two.id}
        assert two.id in str(caught.value)
        assert watched(one) == 0
        two.broker.stall(stalled=False)
        await asyncio.sleep(1)
        assert (told(two), told(three)) == (0, 0)


@virtual
async def test_a_node_that_dies_is_not_waited_for() -> None:
    async with Cluster(request_timeout=30.0) as cluster:
        one, two = await cluster.node(), await cluster.node()
        near = await one.client("a")
        two.broker.lose_link()
        before = asyncio.get_running_loop().time()
        async with one.adapter.presence("a") as watch:
            assert watch.present == who(near)
        assert asyncio.get_running_loop().time() - before < PEER_TIMEOUT + 1


@virtual
async def test_whoever_gives_up_while_entering_leaves_nothing() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        two.broker.stall()
        entering = asyncio.ensure_future(one.adapter.presence("a").__aenter__())
        await asyncio.sleep(1.5)
        assert watched(one) == 1
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert watched(one) == 0
        two.broker.stall(stalled=False)
        await asyncio.sleep(0.5)
        assert told(two) == 0


@virtual
async def test_two_that_enter_while_the_outbox_is_full_share_one_watch() -> None:
    async with Cluster(outbox_messages=1, emit_timeout=3.0) as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client("a")
        one.broker.stall()
        await one.server.emit("n", 0, room="b")
        entering = [asyncio.ensure_future(one.adapter.presence("a").__aenter__()) for _ in range(2)]
        await asyncio.sleep(1)
        assert watched(one) == 0
        one.broker.stall(stalled=False)
        watches = await asyncio.gather(*entering)
        assert [watch.present for watch in watches] == [who(far)] * 2
        assert (watched(one), told(two)) == (1, 1)
        for watch in watches:
            await watch.__aexit__(None, None, None)
        await asyncio.sleep(0.5)
        assert (watched(one), told(two)) == (0, 0)
        one.broker.stall()
        await one.server.emit("n", 0, room="b")
        with pytest.raises(Backpressure):
            await one.adapter.presence("a").__aenter__()
        assert watched(one) == 0
        one.broker.stall(stalled=False)


@virtual
async def test_a_watch_is_entered_once_at_a_time_and_can_be_entered_again() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        watch = one.adapter.presence("a")
        assert watch.present == {}
        async with watch:
            with pytest.raises(RuntimeError, match="entered already"):
                await watch.__aenter__()
            far = await two.client("a")
            assert await upcoming(watch) == joined(far)
        assert [change async for change in watch] == []
        async with watch:
            assert watch.present == who(far)


@virtual
async def test_the_iteration_ends_when_the_watch_is_left() -> None:
    async with Cluster() as cluster:
        one = await cluster.node()
        async with one.adapter.presence("a") as watch:
            follower = Watching(watch)
            client = await one.client("a")
            await asyncio.sleep(0.1)
        await follower.over()
        assert (follower.ended, follower.changes) == (None, [joined(client)])


@virtual
async def test_the_iteration_says_so_when_the_adapter_is_closed_and_others_keep_nothing() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        async with one.adapter.presence("a") as watch:
            follower = Watching(watch)
            await asyncio.sleep(0.1)
            assert told(two) == 1
            await one.adapter.aclose()
            await follower.over()
            assert "closed" in str(follower.ended)
            await asyncio.sleep(0.1)
            assert told(two) == 0
        assert watched(one) == 0
        with pytest.raises(roomcast.BrokerClosed):
            await one.adapter.presence("a").__aenter__()


@virtual
async def test_a_watch_that_is_being_entered_when_the_adapter_is_closed_says_so() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        two.broker.stall()
        entering = asyncio.ensure_future(one.adapter.presence("a").__aenter__())
        await asyncio.sleep(0.1)
        await one.adapter.aclose()
        with pytest.raises(roomcast.BrokerClosed):
            await entering


@virtual
async def test_before_the_start_nobody_can_be_watched() -> None:
    async with Cluster() as cluster:
        one = cluster.make()
        with pytest.raises(roomcast.BrokerUnavailable):
            await one.adapter.presence("a").__aenter__()
        assert watched(one) == 0


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
