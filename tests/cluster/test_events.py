"""Events from server to server: who gets them, what is answered, and who may send what."""

import asyncio
import logging
from typing import Any, cast

import pytest

from roomcast import Adapter
from roomcast.core.errors import BrokerClosed, EncodeError, PayloadTooLarge, RequestTimeout
from roomcast.core.events import NodeAnswer
from roomcast.core.membership import NodeInfo
from roomcast.core.messages import ServerEvent, encode_message
from tests.cluster.harness import Cluster, SimNode, virtual

RESERVED = ["connect", "connection", "disconnect", "new_namespace", "node_joined", "node_left", "evicted"]


def now() -> float:
    return asyncio.get_running_loop().time()


async def three(cluster: Cluster) -> tuple[SimNode, SimNode, SimNode]:
    """Three nodes that have met."""
    nodes = [await cluster.node() for _ in range(3)]
    await asyncio.gather(*(node.core.met() for node in nodes))
    return nodes[0], nodes[1], nodes[2]


def hears(node: SimNode, event: str = "event") -> list[tuple[Any, ...]]:
    """What a node's handler of an event is called with from now on; it returns nothing."""
    heard: list[tuple[Any, ...]] = []

    @node.adapter.on(event)
    def handle(*args: Any) -> None:
        heard.append(args)

    return heard


def forge(sender: SimNode, event: ServerEvent) -> None:
    """A node sends an event that its own face would refuse."""
    raw = encode_message(event)
    assert sender.core.publisher.reserve_anyway(len(raw))
    sender.core.publisher.put(sender.core.subjects.control, raw)


def faults(node: SimNode) -> int:
    return int(node.adapter.stats()["faults"])


# Rule 1: "An event goes to every other node that is alive when it is sent, never to the sender itself."


@virtual
async def test_rule_1_an_event_goes_to_every_other_node_and_not_to_the_sender() -> None:
    async with Cluster() as cluster:
        one, two, other = await three(cluster)
        heard = [hears(node) for node in (one, two, other)]
        await one.adapter.server_side_emit("event", 1, [2, None], {"k": b"bytes"})
        await one.adapter.server_side_emit("event")
        await asyncio.sleep(0.1)
        assert heard == [[], [(1, [2, None], {"k": b"bytes"}), ()], [(1, [2, None], {"k": b"bytes"}), ()]]
        late = await cluster.node()
        heard_late = hears(late)
        await asyncio.sleep(1)
        assert heard_late == []


@virtual
async def test_rule_1_clients_get_nothing_of_it() -> None:
    async with Cluster() as cluster:
        one, two, _other = await three(cluster)
        client = await two.client("event")
        await one.adapter.server_side_emit("event", 1)
        await asyncio.sleep(0.1)
        assert client.events == []


@virtual
async def test_rule_1_events_arrive_in_the_order_in_which_they_were_sent_among_the_emits() -> None:
    async with Cluster() as cluster:
        one, two, _other = await three(cluster)
        client = await two.client("red")
        order: list[int] = []
        client.on_event = lambda event: order.append(event[1])
        two.adapter.on("n", order.append)
        for number in range(0, 10, 2):
            await one.adapter.server_side_emit("n", number)
            await one.server.emit("n", number + 1, room="red")
        await asyncio.sleep(0.1)
        assert [number for number in order if number % 2 == 0] == [0, 2, 4, 6, 8]
        assert [number for number in order if number % 2 == 1] == [1, 3, 5, 7, 9]


@virtual
async def test_a_node_that_is_alone_asks_nobody() -> None:
    async with Cluster() as cluster:
        one = await cluster.node()
        await one.adapter.server_side_emit("event", 1)
        assert await one.adapter.server_side_emit_with_ack("event", 1) == {}


# Rule 2: "A handler gets the event's arguments. What it returns, or what it raises, is its node's answer; a node
# without a handler says so."


