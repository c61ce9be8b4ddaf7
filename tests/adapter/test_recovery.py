"""Clients that come back: their session, and exactly what they missed, on every node."""

import asyncio
import gc
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import uuid4

import pytest

import roomcast
from roomcast.brokers.log_broker import LogBroker
from roomcast.core.broker import BrokerConfig
from roomcast.core.messages import Emit, Packet, encode_message
from tests.adapter.homes import (
    LONG,
    Home,
    emit,
    events,
    kill,
    never,
    told,
)
from tests.adapter.returning import Returning
from tests.adapter.servers import serving
from tests.brokers.test_conformance import LOGS, broker_class
from tests.services import SharedBrokers
from tests.waiting import until


@asynccontextmanager
async def at_home(scheme: str, url: str, settings: str = "") -> AsyncGenerator[Home]:
    """A home on a log, which is deleted."""
    async with serving(url + settings) as cluster:
        home = Home(cluster)
        yield home
        await home.aclose()
    if scheme != "memory+log":
        broker = cast("LogBroker", broker_class(scheme)(BrokerConfig(url, prefix=cluster.prefix)))
        await broker.delete()
        await broker.aclose()
    gc.collect()


@pytest.fixture(params=("memory+log", *LOGS))
async def logged(request: pytest.FixtureRequest, shared_brokers: SharedBrokers) -> AsyncIterator[Home]:
    """A home on each log in turn."""
    scheme = str(request.param)
    url = f"memory+log://m{uuid4().hex[:12]}" if scheme == "memory+log" else shared_brokers.log_url(scheme)
    async with at_home(scheme, url) as home:
        yield home


async def test_a_client_gets_its_sid_its_rooms_and_exactly_what_it_missed_on_any_node(logged: Home) -> None:
    nodes = await logged.nodes()
    client = await logged.client(nodes[0])
    sid = client.sid
    await emit(nodes[1], [1, 2], to="red")
    assert await client.hear("n") + await client.hear("n") == events([1, 2])
    for to in (0, 1, 0):
        await client.drop()
        await emit(nodes[0], [3, 4], to="red")
        await emit(nodes[1], [5])
        await emit(nodes[1], [6], to=sid)
        await emit(nodes[0], [99], to="blue")
        await emit(nodes[1], [99], skip_sid=sid)
        await client.connect(nodes[to])
        assert client.recovered
        assert client.sid == sid
        await emit(nodes[0], [7], to="red")
        await emit(nodes[1 - to], [8], to=sid)
        assert await logged.end(nodes[0], client) == [events([3, 4, 5, 6, 7, 8])]
    assert logged.environs == [False, True, True, True]


async def test_a_client_that_is_away_while_rabbitmq_begins_a_segment_comes_back(shared_brokers: SharedBrokers) -> None:
    """RabbitMQ writes something of its own at the head of each: nothing is lost, whatever the offsets look like."""
    async with at_home("amqp+streams", shared_brokers.log_url("amqp+streams"), "?max_bytes=1mb") as home:
        nodes = await home.nodes()
        gaps: list[roomcast.Gap] = []
        for node in nodes:
            node.adapter.on_gap(gaps.append)
        client = await home.client(nodes[0])
        await home.away(nodes[0], client, 1)
        sent = [f"{number} {'x' * 10_000}" for number in range(40)]
        for at in range(0, len(sent), 8):
            await asyncio.gather(*(nodes[1].sio.emit("n", text, to="red") for text in sent[at : at + 8]))
        await client.connect(nodes[1])
        assert client.recovered
        assert await home.end(nodes[0], client) == [[("n", 1), *(("n", text) for text in sent)]]
        assert not gaps


async def test_a_client_that_had_got_nothing_yet_gets_everything(home: Home) -> None:
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    await home.away(nodes[1], client, 1, 2)
    await client.connect(nodes[1])
    assert client.recovered
    assert await home.end(nodes[0], client) == [events([1, 2])]


async def test_what_was_written_to_a_connection_that_carried_nothing_any_more_was_missed(home: Home) -> None:
    """Its node still takes it for a good one: it finds out by a ping."""
    nodes = await home.nodes()
    for to in (1, 0):
        client = await home.client(nodes[0])
        await emit(nodes[1], [1], to="red")
        await client.hear("n")
        await client.walk_out()
        await emit(nodes[1], [2, 3], to="red")
        await client.connect(nodes[to])
        assert client.recovered
        assert await home.end(nodes[1], client) == [events([2, 3])]
        await client.leave()


async def test_a_node_that_is_killed_takes_nobody_with_it(home: Home) -> None:
    """Neither what its clients missed, nor their rooms, nor their data; another one takes their sessions."""
    nodes = await home.nodes(3)
    client = await home.client(nodes[0])
    await nodes[0].sio.enter_room(client.sid, "late")
    await nodes[0].sio.save_session(client.sid, {"name": "Ann"})
    await emit(nodes[0], [1], to="late")
    await client.hear("n")
    await told(nodes[1], client)
    kill(nodes[0])
    await client.drop()
    await emit(nodes[2], [2, 3], to="late")
    await client.connect(nodes[1])
    assert client.recovered
    assert await home.end(nodes[2], client) == [events([2, 3])]
    assert await nodes[1].sio.get_session(client.sid) == {"name": "Ann"}


