"""Who is there: nodes that come, beat, leave and are lost; guests, who are nobody; and when all have been met."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from roomcast.core.broker import Subject
from roomcast.core.errors import BrokerClosed, BrokerUnavailable, WireError
from roomcast.core.membership import VERSION, NodeInfo
from roomcast.core.messages import Bye, Census, Heartbeat, Hello, Message, encode_message
from roomcast.core.node import Node
from roomcast.core.options import options
from roomcast.core.wire import Envelope
from tests.cluster.faulty import LATENCY
from tests.cluster.harness import Cluster, SimNode, virtual

STRANGER = "strngr"


def now() -> float:
    return asyncio.get_running_loop().time()


async def ids(node: SimNode) -> list[str]:
    return [info.id for info in await node.adapter.nodes()]


def told(node: SimNode) -> list[tuple[str, ...]]:
    """What a node's application is told from now on of who comes and goes."""
    heard: list[tuple[str, ...]] = []

    @node.adapter.on("node_joined")
    def joined(info: NodeInfo) -> None:
        heard.append(("joined", info.id))

    @node.adapter.on("node_left")
    def left(info: NodeInfo, why: str) -> None:
        heard.append((why, info.id))

    return heard


def said(node: Node) -> list[tuple[Subject, Message]]:
    """What a node publishes from now on."""
    broker: Any = node._broker  # pyright: ignore[reportPrivateUsage]
    publish, messages = broker.publish, list[tuple[Subject, Message]]()

    def note(subject: Subject, payload: bytes, /) -> Any:
        envelope = node.wire.open(subject, payload, 0)
        messages.extend((subject, one) for one in envelope.messages if not isinstance(one, WireError))
        return publish(subject, payload)

    broker.publish = note
    return messages


def hear(node: SimNode, message: Message, origin: str = STRANGER) -> None:
    """A message of a stranger arrives at all nodes."""
    subject = node.core.subjects.control
    envelope = Envelope(origin, 1, 0, 1, [msgspec.Raw(encode_message(message))])
    node.hub.route(None, subject, node.core.wire.seal(subject, envelope))


@asynccontextmanager
async def guest(**settings: Any) -> AsyncGenerator[Node]:
    """A guest on the hub of the cluster."""
    node = Node("faulty://hub", options(settings), guest=True)
    try:
        yield node
    finally:
        await node.aclose()


# Rule 1: "A node says hello to all when it starts and when its link is back; each hearer answers with its own hello,
# which names the nodes it knows. It says a heartbeat in each period, and bye at the end."


@virtual
async def test_rule_1_every_node_knows_every_other_one_the_oldest_first() -> None:
    async with Cluster() as cluster:
        nodes = [await cluster.node() for _ in range(4)]
        for node in nodes:
            assert await ids(node) == [other.id for other in nodes]
            assert await node.adapter.server_count() == 4


@virtual
async def test_rule_1_a_node_says_hello_beats_and_says_bye() -> None:
    async with Cluster(heartbeat=2.0) as cluster:
        other = await cluster.node()
        one = cluster.make()
        messages = said(one.core)
        await one.adapter.start()
        await one.client("red", "blue")
        await asyncio.sleep(4.5)
        await one.adapter.aclose()
        control = [message for subject, message in messages if subject == one.core.subjects.control]
        first, *beats, last = control
        assert isinstance(first, Hello)
        assert (first.answer, first.peers, first.version) == (True, (), VERSION)
        assert beats == [Heartbeat(1, 2), Heartbeat(1, 2)]
        assert last == Bye()
        assert await ids(other) == [other.id]


@virtual
async def test_rule_1_bye_is_its_last_word_whatever_it_hears_meanwhile() -> None:
    """A hello after the bye would make it a peer again, until it is taken for lost."""
    async with Cluster(heartbeat=0.5) as cluster:
        one, two = await cluster.node(), await cluster.node()
        messages = said(one.core)
        heard = told(two)
        one.broker.stall()  # so that its bye takes a while
        closing = asyncio.ensure_future(one.adapter.aclose())
        await asyncio.sleep(0.1)
        assert messages[-1][1] == Bye()
        hear(one, Hello(name="new", started=0.0, partitions=0, heartbeat=5.0, answer=True))
        hear(one, Heartbeat(0), origin="other1")
        hear(one, Census(), origin="guest1")
        await asyncio.sleep(0.6)  # a period of its own heartbeat
        assert not closing.done()
        one.broker.stall(stalled=False)
        await closing
        assert messages[-1][1] == Bye()
        await asyncio.sleep(5)
        assert [word for word in heard if word[1] == one.id] == [("bye", one.id)]


