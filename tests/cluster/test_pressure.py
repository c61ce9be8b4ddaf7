"""A broker that is slow, stalled or refuses: places in the outbox, deadlines, turns, confirms, slow clients."""

import asyncio

import pytest

from roomcast.core.broker import Gap
from roomcast.core.errors import Backpressure, PublishRejected, PublishUnconfirmed
from tests.cluster.faulty import LATENCY
from tests.cluster.harness import Cluster, numbers, virtual


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual
async def test_with_confirm_an_emit_returns_once_the_broker_has_confirmed() -> None:
    async with Cluster(confirm=True) as cluster:
        one, two = await cluster.node(), await cluster.node()
        near, far = await one.client("a"), await two.client("a")
        started = now()
        await one.server.emit("n", 0, room="a")
        assert now() - started == pytest.approx(2 * LATENCY)
        await asyncio.sleep(LATENCY)
        assert numbers(near) == numbers(far) == [0]


@virtual
async def test_with_confirm_an_emit_waits_for_the_resend_after_a_short_outage() -> None:
    async with Cluster(confirm=True, emit_timeout=3.0) as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client("a")
        emit = asyncio.ensure_future(one.server.emit("n", 0, room="a"))
        await asyncio.sleep(LATENCY / 2)
        one.broker.lose_link()
        await asyncio.sleep(1)
        assert not emit.done()
        one.broker.restore_link()
        await emit
        await asyncio.sleep(LATENCY)
        assert numbers(far) == [0]


@virtual
async def test_a_volatile_event_does_not_overtake_those_that_wait_for_a_place() -> None:
    """P1: "two emits of one node reach every client that gets both in the order of the calls"."""
    async with Cluster(outbox_messages=2) as cluster:
        one, two = await cluster.node(), await cluster.node()
        near, far = await one.client("a"), await two.client("a")
        one.broker.stall()
        waiting = [asyncio.ensure_future(one.server.emit("n", number, room="a")) for number in range(4)]
        await asyncio.sleep(0.1)
        await one.adapter.to("a").volatile.emit("n", -1)
        assert await one.adapter.to("a").volatile.emit_with_ack("n", -2) == []
        assert numbers(near) == [0, 1]
        one.broker.stall(stalled=False)
        await asyncio.gather(*waiting)
        await asyncio.sleep(0.1)
        await one.adapter.to("a").volatile.emit("n", 4)
        await asyncio.sleep(0.1)
        assert numbers(near) == numbers(far) == [0, 1, 2, 3, 4]
        assert one.adapter.stats()["volatile_dropped"] == 2


@virtual
async def test_with_confirm_an_emit_that_is_not_confirmed_in_time_says_so_and_stays_in_the_outbox() -> None:
    async with Cluster(confirm=True, emit_timeout=3.0) as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client("a")
        one.broker.stall()
        started = now()
        with pytest.raises(PublishUnconfirmed):
            await one.server.emit("n", 0, room="a")
        assert now() - started == pytest.approx(3.0)
        one.broker.stall(stalled=False)
        await asyncio.sleep(0.1)
        assert numbers(far) == [0]


@virtual
async def test_with_confirm_a_message_that_the_broker_rejects_is_an_error_counted_and_told() -> None:
    async with Cluster(confirm=True) as cluster:
        one = await cluster.node()
        one.broker.refusals.append(PublishRejected("Not today.", broker="faulty"))
        with pytest.raises(PublishRejected, match="Not today"):
            await one.server.emit("n", 0, room="a")
        subject = one.core.subjects.room("/", "a")
        assert one.told("given_up") == [Gap("given_up", subject=subject, origin=one.id, missed=1)]
        await one.server.emit("n", 1, room="a")


@virtual
async def test_a_rejected_message_holds_up_none_behind_it_and_the_others_see_the_hole() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client("a")
        await one.server.emit("n", 0, room="a")
        await asyncio.sleep(0.1)
        one.broker.refusals.append(PublishRejected("Not today.", broker="faulty"))
        await one.server.emit("n", 1, room="a")
        await asyncio.sleep(0)
        await one.server.emit("n", 2, room="a")
        await asyncio.sleep(0.1)
        assert numbers(far) == [0, 2]
        assert [gap.missed for gap in one.told("given_up")] == [1]
        assert [gap.missed for gap in two.told("missed")] == [1]


@virtual
async def test_at_a_stalled_broker_an_emit_ends_in_backpressure_at_the_deadline_and_nobody_got_it() -> None:
    async with Cluster(outbox_messages=3, emit_timeout=2.0) as cluster:
        one, two = await cluster.node(), await cluster.node()
        near, far = await one.client("a"), await two.client("a")
        one.broker.stall()
        for number in range(3):
            await one.server.emit("n", number, room="a")
        started = now()
        with pytest.raises(Backpressure):
            await one.server.emit("n", 3, room="a")
        assert now() - started == pytest.approx(2.0)
        one.broker.stall(stalled=False)
        await asyncio.sleep(1)
        assert numbers(near) == numbers(far) == [0, 1, 2], "P6: here and there alike"
        assert one.core.publisher.backlog == 0