@pytest.mark.parametrize("secret", [None, "a secret of the cluster"])
async def test_a_node_that_stops_hands_its_clients_on_and_one_that_starts_knows_them(
    home: Home, secret: str | None
) -> None:
    """With a secret, too."""
    home.settings["secret"] = secret
    nodes = await home.nodes()
    client, other = await home.client(nodes[0]), await home.client(nodes[1])
    await emit(nodes[1], [1], to="red")
    await client.hear("n")
    await home.stop(nodes[0])
    await client.drop()
    await emit(nodes[1], [2], to="red")
    await home.stop(nodes[1])
    await other.drop()
    node = await home.node()
    await asyncio.gather(client.connect(node), other.connect(node))
    assert client.recovered
    assert other.recovered
    assert await home.end(node, client, other) == [events([2]), events([1, 2])]


async def test_binary_events_and_other_namespaces_come_back(home: Home) -> None:
    nodes = await home.nodes()
    client, chat = await home.client(nodes[0]), await home.client(nodes[0], namespace="/chat")
    await asyncio.gather(client.drop(), chat.drop())
    for namespace in ("/", "/chat"):
        await nodes[1].sio.emit("blob", (b"\x00", {"in": namespace}), namespace=namespace)
        await nodes[1].sio.emit("text", "last", namespace=namespace)
    await asyncio.gather(client.connect(nodes[1]), chat.connect(nodes[1]))
    assert client.recovered
    assert chat.recovered
    for one, namespace in ((client, "/"), (chat, "/chat")):
        assert await home.end(nodes[0], one) == [[("blob", b"\x00", {"in": namespace}), ("text", "last")]]


async def test_volatile_events_and_those_that_want_an_acknowledgement_are_not_replayed_and_confuse_nobody(
    home: Home,
) -> None:
    """Their last argument may be text, which a client takes for a place when they carry none."""
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    await nodes[1].adapter.volatile.emit("volatile", "text")
    await client.hear("volatile")
    await nodes[0].adapter.local.emit("local", "text")
    await client.hear("local")
    assert await nodes[1].sio.call("question", "text", to=client.sid) == "text"
    await client.hear("question")
    await client.drop()
    await nodes[1].adapter.volatile.emit("volatile", "text")
    await nodes[1].adapter.local.emit("local", "text")
    await nodes[1].sio.emit("question", "text", to="red", callback=print)
    await emit(nodes[0], [1], to="red")
    await client.connect(nodes[1])
    assert client.recovered
    assert await home.end(nodes[0], client) == [events([1])]


async def test_a_client_is_owed_what_was_sent_to_its_rooms_while_it_was_in_them(home: Home) -> None:
    nodes = await home.nodes()
    client, witness = await home.client(nodes[0]), await home.client(nodes[1])
    await emit(nodes[1], [1], to="red")
    await client.hear("n")
    await emit(nodes[1], [99], to="late")
    await witness.hear("n")
    await nodes[0].sio.enter_room(client.sid, "late")
    await client.walk_out()
    await emit(nodes[1], [2], to="late")
    await emit(nodes[1], [3], to="red")
    await witness.hear("n")
    await nodes[0].sio.leave_room(client.sid, "red")
    await emit(nodes[1], [99], to="red")
    await emit(nodes[1], [4], to="late")
    await client.connect(nodes[1])
    assert client.recovered
    assert await home.end(nodes[0], client) == [events([2, 3, 4])]
    assert set(nodes[1].sio.rooms(client.sid)) == {client.sid, "late"}


async def test_more_than_may_wait_for_a_client_comes_all_the_same(home: Home) -> None:
    nodes = [await home.node(settings={"client_queue": 20}) for _ in range(2)]
    client = await home.client(nodes[0])
    await home.away(nodes[0], client, *range(300))
    await client.connect(nodes[1])
    await emit(nodes[0], range(300, 310), to="red")
    assert await home.end(nodes[0], client) == [events(range(310))]


async def test_a_node_that_was_stopped_for_a_while_finds_that_its_client_has_gone_on(home: Home) -> None:
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    await emit(nodes[0], [1], to="red")
    await client.hear("n")
    await client.walk_out()
    nodes[0].inside._node.publisher.hold(link_down=True)
    await client.connect(nodes[1])
    assert client.recovered
    nodes[0].inside._node.publisher.release()
    await emit(nodes[0], [2], to=client.sid)
    await emit(nodes[1], [3], to=client.sid)
    assert await home.end(nodes[0], client) == [events([2, 3])]
    assert nodes[0].sio.rooms(client.sid) == []
    await home.away(nodes[1], client, 4)
    await client.connect(nodes[0])
    assert client.recovered
    assert await home.end(nodes[1], client) == [events([4])]