@virtual
async def test_rule_2_what_a_handler_returns_is_its_nodes_answer() -> None:
    async with Cluster() as cluster:
        one, two, other = await three(cluster)

        @two.adapter.on("ask")
        async def slowly(number: int, names: list[str]) -> dict[str, Any]:
            await asyncio.sleep(1)
            return {"number": number, "names": tuple(names)}

        hears(other, "ask")
        before = now()
        answers = await one.adapter.server_side_emit_with_ack("ask", 7, ["a"])
        assert answers == {two.id: NodeAnswer({"number": 7, "names": ["a"]}), other.id: NodeAnswer(None)}
        assert now() - before == pytest.approx(1.0, abs=0.1), "done with the last answer"


@virtual
async def test_rule_2_what_a_handler_raises_is_its_nodes_answer(caplog: pytest.LogCaptureFixture) -> None:
    async with Cluster() as cluster:
        one, two, other = await three(cluster)

        @two.adapter.on("ask")
        def fails() -> None:
            raise LookupError("no such thing")

        @other.adapter.on("ask")
        async def fails_without_a_word() -> None:
            raise LookupError

        before = now()
        answers = await one.adapter.server_side_emit_with_ack("ask")
        assert now() - before < 0.1, "no timeout"
        assert answers[two.id].error == "LookupError: no such thing"
        assert answers[two.id].value is None
        assert answers[other.id].error.startswith("LookupError")
        assert (faults(one), faults(two), faults(other)) == (0, 1, 1)
        assert "no such thing" in caplog.text, "rule 3: logged on its own node"


@virtual
async def test_rule_2_a_handler_that_is_called_with_the_wrong_arguments_says_so() -> None:
    async with Cluster() as cluster:
        one, two, other = await three(cluster)
        two.adapter.on("ask", lambda: 1)
        hears(other, "ask")
        answers = await one.adapter.server_side_emit_with_ack("ask", "unexpected")
        assert answers[two.id].error.startswith("TypeError")
        assert answers[other.id] == NodeAnswer(None)


@virtual
async def test_rule_2_a_handler_that_ends_cancelled_answers_too() -> None:
    async with Cluster() as cluster:
        one, two, other = await three(cluster)
        other.adapter.on("ask", lambda: "fine")

        @two.adapter.on("ask")
        async def cancelled() -> None:
            inner = asyncio.ensure_future(asyncio.sleep(10))
            inner.cancel()
            await inner

        before = now()
        answers = await one.adapter.server_side_emit_with_ack("ask")
        assert now() - before < 0.1, "no timeout"
        assert answers[other.id] == NodeAnswer("fine")
        assert "Cancelled" in answers[two.id].error


@virtual
async def test_rule_2_a_node_without_a_handler_says_so() -> None:
    async with Cluster() as cluster:
        one, two, other = await three(cluster)
        two.adapter.on("ask", lambda: "yes")
        before = now()
        answers = await one.adapter.server_side_emit_with_ack("ask")
        assert now() - before < 0.1
        assert answers[two.id] == NodeAnswer("yes")
        assert "no handler for 'ask'" in answers[other.id].error
        assert faults(other) == 0, "that is no fault of this node"
        await one.adapter.server_side_emit("ask")
        await asyncio.sleep(0.1)
        assert faults(other) == 0


@pytest.mark.parametrize(
    "value", [object(), {1, object()}, "\ud800", 2**70, print], ids=lambda value: type(value).__name__
)
@virtual
async def test_rule_2_an_answer_that_cannot_be_serialised_is_named(value: Any) -> None:
    async with Cluster() as cluster:
        one, two, other = await three(cluster)
        two.adapter.on("ask", lambda: value)
        other.adapter.on("ask", lambda: "fine")
        answers = await one.adapter.server_side_emit_with_ack("ask")
        assert "cannot be serialised" in answers[two.id].error
        assert answers[other.id] == NodeAnswer("fine")


@virtual
async def test_rule_2_an_answer_that_is_too_large_is_named() -> None:
    async with Cluster(max_payload=4096) as cluster:
        one, two, other = await three(cluster)
        two.adapter.on("ask", lambda: "x" * 5000)
        other.adapter.on("ask", lambda: "x" * 3000)
        answers = await one.adapter.server_side_emit_with_ack("ask")
        assert "larger than a message" in answers[two.id].error
        assert answers[other.id] == NodeAnswer("x" * 3000)