@virtual
async def test_rule_1_each_hearer_answers_with_whom_it_knows() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        messages = said(one.core)
        three = await cluster.node()
        (answer,) = [message for subject, message in messages if subject == one.core.subjects.inbox(three.id)]
        assert isinstance(answer, Hello)
        assert not answer.answer
        assert set(answer.peers) >= {two.id}


@virtual
async def test_what_is_known_of_a_node() -> None:
    async with Cluster(heartbeat=2.0) as cluster:
        one, two = await cluster.node(name="one"), await cluster.node(name="two")
        await two.client("red", "blue")
        await two.client("red")
        (own,) = [info for info in await two.adapter.nodes() if info.id == two.id]
        assert (own.name, own.clients, own.rooms, own.version) == ("two", 2, 2, VERSION)
        (before,) = [info for info in await one.adapter.nodes() if info.id == two.id]
        assert (before.name, before.clients, before.rooms) == ("two", 0, 0), "at its last heartbeat"
        await asyncio.sleep(2.5)
        (after,) = [info for info in await one.adapter.nodes() if info.id == two.id]
        assert (after.clients, after.rooms, after.started, after.version) == (2, 2, own.started, VERSION)
        assert 1.4 < after.last_heartbeat - before.last_heartbeat < 2.6
        await asyncio.sleep(0.2)
        (still,) = [info for info in await one.adapter.nodes() if info.id == two.id]
        assert abs(still.last_heartbeat - after.last_heartbeat) < 0.01, "nothing was heard since"
        (own,) = [info for info in await one.adapter.nodes() if info.id == one.id]
        assert 0 <= own.last_heartbeat - after.last_heartbeat < 2.1, "on one clock"


@virtual
async def test_each_node_is_told_once_who_comes_and_why_who_went() -> None:
    async with Cluster() as cluster:
        one = await cluster.node()
        heard = told(one)
        two = await cluster.node()
        three = cluster.make()
        heard_by_three = told(three)
        await three.adapter.start()
        await asyncio.sleep(20)
        assert heard == [("joined", two.id), ("joined", three.id)]
        assert sorted(heard_by_three) == sorted([("joined", one.id), ("joined", two.id)])
        await two.adapter.aclose()
        await asyncio.sleep(0.1)
        assert heard[2:] == [("bye", two.id)]
        three.broker.stall()
        await asyncio.sleep(16)
        assert heard[3:] == [("lost", three.id)]
        assert await ids(one) == [one.id]
        three.broker.stall(stalled=False)
        await asyncio.sleep(6)
        assert heard[4:] == [("joined", three.id)], "it was not dead after all"


@virtual
async def test_who_leaves_is_told_as_it_was() -> None:
    async with Cluster(heartbeat=2.0) as cluster:
        one, two = await cluster.node(), await cluster.node(name="the one that leaves")
        await two.client("red")
        await asyncio.sleep(3)
        infos: list[NodeInfo] = []

        @one.adapter.on("node_left")
        def left(info: NodeInfo, _why: str) -> None:
            infos.append(info)

        await two.adapter.aclose()
        await asyncio.sleep(0.1)
        (info,) = infos
        assert (info.id, info.name, info.clients, info.rooms) == (two.id, "the one that leaves", 1, 1)


@virtual
async def test_rule_1_a_link_that_is_back_says_hello_again_and_nobody_joins_twice() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        heard = told(two)
        messages = said(one.core)
        cluster.lose_links(one)
        await asyncio.sleep(2)
        cluster.restore_links(one)
        await asyncio.sleep(2)
        assert [type(message) for subject, message in messages if subject == one.core.subjects.control][:1] == [Hello]
        assert heard == []
        assert await ids(one) == await ids(two) == [one.id, two.id]


@virtual
async def test_nobody_is_lost_by_this_nodes_own_deafness() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        heard = told(one)
        cluster.lose_links(one)
        await asyncio.sleep(30)
        assert await ids(one) == [one.id, two.id]
        cluster.restore_links(one)
        await asyncio.sleep(5)
        assert heard == []


@virtual
async def test_a_node_that_was_not_heard_to_say_hello_is_asked_to() -> None:
    async with Cluster() as cluster:
        one = await cluster.node()
        one.broker.lose(2)  # the hello of the next one, and its answer to ours
        two = await cluster.node()
        assert two.id not in one.core.peers
        await asyncio.sleep(6)
        assert await ids(one) == await ids(two) == [one.id, two.id]


# Rule 2: "A guest hears the same and says none of it: it asks who is there, and is counted as a node by nobody."


