"""Asking all nodes while some of them die, leave, join, stop or answer twice: who is waited for, and what is left."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from roomcast.core.errors import BrokerClosed, RequestTimeout
from roomcast.core.messages import CountClients, More, Reply
from tests.cluster.faulty import LATENCY
from tests.cluster.harness import Cluster, SimClient, SimNode, hold_up, numbers, virtual

SMALL = 4096
"""The smallest max_payload."""


def under_way(node: SimNode) -> int:
    """What a node remembers of requests, its own and those of others."""
    adapter: Any = node.adapter
    asked = len(adapter._surveys) + len(adapter._surveys._requests) + len(adapter._broadcast.acks)
    return asked + len(adapter._answers._parts)


def nothing_is_left(cluster: Cluster) -> bool:
    return not any(under_way(node) for node in cluster.nodes)


def strays(node: SimNode) -> int:
    return int(node.adapter.stats()["stray_replies"])


def now() -> float:
    return asyncio.get_running_loop().time()


def heard(node: SimNode, kind: type[Any]) -> list[tuple[str, Any]]:
    """The messages of one kind that a node handles from now on, with their origins."""
    handled: list[tuple[str, Any]] = []
    handle = node.core.handlers[kind]

    def note(origin: str, message: Any) -> None:
        handled.append((origin, message))
        handle(origin, message)

    node.core.handlers[kind] = note
    return handled


async def three(cluster: Cluster) -> tuple[SimNode, SimNode, SimNode]:
    """Three nodes with one, two and three clients."""
    nodes = [await cluster.node() for _ in range(3)]
    for clients, node in enumerate(nodes, start=1):
        for _ in range(clients):
            await node.client("red")
    await asyncio.gather(*(node.core.met() for node in nodes))
    return nodes[0], nodes[1], nodes[2]


async def two_nodes(cluster: Cluster) -> tuple[SimNode, SimNode]:
    """Two nodes that have met, without clients."""
    one, two = await cluster.node(), await cluster.node()
    await asyncio.gather(one.core.met(), two.core.met())
    return one, two


async def full(node: SimNode, clients: int, room: str = "red") -> list[SimClient]:
    """Clients, three of which fill a message of the smallest size."""
    made = [await node.client(room) for _ in range(clients)]
    for number, client in enumerate(made):
        await node.server.save_session(client.sid, {"number": number, "text": "x" * 1000})
    return made


# Rule 1: "A survey asks the nodes that were alive when it began. One that dies is no longer waited for, and what it had
# answered is kept; one that joins is not waited for."


@virtual
async def test_rule_1_every_node_answers() -> None:
    async with Cluster() as cluster:
        one, two, _three = await three(cluster)
        assert await one.adapter.count() == await two.adapter.to("red").count() == 6
        assert await one.adapter.all_rooms() == {"red": 6}
        assert await two.adapter.count(namespace="/nobody") == 0
        assert len(await one.adapter.fetch_sockets()) == 6
        assert nothing_is_left(cluster)


@virtual
async def test_rule_1_a_node_that_dies_is_not_waited_for() -> None:
    async with Cluster() as cluster:
        one, _two, dead = await three(cluster)
        dead.broker.stall()
        before = now()
        assert await one.adapter.timeout(60).namespace("/").count() == 3
        assert 5 < now() - before < 16, "it was waited for until it was lost"
        assert nothing_is_left(cluster)
        dead.broker.stall(stalled=False)
        await asyncio.sleep(1)
        assert strays(one) == 1, "its answer comes all the same, too late"
        assert nothing_is_left(cluster)


@virtual
async def test_rule_1_a_node_that_says_bye_is_not_waited_for() -> None:
    async with Cluster() as cluster:
        one, _two, leaving = await three(cluster)
        hangs = asyncio.Event()

        async def disconnected(_sid: str, *_reason: object) -> None:
            await hangs.wait()

        leaving.server.on("disconnect", disconnected)
        before = now()
        survey = asyncio.ensure_future(one.adapter.disconnect_sockets())
        await asyncio.sleep(1)
        assert not survey.done()
        await leaving.adapter.aclose()
        assert await survey == 3
        assert now() - before < 3
        assert nothing_is_left(cluster)


@virtual
async def test_rule_1_a_node_that_joins_is_not_waited_for() -> None:
    async with Cluster() as cluster:
        one, _two, slow = await three(cluster)
        slow.broker.delay(1.0)
        asked = heard(slow, CountClients)
        survey = asyncio.ensure_future(one.adapter.count())
        await asyncio.sleep(0)
        late = await cluster.node()
        late.broker.stall()
        assert await survey == 6
        assert len(asked) == 1
        late.broker.stall(stalled=False)


@virtual
async def test_rule_1_what_a_node_answered_before_it_died_is_kept() -> None:
    async with Cluster(max_payload=SMALL) as cluster:
        one, two = await two_nodes(cluster)
        far = await full(two, 9)
        found: list[str] = []
        async with aclosing(one.adapter.timeout(60).iter_sockets()) as sockets:
            async for socket in sockets:
                found.append(socket.sid)
                two.broker.stall()
        assert 0 < len(found) < 9
        assert found == [client.sid for client in far][: len(found)]
        assert under_way(one) == 0
        two.broker.stall(stalled=False)


@virtual
async def test_a_node_that_does_not_answer_is_named_and_the_others_answers_are_kept() -> None:
    async with Cluster() as cluster:
        one, two, silent = await three(cluster)
        silent.broker.stall()
        before = now()
        with pytest.raises(RequestTimeout, match=silent.id) as raised:
            await one.adapter.timeout(2).to("red").count()
        assert now() - before == pytest.approx(2.0)
        assert raised.value.replies == {one.id: 1, two.id: 2}
        assert raised.value.missing == {silent.id}
        with pytest.raises(RequestTimeout) as raised:
            await one.adapter.timeout(2).fetch_sockets()
        assert {node: len(found) for node, found in raised.value.replies.items()} == {two.id: 2}
        assert raised.value.missing == {silent.id}
        assert nothing_is_left(cluster)


REQUESTS: dict[str, Callable[[SimNode], Any]] = {
    "count": lambda node: node.adapter.timeout(2).to("red").count(),
    "fetch_sockets": lambda node: node.adapter.timeout(2).fetch_sockets(),
    "sockets_join": lambda node: node.adapter.timeout(2).sockets_join("blue"),
    "sockets_leave": lambda node: node.adapter.timeout(2).sockets_leave("red"),
    "emit_with_ack": lambda node: node.adapter.timeout(2).emit_with_ack("ask"),
    "server_side_emit_with_ack": lambda node: node.adapter.server_side_emit_with_ack("ask", timeout=2),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
@virtual
async def test_nothing_grows_when_answers_never_come(request_: Callable[[SimNode], Any]) -> None:
    async with Cluster() as cluster:
        one, _two, silent = await three(cluster)
        silent.broker.stall()
        outcomes = await asyncio.gather(*(request_(one) for _ in range(20)), return_exceptions=True)
        assert all(isinstance(outcome, RequestTimeout) for outcome in outcomes), outcomes
        assert under_way(one) == 0


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
@virtual
async def test_nothing_is_left_of_a_caller_who_does_not_wait(request_: Callable[[SimNode], Any]) -> None:
    async with Cluster() as cluster:
        one, _two, silent = await three(cluster)
        silent.broker.stall()
        calls = [asyncio.ensure_future(request_(one)) for _ in range(5)]
        await asyncio.sleep(0.5)
        assert under_way(one) > 0
        for call in calls:
            call.cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes
        assert under_way(one) == 0
        silent.broker.stall(stalled=False)
        await asyncio.sleep(1)
        assert nothing_is_left(cluster)


@virtual
async def test_late_repeated_and_unasked_replies_are_counted_and_change_nothing() -> None:
    async with Cluster() as cluster:
        one, two, slow = await three(cluster)
        slow.broker.delay(1.0)
        asked = heard(two, CountClients)
        survey = asyncio.ensure_future(one.adapter.count())
        await asyncio.sleep(0.1)
        number = asked[0][1].request
        two.core.answer(one.id, Reply(number, 1000))  # once more
        two.core.answer(one.id, Reply(number, 1000, more=True))
        two.core.answer(one.id, Reply(number + 1, 1000))  # to nothing
        await asyncio.sleep(0.1)
        assert (strays(one), survey.done()) == (3, False)
        assert await survey == 6
        slow.core.answer(one.id, Reply(number, 1000))  # too late
        await asyncio.sleep(0.1)
        assert strays(one) == 4
        assert nothing_is_left(cluster)


# Rule 2: "What this node does itself for the same request happens right after the request took its place in the outbox,
# without suspending: so both are in order with everything this node emits."


@virtual
async def test_rule_2_a_request_is_in_order_with_the_emits_around_it_on_every_node() -> None:
    async with Cluster() as cluster:
        one, two, _three = await three(cluster)
        await asyncio.gather(
            one.server.emit("n", 0, room="red"),
            one.adapter.sockets_leave("red"),
            one.server.emit("n", 1, room="red"),
            one.adapter.sockets_join("red"),
            one.server.emit("n", 2),
            one.adapter.sockets_leave("red"),
            one.server.emit("n", 3, room="red"),
        )
        await asyncio.sleep(0.1)
        for node in cluster.nodes:
            for client in node.clients:
                assert numbers(client) == [0, 2]
        assert await two.adapter.count("red") == 0


@virtual
async def test_rule_2_a_request_that_could_not_be_sent_is_not_done_here_either() -> None:
    async with Cluster(outbox_messages=1, emit_timeout=1.0) as cluster:
        one, _two, _three = await three(cluster)
        one.broker.stall()
        await one.server.emit("n", 0)
        with pytest.raises(Exception, match="outbox"):
            await one.adapter.sockets_leave("red")
        assert await one.adapter.local.to("red").count() == 1
        assert under_way(one) == 0


# Rule 3: "Nothing is left behind when the caller stops: the request is forgotten, and who was in the middle of an
# answer is told."


@virtual
async def test_a_long_answer_comes_in_parts() -> None:
    async with Cluster(max_payload=SMALL) as cluster:
        one, two = await two_nodes(cluster)
        near, far = await full(one, 7), await full(two, 20)
        asked_on = heard(two, More)
        sockets = await one.adapter.fetch_sockets()
        assert {socket.sid for socket in sockets} == {client.sid for client in (*near, *far)}
        assert all(len(socket.data["text"]) == 1000 and socket.omitted == () for socket in sockets)
        assert 5 <= len(asked_on) <= 20
        assert nothing_is_left(cluster)
        assert strays(one) == 0


@virtual
async def test_a_slow_consumer_is_sent_no_more_than_it_takes() -> None:
    async with Cluster(max_payload=SMALL) as cluster:
        one, two = await two_nodes(cluster)
        await full(two, 30)
        replies = heard(one, Reply)
        taken = 0
        async with aclosing(one.adapter.iter_sockets()) as sockets:
            async for _socket in sockets:
                taken += 1
                await asyncio.sleep(0.5)
                sent = sum(reply.value for _, reply in replies)
                assert sent <= taken + 2 * 4, "the part that is being read, and the one that was asked for"
        assert taken == 30
        assert nothing_is_left(cluster)


@virtual
async def test_rule_3_who_was_in_the_middle_of_an_answer_is_told_that_nobody_wants_the_rest() -> None:
    async with Cluster(max_payload=SMALL) as cluster:
        one, two, other = [await cluster.node() for _ in range(3)]
        await full(two, 9)
        await full(other, 9)
        async with aclosing(one.adapter.iter_sockets()) as sockets:
            await anext(sockets)
            await asyncio.sleep(0.1)
            assert under_way(two) + under_way(other) == 2
        assert under_way(one) == 0
        await asyncio.sleep(0.1)
        assert nothing_is_left(cluster)


@virtual
async def test_rule_3_a_loop_that_breaks_off_leaves_nothing_either() -> None:
    async with Cluster(max_payload=SMALL) as cluster:
        one, two = await two_nodes(cluster)
        await full(two, 9)
        async for _socket in one.adapter.iter_sockets():
            break
        await asyncio.sleep(0.1)
        assert nothing_is_left(cluster)


@virtual
async def test_a_node_that_stops_in_the_middle_of_its_answer_is_missing_and_what_came_is_kept() -> None:
    async with Cluster(max_payload=SMALL) as cluster:
        one, two = await two_nodes(cluster)
        await full(two, 9)
        parts = heard(one, Reply)
        fetch = asyncio.ensure_future(one.adapter.timeout(2).fetch_sockets())
        await asyncio.sleep(5 * LATENCY)  # there and back, and once more there
        assert parts
        two.broker.stall()
        with pytest.raises(RequestTimeout, match=two.id) as raised:
            await fetch
        assert raised.value.missing == {two.id}
        assert 0 < len(raised.value.replies[two.id]) < 9
        assert under_way(one) == 0
        two.broker.stall(stalled=False)
        await asyncio.sleep(1)
        assert nothing_is_left(cluster)


@virtual
async def test_each_part_of_an_answer_has_the_whole_timeout() -> None:
    async with Cluster(max_payload=SMALL) as cluster:
        one, two = await two_nodes(cluster)
        await full(two, 12)
        two.broker.delay(1.5, deliveries=100)
        assert len(await one.adapter.timeout(2).fetch_sockets()) == 12


@virtual
async def test_an_answer_whose_asker_died_is_forgotten() -> None:
    async with Cluster(max_payload=SMALL) as cluster:
        one, two = await two_nodes(cluster)
        await full(two, 9)
        async with aclosing(one.adapter.iter_sockets()) as sockets:
            await anext(sockets)
            await asyncio.sleep(0.1)
            one.broker.stall()
            await asyncio.sleep(5)
            assert under_way(two) == 1
            await asyncio.sleep(11)
            assert under_way(two) == 0
        one.broker.stall(stalled=False)


@virtual
async def test_an_answer_that_nobody_asks_on_for_is_forgotten_and_who_asks_then_is_told() -> None:
    async with Cluster(max_payload=SMALL) as cluster:
        one, two = await two_nodes(cluster)
        await full(two, 30)
        found = 0
        async with aclosing(one.adapter.iter_sockets()) as sockets:
            await anext(sockets)
            await asyncio.sleep(115)
            assert under_way(two) == 1
            await asyncio.sleep(15)
            assert under_way(two) == 0
            before = now()
            with pytest.raises(RequestTimeout, match="given up") as raised:  # noqa: PT012 - some are there already
                async for _socket in sockets:
                    found += 1
        assert 0 < found < 10
        assert raised.value.missing == {two.id}
        assert now() - before < 1
        assert nothing_is_left(cluster)


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
@virtual
async def test_a_node_that_closes_ends_what_it_asks(request_: Callable[[SimNode], Any]) -> None:
    async with Cluster() as cluster:
        one, _two, silent = await three(cluster)
        silent.broker.stall()
        call = asyncio.ensure_future(request_(one))
        await asyncio.sleep(0.5)
        assert not call.done()
        before = now()
        await one.adapter.aclose()
        with pytest.raises(BrokerClosed):
            await call
        assert now() - before < 1
        assert under_way(one) == 0
        with pytest.raises(BrokerClosed):
            await request_(one)
        silent.broker.stall(stalled=False)
        await asyncio.sleep(1)
        assert nothing_is_left(cluster)


@virtual
async def test_a_node_that_closes_in_the_middle_of_an_answer_is_told_so() -> None:
    async with Cluster(max_payload=SMALL) as cluster:
        one, two = await two_nodes(cluster)
        await full(two, 9)
        async with aclosing(one.adapter.iter_sockets()) as sockets:
            await anext(sockets)
            await one.adapter.aclose()
            with pytest.raises(BrokerClosed):
                async for _socket in sockets:
                    pass
        await asyncio.sleep(0.1)
        assert nothing_is_left(cluster)


@virtual
async def test_a_local_request_asks_nobody() -> None:
    async with Cluster() as cluster:
        one, two, silent = await three(cluster)
        two.broker.stall()
        silent.broker.stall()
        before, published = now(), one.broker.published
        local = one.adapter.local
        assert await local.count() == 1
        assert len(await local.fetch_sockets()) == 1
        assert await local.sockets_join("blue") == 1
        assert await local.sockets_leave("blue") == 1
        assert now() - before < 0.1
        assert one.broker.published == published
        for node in (two, silent):
            node.broker.stall(stalled=False)


@virtual
async def test_a_sid_asks_its_node_alone() -> None:
    async with Cluster() as cluster:
        one, two, silent = await three(cluster)
        silent.broker.stall()
        far = two.clients[0].sid
        assert await one.adapter.to(far).count() == 1
        assert [socket.sid for socket in await one.adapter.to(far).fetch_sockets()] == [far]
        assert await one.adapter.to(one.clients[0].sid).count() == 1
        silent.broker.stall(stalled=False)


# Rule 4: "A reply that is here when the deadline is noticed has come in time: a process that was held up blames
# nobody."


async def present(node: SimNode) -> dict[str, str]:
    async with node.adapter.presence("red") as watch:
        return dict(watch.present)


AT_THE_DEADLINE: dict[str, Callable[[SimNode], Any]] = {
    "count": lambda node: node.adapter.count(),
    "fetch_sockets": lambda node: node.adapter.fetch_sockets(),
    "presence": present,
}


@pytest.mark.parametrize("request_", AT_THE_DEADLINE.values(), ids=AT_THE_DEADLINE.keys())
@virtual
async def test_rule_4_what_is_here_when_the_deadline_is_noticed_has_come_in_time(
    request_: Callable[[SimNode], Any],
) -> None:
    async with Cluster(request_timeout=1.0) as cluster:
        one, two = await two_nodes(cluster)
        await two.client("red")
        asking = asyncio.ensure_future(request_(one))
        two.broker.delay(0.5)
        await asyncio.sleep(0.5 + 3.5 * LATENCY)  # the answer is on its way from the hub
        assert not asking.done()
        hold_up(3.0)
        answer = await asking
        assert answer == 1 or len(answer) == 1
        assert nothing_is_left(cluster)


@virtual
async def test_rule_4_an_acknowledgement_that_is_here_when_the_deadline_is_noticed_has_come_in_time() -> None:
    async with Cluster(request_timeout=1.0) as cluster:
        one, two = await two_nodes(cluster)
        client = await two.client("red")
        asking = asyncio.ensure_future(one.adapter.emit_with_ack("ask"))
        await asyncio.sleep(0.5)
        await client.ack(client.acks_wanted[0], '["yes"]')
        await asyncio.sleep(1.5 * LATENCY)  # it is on its way from the hub
        assert not asking.done()
        hold_up(3.0)
        assert [answer.value for answer in await asking] == ["yes"]
        assert nothing_is_left(cluster)
