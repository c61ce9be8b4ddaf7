"""What cannot be given back, and who is offered it."""

import asyncio
import re
from typing import Any, cast

import pytest

import roomcast
from roomcast import Recovery
from roomcast.brokers.memory_log import memory_logs
from roomcast.core.errors import ConfigurationError
from tests.adapter.homes import (
    Home,
    emit,
    events,
    free,
    has_no_room,
)
from tests.adapter.returning import Returning
from tests.waiting import until


async def test_a_session_of_which_not_all_can_be_told_is_not_given_back_in_part(home: Home) -> None:
    home.settings["max_payload"] = 4096
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    table = nodes[1].inside._recoveries.reader.table
    await until(lambda: table.get(client.pid), what="the session to be known")
    rooms = [f"{number} {'x' * 50}" for number in range(100)]
    for room in rooms:
        await nodes[0].sio.enter_room(client.sid, room)
    await until(lambda: not table.get(client.pid), what="the session to be withdrawn")
    await emit(nodes[1], [1], to=rooms[0])
    await client.hear("n")
    await home.away(nodes[1], client, 2, to=rooms[99])
    await client.connect(nodes[1])
    assert not client.recovered


async def test_what_can_be_told_again_can_be_given_back(home: Home) -> None:
    home.settings["max_payload"] = 4096
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    table = nodes[1].inside._recoveries.reader.table
    await until(lambda: table.get(client.pid), what="the session to be known")
    await nodes[0].sio.save_session(client.sid, {"much": "x" * 5000})
    await until(lambda: not table.get(client.pid), what="the session to be withdrawn")
    await nodes[0].sio.save_session(client.sid, {})
    await until(lambda: table.get(client.pid), what="the session to be told again")
    await home.away(nodes[1], client, 1)
    assert (await client.connect(nodes[1])).recovered
    assert await home.end(nodes[0], client) == [events([1])]


async def test_an_adapter_that_is_closed_before_its_connections_tells_of_no_loss(home: Home) -> None:
    node, other = await home.nodes()
    gaps: list[roomcast.Gap] = []
    node.adapter.on_gap(gaps.append)
    client = await home.client(node)
    served = node.inside._rooms.client("/", client.sid)
    await node.adapter.aclose()
    await client.drop()
    await until(lambda: node.inside._rooms.client("/", client.sid) is None, what="the client to be gone")
    assert gaps == []
    assert served.session.timer is None
    assert (await client.connect(other)).recovered


async def test_when_the_window_is_over_there_is_a_fresh_session(home: Home) -> None:
    nodes = await home.nodes(window=0.3)
    client = await home.client(nodes[0])
    await home.away(nodes[0], client, 1)
    await until(lambda: free(nodes[1]) == 1, what="the session to be free")
    await asyncio.sleep(0.35)
    await client.connect(nodes[1])
    assert not client.recovered
    assert await home.end(nodes[0], client) == [[]]


async def test_what_is_not_held_any_more_is_never_given_in_part(home: Home) -> None:
    nodes = await home.nodes(memory=20_000)
    client, lucky = await home.client(nodes[0]), await home.client(nodes[0])
    await emit(nodes[0], [0], to="red")
    await client.hear("n")
    await lucky.hear("n")
    await client.drop()
    await emit(nodes[0], range(1, 100), to="red")
    for _ in range(99):
        await lucky.hear("n")
    await home.away(nodes[0], lucky, 100, 101)
    await asyncio.gather(client.connect(nodes[1]), lucky.connect(nodes[1]))
    assert not client.recovered
    assert lucky.recovered
    heard = await home.end(nodes[0], client, lucky)
    assert heard == [[], events([100, 101])]
    assert sorted(home.environs[2:]) == [False, True]


async def test_what_is_forgotten_before_its_client_was_given_it_costs_the_connection_and_the_session(
    home: Home,
) -> None:
    """Nothing is held for a client but how far it is: it never goes on after a hole."""
    nodes = await home.nodes(memory=20_000)
    client, other = await home.client(nodes[0]), await home.client(nodes[1], room="blue")
    begun, go = asyncio.Event(), asyncio.Event()

    async def connect(_sid: str, environ: dict[str, Any], _auth: Any) -> None:
        if environ["roomcast.recovered"]:
            begun.set()
            await go.wait()

    nodes[1].sio.on("connect", connect)
    await home.away(nodes[0], client, 1, 2)
    await client.ask(nodes[1])
    await begun.wait()
    await emit(nodes[0], range(100), to="blue")
    for _ in range(100):
        await other.hear("n")
    await emit(nodes[0], [3], to="red")
    go.set()
    await asyncio.wait_for(client.over.wait(), 5)
    await client.connect(nodes[1])
    assert not client.recovered
    assert await home.end(nodes[0], client) == [[]]


