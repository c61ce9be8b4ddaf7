"""What a process does to a client comes after what it has emitted before, on every kind of broker (P1 and P4)."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import roomcast
from roomcast.core.node import Node
from tests.cluster.clock import timeline
from tests.cluster.faulty import Hub, installed
from tests.cluster.harness import SimClient, SimNode, numbers, virtual
from tests.core.effort import effort
from tests.simulation.log_server import LogServer

SETTINGS: dict[str, dict[str, Any]] = {
    "publish/subscribe": {},
    "log": {},
    "total": {"order": "total"},
    "recovery": {"recovery": roomcast.Recovery(window=10.0)},
}


@asynccontextmanager
async def two_nodes(kind: str, server: LogServer | None = None, **more: Any) -> AsyncGenerator[list[SimNode]]:
    """Nodes that have met, over a server to which every way takes another while."""
    ways = cycle((0.001, 0.004, 0.002, 0.001, 0.003))
    server = server or LogServer(latency=lambda: next(ways))
    url = "faulty://hub" if kind == "publish/subscribe" else "simlog://"
    hub = Hub()
    with installed(hub, simlog=server.make()):
        nodes = [SimNode(hub, url, SETTINGS[kind] | more) for _ in range(2)]
        try:
            for node in nodes:
                await node.adapter.start()
            await asyncio.sleep(1.1)
            yield nodes
        finally:
            for node in nodes:
                await node.adapter.aclose()
        assert [node.adapter.stats()["faults"] for node in nodes] == [0, 0]


both = pytest.mark.parametrize("kind", ["total", "recovery"])

Program = Sequence[tuple[str, str]]
rooms = st.sampled_from(["red", "blue"])
steps = st.one_of(
    st.tuples(st.sampled_from(["emit", "emit", "go on", "enter", "leave", "close"]), rooms),
    st.tuples(st.sampled_from(["emit", "go on"]), st.just("sid")),
)


async def check(kind: str, program: Program, *, confirm: bool) -> None:
    """One process emits and moves two clients, its own and another's, while the other process emits, too."""
    async with two_nodes(kind, confirm=confirm) as (one, two):
        clients = [await one.client(), await two.client()]
        there: dict[str, bool] = {"red": False, "blue": False}
        wanted: list[int] = []
        noise = [asyncio.ensure_future(two.server.emit("noise", number, to="red")) for number in range(3)]
        pending: list[asyncio.Future[Any]] = []
        for number, (verb, room) in enumerate(program):
            if verb in ("emit", "go on"):
                for to in [client.sid for client in clients] if room == "sid" else [room]:
                    pending.append(asyncio.ensure_future(one.server.emit("n", number, to=to)))
                    await (pending[-1] if verb == "emit" else asyncio.sleep(0))
                if there.get(room, True):
                    wanted.append(number)
            elif verb == "close":
                await one.server.close_room(room)
                there[room] = False
            else:
                for client in clients:
                    await (one.server.enter_room if verb == "enter" else one.server.leave_room)(client.sid, room)
                there[room] = verb == "enter"
        for client in clients:
            await one.server.emit("n", -1, to=client.sid)
            await one.server.disconnect(client.sid)
        await asyncio.gather(*pending, *noise)
        await asyncio.sleep(1.0)
        assert [numbers(client) for client in clients] == [[*wanted, -1]] * 2
        assert all(client.disconnected for client in clients)


@pytest.mark.parametrize("kind", SETTINGS)
@given(program=st.lists(steps, max_size=12), confirm=st.booleans())
@effort(12)
def test_a_process_moves_clients_in_order_with_what_it_emits(kind: str, program: Program, *, confirm: bool) -> None:
    with timeline() as line:
        line.run(check(kind, program, confirm=confirm))


PROGRAMS: dict[str, Program] = {
    "a client leaves too soon": [("enter", "red"), ("emit", "red"), ("leave", "red")],
    "a client comes too soon": [("emit", "red"), ("enter", "red")],
    "a room is closed too late": [("enter", "red"), ("close", "red"), ("enter", "red"), ("emit", "red")],
    "a client is disconnected too soon": [],
}


