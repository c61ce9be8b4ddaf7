"""Claims over every broker: never more than the limit, however they race."""

import asyncio

import pytest

from roomcast import Claimed
from tests.adapter.servers import PATIENCE, Client, Cluster, Node
from tests.waiting import until


async def test_of_two_tabs_that_race_on_two_nodes_one_gets_the_key(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    one, two = await a.client(), await b.client()
    for number in range(50):
        key = f"user:{number}"
        won, lost = sorted(
            await asyncio.gather(a.adapter.claim(one.sid, key), b.adapter.claim(two.sid, key)),
            key=bool,
            reverse=True,
        )
        assert (bool(won), bool(lost)) == (True, False)


async def test_many_on_three_nodes_share_the_places_there_are(cluster: Cluster) -> None:
    nodes = [await cluster.node() for _ in range(3)]
    clients = [(node, await node.client()) for node in nodes for _ in range(3)]
    for round_ in range(10):
        key = f"desk:{round_}"
        claimed = await asyncio.gather(*(node.adapter.claim(one.sid, key, limit=4) for node, one in clients))
        assert sum(map(bool, claimed)) == 4


async def test_what_is_given_back_or_left_behind_can_be_claimed_again(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    one, two = await a.client(), await b.client()
    assert await a.adapter.claim(one.sid, "key")
    assert await a.adapter.claim(one.sid, "key"), "again what it holds"
    assert not await b.adapter.claim(two.sid, "key")
    await a.adapter.release(one.sid, "key")
    assert await b.adapter.claim(two.sid, "key")
    sid = two.sid
    await two.aclose()
    await until(lambda: not b.sio.manager.is_connected(sid, "/"), what="the client to be gone")
    assert await a.adapter.claim(one.sid, "key")
    await a.adapter.aclose()
    await until(lambda: not b.adapter.health().peers, what="the node to be gone")
    three = await b.client()
    assert await b.adapter.claim(three.sid, "key")


async def test_a_new_tab_takes_over_and_the_old_one_is_told(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    one, two = await a.client(), await b.client()

    @a.adapter.on("evicted")
    async def evicted(sid: str, key: str) -> None:
        await a.sio.emit("taken over", key, to=sid)

    assert await a.adapter.claim(one.sid, "key", policy="evict_oldest")
    old = one.sid
    assert await b.adapter.claim(two.sid, "key", policy="evict_oldest") == Claimed(granted=True, evicted=(old,))
    assert not a.sio.manager.is_connected(old, "/")
    assert await one.hear("taken over") == [("taken over", "key")]
    await gone(one)


async def test_tabs_that_take_over_at_once_leave_one(cluster: Cluster) -> None:
    nodes = [await cluster.node() for _ in range(3)]
    tabs = [(node, await node.client()) for node in nodes for _ in range(2)]
    claimed = await asyncio.gather(*(claim(node, tab) for node, tab in tabs))
    assert any(claimed)
    holders = [tab for node, tab in tabs if node.sio.manager.is_connected(tab.sid, "/")]
    held = [tab for (_, tab), won in zip(tabs, claimed, strict=True) if won and tab in holders]
    assert len(held) == 1


async def claim(node: Node, tab: Client) -> bool:
    return bool(await node.adapter.claim(tab.sid, "key", policy="evict_oldest"))


async def test_what_cannot_be_claimed_is_said_at_the_call(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    one = await b.client()
    with pytest.raises(ValueError, match="own node"):
        await a.adapter.claim(one.sid, "key")
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="limit"):
            await b.adapter.claim(one.sid, "key", limit=wrong)
    with pytest.raises(ValueError, match="policy"):
        await b.adapter.claim(one.sid, "key", policy="first")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        await b.adapter.claim(one.sid, 7)  # type: ignore[arg-type]


async def gone(client: Client) -> None:
    async with asyncio.timeout(PATIENCE):
        await client.gone.wait()
