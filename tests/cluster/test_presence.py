"""Who is in a room on all nodes: the present set, what changes, and the life of a watch."""

import asyncio

import msgspec
import pytest

import roomcast
from roomcast.core.errors import Backpressure
from roomcast.core.messages import Unwatch, Watch, encode_message
from roomcast.core.wire import Envelope
from tests.cluster.harness import Cluster, virtual
from tests.cluster.watching import PEER_TIMEOUT, Watching, joined, left, told, upcoming, watched, who

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
            two.adapter.admit("/", sid, f"eio-{sid}")  # pyright: ignore[reportPrivateUsage]
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
async def test_a_node_that_is_asked_and_told_to_stop_in_one_message_tells_the_next_watch() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client("a")
        subject = two.core.subjects.inbox(two.id)
        messages = [msgspec.Raw(encode_message(message)) for message in (Watch(7, "/", "a"), Unwatch(7))]
        cluster.hub.route(None, subject, one.core.wire.seal(subject, Envelope(one.id, 1, 0, 1, messages)))
        await asyncio.sleep(0.1)
        assert told(two) == 0
        await one.adapter.server_count()  # the first node of a cluster waits a second before it asks
        before = asyncio.get_running_loop().time()
        async with one.adapter.presence("a") as watch:
            assert watch.present == who(far)
        assert asyncio.get_running_loop().time() - before < 0.1


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
