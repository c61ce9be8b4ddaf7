"""With `order="total"` the clients of all nodes see the events of a room in one order (P2), their own included.

Nodes over a log in memory, on virtual time.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

import roomcast
from roomcast.core.broadcast import Broadcast
from roomcast.core.broker import Subject
from roomcast.core.messages import Emit, Message
from roomcast.core.receiver import Receiver
from tests.cluster.clock import timeline
from tests.cluster.faulty import Hub
from tests.cluster.harness import SimClient, SimNode, numbers, virtual
from tests.core.effort import effort

NAMES = count(1)
ROOMS = ("red", "blue")


@asynccontextmanager
async def nodes(many: int, **settings: Any) -> AsyncGenerator[list[SimNode]]:
    """Nodes that have met, over a log of their own."""
    url = f"memory+log://total{next(NAMES)}"
    made = [SimNode(Hub(), url, {"order": "total"} | settings) for _ in range(many)]
    try:
        for node in made:
            await node.adapter.start()
        await asyncio.sleep(1.1)
        yield made
    finally:
        for node in made:
            await node.adapter.aclose()
    assert [node.adapter.stats()["faults"] for node in made] == [0] * many


async def read(clients: Sequence[SimClient], marker: SimNode) -> None:
    """Wait until everything emitted so far has arrived: an event after it has, at every client."""
    await marker.server.emit("end")
    async with asyncio.timeout(60):
        while not all(("end",) in client.events for client in clients):  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.01)


Schedule = list[tuple[int, str | None, str]]
places = st.sampled_from([*ROOMS, None, "sid", "both"])


async def check(schedule: Schedule) -> None:
    """Emit as the schedule says, from several nodes, awaited or not, and look at the order everywhere."""
    async with nodes(3) as made:
        clients = [await node.client(*ROOMS) for node in made for _ in range(2)]
        pending: list[asyncio.Future[Any]] = []
        for number, (at, room, manner) in enumerate(schedule):
            to = {"sid": clients[0].sid, "both": list(ROOMS)}.get(str(room), room)
            pending.append(asyncio.ensure_future(made[at].server.emit("n", number, to=to)))
            await (pending[-1] if manner == "await" else asyncio.sleep(0))
        await asyncio.gather(*pending)
        await read(clients, made[0])
        first, *others = [numbers(client) for client in clients]
        unicast = {number for number, (_, room, _) in enumerate(schedule) if room == "sid"}
        assert sorted(first) == list(range(len(schedule))), "P3: once each"
        for at in range(3):
            own = [number for number in first if schedule[number][0] == at]
            assert own == sorted(own), "P1"
        for other in others:
            assert other == [number for number in first if number not in unicast], "P2"


@given(schedule=st.lists(st.tuples(st.integers(0, 2), places, st.sampled_from(["await", "go on"])), max_size=60))
@effort(40)
def test_p2_every_client_of_a_room_sees_one_order(schedule: Schedule) -> None:
    with timeline() as line:
        line.run(check(schedule))


def test_the_check_catches_a_node_that_serves_its_own_clients_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded bug: local clients get an event at once, as they do without `order="total"`."""
    inside = cast("Any", Broadcast)
    send = inside._send

    async def early(broadcast: Any, emit: Emit, subject: Subject | None) -> Any:
        entry = await send(broadcast, emit, subject)
        broadcast._deliver(emit)
        return entry

    def nothing(_receiver: Receiver, _message: Message) -> None:
        """What comes back from the log is not handed on."""

    monkeypatch.setattr(Broadcast, "_send", early)
    monkeypatch.setattr(Receiver, "_come_back", nothing)
    with timeline() as line, pytest.raises(AssertionError, match="P2"):
        line.run(check([(at, "red", "go on") for at in (0, 1, 2)]))


@virtual
async def test_an_emit_returns_when_the_log_has_it_and_own_clients_get_it_from_there() -> None:
    async with nodes(2) as (one, two):
        mine, theirs = await one.client("red"), await two.client("red")
        sending = asyncio.ensure_future(one.server.emit("n", 1, to="red"))
        await asyncio.sleep(0)
        assert numbers(mine) == []
        await sending
        await read([mine, theirs], one)
        assert numbers(mine) == numbers(theirs) == [1]
        assert one.core.settings.confirm
        assert one.core.settings.outbox_age == 120.0


