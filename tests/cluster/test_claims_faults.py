"""Claims on virtual time while nodes die, join, fall silent, part and meet again."""

import asyncio

import pytest

from roomcast import Claimed, RequestTimeout
from roomcast.core.tickets import Policy
from tests.cluster.claiming import KEY, at_rest, claim, holders, race, remember, three, tickets
from tests.cluster.harness import Cluster, virtual


@pytest.mark.parametrize("how", ["bye", "lost"])
def test_a_node_takes_its_claims_with_it(how: str) -> None:
    @virtual
    async def run() -> None:
        async with Cluster() as cluster:
            one, two, _ = await three(cluster)
            old, new = await one.client(), await two.client()
            await claim(old)
            if how == "bye":
                await one.adapter.aclose()
                await asyncio.sleep(0.1)
            else:
                one.broker.lose_link()
                with pytest.raises(RequestTimeout, match=f"{one.id} did not answer") as raised:
                    await claim(new)
                assert raised.value.missing == {one.id}
                await asyncio.sleep(11)  # silent for longer than peer_timeout
            assert await claim(new)

    run()


@virtual
async def test_a_node_that_dies_while_it_is_asked_is_not_waited_for() -> None:
    async with Cluster(request_timeout=30.0) as cluster:
        one, two, _ = await three(cluster)
        client = await one.client()
        two.broker.lose_link()
        began = asyncio.get_running_loop().time()
        assert await claim(client)
        assert 9 < asyncio.get_running_loop().time() - began < 17


@virtual
async def test_a_node_that_does_not_answer_fails_the_claim_and_nothing_is_held() -> None:
    async with Cluster() as cluster:
        one, two, other = await three(cluster)
        client, rival = await one.client(), await other.client()
        two.broker.stall()  # it hears, and is not heard
        for claimant in (client, rival):
            with pytest.raises(RequestTimeout, match="withdrawn") as raised:
                await claim(claimant)
            assert raised.value.missing == {two.id}
        assert holders(cluster) == []
        two.broker.stall(stalled=False)
        await asyncio.sleep(1)
        assert sorted(map(bool, await race(client, rival))) == [False, True]
        assert at_rest(cluster)


@virtual
async def test_a_lost_answer_fails_the_claim() -> None:
    async with Cluster() as cluster:
        one, _, _ = await three(cluster)
        client = await one.client()
        await asyncio.sleep(2)
        one.broker.lose(2)  # its own question comes back first
        with pytest.raises(RequestTimeout):
            await claim(client)
        assert await claim(client)


@virtual
async def test_claims_behind_one_that_waits_in_vain_fail_with_it() -> None:
    async with Cluster() as cluster:
        one, two, _ = await three(cluster)
        first, second, silent = await one.client(), await one.client(), two
        silent.broker.stall()
        results = await asyncio.gather(claim(first), claim(second), return_exceptions=True)
        assert [type(result) for result in results] == [RequestTimeout, RequestTimeout]
        assert holders(cluster) == []


@pytest.mark.parametrize("policy", ["refuse", "evict_oldest"])
def test_a_node_that_joins_while_a_claim_is_under_way_is_told_of_it(policy: Policy) -> None:
    @virtual
    async def run() -> None:
        async with Cluster() as cluster:
            one, two = await cluster.node(), await cluster.node()
            first = await one.client()
            await asyncio.sleep(2)
            one.broker.delay(3)  # the answer of the other one
            claiming = asyncio.ensure_future(claim(first))
            await asyncio.sleep(0.1)
            joined = await cluster.node()
            second = await joined.client()
            result = await claim(second, policy=policy)
            assert await claiming
            assert bool(result) is (policy == "evict_oldest")
            assert holders(cluster) == [second.sid if result else first.sid]
            assert two.id in joined.core.peers
            await asyncio.sleep(1)
            assert at_rest(cluster)

    run()


@virtual
async def test_a_node_whose_clock_is_behind_takes_its_turn_all_the_same() -> None:
    async with Cluster() as cluster:
        one, two, _ = await three(cluster)
        first, second, third = await one.client(), await two.client(), await two.client()
        await claim(first, 2)
        tickets(one).find(KEY, first.sid).clock += 60_000_000  # granted by a clock that is a minute ahead
        assert await claim(second, 2)
        assert tickets(two).find(KEY, second.sid).clock > tickets(one).find(KEY, first.sid).clock
        assert await claim(third, 2, "evict_oldest") == Claimed(granted=True, evicted=(first.sid,))


