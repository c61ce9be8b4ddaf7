"""Presence over every broker: first who is there, then who comes and goes."""

import asyncio
from collections.abc import Callable

from roomcast import Change, PresenceWatch
from tests.adapter.servers import PATIENCE, Cluster


async def changes(watch: PresenceWatch, count: int) -> list[Change]:
    """The next changes that a watch gives."""
    async with asyncio.timeout(PATIENCE):
        return [await anext(watch) for _ in range(count)]


def change(kind: str) -> Callable[[str, str], Change]:
    return lambda sid, node: Change(kind=kind, sid=sid, node=node)  # type: ignore[arg-type]


joined, left = change("joined"), change("left")


async def test_first_who_is_there_then_who_comes_and_goes(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    near, far = await a.client(), await b.client()
    await a.sio.enter_room(near.sid, "user:42")
    await b.sio.enter_room(far.sid, "user:42")
    async with a.adapter.presence("user:42") as watch:
        assert watch.present == {near.sid: a.adapter.host_id, far.sid: b.adapter.host_id}
        late = await b.client()
        await a.sio.enter_room(late.sid, "user:42")
        await b.sio.leave_room(far.sid, "user:42")
        assert await changes(watch, 2) == [joined(late.sid, b.adapter.host_id), left(far.sid, b.adapter.host_id)]
        gone = late.sid
        await late.aclose()
        assert await changes(watch, 1) == [left(gone, b.adapter.host_id)]
        assert watch.present == {near.sid: a.adapter.host_id}


async def test_a_node_that_comes_and_one_that_goes_are_seen_by_their_members(cluster: Cluster) -> None:
    a = await cluster.node()
    async with a.adapter.presence(None) as watch:
        assert watch.present == {}
        b = await cluster.node()
        client = await b.client()
        sid = client.sid
        assert await changes(watch, 1) == [joined(sid, b.adapter.host_id)]
        second = await b.client()
        assert await changes(watch, 1) == [joined(second.sid, b.adapter.host_id)]
        members = {sid, second.sid}
        await b.adapter.aclose()
        assert {one.sid for one in await changes(watch, 2)} == members
        assert watch.present == {}


async def test_whoever_gets_an_event_knows_the_join_before_it(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    near, far = await a.client(), await b.client()
    async with a.adapter.presence("room") as watch:
        for number in range(50):
            await b.sio.enter_room(far.sid, f"other {number}")
            await b.sio.enter_room(far.sid, "room")
            await b.sio.emit("joined", number, to=near.sid)
            await near.hear("joined")
            assert far.sid in watch.present
            await b.sio.leave_room(far.sid, "room")
            await b.sio.emit("left", number, to=near.sid)
            await near.hear("left")
            assert watch.present == {}
