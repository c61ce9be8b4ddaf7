"""Presence over each broker: who is in a room on all nodes, in order with what they say, and nothing left behind."""

import asyncio
from typing import Any

import pytest

import roomcast
from tests.adapter.servers import PATIENCE, Client, Cluster, Node
from tests.waiting import until


async def upcoming(watch: roomcast.PresenceWatch) -> tuple[str, str]:
    """The next change: what happened, and to whom."""
    async with asyncio.timeout(PATIENCE):
        change = await anext(watch)
    assert change.node == change.sid[:6]
    return change.kind, change.sid


async def member(node: Node, room: str) -> Client:
    """A client in a room."""
    client = await node.client()
    await node.sio.enter_room(client.sid, room)
    return client


def told(node: Node) -> int:
    """How many watches of others a node keeps."""
    presence: Any = node.inside._presence
    return len(presence._telling)


async def test_who_is_there_comes_first_and_then_who_comes_and_goes(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    near, far = await member(a, "lobby"), await member(b, "lobby")
    async with a.adapter.presence("lobby") as watch, b.adapter.presence(None) as everyone:
        assert watch.present == {near.sid: a.adapter.host_id, far.sid: b.adapter.host_id}
        assert everyone.present == watch.present
        late = await member(b, "lobby")
        sids = {"near": near.sid, "late": late.sid}
        assert await upcoming(watch) == ("joined", sids["late"])
        await a.adapter.to(far.sid).sockets_leave("lobby")
        assert await upcoming(watch) == ("left", far.sid)
        await near.aclose()
        assert await upcoming(watch) == ("left", sids["near"])
        late.drop()
        assert await upcoming(watch) == ("left", sids["late"])
        assert watch.present == {}
        await until(lambda: len(everyone.present) == 1)
        assert everyone.present == {far.sid: b.adapter.host_id}


async def test_whoever_hears_a_node_knows_the_joins_that_came_before(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    clients = [await b.client() for _ in range(5)]
    seen: list[int] = []
    async with a.adapter.presence("lobby") as watch:

        @a.adapter.on("moved")
        def moved() -> None:
            seen.append(len(watch.present))

        for client in clients:
            await b.sio.enter_room(client.sid, "lobby")
            await b.adapter.server_side_emit("moved")
        await until(lambda: len(seen) == len(clients))
    assert all(present > number for number, present in enumerate(seen)), seen


async def test_ten_thousand_members_are_there_at_once_and_gone_at_once(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    sids = [f"{b.adapter.host_id}{number:014}" for number in range(10_000)]
    for sid in sids:
        b.inside.admit("/", sid, f"eio-{sid}")
        b.inside.basic_enter_room(sid, "/", "crowd")
    async with a.adapter.presence("crowd") as watch:
        assert watch.present == dict.fromkeys(sids, b.adapter.host_id)
        await a.sio.close_room("crowd")
        await until(lambda: not watch.present)


async def test_a_node_that_leaves_takes_its_members_along_and_one_that_joins_brings_them(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    far = await member(b, "lobby")
    async with a.adapter.presence("lobby") as watch:
        c = await cluster.node()
        newcomer = await member(c, "lobby")
        assert await upcoming(watch) == ("joined", newcomer.sid)
        await b.adapter.aclose()
        assert await upcoming(watch) == ("left", far.sid)


async def test_nothing_is_left_anywhere(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    async with a.adapter.presence("lobby"), a.adapter.presence("lobby"), b.adapter.presence(None):
        assert (told(a), told(b)) == (1, 1)
    await until(lambda: (told(a), told(b)) == (0, 0))
    async with a.adapter.presence("lobby") as watch:
        following = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        await a.adapter.aclose()
        with pytest.raises(roomcast.BrokerClosed):
            await following
    await until(lambda: told(b) == 0)


async def test_a_watch_is_mended_when_the_broker_was_away(alone: Cluster) -> None:
    """The link's own gap tells; here it is told by hand, for a memory broker has no link."""
    a, b = await alone.pair()
    far = await member(b, "lobby")
    async with a.adapter.presence("lobby") as watch:
        ghost: Any = a.inside._presence._places["/", "lobby"]
        ghost.note(ghost.mirror.here(b.adapter.host_id, [f"{b.adapter.host_id}ghost"]))
        assert len(watch.present) == 2
        a.inside._presence.on_gap(roomcast.Gap("reconnected"))
        await until(lambda: watch.present == {far.sid: b.adapter.host_id})
