"""Claims on virtual time: who gets a key, in races and by eviction, and who gives it back."""

import asyncio
from typing import Any

import pytest

from roomcast import BrokerClosed, BrokerUnavailable, Claimed, RequestTimeout
from roomcast.core.broker import Delivery
from roomcast.core.messages import Claim, Evict, Reply
from tests.cluster.claiming import KEY, at_rest, claim, holders, race, remember, three, tickets
from tests.cluster.harness import Cluster, SimClient, virtual


@virtual
async def test_a_key_is_held_by_one_client_until_it_is_released() -> None:
    async with Cluster() as cluster:
        one, two, _ = await three(cluster)
        first, second = await one.client(), await two.client()
        assert await claim(first) == Claimed(granted=True)
        assert await claim(second) == Claimed(granted=False)
        assert not await claim(second)
        assert await claim(second, key="another")
        await one.adapter.release(first.sid, KEY)
        assert await claim(second)
        assert not await claim(first)
        assert holders(cluster) == [second.sid]
        assert at_rest(cluster)


@virtual
async def test_a_key_is_one_and_the_same_in_all_namespaces() -> None:
    async with Cluster() as cluster:
        one, two, _ = await three(cluster)
        assert await claim(await one.client(namespace="/a"))
        assert not await claim(await two.client(namespace="/b"))


@virtual
async def test_claiming_again_what_one_holds_is_granted() -> None:
    async with Cluster() as cluster:
        one, two, _ = await three(cluster)
        client = await one.client()
        before = (await race(client, client, client), tickets(one).find(KEY, client.sid).clock)
        assert before[0] == [Claimed(granted=True)] * 3
        assert not await claim(await two.client())
        assert await claim(client, policy="evict_oldest") == Claimed(granted=True)
        assert tickets(one).find(KEY, client.sid).clock == before[1], "it stays as old as it is"
        assert holders(cluster) == [client.sid]


@virtual
async def test_of_two_that_race_on_two_nodes_one_wins() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        for _ in range(20):
            clients = [await one.client(), await two.client()]
            assert sorted(map(bool, await race(*clients))) == [False, True]
            assert len(holders(cluster)) == 1
            assert at_rest(cluster)
            for client in clients:
                await client.leave()


@pytest.mark.parametrize("limit", [1, 2, 5])
@pytest.mark.parametrize("slow", [0, 1, 2])
def test_of_six_that_race_as_many_win_as_may(limit: int, slow: int) -> None:
    @virtual
    async def run() -> None:
        async with Cluster() as cluster:
            nodes = await three(cluster)
            clients = [await node.client() for node in nodes for _ in range(2)]
            nodes[slow].broker.delay(0.3, 3)
            assert sum(map(bool, await race(*clients, limit=limit))) == limit
            assert len(holders(cluster)) == limit
            assert at_rest(cluster)

    run()


@virtual
async def test_of_six_that_race_to_evict_all_are_granted_in_turn_and_the_last_ones_stay() -> None:
    async with Cluster() as cluster:
        nodes = await three(cluster)
        clients = [await node.client() for node in nodes for _ in range(2)]
        results = await race(*clients, limit=2, policy="evict_oldest")
        assert all(results)
        evicted = [sid for result in results for sid in result.evicted]
        assert len(set(evicted)) == len(evicted) == 4
        assert sorted(holders(cluster) + evicted) == sorted(client.sid for client in clients)
        assert [client.disconnected for client in clients] == [client.sid in evicted for client in clients]
        assert at_rest(cluster)


@virtual
async def test_the_oldest_is_told_then_disconnected_and_only_then_the_claim_is_granted() -> None:
    async with Cluster() as cluster:
        one, two, three_ = await three(cluster)
        seen: list[tuple[Any, ...]] = []

        @two.adapter.on("evicted")
        async def evicted(sid: str, key: str) -> None:
            seen.append(("told", sid, key))
            await two.server.emit("taken over", to=sid)
            await asyncio.sleep(1)

        async def disconnect(sid: str, _reason: str) -> None:
            await asyncio.sleep(1)
            seen.append(("gone", sid))

        two.server.on("disconnect", disconnect)

        old, older, new = await two.client(), await one.client(), await three_.client()
        assert await claim(older, 2)
        assert await claim(old, 2)
        await older.leave()
        assert await claim(await one.client(), 2)
        result = await claim(new, 2, "evict_oldest")
        assert result == Claimed(granted=True, evicted=(old.sid,))
        assert seen == [("told", old.sid, KEY), ("gone", old.sid)]
        assert old.events == [("taken over",)]
        assert old.disconnected