@virtual
async def test_a_large_backlog_in_bytes_is_backpressure_too() -> None:
    async with Cluster(outbox_bytes=10_000, emit_timeout=2.0) as cluster:
        one = await cluster.node()
        one.broker.stall()
        await one.server.emit("n", "x" * 9_000, room="a")
        with pytest.raises(Backpressure):
            await one.server.emit("n", "x" * 2_000, room="a")
        await one.server.emit("n", "x" * 100, room="a")


@virtual
async def test_those_who_wait_for_a_place_are_served_in_turn() -> None:
    async with Cluster(outbox_messages=2) as cluster:
        one, two = await cluster.node(), await cluster.node()
        near, far = await one.client("a", "b"), await two.client("a", "b")
        one.broker.stall()
        emits = [asyncio.ensure_future(one.server.emit("n", n, room="ab"[n % 2])) for n in range(20)]
        await asyncio.sleep(0.1)
        assert numbers(near) == [0, 1]
        one.broker.stall(stalled=False)
        await asyncio.gather(*emits)
        await asyncio.sleep(0.1)
        assert numbers(near) == numbers(far) == list(range(20))


@virtual
async def test_those_who_wait_keep_their_turn_when_the_link_is_lost() -> None:
    async with Cluster(outbox_messages=1) as cluster:
        one = await cluster.node()
        near = await one.client("a")
        one.broker.stall()
        await one.server.emit("n", 0, room="a")
        waiting = asyncio.ensure_future(one.server.emit("n", 1, room="a"))
        await asyncio.sleep(0.1)
        one.broker.lose_link()  # wakes the receive loop, which lets the waiting one in,
        late = asyncio.ensure_future(one.server.emit("n", 2, room="a"))  # and this one runs right behind it
        await asyncio.gather(waiting, late)
        assert numbers(near) == [0, 1, 2]


@pytest.mark.parametrize("turns", range(6))
@virtual
async def test_an_emit_cancelled_while_it_waits_has_happened_nowhere_or_everywhere(turns: int) -> None:
    async with Cluster(outbox_messages=1) as cluster:
        one, two = await cluster.node(), await cluster.node()
        near, far = await one.client("a"), await two.client("a")
        one.broker.stall()
        await one.server.emit("n", 0, room="a")
        doomed = asyncio.ensure_future(one.server.emit("n", 1, room="a"))
        behind = asyncio.ensure_future(one.server.emit("n", 2, room="a"))
        await asyncio.sleep(0.1)
        one.broker.stall(stalled=False)
        await asyncio.sleep(LATENCY)  # the confirm of 0 is there now: its place is about to be given to 1
        for _ in range(turns):
            await asyncio.sleep(0)
        doomed.cancel()
        await asyncio.gather(doomed, behind, return_exceptions=True)
        assert not behind.cancelled()
        await asyncio.sleep(1)
        assert numbers(near) == numbers(far)
        assert numbers(near) in ([0, 2], [0, 1, 2])
        assert one.core.publisher.backlog == 0, "the place was given back"


@virtual
async def test_a_client_that_reads_too_slowly_is_cut_and_the_others_are_not() -> None:
    async with Cluster(client_queue=5) as cluster:
        one, two = await cluster.node(), await cluster.node()
        slow, quick = await two.client("a"), await two.client("a")
        slow.slow = True
        for number in range(20):
            await one.server.emit("n", number, room="a")
        await asyncio.sleep(0.1)
        assert slow.socket.closed
        assert slow.socket.queue.qsize() <= 6, "P7"
        assert two.adapter.stats()["clients_cut"] == 1
        assert numbers(quick) == list(range(20))
        assert len(two.adapter.rooms["/"]["a"]) == 1


@virtual
async def test_an_emit_that_needs_no_place_does_not_overtake_those_that_wait_for_one() -> None:
    async with Cluster(outbox_messages=1) as cluster:
        one = await cluster.node()
        near = await one.client("a")
        one.broker.stall()
        await one.server.emit("n", 0, room="a")
        emits = [
            asyncio.ensure_future(one.server.emit("n", 1, room="a")),
            asyncio.ensure_future(one.server.emit("n", 2, to=near.sid)),
            asyncio.ensure_future(one.server.emit("n", 3, room="a", ignore_queue=True)),
        ]
        await asyncio.sleep(0.1)
        one.broker.stall(stalled=False)
        await asyncio.gather(*emits)
        assert numbers(near) == [0, 1, 2, 3]
