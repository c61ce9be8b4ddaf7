"""Clients that come back: their session, and exactly what they missed, on every node."""

import asyncio
import gc
import random
import re
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast
from uuid import uuid4

import msgspec
import pytest

import roomcast
from roomcast import Recovery
from roomcast.brokers.log_broker import LogBroker
from roomcast.brokers.memory_log import memory_logs
from roomcast.core.broker import BrokerConfig
from roomcast.core.errors import ConfigurationError
from roomcast.core.messages import Bye, Emit, Fetch, Keep, Message, Packet, Part, Refuse, Resume, Seize, encode_message
from roomcast.core.wire import Envelope, Wire
from tests.adapter.returning import Event, Returning
from tests.adapter.servers import Cluster, Node, serving
from tests.brokers.test_conformance import LOGS, broker_class
from tests.services import SharedBrokers
from tests.waiting import until

WINDOW = 30.0
PATIENCE = 0.6  # of a node that asks for a session; its client is given a third of it to answer a ping
LONG = 9.0
"""The same where the client does answer, or its handler does end, however busy the machine is."""


class Home:
    """A cluster whose nodes restore clients, and clients that come and go."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.clients: list[Returning] = []
        self.environs: list[bool] = []
        self.settings: dict[str, Any] = {"heartbeat": 1.0, "peer_timeout": 2.0}

    async def nodes(self, count: int = 2, **recovery: Any) -> list[Node]:
        """So many nodes; each joins a new client to the room it asks for in `auth`, before it is accepted."""
        return [await self.node(**recovery) for _ in range(count)]

    async def node(
        self, *, server: dict[str, Any] | None = None, settings: dict[str, Any] | None = None, **recovery: Any
    ) -> Node:
        """A node that has met the others."""
        recovering: dict[str, Any] = {"window": WINDOW, "patience": PATIENCE} | recovery
        named: Any = self.settings | (settings or {})
        node = await self.cluster.node(server=server, recovery=Recovery(**recovering), **named)

        async def connect(sid: str, environ: dict[str, Any], auth: Any = None) -> bool | None:
            self.environs.append(environ["roomcast.recovered"])
            assert not set(auth or ()) & {"pid", "offset"}, "the application does not see what recovery adds"
            if not environ["roomcast.recovered"] and auth and "room" in auth:
                await node.sio.enter_room(sid, auth["room"])
            return not (auth and auth.get("refuse"))

        node.sio.on("connect", connect)
        return node

    async def client(self, node: Node, *, room: str = "red", namespace: str = "/", **auth: Any) -> Returning:
        """A connected client in a room."""
        client = Returning(namespace, {"room": room} | auth if namespace == "/" else auth or None)
        self.clients.append(client)
        await client.connect(node)
        assert client.pid
        assert not client.recovered
        return client

    async def stop(self, node: Node) -> None:
        """Stop a node as an operator does."""
        self.cluster.nodes.remove(node)
        await node.stop()

    @property
    def stream(self) -> Any:
        """What the log in memory consists of."""
        return memory_logs()[self.cluster.url.removeprefix("memory+log://")].streams[0]

    async def away(self, node: Node, client: Returning, *numbers: int, **to: Any) -> None:
        """Lose a client, and emit to it."""
        await client.drop()
        await emit(node, numbers, **(to or {"to": "red"}))

    async def end(self, node: Node, *clients: Returning) -> list[list[Event]]:
        """What each client heard before an event that `node` emits to all now."""
        mark = f"end {uuid4().hex}"
        for namespace in dict.fromkeys(client.namespace for client in clients):
            await node.sio.emit(mark, namespace=namespace)
        return [(await client.hear(mark))[:-1] for client in clients]

    async def aclose(self) -> None:
        for client in self.clients:
            await client.aclose()


async def emit(node: Node, numbers: Sequence[int], **to: Any) -> None:
    """Emit at once, so that several events share an entry of the log."""
    await asyncio.gather(*(node.sio.emit("n", number, **to) for number in numbers))


def kill(node: Node) -> None:
    """Stop a node in the middle of everything: it says nothing any more, and its connections are cut."""
    inside: Any = node.inside._node
    inside.publisher.hold(link_down=True)
    for loop in inside._loops:
        loop.cancel()
    inside._closed = True


def free(node: Node) -> int:
    """How many sessions are free, as far as a node has read."""
    return cast("int", node.inside._recoveries.reader.table.free)


async def told(node: Node, client: Returning) -> None:
    """Return once a node knows of the client what its owner knows now."""
    table = node.inside._recoveries.reader.table
    await until(lambda: len(table.get(client.pid).keep.data) > 1, what="the session data to be known")


def user_of(_environ: Any, auth: Any) -> str:
    return (auth or {}).get("user", "")  # type: ignore[no-any-return]


async def never(_served: Any) -> None:
    """Test no connection, and come to no end."""
    await asyncio.Event().wait()


def accept(_sid: str, _environ: Any, _auth: Any) -> None:
    """A connect handler."""


def has_no_room(_environ: Any, auth: Any) -> bool:
    return "room" not in (auth or {})


def events(numbers: Sequence[int]) -> list[Event]:
    return [("n", number) for number in numbers]


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    """A home on a log in memory."""
    async with serving(f"memory+log://m{uuid4().hex[:12]}") as cluster:
        home = Home(cluster)
        yield home
        await home.aclose()
    gc.collect()


@pytest.fixture(params=("memory+log", *LOGS))
async def logged(request: pytest.FixtureRequest, shared_brokers: SharedBrokers) -> AsyncIterator[Home]:
    """A home on each log in turn."""
    scheme = str(request.param)
    url = f"memory+log://m{uuid4().hex[:12]}" if scheme == "memory+log" else shared_brokers.log_url(scheme)
    async with serving(url) as cluster:
        home = Home(cluster)
        yield home
        await home.aclose()
    if scheme != "memory+log":
        broker = cast("LogBroker", broker_class(scheme)(BrokerConfig(url, prefix=cluster.prefix)))
        await broker.delete()
        await broker.aclose()
    gc.collect()


# What comes back


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


async def test_a_node_that_had_more_to_say_of_a_client_than_was_known_ends_what_was_given_back_in_part(
    home: Home,
) -> None:
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    nodes[0].inside._node.publisher.hold(link_down=True)
    await nodes[0].sio.enter_room(client.sid, "late")
    await client.walk_out()
    assert (await client.connect(nodes[1])).recovered, "nobody knows better"
    nodes[0].inside._node.publisher.release()
    await asyncio.wait_for(client.over.wait(), 5)
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


# Who it is then


async def test_a_client_that_came_back_is_reached_by_its_old_name_from_every_node(home: Home) -> None:
    nodes = await home.nodes(3)
    client = await home.client(nodes[0])
    sid = client.sid
    await home.away(nodes[0], client)
    await client.connect(nodes[1])
    async with roomcast.Emitter(home.cluster.url, prefix=home.cluster.prefix) as emitter:
        await emitter.to(sid).emit("n", 0)
        assert [answer.args for answer in await emitter.to(sid).emit_with_ack("question", 1)] == [(1,)]
    assert await client.hear("question") == [*events([0]), ("question", 1)]
    for number, node in enumerate(nodes):
        await node.sio.emit("n", number, to=sid)
        await node.sio.enter_room(sid, f"room {number}")
        assert await node.sio.call("question", number, to=sid) == number
        (socket,) = await node.adapter.to(sid).fetch_sockets()
        assert (socket.sid, socket.node) == (sid, nodes[1].adapter.host_id)
        await node.sio.leave_room(sid, "red")
        assert await client.hear("question") == [*events([number]), ("question", number)]
    assert set(nodes[1].sio.rooms(sid)) == {sid, "room 0", "room 1", "room 2"}
    await nodes[2].sio.disconnect(sid)
    await asyncio.wait_for(client.over.wait(), 5)
    await client.connect(nodes[0])
    assert not client.recovered


async def test_a_node_without_recovery_reaches_the_clients_of_those_that_have_it(home: Home) -> None:
    """As in the middle of a rolling upgrade; also a client that has moved since."""
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    await client.drop()
    assert (await client.connect(nodes[1])).recovered
    without = await home.cluster.node(**home.settings)
    assert without.inside._node.roams
    await without.sio.enter_room(client.sid, "blue")
    await without.sio.leave_room(client.sid, "red")
    await emit(without, [1], to="red")
    await emit(without, [2], to="blue")
    assert await home.end(without, client) == [events([2])]
    with pytest.raises(ValueError, match="not connected"):
        await without.sio.enter_room(client.sid[::-1], "blue")
    await without.sio.disconnect(client.sid)
    await client.over.wait()


async def test_what_is_stored_with_a_client_is_read_on_every_node_and_comes_back(home: Home) -> None:
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    sid = client.sid
    async with nodes[0].sio.session(sid) as session:
        session.update(name="Ann", tags=("a", 1), secret=object())
    stored = {"name": "Ann", "tags": ["a", 1]}
    assert [await node.adapter.get_session(sid) for node in nodes] == [stored, stored]
    await home.away(nodes[0], client)
    await until(lambda: free(nodes[1]) == 1, what="the session to be free")
    assert [await node.adapter.get_session(sid) for node in nodes] == [stored, stored]
    await client.connect(nodes[1])
    assert await nodes[1].sio.get_session(sid) == stored
    assert [await node.adapter.get_session(sid) for node in nodes] == [stored, stored]
    async with roomcast.Emitter(home.cluster.url, prefix=home.cluster.prefix) as emitter:
        assert await emitter.get_session(sid) == stored
    with pytest.raises(ValueError, match="There is no client 'nobody'"):
        await nodes[0].adapter.get_session("nobody")


@pytest.mark.parametrize("how", ["lost", "left", "sent away"])
async def test_what_is_stored_with_a_client_is_read_in_its_disconnect_handler(home: Home, how: str) -> None:
    """Also on a node that did not give it its sid, and when all have read that the node serves it no longer."""
    nodes = await home.nodes()
    table = nodes[1].inside._recoveries.reader.table
    read: list[Any] = []
    done = asyncio.Event()

    async def disconnect(sid: str, _reason: str) -> None:
        await until(lambda: not table.serves(nodes[1].adapter.host_id), what="the session not to be served")
        read.append(await nodes[1].adapter.get_session(sid))
        done.set()

    nodes[1].sio.on("disconnect", disconnect)
    client = await home.client(nodes[0])
    await nodes[0].sio.save_session(client.sid, {"name": "Ann"})
    await client.drop()
    assert (await client.connect(nodes[1])).recovered
    if how == "lost":
        await client.drop()
    elif how == "left":
        await client.leave()
    else:
        await nodes[0].sio.disconnect(client.sid)
    await asyncio.wait_for(done.wait(), 5)
    assert read == [{"name": "Ann"}]


async def test_what_is_stored_with_a_client_that_goes_as_its_node_is_asked_is_read_all_the_same(home: Home) -> None:
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    await nodes[0].sio.save_session(client.sid, {"name": "Ann"})
    await told(nodes[1], client)
    nodes[0].inside._node.publisher.hold(link_down=True)
    await client.drop()
    await until(lambda: nodes[0].inside._rooms.client("/", client.sid) is None, what="the client to be gone")
    reading = asyncio.ensure_future(nodes[1].adapter.get_session(client.sid))
    handled = nodes[0].inside._node.handlers
    answered, fetch = asyncio.Event(), handled[Fetch]

    def answer(origin: str, message: Any) -> None:
        fetch(origin, message)
        answered.set()

    handled[Fetch] = answer
    await asyncio.wait_for(answered.wait(), 5)
    nodes[0].inside._node.publisher.release()
    assert await reading == {"name": "Ann"}


async def test_without_recovery_what_is_stored_with_a_client_is_read_on_every_node(alone: Cluster) -> None:
    a, b = await alone.pair()
    client = await a.client()
    await a.sio.save_session(client.sid, {"name": "Ann"})
    read: list[Any] = []
    done = asyncio.Event()

    async def disconnect(sid: str, _reason: str) -> None:
        read.append(await a.adapter.get_session(sid))
        done.set()

    a.sio.on("disconnect", disconnect)
    for node in (a, b):
        assert await node.adapter.get_session(client.sid) == {"name": "Ann"}
        with pytest.raises(ValueError, match="There is no client"):
            await node.adapter.get_session(client.sid, namespace="/chat")
    await client.socket.disconnect()
    await asyncio.wait_for(done.wait(), 5)
    assert read == [{"name": "Ann"}]


async def test_the_disconnect_handler_is_done_before_the_client_is_back(home: Home) -> None:
    nodes = await home.nodes(patience=LONG)
    order: list[str] = []
    handling = asyncio.Event()

    async def disconnect(_sid: str, _reason: str) -> None:
        handling.set()
        await asyncio.sleep(0.05)
        order.append("disconnected")

    nodes[0].sio.on("disconnect", disconnect)
    client = await home.client(nodes[0])
    await client.drop()
    await handling.wait()
    for to in (1, 0):
        await client.connect(nodes[to])
        order.append(f"back on {to}")
        assert client.recovered
        await client.drop()
    assert order == ["disconnected", "back on 1", "back on 0"]


async def test_a_disconnect_handler_that_takes_long_does_not_end_the_session_again(home: Home) -> None:
    (node,) = await home.nodes(1)
    going, go = asyncio.Event(), asyncio.Event()

    async def disconnect(_sid: str, _reason: str) -> None:
        going.set()
        await go.wait()

    node.sio.on("disconnect", disconnect)
    client = await home.client(node)
    await client.drop()
    await going.wait()
    await client.connect(node)
    assert client.recovered
    go.set()
    await asyncio.sleep(0)
    await emit(node, [1], to=client.sid)
    assert await home.end(node, client) == [events([1])]


@pytest.mark.parametrize("agrees", [True, False])
async def test_a_connect_handler_that_ends_when_its_client_has_come_back_again_has_no_say_in_that(
    home: Home, *, agrees: bool
) -> None:
    (node,) = await home.nodes(1)
    client = await home.client(node)
    begun, go = [asyncio.Event(), asyncio.Event()], [asyncio.Event(), asyncio.Event()]
    ended = asyncio.Event()
    calls = iter((0, 1))

    async def connect(_sid: str, _environ: Any, _auth: Any) -> bool:
        call = next(calls)
        begun[call].set()
        await go[call].wait()
        return agrees or call == 1

    async def basic(eio_sid: str, packet: Any) -> None:
        await send(eio_sid, packet)
        ended.set()

    node.sio.on("connect", connect)
    for call in (0, 1):
        await client.drop()
        await client.ask(node)
        await begun[call].wait()
    send, node.sio._send_packet = node.sio._send_packet, basic
    go[0].set()
    await ended.wait()
    await asyncio.sleep(0)
    assert node.inside.is_pre_connected(client.sid, "/"), "nobody has agreed to this connection yet"
    go[1].set()
    await client.answered()
    assert client.recovered
    await emit(node, [1], to=client.sid)
    assert await home.end(node, client) == [events([1])]


async def test_always_connect_refuses_nobody_who_has_come_back_again_meanwhile(home: Home) -> None:
    node = await home.node(server={"always_connect": True})
    client = await home.client(node)
    begun, go = [asyncio.Event(), asyncio.Event()], asyncio.Event()
    calls = iter((0, 1))

    async def connect(_sid: str, _environ: Any, _auth: Any) -> bool:
        call = next(calls)
        begun[call].set()
        await go.wait()
        return call == 1

    node.sio.on("connect", connect)
    for call in (0, 1):
        await client.drop()
        await client.ask(node)
        await begun[call].wait()
    go.set()
    await emit(node, [1], to=client.sid)
    assert await home.end(node, client) == [events([1])]
    assert client.recovered


async def test_what_a_disconnect_handler_began_can_still_disconnect_its_client_once_that_is_back(home: Home) -> None:
    (node,) = await home.nodes(1)
    go = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def send_away(sid: str) -> None:
        await go.wait()
        await node.sio.disconnect(sid)

    async def disconnect(sid: str, _reason: str) -> None:
        tasks.append(asyncio.ensure_future(send_away(sid)))

    node.sio.on("disconnect", disconnect)
    client = await home.client(node)
    await client.drop()
    assert (await client.connect(node)).recovered
    go.set()
    await tasks[0]
    assert node.inside.eio_sid_from_sid(client.sid, "/") is None
    await client.drop()
    assert not (await client.connect(node)).recovered


# Who may, and who may not


async def test_a_connect_handler_that_refuses_ends_the_session_and_nothing_that_was_missed_is_told(home: Home) -> None:
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    await home.away(nodes[0], client, 1, 2)
    client.auth = {"refuse": True}
    await client.connect(nodes[1])
    assert client.refusal
    assert home.environs[-1]
    client.auth = None
    await client.connect(nodes[1])
    assert not client.recovered
    assert await home.end(nodes[0], client) == [[]]


async def test_the_connect_handler_can_be_left_out(home: Home) -> None:
    nodes = await home.nodes(skip_connect_handler=True)
    client = await home.client(nodes[0])
    await home.away(nodes[0], client, 1)
    await client.connect(nodes[1])
    assert client.recovered
    assert home.environs == [False]
    assert await home.end(nodes[0], client) == [events([1])]


async def test_always_connect_does_not_give_away_what_was_missed_before_the_handler_agrees(home: Home) -> None:
    nodes = [await home.node(server={"always_connect": True}) for _ in range(2)]
    client = await home.client(nodes[0])
    await home.away(nodes[0], client, 1)
    client.auth = {"refuse": True}
    await client.connect(nodes[1])
    await asyncio.wait_for(client.over.wait(), 5)
    client.auth = None
    await client.connect(nodes[0])
    assert not client.recovered
    assert await home.end(nodes[0], client) == [[]]


async def test_a_pid_is_no_use_while_its_client_is_there_nor_to_someone_else(home: Home) -> None:
    nodes = await home.nodes(identity=user_of, patience=LONG)
    client = await home.client(nodes[0], user="ann")
    for node in nodes:
        thief = Returning(auth={"user": "ann", "room": "red"})
        home.clients.append(thief)
        await thief.connect(node, pid=client.pid)
        assert thief.sid
        assert thief.sid != client.sid
        assert thief.pid != client.pid
    await home.away(nodes[0], client, 1)
    thief = Returning(auth={"user": "eve", "room": "red"})
    home.clients.append(thief)
    await thief.connect(nodes[1], pid=client.pid, place=client.place)
    assert thief.sid != client.sid
    await client.connect(nodes[1])
    assert client.recovered
    assert await home.end(nodes[0], client, thief) == [events([1]), []]


@pytest.mark.parametrize("again", [1, 2], ids=["same node", "another node"])
@pytest.mark.parametrize("silently", [False, True], ids=["dropped", "half dead"])
async def test_a_client_whose_way_back_breaks_as_well_is_restored_by_the_next(
    home: Home, again: int, silently: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It has asked twice: what is granted to a connection that is dead is passed on to the one that is not."""
    nodes = await home.nodes(3)
    client = await home.client(nodes[0])
    sid = client.sid
    await emit(nodes[1], [1], to="red")
    await client.hear("n")
    await client.walk_out()
    await emit(nodes[1], [2], to="red")
    await client.ask(nodes[1])
    await until(lambda: nodes[2].inside._recoveries.reader.table.by_sid(sid).waiting, what="the first way back waits")
    await (client.walk_out() if silently else client.drop())
    await client.connect(nodes[again])
    assert client.recovered
    assert client.sid == sid
    assert await home.end(nodes[0], client) == [events([2])]
    assert [node.sio.rooms(sid) != [] for node in nodes] == [node is nodes[again] for node in nodes]
    assert "Traceback" not in caplog.text