@both
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_the_check_catches_a_node_that_does_not_wait(
    kind: str, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def at_once(_node: Node) -> None:
        """The seeded bug."""

    with timeline() as line:
        line.run(check(kind, program, confirm=False))
    monkeypatch.setattr(Node, "caught_up", at_once)
    with timeline() as line, pytest.raises(AssertionError):
        line.run(check(kind, program, confirm=False))


async def begun(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    return task


def rooms_of(client: SimClient) -> list[Any]:
    return list(client.node.server.rooms(client.sid))[1:]


@both
@virtual
async def test_rule_1_when_nothing_is_outstanding_nobody_waits(kind: str) -> None:
    async with two_nodes(kind) as (one, _):
        client = await one.client()
        await one.server.emit("n", 1, to=client.sid)
        await asyncio.sleep(0.1)
        with pytest.raises(StopIteration):
            one.server.leave_room(client.sid, "red").send(None)
        with pytest.raises(StopIteration):
            one.core.caught_up().send(None)


@both
@virtual
async def test_rule_2_verbs_go_on_in_the_order_of_their_calls(kind: str) -> None:
    async with two_nodes(kind) as (one, _):
        client = await one.client()
        order: list[int] = []

        async def wait(number: int) -> None:
            await one.core.caught_up()
            order.append(number)

        await one.server.emit("n", 0, to=client.sid)
        sending = await begun(one.server.emit("n", 1, to=client.sid))
        tasks = [await begun(wait(number)) for number in range(3)]
        readback: Any = one.core.readback
        inside, came_back = readback._unread, readback.came_back

        def and_more(place: int) -> None:
            came_back(place)
            if not inside.outstanding:  # but others have still to run
                late = one.core.caught_up()
                late.send(None)  # it waits
                late.close()
                tasks.append(asyncio.ensure_future(wait(3)))

        readback.came_back = and_more
        await sending
        await asyncio.sleep(0.1)
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3]
        assert len(readback) == 0


@both
@virtual
async def test_rule_3_a_node_whose_broker_is_away_acts_in_time_and_says_so(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits for no event for longer than `request_timeout`, however many verbs there are."""
    server = LogServer()
    async with two_nodes(kind, server, request_timeout=4.0, emit_timeout=1.0) as (one, _):
        client = await one.client("red", "blue", "green")
        await asyncio.sleep(0.1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        server.crash()
        with caplog.at_level(logging.WARNING, "roomcast"), pytest.raises(roomcast.PublishUnconfirmed):
            await one.server.emit("n", 1, to="red")
        caplog.clear()
        first = await begun(one.server.leave_room(client.sid, "red"))
        second = await begun(one.server.leave_room(client.sid, "blue"))
        cancelled = await begun(one.server.leave_room(client.sid, "green"))
        await asyncio.sleep(1.0)
        cancelled.cancel()
        assert rooms_of(client) == ["red", "blue", "green"]
        await asyncio.gather(first, second)
        assert rooms_of(client) == ["green"], "rule 4"
        assert loop.time() - began == pytest.approx(4.0, abs=0.01)
        assert sum("has not come back from the log" in record.message for record in caplog.records) == 1
        await one.server.enter_room(client.sid, "red")
        left = await begun(one.server.disconnect(client.sid))
        await left
        assert loop.time() - began <= 8.01
        assert client.disconnected
        server.restart()


@both
@virtual
async def test_a_connection_that_is_lost_does_not_wait(kind: str) -> None:
    server = LogServer()
    async with two_nodes(kind, server, emit_timeout=1.0) as (one, _):
        client = await one.client("red")
        server.crash()
        sending = await begun(one.server.emit("n", 1, to="red"))
        await client.leave()
        await asyncio.sleep(0)
        assert not one.server.manager.is_connected(client.sid, "/")
        assert not sending.done()
        server.restart()
        await sending


@both
@virtual
async def test_who_waits_goes_on_when_the_broker_is_back(kind: str) -> None:
    """And then a client has got what was emitted before it was taken out."""
    server = LogServer()
    async with two_nodes(kind, server) as (one, _):
        client = await one.client("red")
        server.crash()
        sending = await begun(one.server.emit("n", 1, to="red"))
        leaving = await begun(one.server.leave_room(client.sid, "red"))
        await asyncio.sleep(1.0)
        server.restart()
        await sending
        await leaving
        assert numbers(client) == [1]
        assert rooms_of(client) == []


@both
@virtual
async def test_rule_1_what_was_given_up_is_not_waited_for(kind: str) -> None:
    server = LogServer()
    async with two_nodes(kind, server, outbox_messages=2) as (one, _):
        client = await one.client("red")
        await asyncio.sleep(0.5)
        server.crash()
        await asyncio.sleep(0.01)
        first = await begun(one.server.emit("n", 1, to="red"))
        leaving = await begun(one.server.leave_room(client.sid, "red"))
        more = [await begun(one.adapter.server_side_emit("other")) for _ in range(3)]
        with pytest.raises(roomcast.PublishRejected):
            await first
        await asyncio.sleep(0.01)
        assert not leaving.done() or rooms_of(client) == []
        server.restart()
        await asyncio.gather(*more, return_exceptions=True)
        await leaving
        assert numbers(client) == []
        assert rooms_of(client) == []


@both
@virtual
async def test_a_node_that_closes_keeps_nobody_waiting(kind: str) -> None:
    server = LogServer()
    async with two_nodes(kind, server, emit_timeout=0.5, request_timeout=60.0) as (one, _):
        client = await one.client("red")
        server.crash()
        with pytest.raises(roomcast.PublishUnconfirmed):
            await one.server.emit("n", 1, to="red")
        leaving = await begun(one.server.leave_room(client.sid, "red"))
        await one.adapter.aclose()
        await leaving


@both
@virtual
async def test_what_is_local_comes_after_what_was_emitted_before_it(kind: str) -> None:
    """What `adapter.local` does takes no place in the log."""
    async with two_nodes(kind) as (one, _):
        client = await one.client("red")
        await one.server.emit("n", 1, to="red")
        assert await one.adapter.local.to("red").sockets_leave("red") == 1
        await one.server.emit("n", 2, to=client.sid)
        assert await one.adapter.local.disconnect_sockets() == 1
        assert numbers(client) == [1, 2]