@virtual
async def test_whoever_is_evicted_by_its_own_node_is_told_as_well() -> None:
    async with Cluster() as cluster:
        node = await cluster.node()
        told: list[str] = []
        remember(node, told)
        old, new = await node.client(), await node.client()
        assert await claim(old)
        assert await claim(new, policy="evict_oldest") == Claimed(granted=True, evicted=(old.sid,))
        assert told == [old.sid]
        assert old.disconnected
        assert holders(cluster) == [new.sid]


@pytest.mark.parametrize("how", ["hangs", "raises"])
def test_a_handler_of_evicted_that_fails_does_not_save_anyone(how: str) -> None:
    @virtual
    async def run() -> None:
        async with Cluster() as cluster:
            one, two, _ = await three(cluster)

            @one.adapter.on("evicted")
            async def evicted(_sid: str, _key: str) -> None:
                if how == "raises":
                    raise LookupError("a bug")
                await asyncio.Event().wait()

            old, new = await one.client(), await two.client()
            await claim(old)
            assert await claim(new, policy="evict_oldest") == Claimed(granted=True, evicted=(old.sid,))
            assert old.disconnected
            assert one.adapter.stats()["faults"] == 1

    run()


@virtual
async def test_a_disconnect_handler_that_hangs_fails_the_claim_that_evicts() -> None:
    async with Cluster() as cluster:
        one, two, _ = await three(cluster)
        hold = asyncio.Event()

        async def disconnect(_sid: str, _reason: str) -> None:
            await hold.wait()

        one.server.on("disconnect", disconnect)

        old, near, far = await one.client(), await one.client(), await two.client()
        await claim(old)
        for client, patience in ((far, "did not answer"), (near, "let go")):
            with pytest.raises(RequestTimeout, match=patience) as raised:
                await claim(client, policy="evict_oldest")
            assert raised.value.missing == {one.id}
            assert holders(cluster) == [old.sid]
        hold.set()
        await asyncio.sleep(0.1)
        assert await claim(far)
        assert at_rest(cluster)


@virtual
async def test_a_client_in_its_connect_handler_claims_and_is_evicted_once_that_is_done() -> None:
    async with Cluster() as cluster:
        one, two, _ = await three(cluster)
        busy, gate = asyncio.Event(), asyncio.Event()

        async def connect(sid: str, _environ: object) -> None:
            assert await one.adapter.claim(sid, KEY)
            busy.set()
            await gate.wait()

        one.server.on("connect", connect)

        told: list[str] = []
        remember(one, told)
        connecting = asyncio.ensure_future(one.client())
        await busy.wait()
        new = await two.client()
        evicting = asyncio.ensure_future(claim(new, policy="evict_oldest"))
        await asyncio.sleep(1)
        assert not evicting.done()
        assert told == []
        gate.set()
        old = await connecting
        assert await evicting == Claimed(granted=True, evicted=(old.sid,))
        assert (told, old.disconnected) == ([old.sid], True)


@virtual
async def test_a_connect_handler_that_refuses_gives_its_claim_back() -> None:
    async with Cluster() as cluster:
        one, two, _ = await three(cluster)

        async def connect(sid: str, _environ: object) -> bool:
            assert await one.adapter.claim(sid, KEY)
            return False

        one.server.on("connect", connect)

        refused = SimClient(one, "/")
        await refused.connect()
        assert holders(cluster) == []
        assert await claim(await two.client())


@virtual
async def test_a_client_that_disconnects_releases_all_it_holds() -> None:
    async with Cluster() as cluster:
        one, two, _ = await three(cluster)
        client, other = await one.client(), await two.client()
        await claim(client, key="a")
        await claim(client, key="b")
        await client.leave()
        assert await claim(other, key="a")
        assert await claim(other, key="b")
        assert len(tickets(one)) == 0


@virtual
async def test_a_client_that_goes_while_it_claims_gets_nothing() -> None:
    async with Cluster() as cluster:
        one, two, _ = await three(cluster)
        client, other = await one.client(), await two.client()
        two.broker.delay(1)
        claiming = asyncio.ensure_future(claim(client))
        await asyncio.sleep(0.5)
        waiting = asyncio.ensure_future(claim(client))  # for the first one
        await asyncio.sleep(0)
        await client.leave()
        assert await claiming == await waiting == Claimed(granted=False)
        assert await claim(other)
        assert at_rest(cluster)