async def test_a_connection_that_is_gone_when_its_session_is_denied_leaves_nothing(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = await home.nodes(patience=30.0)
    client = await home.client(nodes[0])
    thief = Returning()
    home.clients.append(thief)
    nodes[0].inside._node.publisher.hold(link_down=True)  # it does not answer yet
    await thief.ask(nodes[1], pid=client.pid)
    table = nodes[1].inside._recoveries.reader.table
    await until(lambda: table.get(client.pid).waiting, what="the thief waits")
    await nodes[1].sio.eio.disconnect()  # as for a client that has not answered a ping in time
    assert not nodes[1].sio.environ
    nodes[0].inside._node.publisher.release()
    await until(lambda: nodes[1].adapter.stats()["sessions_unrecovered"], what="the session is denied")
    assert await home.end(nodes[0], client) == [[]]
    assert await nodes[1].adapter.local.count() == 0
    assert "Traceback" not in caplog.text


async def test_a_session_that_is_given_in_the_turn_of_the_deadline_is_given(home: Home) -> None:
    (node,) = await home.nodes(1)
    client = await home.client(node)
    await home.away(node, client, 1)
    recoveries = node.inside._recoveries
    decided = recoveries.act

    def act(news: Any) -> None:
        decided(news)
        if any(pending.sid.done() for pending in recoveries._pending.values()):
            time.sleep(1.0)  # what else there was to read took so long

    recoveries.act = act
    object.__setattr__(recoveries.settings, "patience", 0.5)
    object.__setattr__(recoveries._node.settings, "request_timeout", 0.5)
    await client.connect(node)
    assert client.recovered
    assert await home.end(node, client) == [events([1])]


async def test_of_two_that_come_back_with_one_pid_one_gets_the_session(home: Home) -> None:
    nodes = await home.nodes(3, patience=LONG)
    client = await home.client(nodes[0])
    await home.away(nodes[0], client, 1)
    twins = [Returning() for _ in nodes]
    home.clients += twins
    for twin in twins:
        twin.pid = client.pid
    await asyncio.gather(*(twin.connect(node) for twin, node in zip(twins, nodes, strict=True)))
    assert sorted(twin.recovered for twin in twins) == [False, False, True]
    assert len({twin.sid for twin in twins}) == len({twin.pid for twin in twins}) == 3
    heard = await home.end(nodes[0], *twins)
    assert heard == [events([1]) if twin.recovered else [] for twin in twins]


async def test_a_session_is_over_when_its_client_or_the_application_ends_it(home: Home) -> None:
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    await client.leave()
    await client.connect(nodes[1])
    assert not client.recovered
    await nodes[0].sio.disconnect(client.sid)
    await asyncio.wait_for(client.over.wait(), 5)
    await client.connect(nodes[0])
    assert not client.recovered
    await home.away(nodes[0], client)
    await until(lambda: free(nodes[1]) == 1, what="the session to be free")
    await nodes[1].sio.disconnect(client.sid)
    await client.connect(nodes[0])
    assert not client.recovered
    assert nodes[0].adapter.stats()["sessions_unrecovered"] == 2
    assert nodes[1].adapter.stats()["sessions_unrecovered"] == 1


async def test_a_stranger_among_the_sessions_harms_nobody(home: Home) -> None:
    """P8: "any bytes on the channel: no crash, no reconnect, no leak, no client cut off; one counter" """
    nodes = await home.nodes()
    client, away = await home.client(nodes[0]), await home.client(nodes[0])
    await home.away(nodes[0], away)
    inside: Any = nodes[1].inside._node
    subject = inside.subjects.sessions
    wire = Wire(max_payload=1 << 20)
    messages: list[Message] = [
        Keep("x", 1, client.sid, "/", (), msgspec.Raw(b"\xc3"), "e", 1, 1, 1),
        Keep(client.pid, 0, client.sid, "/", (), msgspec.Raw(b"\x80"), "e", 1, 1, 1),
        Part(client.pid, 0, over=True),
        Part(away.pid, 7, over=True),
        Resume(1, "nobody"),
        Resume(2, client.pid),
        Refuse(client.pid, 0),
        Seize(client.pid, 3),
        Bye(),
    ]
    for number, message in enumerate(messages, 1):
        envelope = Envelope("hacker", number, 0, 1, [msgspec.Raw(encode_message(message))])
        await inside._broker.publish(subject, wire.seal(subject, envelope))
    broken = wire.seal(subject, Envelope("hacker", 99, 0, 1, [msgspec.Raw(b"\xc1")]))
    for payload in (b"", b"\x00", b"\x01\x00\xff", broken):
        await inside._broker.publish(subject, payload)
    await emit(nodes[1], [0])
    assert await client.hear("n") == events([0])
    await away.connect(nodes[1])
    assert away.recovered
    await home.away(nodes[0], client, 1)
    await client.connect(nodes[1])
    assert client.recovered
    assert await home.end(nodes[0], client, away) == [events([1]), events([0, 1])]
    assert all(node.adapter.stats()["faults"] == 0 for node in nodes)
    assert nodes[1].adapter.stats()["refused"]["malformed"] == 4


async def test_a_copy_of_what_was_said_long_ago_makes_nobody_forget_a_session(home: Home) -> None:
    """Whoever may write to the log has old entries of it, though not the secret."""
    shared = "a secret of the cluster"
    home.settings["secret"] = shared
    nodes = await home.nodes()
    client, away = await home.client(nodes[0]), await home.client(nodes[0])
    await home.away(nodes[0], away, 1)
    inside: Any = nodes[1].inside._node
    old = Envelope("dead", time.time_ns() // 1000 - 86_400_000_000, 0, 1, [msgspec.Raw(encode_message(Bye()))])
    subject = inside.subjects.sessions
    await inside._broker.publish(subject, Wire((shared,), max_payload=1 << 20).seal(subject, old))
    await emit(nodes[1], [2], to="red")
    await client.hear("n")
    await client.hear("n")
    assert nodes[1].adapter.stats()["refused"] == {"replayed": 1}
    assert (await away.connect(nodes[1])).recovered
    assert await home.end(nodes[0], away) == [events([1, 2])]


async def test_whom_the_application_sends_away_while_its_connection_ends_does_not_come_back(home: Home) -> None:
    nodes = await home.nodes()
    client = await home.client(nodes[0])
    connection = nodes[0].inside.eio_sid_from_sid(client.sid, "/")
    nodes[0].sio.eio.sockets[connection].closing = True
    await nodes[0].sio.disconnect(client.sid)
    await client.drop()
    assert not (await client.connect(nodes[1])).recovered


@pytest.mark.parametrize("by", [0, 1])
async def test_whom_the_application_sends_away_while_its_disconnect_handler_runs_does_not_come_back(
    home: Home, by: int
) -> None:
    nodes = await home.nodes(patience=LONG)
    handling, go = asyncio.Event(), asyncio.Event()

    async def disconnect(_sid: str, _reason: str) -> None:
        handling.set()
        await go.wait()

    nodes[0].sio.on("disconnect", disconnect)
    client = await home.client(nodes[0])
    await client.drop()
    await handling.wait()
    await nodes[by].sio.disconnect(client.sid)
    go.set()
    assert not (await client.connect(nodes[1])).recovered


@pytest.mark.parametrize("by", ["its handler", "its node", "another node"])
async def test_whom_the_application_sends_away_while_its_connect_handler_runs_is_refused(home: Home, by: str) -> None:
    """ "A client that was restored is refused, whatever its connect handler says, when the application has disconnected
    it meanwhile"; also by an operator, and then nothing that was missed is told."""
    nodes = await home.nodes()
    client, other = await home.client(nodes[0]), await home.client(nodes[1])
    begun, go = asyncio.Event(), asyncio.Event()

    async def connect(sid: str, environ: dict[str, Any], _auth: Any) -> None:
        if environ["roomcast.recovered"]:
            if by == "its handler":
                await nodes[1].sio.disconnect(sid)
            else:
                begun.set()
                await go.wait()

    nodes[1].sio.on("connect", connect)
    await home.away(nodes[0], client, 1)
    await client.ask(nodes[1])
    if by == "its node":
        await begun.wait()
        assert await nodes[1].adapter.to(client.sid).disconnect_sockets() == 0, "it is not connected yet"
    elif by == "another node":
        await begun.wait()
        await nodes[0].sio.disconnect(client.sid)
    go.set()
    await client.answered()
    assert client.refusal
    assert nodes[1].sio.rooms(client.sid) == []
    await client.connect(nodes[0])
    assert not client.recovered
    assert await home.end(nodes[0], client, other) == [[], events([1])]


async def test_with_always_connect_the_application_can_send_away_whoever_comes_back(home: Home) -> None:
    node = await home.node(server={"always_connect": True})
    client = await home.client(node)

    async def connect(sid: str, environ: dict[str, Any], _auth: Any) -> None:
        if environ["roomcast.recovered"]:
            await node.sio.disconnect(sid)

    node.sio.on("connect", connect)
    await home.away(node, client, 1)
    await client.connect(node)
    await asyncio.wait_for(client.over.wait(), 5)
    node.sio.on("connect", accept)
    assert not (await client.connect(node)).recovered
    assert await home.end(node, client) == [[]]


async def test_a_new_client_cannot_be_sent_away_before_it_is_accepted_as_with_python_socketio(home: Home) -> None:
    (node,) = await home.nodes(1)

    async def connect(sid: str, _environ: Any, _auth: Any) -> None:
        await node.sio.disconnect(sid)

    node.sio.on("connect", connect)
    client = await home.client(node)
    await emit(node, [1], to=client.sid)
    assert await home.end(node, client) == [events([1])]


async def test_whom_the_application_sends_away_in_the_moment_in_which_it_comes_back_goes(home: Home) -> None:
    """The node that says so has not read yet that the session is somebody's again."""
    nodes = await home.nodes(skip_connect_handler=True)
    client = await home.client(nodes[0])
    await home.away(nodes[0], client, 1)
    await until(lambda: free(nodes[1]) == 1, what="the session to be free")
    end = Part(client.pid, 0, over=True, sent_away=True)
    await client.connect(nodes[0])
    nodes[1].inside._recoveries.serving.say(end)
    await asyncio.wait_for(client.over.wait(), 5)
    assert not (await client.connect(nodes[0])).recovered


# What cannot be given back


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


# Who is offered it


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
