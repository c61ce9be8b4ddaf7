"""What is left, on the nodes, of an emitter that is gone: nothing, or something bounded that is forgotten."""

import asyncio
from contextlib import aclosing

import pytest

from roomcast import Emitter, PublishUnconfirmed
from tests.cluster.harness import Cluster, SimClient, SimNode, numbers, virtual
from tests.cluster.test_emitter import URL, guest, link


def unfinished(node: SimNode) -> int:
    """How many answers a node is in the middle of."""
    answers = node.adapter._answers  # pyright: ignore[reportPrivateUsage]
    return len(answers._parts)  # pyright: ignore[reportPrivateUsage]


async def crash(emitter: Emitter) -> None:
    """The process of an emitter dies: nothing more is heard of it."""
    link(emitter).lose_link()
    await emitter.aclose()


async def rich_clients(node: SimNode, count: int) -> list[SimClient]:
    """Clients whose descriptions take many parts."""
    clients = [await node.client("rich") for _ in range(count)]
    for client in clients:
        await node.server.save_session(client.sid, {"text": "x" * 40_000})
    return clients


@virtual
async def test_nothing_is_subscribed_for_an_emitter_that_is_gone() -> None:
    async with Cluster() as cluster:
        one = await cluster.node()
        await one.client("a")
        before = set(cluster.hub.subscribers)
        async with Emitter(URL) as emitter:
            assert await emitter.count("a") == 1
            assert set(cluster.hub.subscribers) - before == {guest(emitter).subjects.inbox(guest(emitter).id)}
        assert set(cluster.hub.subscribers) == before
        other = Emitter(URL)
        await other.start()
        await crash(other)
        assert set(cluster.hub.subscribers) == before


@virtual
async def test_an_emitter_that_dies_in_the_middle_of_a_fetch_is_forgotten() -> None:
    async with Cluster() as cluster:
        one = await cluster.node()
        await rich_clients(one, 8)
        emitter = Emitter(URL)
        await emitter.start()
        sockets = emitter.iter_sockets()
        assert (await anext(sockets)).data == {"text": "x" * 40_000}
        await asyncio.sleep(0.1)
        assert unfinished(one) == 1
        await crash(emitter)
        await sockets.aclose()
        await asyncio.sleep(100)
        assert unfinished(one) == 1, "it might only be slow"
        await asyncio.sleep(30)
        assert unfinished(one) == 0


@virtual
async def test_a_fetch_that_ends_early_is_forgotten_at_once() -> None:
    async with Cluster() as cluster:
        one = await cluster.node()
        await rich_clients(one, 8)
        async with Emitter(URL) as emitter:
            async with aclosing(emitter.iter_sockets()) as sockets:
                await anext(sockets)
                await asyncio.sleep(0.1)
                assert unfinished(one) == 1
            await asyncio.sleep(0.1)
            assert unfinished(one) == 0
            assert len(await emitter.fetch_sockets()) == 8
            assert unfinished(one) == 0


@virtual
async def test_a_fetch_that_ends_before_a_node_has_answered_is_forgotten_there_too() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        await rich_clients(one, 8)
        near = await two.client()
        async with Emitter(URL) as emitter:
            await emitter.nodes()
            one.broker.delay(0.3)  # the question reaches it late
            async with aclosing(emitter.iter_sockets()) as sockets:
                assert (await anext(sockets)).sid == near.sid
            await asyncio.sleep(1)
            assert unfinished(one) == 0


@virtual
async def test_an_acknowledgement_for_an_emitter_that_died_leaves_nothing() -> None:
    async with Cluster() as cluster:
        one = await cluster.node()
        client = await one.client("a")
        emitter = Emitter(URL)
        await emitter.start()
        question = asyncio.ensure_future(emitter.to("a").emit_with_ack("ask"))
        await asyncio.sleep(0.1)
        assert client.acks_wanted
        question.cancel()
        await asyncio.gather(question, return_exceptions=True)
        await crash(emitter)
        await client.ack(client.acks_wanted[0])
        await asyncio.sleep(0.1)
        admitted = one.adapter._rooms.client("/", client.sid)  # pyright: ignore[reportPrivateUsage]
        assert admitted is not None
        assert not admitted.acks
        stats = one.adapter.stats()
        assert (stats["refused"], stats["faults"], stats["given_up"]) == ({}, 0, 0)


@virtual
async def test_a_question_that_is_not_confirmed_or_is_given_up_is_forgotten() -> None:
    async with Cluster() as cluster:
        await (await cluster.node()).client("a")
        async with Emitter(URL, emit_timeout=2.0) as emitter:
            await emitter.nodes()
            link(emitter).stall()
            with pytest.raises(PublishUnconfirmed):
                await emitter.to("a").emit_with_ack("ask")
            question = asyncio.ensure_future(emitter.to("a").emit_with_ack("ask"))
            await asyncio.sleep(0.1)
            question.cancel()
            await asyncio.gather(question, return_exceptions=True)
            assert len(emitter._broadcast.acks) == 0  # pyright: ignore[reportPrivateUsage]
            link(emitter).stall(stalled=False)


@virtual
async def test_the_numbers_of_emitters_that_are_gone_are_bounded() -> None:
    async with Cluster() as cluster:
        one = await cluster.node()
        client = await one.client("a")
        tracking = one.core.receiver.tracking
        tracking._limit = 20  # pyright: ignore[reportPrivateUsage]
        for number in range(50):
            async with Emitter(URL) as emitter:
                await emitter.to("a").emit("n", number)
                assert await emitter.count("a") == 1
        await asyncio.sleep(0.1)
        assert numbers(client) == list(range(50))
        assert 0 < len(tracking) <= 20
        assert one.adapter.health().peers == 0
        assert one.gaps == []