@virtual
async def test_a_claim_that_is_cancelled_is_withdrawn() -> None:
    async with Cluster() as cluster:
        one, two, _ = await three(cluster)
        client, other = await one.client(), await two.client()
        two.broker.delay(1)
        claiming = asyncio.ensure_future(claim(client))
        await asyncio.sleep(0.5)
        later = asyncio.ensure_future(claim(other))
        await asyncio.sleep(0.1)
        claiming.cancel()
        await asyncio.gather(claiming, return_exceptions=True)
        assert claiming.cancelled()
        assert await later == Claimed(granted=True)
        assert at_rest(cluster)


@virtual
async def test_a_client_elsewhere_and_terms_that_cannot_work_are_refused_at_the_call() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        far, near = await two.client(), await one.client()
        wrong: Any = one.adapter.claim
        for sid, namespace in ((far.sid, "/"), (near.sid, "/other"), ("nobody", "/")):
            with pytest.raises(ValueError, match="own node"):
                await wrong(sid, KEY, namespace=namespace)
        for key in (1, b"user", None):
            with pytest.raises(TypeError, match="A key is text"):
                await wrong(near.sid, key)
        for text in ("x" * 1001, "\ud800"):
            with pytest.raises(ValueError, match="at most 1000 characters"):
                await wrong(near.sid, text)
        for limit in ("1", 1.0, True, None):
            with pytest.raises(TypeError, match="limit is an integer"):
                await wrong(near.sid, KEY, limit)
        for limit in (0, -1):
            with pytest.raises(ValueError, match="1 or more"):
                await wrong(near.sid, KEY, limit)
        for policy in ("evict", None, ["refuse"]):
            with pytest.raises(ValueError, match="'refuse' or 'evict_oldest'"):
                await wrong(near.sid, KEY, 1, policy)
        assert len(tickets(one)) == 0
        assert await wrong(near.sid, "", 10**9)
        await one.adapter.release("nobody", KEY)


@virtual
async def test_claims_need_a_node_that_has_joined_and_is_not_closed() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        first, second, third = await one.client(), await one.client(), await two.client()
        two.broker.stall()
        claiming = [asyncio.ensure_future(claim(client)) for client in (first, second, second, third)]
        await asyncio.sleep(1)
        await one.adapter.aclose()
        results = await asyncio.gather(*claiming[:3], return_exceptions=True)
        assert [type(result) for result in results] == [BrokerClosed] * 3
        two.broker.stall(stalled=False)
        assert await claiming[3]
        with pytest.raises(BrokerClosed):
            await claim(first)
        late = cluster.make()
        late.broker.unreachable = True
        late.adapter.admit("/", "x" * 20, "eio")
        with pytest.raises(BrokerUnavailable):
            await late.adapter.claim("x" * 20, KEY)


@virtual
async def test_a_claim_costs_one_message_to_each_peer_and_one_back() -> None:
    async with Cluster() as cluster:
        one, two, other = await three(cluster)
        client = await one.client()
        await asyncio.sleep(4)
        before = [node.adapter.stats()["received"] for node in (one, two, other)]
        assert await claim(client)
        await asyncio.sleep(0.1)
        after = [node.adapter.stats()["received"] for node in (one, two, other)]
        assert [now - then for now, then in zip(after, before, strict=True)] == [2, 1, 1]


@virtual
async def test_messages_of_no_sense_change_nothing() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        client = await one.client()
        await claim(client)
        heard: list[Delivery] = []
        two.broker.handed = heard.append
        clock = tickets(one).find(KEY, client.sid).clock
        for evict in (Evict(1, KEY, client.sid, clock + 1), Evict(2, KEY, "nobody", 1), Evict(3, "?", client.sid, 1)):
            two.core.answer(one.id, evict)
        two.core.answer(one.id, Claim(4, KEY, "x", 2**62))
        two.core.answer(one.id, Reply(5))
        await asyncio.sleep(0.1)
        assert len(heard) == 1, "answered, all in one payload"
        assert holders(cluster) == [client.sid]
        assert not client.disconnected
        assert await claim(await two.client(), 2)


@virtual
async def test_who_is_evicted_is_asked_for_at_the_node_that_told_of_it() -> None:
    """With recovery the sid need not name the node, and who has lost the log does not know better for a while."""
    async with Cluster() as cluster:
        one, two, _ = await three(cluster)
        first, second, third = await one.client(), await two.client(), await two.client()
        assert await claim(first, policy="evict_oldest")
        inside: Any = two.core

        def holder(_sid: object) -> str:
            return ""

        inside.holder = holder
        claimed = await claim(second, policy="evict_oldest")
        assert (claimed.granted, claimed.evicted) == (True, (first.sid,))
        claimed = await claim(third, policy="evict_oldest")
        assert (claimed.granted, claimed.evicted) == (True, (second.sid,)), "of the same node"
        assert holders(cluster) == [third.sid]
