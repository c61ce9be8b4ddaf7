"""Nodes that die, part and meet again: what presence shows, and who holds a key."""

import asyncio

import pytest

from roomcast import RequestTimeout
from tests.cluster.harness import Cluster, virtual


@virtual
async def test_presence_is_exact_again_once_a_dead_node_is_taken_for_lost() -> None:
    async with Cluster() as cluster:
        one, two, three = [await cluster.node() for _ in range(3)]
        alive, dead = await two.client("room"), [await three.client("room") for _ in range(3)]
        async with one.adapter.presence("room") as watch:
            assert set(watch.present) == {alive.sid, *(client.sid for client in dead)}
            three.broker.lose_link()
            gone = [await anext(watch) for _ in range(3)]
            assert {change.sid for change in gone} == {client.sid for client in dead}
            assert {change.kind for change in gone} == {"left"}
            assert watch.present == {alive.sid: two.id}


@virtual
async def test_what_happened_while_the_link_was_lost_is_made_good() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        stays, goes = await two.client("room"), await two.client("room")
        async with one.adapter.presence("room") as watch:
            one.broker.lose_link()
            await goes.leave()
            comes = await two.client("room")
            await asyncio.sleep(3)
            assert set(watch.present) == {stays.sid, goes.sid}, "as it was"
            one.broker.restore_link()
            seen = {(change.kind, change.sid) for change in [await anext(watch), await anext(watch)]}
            assert seen == {("left", goes.sid), ("joined", comes.sid)}


@virtual
async def test_a_key_is_free_once_the_node_that_held_it_is_taken_for_lost() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        near, far = await one.client(), await two.client()
        assert await two.adapter.claim(far.sid, "key")
        two.broker.lose_link()
        with pytest.raises(RequestTimeout):
            await one.adapter.claim(near.sid, "key")
        await asyncio.sleep(15)
        assert await one.adapter.claim(near.sid, "key")


@virtual
async def test_of_two_halves_that_meet_again_one_keeps_the_key() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        near, far = await one.client(), await two.client()
        assert await two.adapter.claim(far.sid, "key")
        two.broker.lose_link()
        await asyncio.sleep(15)
        assert await one.adapter.claim(near.sid, "key")
        assert two.server.manager.is_connected(far.sid, "/"), "each half grants what it knows of"
        two.broker.restore_link()
        await asyncio.sleep(10)
        assert two.server.manager.is_connected(far.sid, "/"), "the older claim stays"
        assert not one.server.manager.is_connected(near.sid, "/")