@virtual
async def test_rule_2_a_guest_knows_all_nodes_and_none_knows_it() -> None:
    async with Cluster(heartbeat=2.0) as cluster, guest(heartbeat=2.0) as one, guest() as other:
        nodes = [await cluster.node() for _ in range(3)]
        heard = told(nodes[0])
        messages = said(one)
        await one.start()
        await other.start()
        await asyncio.gather(one.met(), other.met())
        for visitor in (one, other):
            assert [info.id for info in visitor.membership.nodes()] == [node.id for node in nodes]
        await asyncio.sleep(20)
        for node in nodes:
            assert await ids(node) == [each.id for each in nodes]
            assert node.adapter.stats()["refused"] == {}
        await one.aclose()
        assert {type(message) for _, message in messages} == {Census}
        assert heard == []


@virtual
async def test_rule_2_a_guest_hears_who_comes_and_goes() -> None:
    async with Cluster() as cluster, guest() as visitor:
        one = await cluster.node()
        await visitor.start()
        await visitor.met()
        two = await cluster.node()
        assert visitor.peers.ids == {one.id, two.id}
        await one.adapter.aclose()
        two.broker.stall()
        await asyncio.sleep(16)
        assert visitor.peers.ids == frozenset()
        two.broker.stall(stalled=False)
        await asyncio.sleep(6)
        assert visitor.peers.ids == {two.id}


@virtual
async def test_rule_2_a_guest_asks_again_when_its_link_is_back() -> None:
    async with Cluster() as cluster, guest() as visitor:
        one = await cluster.node()
        await visitor.start()
        await visitor.met()
        broker: Any = visitor._broker  # pyright: ignore[reportPrivateUsage]
        broker.lose_link()
        two = await cluster.node()
        await asyncio.sleep(2)
        broker.restore_link()
        await asyncio.sleep(0.1)
        assert visitor.peers.ids == {one.id, two.id}


@virtual
async def test_a_guest_without_any_node_is_alone() -> None:
    async with Cluster(), guest() as visitor:
        await visitor.start()
        before = now()
        await visitor.met()
        assert now() - before <= 1
        assert visitor.membership.nodes() == []


# Rule 3: "`met` returns once every node that was named is known or gone, or after a second: from then on "all nodes"
# means all of them. Only one that starts at the same moment is not named: it is known once its hello is here."


@virtual
async def test_rule_3_a_newcomer_has_met_all_in_a_round_trip() -> None:
    async with Cluster() as cluster:
        for _ in range(12):
            await cluster.node()
        late = cluster.make()
        await late.adapter.start()
        before = now()
        assert await late.adapter.server_count() == 13
        assert now() - before < 20 * LATENCY


@virtual
@pytest.mark.parametrize("what", ["enters", "leaves", "is disconnected"])
async def test_rule_3_a_newcomer_moves_clients_of_nodes_that_it_has_not_met_yet(what: str) -> None:
    async with Cluster() as cluster:
        old = await cluster.node()
        client = await old.client("red")
        late = cluster.make()
        await late.adapter.start()
        assert not late.core.peers.ids
        if what == "enters":
            await late.server.enter_room(client.sid, "blue")
        elif what == "leaves":
            await late.server.leave_room(client.sid, "red")
        else:
            await late.server.disconnect(client.sid)
        await old.adapter.to("red").emit("red")
        await old.adapter.to("blue").emit("blue")
        assert client.events == {"enters": [("red",), ("blue",)], "leaves": [], "is disconnected": []}[what]


@virtual
async def test_rule_3_a_node_that_is_named_and_slow_is_waited_for() -> None:
    async with Cluster() as cluster:
        _one, _two, slow = [await cluster.node() for _ in range(3)]
        slow.broker.delay(0.5)  # until it hears the newcomer's hello
        late = cluster.make()
        await late.adapter.start()
        before = now()
        assert await late.adapter.server_count() == 4
        assert now() - before == pytest.approx(0.5, abs=0.05)


@virtual
async def test_rule_3_a_node_that_is_named_and_dead_is_waited_for_a_second() -> None:
    async with Cluster() as cluster:
        one, two, dead = [await cluster.node() for _ in range(3)]
        dead.broker.stall()
        late = cluster.make()
        await late.adapter.start()
        before = now()
        assert await ids(late) == [one.id, two.id, late.id]
        assert now() - before == pytest.approx(1.0, abs=0.05)


@virtual
async def test_rule_3_the_first_node_waits_a_second_and_then_no_more() -> None:
    async with Cluster() as cluster:
        one = cluster.make()
        await one.adapter.start()
        before = now()
        assert await ids(one) == [one.id]
        assert now() - before == pytest.approx(1.0, abs=0.05)
        assert await one.adapter.server_count() == 1
        assert now() - before == pytest.approx(1.0, abs=0.05)


