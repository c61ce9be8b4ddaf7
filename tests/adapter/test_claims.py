"""Claims over every broker: never more than the limit, however they race."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from socketio import exceptions

from roomcast import Claimed
from roomcast.core.tickets import Policy
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


def admit(node: Node, limit: int, policy: Policy, told: list[str]) -> None:
    """Claim in the connect handler, and note who is evicted."""

    async def connect(sid: str, _environ: object, auth: dict[str, Any]) -> None:
        if not await node.adapter.claim(sid, f"user:{auth['user']}", limit, policy):
            raise exceptions.ConnectionRefusedError("too many tabs")

    @node.adapter.on("evicted")
    async def evicted(sid: str, key: str) -> None:
        told.append(sid)
        await node.sio.emit("taken over", key, to=sid)

    node.sio.on("connect", connect)


async def connecting(node: Node, user: str) -> Client | None:
    """A tab; None when it is refused, or evicted before it was told that it is connected."""
    try:
        return await node.client(auth={"user": user})
    except exceptions.ConnectionError:
        return None


def connected(nodes: Sequence[Node]) -> list[str]:
    return [sid for node in nodes for sid, _ in node.inside.get_participants("/", None)]


@pytest.mark.parametrize("limit", [1, 2])
async def test_of_tabs_that_claim_as_they_connect_as_many_get_in_as_may(cluster: Cluster, limit: int) -> None:
    nodes = await cluster.pair()
    for node in nodes:
        admit(node, limit, "refuse", [])
    for number in range(10):
        tabs = await asyncio.gather(*(connecting(node, f"{number}") for node in (*nodes, *nodes)))
        winners = [tab for tab in tabs if tab is not None]
        assert len(winners) == len(connected(nodes)) == limit
        await asyncio.gather(*(tab.aclose() for tab in winners))
        await until(lambda: not connected(nodes), what="the nodes to notice")
    assert [node.adapter.stats()["faults"] for node in nodes] == [0, 0]


async def test_of_tabs_that_take_over_as_they_connect_one_stays(cluster: Cluster) -> None:
    nodes, told = await cluster.pair(), list[str]()
    for node in nodes:
        admit(node, 1, "evict_oldest", told)
    for number in range(5):
        told.clear()
        tabs = await asyncio.gather(*(connecting(node, f"{number}") for node in (*nodes, *nodes)))
        await until(lambda: len(connected(nodes)) == 1, what="the others to be evicted")
        (winner,) = [tab for tab in tabs if tab is not None and [tab.sid] == connected(nodes)]
        assert len(set(told)) == len(told) == 3
        for tab in tabs:
            if tab is not None and tab is not winner:
                assert await tab.hear("taken over") == [("taken over", f"user:{number}")]
                await gone(tab)
        await winner.aclose()
        await until(lambda: not connected(nodes), what="the node to notice")
    assert [node.adapter.stats()["faults"] for node in nodes] == [0, 0]