@virtual
async def test_rule_2_what_is_raised_at_length_is_cut() -> None:
    async with Cluster(max_payload=4096) as cluster:
        one, two, _other = await three(cluster)

        @two.adapter.on("ask")
        def fails() -> None:
            raise ValueError("é" * 50_000)

        answers = await one.adapter.server_side_emit_with_ack("ask")
        assert answers[two.id].error.startswith("ValueError: é")
        assert len(answers[two.id].error) <= 1000


@virtual
async def test_partial_answers_are_not_thrown_away() -> None:
    """ "some did not answer in time; `replies` has the answers of the others" """
    async with Cluster() as cluster:
        one, two, slow = await three(cluster)
        two.adapter.on("ask", lambda: "fine")

        @slow.adapter.on("ask")
        async def slowly() -> None:
            await asyncio.sleep(10)

        before = now()
        with pytest.raises(RequestTimeout, match=slow.id) as raised:
            await one.adapter.server_side_emit_with_ack("ask", timeout=2)
        assert now() - before == pytest.approx(2.0)
        assert raised.value.replies == {two.id: NodeAnswer("fine")}
        assert raised.value.missing == {slow.id}
        await asyncio.sleep(10)
        assert one.adapter.stats()["stray_replies"] == 1


@virtual
async def test_a_node_that_goes_is_not_waited_for() -> None:
    async with Cluster() as cluster:
        one, two, leaving = await three(cluster)
        two.adapter.on("ask", lambda: "fine")

        @leaving.adapter.on("ask")
        async def for_ever() -> None:
            await asyncio.Event().wait()

        asking = asyncio.ensure_future(one.adapter.server_side_emit_with_ack("ask", timeout=60))
        await asyncio.sleep(0.1)
        await leaving.adapter.aclose()
        assert await asking == {two.id: NodeAnswer("fine")}


# Rule 3: "A handler that raises is logged on its own node, whether an answer was wanted or not. At most `_AT_ONCE` run
# at a time; an event beyond that is refused, counted, and answered so."


@virtual
async def test_rule_3_a_handler_that_raises_is_logged_where_no_answer_was_wanted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Cluster() as cluster:
        one, two, _other = await three(cluster)

        @two.adapter.on("event")
        def fails() -> None:
            raise LookupError("no such thing")

        with caplog.at_level(logging.ERROR, logger="roomcast"):
            await one.adapter.server_side_emit("event")
            await asyncio.sleep(0.1)
        assert "server-side event 'event' failed" in caplog.text
        assert (faults(one), faults(two)) == (0, 1)
        heard = hears(two, "other")
        await one.adapter.server_side_emit("other")
        await asyncio.sleep(0.1)
        assert heard == [()], "and the node goes on"


@virtual
async def test_rule_3_so_many_handlers_run_at_a_time_and_no_more() -> None:
    async with Cluster() as cluster:
        one, two, other = await three(cluster)
        other.adapter.on("ask", lambda: "fine")
        end, running = asyncio.Event(), 0

        @two.adapter.on("ask")
        @two.adapter.on("event")
        async def wait() -> None:
            nonlocal running
            running += 1
            await end.wait()

        for _ in range(1005):
            await one.adapter.server_side_emit("event")
        await asyncio.sleep(0.5)
        assert running == 1000
        assert two.adapter.stats()["refused"] == {"busy": 5}
        answers = await one.adapter.server_side_emit_with_ack("ask")
        assert "too many handlers" in answers[two.id].error
        assert answers[other.id] == NodeAnswer("fine")
        end.set()
        await asyncio.sleep(0.1)
        assert await one.adapter.server_side_emit_with_ack("ask") == {
            two.id: NodeAnswer(None),
            other.id: NodeAnswer("fine"),
        }


# Rule 4: "`node_joined`, `node_left` and `evicted` are told by the library, on each node for itself; nobody can emit
# them."