@virtual
async def test_rule_3_a_node_that_is_named_and_leaves_is_not_waited_for() -> None:
    async with Cluster() as cluster:
        one, two, slow = [await cluster.node() for _ in range(3)]
        slow.broker.delay(0.5)
        late = cluster.make()
        await late.adapter.start()
        await asyncio.sleep(10 * LATENCY)
        hear(late, Bye(), slow.id)
        before = now()
        assert await ids(late) == [one.id, two.id, late.id]
        assert now() - before < 5 * LATENCY


@virtual
async def test_rule_3_a_node_that_comes_and_goes_meanwhile_does_not_end_the_waiting() -> None:
    async with Cluster() as cluster:
        slow = await cluster.node()
        slow.broker.delay(0.5)
        late = cluster.make()
        await late.adapter.start()
        hear(late, Hello("a newcomer as well", 0.0, 0, 5.0, answer=True))
        hear(late, Bye())
        assert await ids(late) == [slow.id, late.id]


@virtual
async def test_rule_3_nodes_that_start_together_all_know_all() -> None:
    async with Cluster() as cluster:
        nodes = [cluster.make() for _ in range(8)]
        await asyncio.gather(*(node.adapter.start() for node in nodes))
        counts = await asyncio.gather(*(node.adapter.server_count() for node in nodes))
        assert counts == [8] * 8


@virtual
async def test_rule_3_nodes_that_start_at_the_same_moment_may_miss_one_another_until_their_hellos_are_here() -> None:
    async with Cluster() as cluster:
        old = await cluster.node()
        together = [cluster.make() for _ in range(4)]
        late, others = together[0], together[1:]
        heard = told(late)
        for node in (old, late):  # the hellos of the others reach these two late, and what they say later with them
            node.broker.delay(0.0)  # the hello of `late`
            node.broker.delay(0.5, len(others))
        await asyncio.gather(*(node.adapter.start() for node in together))
        before = now()
        assert await late.adapter.server_count() == 2, "the old one, which answered and knew of nobody else"
        assert now() - before < 5 * LATENCY
        assert late.core.peers.ids == {old.id}
        await asyncio.sleep(0.5)
        assert sorted(heard) == sorted(("joined", node.id) for node in (old, *others))
        for node in cluster.nodes:
            assert await node.adapter.server_count() == 5


@virtual
async def test_a_node_that_has_not_joined_or_has_left_cannot_ask_who_is_there() -> None:
    async with Cluster() as cluster:
        one = cluster.make()
        with pytest.raises(BrokerUnavailable, match="not started"):
            await one.adapter.nodes()
        await one.adapter.start()
        asking = asyncio.ensure_future(one.adapter.count())
        await asyncio.sleep(0.1)
        await one.adapter.aclose()
        with pytest.raises(BrokerClosed):
            await asking
        with pytest.raises(BrokerClosed):
            await one.adapter.server_count()


# Strangers


@pytest.mark.parametrize(
    "message",
    [Census(), Heartbeat(1), Hello("stranger", 0.0, 0, 5.0, answer=True)],
    ids=lambda message: type(message).__name__,
)
@virtual
async def test_a_flood_is_not_answered_by_another_one(message: Message) -> None:
    """ "once in each period of the clock" """
    async with Cluster() as cluster:
        one = await cluster.node()
        messages = said(one.core)
        for _ in range(100):
            hear(one, message)
        await asyncio.sleep(0.1)
        inbox = one.core.subjects.inbox(STRANGER)
        assert [type(message) for subject, message in messages if subject == inbox] == [Hello]


@virtual
async def test_a_flood_of_strangers_is_answered_up_to_a_bound() -> None:
    async with Cluster() as cluster:
        one = await cluster.node()
        messages = said(one.core)
        for number in range(3000):
            hear(one, Census(), f"strangr{number}")
        await asyncio.sleep(0.1)
        assert 0 < len(messages) <= 1000
        assert await one.adapter.server_count() == 1


@virtual
async def test_a_peer_that_names_nodes_without_end_is_waited_for_no_longer_than_a_second() -> None:
    async with Cluster() as cluster:
        one = cluster.make()
        await one.adapter.start()
        peers = tuple(f"ghost{number}" for number in range(1000))
        hear(one, Hello("liar", 0.0, 0, 5.0, answer=False, peers=peers))
        before = now()
        assert await one.adapter.server_count() == 2
        assert now() - before <= 1
