"""Joins that overlap: several calls put one client into one room, and some of them come to nothing."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from roomcast.core.errors import ConfigurationError, RequestTimeout
from tests.cluster.harness import Cluster, SimClient, SimNode, virtual


async def begun(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A call that waits for its room to be heard."""
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def is_reached(client: SimClient, other: SimNode) -> bool:
    """Whether an emit of another node to the room reaches the client."""
    ended = asyncio.Event()
    client.on_event = lambda event: ended.set() if event == ("end",) else None
    await other.adapter.to("red").emit("red")
    await other.adapter.to(client.sid).emit("end")
    await ended.wait()
    return ("red",) in client.events


@virtual
async def test_a_join_that_is_cancelled_has_not_happened() -> None:
    async with Cluster() as cluster:
        node, other = await cluster.node(), await cluster.node()
        client = await node.client()
        await cancelled(await begun(node.server.enter_room(client.sid, "red")))
        assert "red" not in node.server.rooms(client.sid)
        assert not await is_reached(client, other)


@virtual
@pytest.mark.parametrize("which", [0, 1])
async def test_a_join_holds_when_another_one_of_the_same_room_is_cancelled(which: int) -> None:
    async with Cluster() as cluster:
        node, other = await cluster.node(), await cluster.node()
        client = await node.client()
        joins = [await begun(node.server.enter_room(client.sid, "red")) for _ in range(2)]
        await cancelled(joins[which])
        await joins[1 - which]
        assert "red" in node.server.rooms(client.sid)
        assert await is_reached(client, other)


@virtual
async def test_a_join_from_elsewhere_holds_when_one_from_here_is_cancelled() -> None:
    async with Cluster() as cluster:
        node, other = await cluster.node(), await cluster.node()
        client = await node.client()
        here = await begun(node.server.enter_room(client.sid, "red"))
        there = asyncio.create_task(other.server.enter_room(client.sid, "red"))
        await asyncio.sleep(0.0012)  # the request is here, the subscription is not confirmed
        await cancelled(here)
        await there
        assert await is_reached(client, other)


@virtual
async def test_a_join_after_a_leave_holds_when_the_one_before_is_cancelled() -> None:
    async with Cluster() as cluster:
        node, other = await cluster.node(), await cluster.node()
        client = await node.client()
        node.broker.hub.latency = lambda: 0.1
        first = await begun(node.server.enter_room(client.sid, "red"))
        await node.server.leave_room(client.sid, "red")
        second = asyncio.create_task(node.server.enter_room(client.sid, "red"))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        await second
        assert await is_reached(client, other)


@virtual
async def test_when_all_joins_of_a_room_are_cancelled_none_has_happened() -> None:
    async with Cluster() as cluster:
        node, other = await cluster.node(), await cluster.node()
        client = await node.client()
        for join in [await begun(node.server.enter_room(client.sid, "red")) for _ in range(3)]:
            await cancelled(join)
        assert "red" not in node.server.rooms(client.sid)
        assert not await is_reached(client, other)


@virtual
async def test_a_room_that_the_broker_refuses_is_entered_by_nobody() -> None:
    async with Cluster() as cluster:
        node = await cluster.node()
        client = await node.client()
        node.broker.subscribe = _refuse  # type: ignore[method-assign]
        joins = [asyncio.create_task(node.server.enter_room(client.sid, "red")) for _ in range(2)]
        for outcome in await asyncio.gather(*joins, return_exceptions=True):
            assert isinstance(outcome, ConfigurationError)
        assert "red" not in node.server.rooms(client.sid)


@virtual
async def test_nothing_is_remembered_of_joins_that_have_ended() -> None:
    async with Cluster(request_timeout=0.5) as cluster:
        node, other = await cluster.node(), await cluster.node()
        client = await node.client()
        other.broker.stall()
        other.broker.lose_link()
        with pytest.raises(RequestTimeout):
            await node.adapter.to(client.sid, "blue").sockets_join("red")
        await node.server.enter_room(client.sid, "green")
        await cancelled(await begun(node.server.enter_room(client.sid, "yellow")))
        assert "red" in node.server.rooms(client.sid)
        answers: Any = node.adapter._answers  # pyright: ignore[reportPrivateUsage]
        assert not answers._stays


async def _refuse(_subjects: Any, /) -> None:
    raise ConfigurationError("not this room")