@pytest.mark.parametrize("event", RESERVED)
@virtual
async def test_rule_4_a_reserved_name_is_refused_at_the_call(event: str) -> None:
    async with Cluster() as cluster:
        one = await cluster.node()
        with pytest.raises(ValueError, match="reserved"):
            await one.adapter.server_side_emit(event)
        with pytest.raises(ValueError, match="reserved"):
            await one.adapter.server_side_emit_with_ack(event)


@pytest.mark.parametrize("event", RESERVED[:4])
def test_rule_4_socketios_own_names_cannot_be_heard_either(event: str) -> None:
    adapter = Adapter("memory://")
    with pytest.raises(ValueError, match="reserved"):
        adapter.on(event, print)


@pytest.mark.parametrize("event", RESERVED)
@virtual
async def test_rule_4_a_reserved_event_that_arrives_is_refused_and_counted(event: str) -> None:
    async with Cluster() as cluster:
        one, two, _other = await three(cluster)
        heard = hears(two, event) if event in RESERVED[4:] else []
        forge(one, ServerEvent(event, ("forged", "bye")))
        forge(one, ServerEvent(event, ("forged", "bye"), 5))
        await asyncio.sleep(0.1)
        assert heard == []
        assert two.adapter.stats()["refused"] == {"reserved": 2}


@virtual
async def test_rule_4_each_node_is_told_for_itself() -> None:
    async with Cluster() as cluster:
        one, two, _other = await three(cluster)
        joined = hears(one, "node_joined")
        left = hears(two, "node_left")
        late = await cluster.node()
        await late.adapter.aclose()
        await asyncio.sleep(0.1)
        ((info,),) = joined
        assert isinstance(info, NodeInfo)
        assert info.id == late.id
        assert [(info.id, why) for info, why in left] == [(late.id, "bye")]


@virtual
async def test_a_handler_of_what_the_library_tells_may_wait_and_may_fail() -> None:
    async with Cluster() as cluster:
        one, _two, _other = await three(cluster)
        done = asyncio.Event()

        @one.adapter.on("node_joined")
        async def joined(info: NodeInfo) -> None:
            assert await one.adapter.to("nobody").count() == 0
            done.set()
            raise LookupError(info.id)

        late = await cluster.node()
        await asyncio.sleep(0.1)
        assert done.is_set()
        assert faults(one) == 1
        assert late.id in one.core.peers


# At the call


def test_an_event_has_one_handler() -> None:
    adapter = Adapter("memory://")

    @adapter.on("event")
    def handler() -> None:
        """Do nothing."""

    assert handler.__name__ == "handler", "the decorator gives the function back"
    assert adapter.on("other", handler) is handler
    with pytest.raises(ValueError, match="handler already"):
        adapter.on("event", handler)
    with pytest.raises(TypeError, match="named by text"):
        cast("Any", adapter).on(7, handler)


@virtual
async def test_what_cannot_be_sent_is_refused_and_nobody_gets_it() -> None:
    async with Cluster(max_payload=4096) as cluster:
        one, two, _other = await three(cluster)
        heard = hears(two)
        adapter: Any = one.adapter
        for send in (adapter.server_side_emit, adapter.server_side_emit_with_ack):
            with pytest.raises(TypeError, match="named by text"):
                await send(7)
            with pytest.raises(EncodeError):
                await send("event", object())
            with pytest.raises(PayloadTooLarge):
                await send("event", "x" * 5000)
        await asyncio.sleep(0.1)
        assert heard == []
        await one.adapter.aclose()
        for send in (adapter.server_side_emit, adapter.server_side_emit_with_ack):
            with pytest.raises(BrokerClosed):
                await send("event")


@virtual
async def test_with_confirm_an_event_is_with_the_broker_when_the_call_returns() -> None:
    async with Cluster(confirm=True) as cluster:
        one, _two, _other = await three(cluster)
        before = one.broker.published
        await one.adapter.server_side_emit("event")
        assert one.broker.published == before + 1