@virtual
async def test_a_clock_that_is_hours_ahead_fails_the_claim_and_says_so() -> None:
    async with Cluster() as cluster:
        one, two, _ = await three(cluster)
        first, second = await one.client(), await two.client()
        await claim(first)
        tickets(one).find(KEY, first.sid).clock += 10**11
        with pytest.raises(RequestTimeout, match="clocks of two nodes differ by 27"):
            await claim(second, 2)
        assert await claim(second, key="another")


@virtual
async def test_a_node_answers_only_those_it_knows() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        client = await one.client()
        two.core.peers.bye(one.id)
        claiming = asyncio.ensure_future(claim(client))
        await asyncio.sleep(0)
        assert one.id not in two.core.peers
        assert await claiming, "it is asked again once they know each other"
        assert one.id in two.core.peers


@pytest.mark.parametrize("policy", ["refuse", "evict_oldest"])
def test_nodes_that_parted_put_it_right_when_they_meet_again(policy: Policy) -> None:
    @virtual
    async def run() -> None:
        async with Cluster() as cluster:
            one, two, other = await three(cluster)
            told: list[str] = []
            for node in (one, two, other):
                remember(node, told)
            old = await one.client()
            assert await claim(old, policy=policy)
            one.broker.lose_link()
            await asyncio.sleep(16)
            new = await two.client()
            assert await claim(new, policy=policy) == Claimed(granted=True), "the other side is taken for lost"
            assert holders(cluster) == [old.sid, new.sid]
            one.broker.restore_link()
            await asyncio.sleep(5)
            kept, gone = (old, new) if policy == "refuse" else (new, old)
            assert holders(cluster) == [kept.sid]
            assert (told, kept.disconnected, gone.disconnected) == ([gone.sid], False, True)
            assert at_rest(cluster)

    run()


@virtual
async def test_a_thousand_claims_of_both_sides_are_put_right() -> None:
    async with Cluster() as cluster:
        one, two, _ = await three(cluster)
        old, new = await one.client(), await two.client()
        for number in range(1000):
            assert await claim(old, key=f"key {number}")
        one.broker.lose_link()
        await asyncio.sleep(16)
        for number in range(500, 1500):
            assert await claim(new, key=f"key {number}")
        one.broker.restore_link()
        await asyncio.sleep(10)
        assert [len(tickets(node)) for node in (one, two)] == [1000, 0], "the first surplus disconnects the client"
        assert at_rest(cluster)


@virtual
async def test_what_cannot_be_checked_is_checked_again() -> None:
    async with Cluster() as cluster:
        one, two, other = await three(cluster)
        old, new = await one.client(), await two.client()
        await claim(old)
        one.broker.lose_link()
        await asyncio.sleep(16)
        await claim(new)
        other.broker.stall()  # it cannot answer, and is not taken for lost yet
        one.broker.restore_link()
        await asyncio.sleep(6)
        assert len(holders(cluster)) == 2
        other.broker.stall(stalled=False)
        await asyncio.sleep(6)
        assert holders(cluster) == [old.sid]


@virtual
async def test_during_an_outage_of_the_broker_claims_fail_and_what_is_held_stays_held() -> None:
    async with Cluster() as cluster:
        one, two, _ = await three(cluster)
        first, second = await one.client(), await two.client()
        await claim(first)
        cluster.lose_links()
        for client in (await one.client(), second):
            with pytest.raises(RequestTimeout):
                await claim(client)
        assert await claim(first), "it holds the key"
        await asyncio.sleep(60)
        cluster.restore_links()
        await asyncio.sleep(5)
        assert holders(cluster) == [first.sid]
        assert not await claim(second)
        assert not first.disconnected
        assert at_rest(cluster)


@virtual
async def test_nodes_that_met_too_late_put_it_right() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        await asyncio.sleep(2)
        for node, other in ((one, two), (two, one)):
            node.core.peers.bye(other.id)  # as if their hellos had been lost
        first, second = await one.client(), await two.client()
        assert await claim(first)
        await asyncio.sleep(0.01)
        assert await claim(second)
        await asyncio.sleep(11)  # a heartbeat each, and what follows
        assert holders(cluster) == [first.sid]
        assert second.disconnected