@pytest.mark.parametrize("accepted", [True, False])
async def test_a_node_that_had_more_to_say_of_a_client_than_was_known_ends_what_was_given_back_in_part(
    home: Home, *, accepted: bool
) -> None:
    """Also while the connect handler still runs."""
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    begun, go = asyncio.Event(), asyncio.Event()

    async def connect(_sid: str, _environ: Any, _auth: Any) -> None:
        begun.set()
        await go.wait()

    nodes[1].sio.on("connect", connect)
    nodes[0].inside._node.publisher.hold(link_down=True)
    await nodes[0].sio.enter_room(client.sid, "late")
    await client.walk_out()
    await client.ask(nodes[1])
    await begun.wait()
    if accepted:
        go.set()
        await client.answered()
        assert client.recovered, "nobody knows better"
    nodes[0].inside._node.publisher.release()
    await asyncio.wait_for(client.over.wait(), 5)
    go.set()
    assert not (await client.connect(nodes[1])).recovered
    assert await home.end(nodes[0], client) == [[]]


async def test_a_node_says_at_once_that_it_is_there_when_a_session_is_asked_for(home: Home) -> None:
    """So that it is given the time that it needs: here, for what never ends."""
    nodes = await home.nodes(patience=LONG)
    client, thief = await home.client(nodes[0]), Returning()
    home.clients.append(thief)
    serving = nodes[0].inside._recoveries.serving
    test, serving._test = serving._test, never
    session = nodes[1].inside._recoveries.reader.table.get(client.pid)
    number = session.number
    await thief.ask(nodes[1], pid=client.pid)
    await until(lambda: session.number > number, what="the owner to be heard")
    silence, (pending,) = nodes[1].inside._recoveries._silence, nodes[1].inside._recoveries._pending.values()
    assert silence.left(nodes[0].adapter.host_id, pending.timer.when(), pending.timer.when()) == LONG, "from then on"
    await test(serving._served[client.pid])
    await thief.answered()
    assert not thief.recovered


async def test_a_link_to_the_log_that_is_lost_meanwhile_changes_nothing(home: Home) -> None:
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    await emit(nodes[0], [1], to="red")
    await client.hear("n")
    await client.drop()
    for link in tuple(home.stream.links):
        link.lose(ConnectionResetError("a test cut it"))
    coming = asyncio.ensure_future(client.connect(nodes[1]))
    await emit(nodes[0], [2, 3], to="red")
    assert (await coming).recovered
    assert await home.end(nodes[1], client) == [events([2, 3])]


async def test_what_one_node_did_not_read_another_one_may_have(home: Home) -> None:
    nodes = await home.nodes()
    client, silent = await home.client(nodes[0]), await home.client(nodes[0])
    await emit(nodes[0], [1], to=client.sid)
    await client.hear("n")
    gaps: list[roomcast.Gap] = []
    nodes[0].adapter.on_gap(gaps.append)
    other: Any = nodes[1].inside._node
    message = encode_message(Emit("/", ("red",), Packet("json", '2["n",2]')))
    other.publisher.reserve_now(len(message))
    other.publisher.put(other.subjects.room("/", "red"), message)
    for link in tuple(home.stream.links):
        if link._intake.config.node == nodes[0].adapter.host_id:
            link.lose(ConnectionResetError("a test cut it"))
    other.publisher._flush()
    home.stream.trim(home.stream.end)
    await until(lambda: any(gap.reason == "trimmed" for gap in gaps), what="the gap to be told")
    await asyncio.gather(client.drop(), silent.drop())
    await asyncio.gather(client.connect(nodes[1]), silent.connect(nodes[1]))
    assert client.recovered
    assert silent.recovered
    assert await home.end(nodes[0], client, silent) == [events([2]), events([2])]
    late = await home.client(nodes[0])
    await home.away(nodes[1], late, 3)
    assert (await late.connect(nodes[0])).recovered, "it came after the gap"
    assert await home.end(nodes[1], late) == [events([3])]


async def test_clients_that_come_and_go_all_the_time_get_everything_once_and_in_one_order(home: Home) -> None:
    """P2 and P3, with node switches and dead connections, while three nodes publish."""
    nodes = await home.nodes(3)
    clients = [await home.client(nodes[number % 3]) for number in range(6)]
    chance = random.Random(7)
    sent: list[int] = []
    going = True

    async def publish() -> None:
        while going:
            numbers = range(len(sent), len(sent) + chance.choice([1, 1, 10]))
            sent.extend(numbers)
            await emit(chance.choice(nodes), numbers, to=chance.choice(["red", None]))
            await asyncio.sleep(0.01)

    async def live(client: Returning) -> None:
        for _ in range(5):
            await asyncio.sleep(chance.random() / 10)
            await (client.walk_out() if chance.random() < 0.2 else client.drop())
            await asyncio.sleep(chance.random() / 10)
            assert (await client.connect(chance.choice(nodes))).recovered

    publishing = asyncio.ensure_future(publish())
    await asyncio.gather(*(live(client) for client in clients))
    going = False
    await publishing
    heard = await home.end(nodes[0], *clients)
    assert all(one == heard[0] for one in heard), "P2"
    assert sorted(heard[0]) == events(sent), "P3 and P5"