@virtual
async def test_requests_take_their_place_among_the_events() -> None:
    """Whoever joins, leaves or is disconnected by a request does so at its place in the log, on every node."""
    async with nodes(2) as (one, two):
        mine, theirs = await one.client("red"), await two.client("red")
        emits = [
            asyncio.ensure_future(one.server.emit("n", 1, to="blue")),
            asyncio.ensure_future(one.adapter.to("red").sockets_join("blue")),
            asyncio.ensure_future(one.server.emit("n", 2, to="blue")),
            asyncio.ensure_future(one.adapter.to("red").sockets_leave("blue")),
            asyncio.ensure_future(one.server.emit("n", 3, to="blue")),
        ]
        results = await asyncio.gather(*emits)
        assert (results[1], results[3]) == (2, 2)
        await read([mine, theirs], one)
        assert numbers(mine) == numbers(theirs)
        assert 1 not in numbers(mine)
        assert 3 not in numbers(mine)


@virtual
async def test_all_verbs_answer() -> None:
    async with nodes(2) as (one, two):
        mine, theirs = await one.client("red"), await two.client("red")
        for node in (one, two):
            assert await node.adapter.count("red") == 2
            assert {socket.sid for socket in await node.adapter.to("red").fetch_sockets()} == {mine.sid, theirs.sid}
            assert await node.adapter.all_rooms() == {"red": 2}
            assert [socket.sid for socket in await node.adapter.local.fetch_sockets()] == [
                {one: mine, two: theirs}[node].sid
            ]
        answers = asyncio.ensure_future(one.adapter.to("red").emit_with_ack("ask"))
        for client in (mine, theirs):
            async with asyncio.timeout(5):
                while not client.acks_wanted:  # noqa: ASYNC110 - virtual time
                    await asyncio.sleep(0.01)
            await client.ack(client.acks_wanted[0], '["ok"]')
        assert sorted(answer.sid for answer in await answers) == sorted([mine.sid, theirs.sid])
        for sid in (mine.sid, theirs.sid):  # one of this node, one of the other
            asking = asyncio.ensure_future(one.server.call("ask", to=sid))
            client = mine if sid == mine.sid else theirs
            async with asyncio.timeout(5):
                while len(client.acks_wanted) < 2:  # noqa: ASYNC110 - virtual time
                    await asyncio.sleep(0.01)
            await client.ack(client.acks_wanted[1], '["you"]')
            assert await asking == "you"
        two.adapter.on("who", lambda: "two")
        told = await one.adapter.server_side_emit_with_ack("who")
        assert {node: answer.value for node, answer in told.items()} == {two.id: "two"}
        await one.server.close_room("red")
        await read([mine, theirs], one)
        assert await two.adapter.count("red") == 0
        assert await one.adapter.disconnect_sockets() == 2


@virtual
async def test_what_is_local_does_not_wait_for_the_log() -> None:
    async with nodes(1) as (one,):
        client = await one.client()
        await one.adapter.local.emit("n", 1)
        assert numbers(client) == [1]


def test_it_needs_a_log() -> None:
    with pytest.raises(roomcast.ConfigurationError, match="keeps a log"):
        roomcast.Adapter("memory://", order="total")
    with pytest.raises(roomcast.ConfigurationError, match='"publisher" or "total"'):
        roomcast.Adapter("memory+log://", order="causal")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(roomcast.ConfigurationError, match="order"):
        roomcast.Adapter("memory+log://?order=causal")


def test_the_defaults_of_a_log_give_way_to_what_is_set() -> None:
    def settings(url: str, **given: Any) -> tuple[bool, float]:
        node = cast("Any", roomcast.Adapter(url, **given))._node
        return node.settings.confirm, node.settings.outbox_age

    assert settings("memory://") == (False, 30.0)
    assert settings("memory+log://") == (True, 120.0)
    assert settings("memory+log://?confirm=false", outbox_age=7.0) == (False, 7.0)
    assert settings("memory+log://", confirm=False) == (False, 120.0)
