"""Callbacks across nodes: whoever acknowledges is heard, and whoever is gone is not waited for."""

import asyncio
from typing import Any

from tests.cluster.harness import Cluster, SimNode, virtual


def waiting(node: SimNode) -> int:
    return len(node.adapter._broadcast.acks)  # pyright: ignore[reportPrivateUsage]


@virtual
async def test_a_callback_is_called_with_the_answer_of_a_client_elsewhere() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client()
        answers: list[Any] = []

        def answered(*args: Any) -> None:
            answers.append(args)

        await one.server.emit("ask", to=far.sid, callback=answered)
        await asyncio.sleep(0.1)
        await far.ack(far.acks_wanted[0], '["yes",1]')
        await asyncio.sleep(0.1)
        assert answers == [("yes", 1)]
        assert waiting(one) == 0
        await far.ack(far.acks_wanted[0], '["again"]')
        await asyncio.sleep(0.1)
        assert answers == [("yes", 1)]


@virtual
async def test_call_returns_the_answer_of_a_client_elsewhere() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client()
        call = asyncio.ensure_future(one.server.call("ask", to=far.sid, timeout=3))
        await asyncio.sleep(0.1)
        await far.ack(far.acks_wanted[0], '["yes"]')
        assert await call == "yes"


@virtual
async def test_the_callback_of_a_room_is_called_once_for_each_client() -> None:
    async with Cluster() as cluster:
        one, two, three = [await cluster.node() for _ in range(3)]
        clients = [await node.client("a") for node in (one, one, two, three)]
        await two.client("b")
        answers: list[int] = []
        await one.server.emit("ask", room="a", callback=answers.append)
        await asyncio.sleep(0.1)
        for number, client in enumerate(clients):
            assert waiting(one) == 1
            await client.ack(client.acks_wanted[0], f"[{number}]")
            await asyncio.sleep(0.1)
        assert answers == [0, 1, 2, 3]
        assert waiting(one) == 0


@virtual
async def test_a_callback_waits_for_nobody_when_the_room_is_empty() -> None:
    async with Cluster() as cluster:
        one, _two = await cluster.node(), await cluster.node()
        await one.server.emit("ask", room="nobody", callback=print)
        await asyncio.sleep(0.1)
        assert waiting(one) == 0


@virtual
async def test_a_client_that_goes_away_is_not_waited_for() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        clients = [await one.client("a"), await two.client("a")]
        await one.server.emit("ask", room="a", callback=print)
        await asyncio.sleep(0.1)
        for client in clients:
            assert waiting(one) == 1
            await client.leave()
            await asyncio.sleep(0.1)
        assert waiting(one) == 0


@virtual
async def test_a_node_that_says_bye_is_not_waited_for() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        await two.client("a")
        await one.server.emit("ask", room="a", callback=print)
        await asyncio.sleep(0.1)
        assert waiting(one) == 1
        await two.adapter.aclose()
        await asyncio.sleep(0.1)
        assert waiting(one) == 0


@virtual
async def test_a_node_that_dies_is_not_waited_for() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client("a")
        two.broker.lose_link()
        await one.server.emit("ask", room="a", callback=print)
        await one.server.emit("ask", to=far.sid, callback=print)
        await asyncio.sleep(5)
        assert waiting(one) == 2
        await asyncio.sleep(8)  # silent for longer than peer_timeout
        assert waiting(one) == 0


@virtual
async def test_an_answer_that_waits_for_the_link_arrives_with_it() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        far = await two.client()
        answers: list[Any] = []
        await one.server.emit("ask", to=far.sid, callback=answers.append)
        await asyncio.sleep(0.1)
        two.broker.lose_link()
        await far.ack(far.acks_wanted[0], "[1]")
        await asyncio.sleep(2)
        assert answers == []
        two.broker.restore_link()
        await asyncio.sleep(2)
        assert answers == [1]
        assert waiting(one) == 0