async def test_what_is_too_large_for_one_node_is_not_left_out_by_it(home: Home) -> None:
    large, small = await home.node(settings={"max_payload": 20_000}), await home.node(settings={"max_payload": 5_000})
    client, other = await home.client(large), await home.client(large)
    await client.drop()
    await large.sio.emit("much", "x" * 10_000, to="red")
    await emit(large, [0], to="red")
    await other.hear("n")
    await home.away(large, other, 1)
    await asyncio.gather(client.connect(small), other.connect(small))
    assert not client.recovered
    assert other.recovered
    assert await home.end(large, client, other) == [[], events([1])]


@pytest.mark.parametrize("place", ["nonsense", "other.1.0", "epoch.99999999.0"])
async def test_a_place_that_is_none_of_this_log_gets_a_fresh_session(home: Home, place: str) -> None:
    """ "What it is cannot be said from a place in another epoch of the log, not even that it is nothing." """
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    await emit(nodes[0], [1], to="red")
    await client.hear("n")
    assert client.place
    await home.away(nodes[0], client)
    await client.connect(
        nodes[1], place=place.replace("epoch", client.place.split(".")[0] if "9" in place else "other")
    )
    assert not client.recovered
    assert await home.end(nodes[0], client) == [[]]


async def test_a_node_that_finds_the_log_trimmed_restores_who_is_described_again(home: Home) -> None:
    first = await home.node(window=2.0)
    client = await home.client(first)
    await client.drop()
    await until(lambda: free(first) == 1, what="the session to be free")
    home.stream.trim(home.stream.end)
    second = await home.node(window=2.0)
    await client.connect(second)
    assert not client.recovered
    await emit(first, [1], to="red")
    await client.hear("n")
    await home.away(first, client, 2)
    assert (await client.connect(first)).recovered
    assert await home.end(second, client) == [events([2])]


async def test_when_the_log_is_another_one_there_is_a_fresh_session(home: Home) -> None:
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    await emit(nodes[0], [1], to="red")
    await client.hear("n")
    name = home.cluster.url.removeprefix("memory+log://")
    memory_logs().pop(name).delete()
    await until(lambda: all(node.adapter.health() for node in nodes), what="the nodes to be back")
    await emit(nodes[0], [2], to="red")
    assert await client.hear("n") == events([2]), "it was connected all the time"
    await home.away(nodes[0], client, 3)
    await client.connect(nodes[1])
    assert client.recovered, "what it got last is of the new log"
    assert await home.end(nodes[0], client) == [events([3])]
    late = await home.client(nodes[0])
    place = late.place
    assert place is None


async def test_clients_that_would_stumble_over_a_place_get_none(home: Home) -> None:
    """python-socketio's own, by default, and whom the application names."""
    nodes = await home.nodes()
    python = await nodes[0].client(auth={"room": "red"})
    returning = await home.client(nodes[0])
    await emit(nodes[1], [1], to="red")
    assert await python.hear("n") == await returning.hear("n") == events([1])
    none = await home.nodes(offer=has_no_room)
    client = Returning(auth={"room": "red"})
    home.clients.append(client)
    await client.connect(none[0])
    assert client.sid
    assert not client.pid


async def test_a_function_of_the_application_that_fails_costs_recovery_and_not_the_connection(home: Home) -> None:
    def fail(_environ: Any, _auth: Any) -> bool:
        raise RuntimeError

    node = await home.node(offer=fail)
    client = Returning()
    home.clients.append(client)
    await client.connect(node)
    assert client.sid
    assert not client.pid
    assert node.adapter.stats()["faults"] == 1


@pytest.mark.parametrize(
    ("url", "settings", "says"),
    [
        ("memory://", {}, "recovery needs a broker that keeps a log"),
        ("memory+log://?streams=2", {}, "recovery needs a log of one stream"),
        (
            "memory+log://?retention=200s",
            {},
            "looks back for 240 s, but the log keeps 200: say retention=240s",
        ),
        ("memory+log://", {"order": "publisher"}, 'recovery needs order="total"'),
        ("memory+log://", {"recovery": 120}, "recovery is a roomcast.Recovery or None, not 120"),
    ],
)
def test_what_recovery_needs_is_said(url: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        roomcast.Adapter(url, **cast("Any", {"recovery": Recovery()} | settings))
    inside: Any = roomcast.Adapter("memory+log://", recovery=Recovery())
    assert inside._node.settings.order == "total"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"window": 0}, "Recovery's window must be above 0"),
        ({"window": float("inf")}, "not infinite"),
        ({"sessions": 1.5}, "Recovery's sessions is a whole number"),
        ({"offer": True}, "Recovery's offer is a function"),
        ({"identity": "me"}, "Recovery's identity is a function"),
    ],
)
def test_a_recovery_that_cannot_work_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        Recovery(**wrong)


def test_an_emitter_has_nobody_who_could_come_back() -> None:
    with pytest.raises(ConfigurationError, match="recovery is for adapters"):
        roomcast.Emitter("memory+log://", recovery=Recovery())
