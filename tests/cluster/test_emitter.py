"""An emitter over a broker whose faults are commanded: no peers, peers that die, a link that is lost."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from roomcast import BrokerClosed, BrokerUnavailable, Emitter, PublishUnconfirmed, RequestTimeout
from roomcast.core.broker import Gap, Subject
from roomcast.core.errors import WireError
from roomcast.core.messages import Census, Message
from roomcast.core.node import Node
from tests.cluster.faulty import LATENCY, FaultyBroker, Hub
from tests.cluster.harness import Cluster, SimClient, numbers, virtual

URL = "faulty://hub"


def guest(emitter: Emitter) -> Node:
    return emitter._node  # pyright: ignore[reportPrivateUsage]


def link(emitter: Emitter) -> FaultyBroker:
    return cast("FaultyBroker", guest(emitter)._broker)  # pyright: ignore[reportPrivateUsage]


def acknowledge(client: SimClient) -> Callable[[tuple[object, ...]], None]:
    """What a client does that acknowledges whatever it is asked."""

    def answer(_event: tuple[object, ...]) -> None:
        client.node.core.spawn(client.ack(client.acks_wanted[-1]))

    return answer


def now() -> float:
    return asyncio.get_running_loop().time()


# Rule 3: the first request waits until all nodes are known


@virtual
async def test_the_first_request_waits_a_second_when_there_are_no_nodes_and_the_next_ones_do_not() -> None:
    async with Cluster(), Emitter(URL) as emitter:
        began = now()
        await emitter.emit("n", 0)
        assert now() - began < 0.01, "an emit asks nobody"
        assert await emitter.count() == 0
        assert now() - began == pytest.approx(1.0, abs=0.01)
        began = now()
        assert await emitter.nodes() == []
        assert await emitter.server_count() == 0
        assert await emitter.to("a").fetch_sockets() == []
        assert await emitter.emit_with_ack("ask") == []
        assert await emitter.sockets_join("b") == 0
        assert await emitter.server_side_emit_with_ack("ask") == {}
        assert now() - began < 0.01


@virtual
async def test_the_first_request_of_an_emitter_that_has_just_started_reaches_all_nodes() -> None:
    async with Cluster() as cluster:
        nodes = [await cluster.node() for _ in range(5)]
        for node in nodes:
            await node.client("a")
        async with Emitter(URL) as emitter:
            began = now()
            assert await emitter.count("a") == 5
            assert now() - began < 10 * LATENCY
            assert [node.id for node in await emitter.nodes()] == [node.id for node in nodes]


@virtual
async def test_the_first_answer_names_the_others_and_they_are_waited_for() -> None:
    async with Cluster() as cluster:
        nodes = [await cluster.node() for _ in range(3)]
        for node in nodes:
            await node.client("a")
        nodes[2].broker.delay(0.3)  # the question reaches it late
        async with Emitter(URL) as emitter:
            began = now()
            assert await emitter.count("a") == 3
            assert 0.3 < now() - began < 0.4


@virtual
async def test_a_dead_node_that_the_others_still_name_costs_a_second_and_no_answer() -> None:
    async with Cluster() as cluster:
        one, two, three = [await cluster.node() for _ in range(3)]
        for node in (one, two, three):
            await node.client("a")
        three.broker.lose_link()
        assert three.id in one.core.peers
        async with Emitter(URL) as emitter:
            began = now()
            assert await emitter.count("a") == 2
            assert now() - began == pytest.approx(1.0, abs=0.02)


# Rule 1: a guest is counted by nobody, and waits for nobody's question


@virtual
async def test_an_emitter_is_counted_by_nobody_and_says_nothing_but_who_is_there() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        async with Emitter(URL) as emitter:
            said: list[Message] = []
            tap(cluster.hub, emitter, said)
            await asyncio.sleep(60)
            for node in (one, two):
                assert {info.id for info in await node.adapter.nodes()} == {one.id, two.id}
                assert await node.adapter.server_count() == 2
                assert node.adapter.health().peers == 1
            assert said == [Census()]
            link(emitter).lose_link()
            await asyncio.sleep(1)
            link(emitter).restore_link()
            await asyncio.sleep(30)
            assert said == [Census(), Census()], "once for each link"
        await asyncio.sleep(1)
        assert len(said) == 2, "no bye"


def tap(hub: Hub, emitter: Emitter, said: list[Message]) -> None:
    """Note what an emitter publishes from now on."""
    route = hub.route

    def tapped(sender: FaultyBroker | None, subject: Subject, payload: bytes, limit: int | None = None) -> None:
        if sender is link(emitter):
            opened = guest(emitter).wire.open(subject, payload, 0)
            said.extend(one for one in opened.messages if not isinstance(one, WireError))
        route(sender, subject, payload, limit)

    hub.route = tapped  # type: ignore[method-assign]


@virtual
async def test_what_is_meant_for_nodes_is_ignored_by_an_emitter_and_waits_for_it_nowhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        two.adapter.on("ask", lambda: "answer")
        near, far = await one.client("a"), await two.client("a")
        for client in (near, far):
            client.on_event = acknowledge(client)
        async with Emitter(URL) as emitter:
            await asyncio.gather(emitter.nodes(), one.adapter.nodes())
            caplog.set_level(logging.DEBUG, "roomcast")
            began = now()
            everyone = one.adapter.namespace("/")
            assert len(await everyone.emit_with_ack("ask")) == 2
            assert await everyone.sockets_join("b") == 2
            assert await everyone.sockets_leave("b") == 2
            assert len(await everyone.fetch_sockets()) == 2
            assert await everyone.count() == 2
            assert await one.adapter.all_rooms() == {"a": 2}
            await one.server.close_room("a")
            await one.adapter.server_side_emit("ask")
            answered = await one.adapter.server_side_emit_with_ack("ask")
            assert [answer.value for answer in answered.values()] == ["answer"]
            assert await everyone.disconnect_sockets() == 2
            assert now() - began < 0.1
            await asyncio.sleep(30)
            stats = emitter.stats()
            assert stats["received"] > 8, "it did hear them"
            assert (stats["refused"], stats["faults"], stats["stray_replies"]) == ({}, 0, 0)
            assert [record.message for record in caplog.records] == []
            assert one.adapter.stats()["stray_replies"] == 0


@virtual
async def test_there_is_nobody_local_to_an_emitter() -> None:
    async with Cluster(), Emitter(URL) as emitter:
        with pytest.raises(ValueError, match="local"):
            _ = emitter.local
        with pytest.raises(ValueError, match="local"):
            _ = emitter.to("a").local


# Rule 2: what operators do


@pytest.mark.parametrize("url", [URL, "faulty://hub?partitions=4"])
@pytest.mark.parametrize("secret", [None, "a secret of the tests"])
@virtual
async def test_emits_and_moves_of_one_emitter_are_in_the_order_of_the_calls(url: str, secret: str | None) -> None:
    async with Cluster(url=url, secret=secret) as cluster:
        one, two = await cluster.node(), await cluster.node()
        near, far = await one.client("a"), await two.client("a")
        async with Emitter(url, secret=secret) as emitter:
            await emitter.emit("n", 0)
            await emitter.to("a").emit("n", 1)
            await emitter.to(near.sid, far.sid).emit("n", 2)
            assert await emitter.to("a").sockets_join("b") == 2
            await emitter.to("b").except_(far.sid).emit("n", 3)
            await emitter.to("b", "a").emit("n", 4)
            assert await emitter.to(near.sid).sockets_leave("b") == 1
            await emitter.to("b").emit("n", 5)
            await asyncio.sleep(0.1)
        assert numbers(near) == [0, 1, 2, 3, 4]
        assert numbers(far) == [0, 1, 2, 4, 5]


@virtual
async def test_an_emit_that_nobody_confirms_ends_at_emit_timeout_and_may_still_arrive() -> None:
    async with Cluster() as cluster:
        one = await cluster.node()
        client = await one.client("a")
        async with Emitter(URL, emit_timeout=2.0) as emitter:
            link(emitter).stall()
            began = now()
            with pytest.raises(PublishUnconfirmed):
                await emitter.to("a").emit("n", 0)
            assert now() - began == pytest.approx(2.0)
            link(emitter).stall(stalled=False)
            await emitter.to("a").emit("n", 1)
            await asyncio.sleep(0.1)
            assert numbers(client) == [0, 1]


@virtual
async def test_without_confirm_an_emit_does_not_wait_and_aclose_flushes() -> None:
    async with Cluster() as cluster:
        client = await (await cluster.node()).client("a")
        async with Emitter(URL, confirm=False) as emitter:
            began = now()
            for number in range(100):
                await emitter.to("a").emit("n", number)
            assert now() == began
        await asyncio.sleep(LATENCY)
        assert numbers(client) == list(range(100))


@virtual
async def test_a_volatile_event_does_not_wait_for_the_link() -> None:
    async with Cluster() as cluster:
        client = await (await cluster.node()).client("a")
        async with Emitter(URL) as emitter:
            await emitter.to("a").volatile.emit("n", 0)
            link(emitter).lose_link()
            await asyncio.sleep(0.1)
            await emitter.to("a").volatile.emit("n", 1)
            assert await emitter.to("a").volatile.timeout(1).emit_with_ack("n", 2) == []
            link(emitter).restore_link()
            await asyncio.sleep(2)
            await emitter.to("a").volatile.emit("n", 3)
            await asyncio.sleep(0.1)
            assert numbers(client) == [0, 3]
            assert emitter.stats()["volatile_dropped"] == 2


# Rule 4: a life


@virtual
async def test_an_unreachable_broker_is_told_at_the_start_which_can_be_repeated() -> None:
    async with Cluster() as cluster:
        node = await cluster.node()
        emitter = Emitter(URL)
        link(emitter).unreachable = True
        with pytest.raises(BrokerUnavailable):
            await emitter.start()
        assert not emitter.health()
        await emitter.start()
        await emitter.start()
        assert [info.id for info in await emitter.nodes()] == [node.id]
        await emitter.aclose()


@virtual
async def test_before_the_start_and_after_the_close_every_verb_says_so_at_once() -> None:
    async with Cluster():
        emitter = Emitter(URL)
        everyone = emitter.to("a")
        verbs: list[Callable[[], Awaitable[object]]] = [
            lambda: emitter.emit("n", 0),
            lambda: everyone.emit("n", 0),
            lambda: everyone.volatile.emit("n", 0),
            lambda: everyone.emit_with_ack("ask"),
            everyone.fetch_sockets,
            everyone.count,
            emitter.all_rooms,
            emitter.nodes,
            lambda: everyone.sockets_join("b"),
            everyone.disconnect_sockets,
            lambda: emitter.server_side_emit("ask"),
            lambda: emitter.server_side_emit_with_ack("ask"),
        ]
        began = now()
        for verb in verbs:
            with pytest.raises(BrokerUnavailable, match="not started"):
                await verb()
        await emitter.start()
        await emitter.aclose()
        await emitter.aclose()
        for verb in (*verbs, emitter.start):
            with pytest.raises(BrokerClosed):
                await verb()
        assert now() - began < 0.1


@virtual
async def test_after_an_outage_an_emitter_works_again_by_itself_and_knows_who_is_there() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        near, far = await one.client("a"), await two.client("a")
        async with Emitter(URL, emit_timeout=1.0) as emitter:
            gaps: list[str] = []

            @emitter.on_gap
            def told(gap: Gap) -> None:
                gaps.append(gap.reason)

            assert await emitter.count("a") == 2
            link(emitter).lose_link()
            await asyncio.sleep(0.1)
            assert not emitter.health()
            with pytest.raises(PublishUnconfirmed):
                await emitter.to("a").emit("n", 0)
            with pytest.raises(RequestTimeout) as raised:
                await emitter.to("a").timeout(1).count()
            assert raised.value.missing == {one.id, two.id}
            await two.adapter.aclose()
            three = await cluster.node()
            await three.client("a")
            await asyncio.sleep(20)
            link(emitter).restore_link()
            await asyncio.sleep(0.1)
            assert emitter.health()
            await emitter.to("a").emit("n", 1)
            assert numbers(near) == [0, 1], "what waited for the link came first"
            await asyncio.sleep(12)
            assert await emitter.count("a") == 2, "one node went meanwhile, another one came"
            assert numbers(far) == []
            assert gaps == ["disconnected", "reconnected"]


@virtual
async def test_closing_without_a_link_does_not_wait_for_it_and_tells_what_is_given_up() -> None:
    async with Cluster():
        emitter = Emitter(URL, confirm=False)
        gaps: list[Gap] = []
        emitter.on_gap(gaps.append)
        await emitter.start()
        link(emitter).lose_link()
        await asyncio.sleep(0.01)
        await emitter.to("a").emit("n", 0)
        began = now()
        await emitter.aclose()
        assert now() - began < 0.1
        assert [gap.missed for gap in gaps if gap.reason == "given_up"] == [1]


# Peers that die


@virtual
async def test_a_node_that_dies_while_it_is_asked_is_dropped_and_what_the_others_say_is_kept() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        await one.client("a")
        await two.client("a", "b")
        async with Emitter(URL, request_timeout=60.0) as emitter:
            assert await emitter.count("a") == 2
            two.broker.lose_link()
            began = now()
            counted, acked = await asyncio.gather(
                emitter.count("a"), emitter.to("b").timeout(60).emit_with_ack("ask"), return_exceptions=True
            )
            assert (counted, acked) == (1, [])
            assert 5 < now() - began < 12, "as soon as it is known to be lost"


@virtual
async def test_a_node_that_says_bye_while_it_is_asked_is_not_waited_for() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        asked = asyncio.Event()

        async def never() -> None:
            asked.set()
            await asyncio.Event().wait()

        one.adapter.on("ask", lambda: "here")
        two.adapter.on("ask", never)
        async with Emitter(URL) as emitter:
            question = asyncio.ensure_future(emitter.server_side_emit_with_ack("ask"))
            await asked.wait()
            began = now()
            await two.adapter.aclose()
            answers = await question
            assert {node: answer.value for node, answer in answers.items()} == {one.id: "here"}
            assert now() - began < 1


@virtual
async def test_a_node_that_does_not_answer_in_time_is_named_with_what_the_others_said() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        near, _far = await one.client("a"), await two.client("a")
        async with Emitter(URL) as emitter:
            await emitter.nodes()
            two.broker.lose_link()
            began = now()
            with pytest.raises(RequestTimeout) as raised:
                await emitter.to("a").timeout(2).fetch_sockets()
            assert now() - began == pytest.approx(2.0)
            assert raised.value.missing == {two.id}
            assert {node: [one.sid for one in found] for node, found in raised.value.replies.items()} == {
                one.id: [near.sid]
            }
