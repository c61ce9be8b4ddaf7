"""Acknowledgements of broadcasts when clients answer oddly, late, twice or never; over every broker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import pytest
from socketio import msgpack_packet
from socketio import packet as sio_packet

from roomcast import AckTimeout, Answer, EncodeError
from tests.adapter.conftest import broker_url
from tests.adapter.crowd import (
    EVERYONE,
    Crowd,
    acknowledging,
    fetched,
    gathered,
    left_behind,
    nothing_is_left,
    swarming,
)
from tests.adapter.servers import Client, Cluster, Node
from tests.services import SharedBrokers
from tests.waiting import until


@pytest.fixture
async def crowd(scheme: str, shared_brokers: SharedBrokers) -> AsyncIterator[Crowd]:
    async with gathered(broker_url(scheme, shared_brokers)) as crowd:
        yield crowd


class Silence:
    """Clients that get an event and do not acknowledge it until they are released."""

    def __init__(self, *clients: Client) -> None:
        self._asked = {client.sid: asyncio.Event() for client in clients}
        self._release = asyncio.Event()
        for client in clients:
            client.socket.on("ask", self._listener(client.sid))

    def _listener(self, sid: str) -> Any:
        async def listen(*_args: Any) -> str:
            self._asked[sid].set()
            await self._release.wait()
            return "late"

        return listen

    async def asked(self) -> None:
        """Return once each of them has got the event."""
        async with asyncio.timeout(5):
            await asyncio.gather(*(event.wait() for event in self._asked.values()))

    def end(self) -> None:
        self._release.set()


async def test_all_arguments_of_an_acknowledgement_are_kept(crowd: Crowd) -> None:
    said: dict[str, Any] = {"a1": (1, "two", b"\3"), "b1": [1, 2], "c1": None, "c2": ([], {}), "c3": ()}
    await crowd.enter("room1", " ".join(said))
    for name, value in said.items():
        crowd[name].answers["ask"] = value
    answers = await crowd.b.adapter.to("room1").emit_with_ack("ask")
    by_name = {crowd.named([answer.sid]): answer for answer in answers}
    assert {name: answer.args for name, answer in by_name.items()} == {
        "a1": (1, "two", b"\3"),
        "b1": ([1, 2],),
        "c1": (),
        "c2": ([], {}),
        "c3": (),
    }
    assert {name: answer.value for name, answer in by_name.items()} == said | {"c3": None}


async def test_answers_are_given_as_they_come(crowd: Crowd) -> None:
    silent = Silence(crowd["b1"])
    await crowd.enter("room1", "a1 b1 c1")
    for name in ("a1", "c1"):
        crowd[name].answers["ask"] = name
    early: list[Answer] = []
    async with aclosing(crowd.a.adapter.to("room1").acks("ask")) as answers:
        async for answer in answers:
            early.append(answer)
            if len(early) == 2:
                silent.end()
    assert sorted(answer.value for answer in early[:2]) == ["a1", "c1"]
    assert early[2] == Answer(crowd["b1"].sid, crowd.b.adapter.host_id, ("late",))


async def test_whoever_stops_listening_to_answers_leaves_nothing_waiting(crowd: Crowd) -> None:
    silent = Silence(*crowd.clients("a2 b2 c2"))
    for name in ("a1", "b1"):
        crowd[name].answers["ask"] = name
    async with aclosing(crowd.a.adapter.acks("ask")) as answers:
        assert (await anext(answers)).value in ("a1", "b1", None)
        await silent.asked()
    assert "acks it waits for" not in left_behind(crowd.a.adapter)
    asking = asyncio.ensure_future(crowd.b.adapter.emit_with_ack("ask"))
    await until(lambda: len(crowd.b.inside._broadcast.acks))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    silent.end()
    await nothing_is_left(*(node.adapter for node in crowd.nodes))


async def test_a_client_that_drops_its_connection_is_not_waited_for(crowd: Crowd) -> None:
    silent = Silence(*crowd.clients("a1 b1 c1"))
    for name in ("a2", "b2", "c2"):
        crowd[name].answers["ask"] = name
    asking = asyncio.ensure_future(crowd.a.adapter.timeout(30).emit_with_ack("ask"))
    await silent.asked()
    for client in crowd.clients("a1 b1 c1"):
        client.drop()
    async with asyncio.timeout(5):
        answers = await asking
    assert {answer.value for answer in answers} >= {"a2", "b2", "c2"}
    assert len(answers) == 6, "three that answer, three that answer None"
    silent.end()
    await nothing_is_left(*(node.adapter for node in crowd.nodes))


async def test_a_client_that_disconnects_is_not_waited_for_even_while_its_disconnect_handler_runs(crowd: Crowd) -> None:
    go_on = asyncio.Event()
    entered: list[str] = []

    async def slow(sid: str, _reason: str) -> None:
        entered.append(sid)
        await go_on.wait()

    for node in crowd.nodes:
        node.sio.on("disconnect", slow)
    gone = crowd.clients("a1 b1 c1")
    sids = crowd.sids("a1 b1 c1")
    silent = Silence(*gone)
    await crowd.enter("room1", "a1 b1 c1 c2")
    crowd["c2"].answers["ask"] = "here"
    asking = asyncio.ensure_future(crowd.b.adapter.to("room1").timeout(30).emit_with_ack("ask"))
    await silent.asked()
    silent.end()
    parting = [asyncio.ensure_future(client.aclose()) for client in gone]
    async with asyncio.timeout(5):
        first = await asking
    assert "here" in [answer.value for answer in first]
    await until(lambda: set(entered) == set(sids), what="every disconnect handler to begin")
    async with asyncio.timeout(5):  # those who are parting are not even asked
        (answer,) = await crowd.b.adapter.to("room1").timeout(30).emit_with_ack("ask")
    assert answer.sid == crowd["c2"].sid
    go_on.set()
    await asyncio.gather(*parting)
    await nothing_is_left(*(node.adapter for node in crowd.nodes))


async def test_clients_that_the_server_disconnects_are_not_waited_for(crowd: Crowd) -> None:
    silent = Silence(*crowd.clients("a1 b1 c1"))
    await crowd.enter("room1", "a1 b1 c1")
    asking = asyncio.ensure_future(crowd.a.adapter.to("room1").timeout(30).emit_with_ack("ask"))
    await silent.asked()
    assert await crowd.c.adapter.to("room1").disconnect_sockets() == 3
    async with asyncio.timeout(5):
        assert await asking == []
    silent.end()


async def test_a_client_that_leaves_the_room_is_still_waited_for(crowd: Crowd) -> None:
    silent = Silence(crowd["b1"])
    await crowd.enter("room1", "b1")
    asking = asyncio.ensure_future(crowd.a.adapter.to("room1").emit_with_ack("ask"))
    await silent.asked()
    assert await crowd.a.adapter.sockets_leave("room1") == 9
    silent.end()
    assert [answer.value for answer in await asking] == ["late"]


async def test_a_timeout_has_exactly_who_answered_and_who_is_missing(crowd: Crowd) -> None:
    silent = Silence(*crowd.clients("a2 c3"))
    crowd["b1"].answers["ask"] = ("b", 1)
    await crowd.enter("room1", "a2 b1 c3")
    with pytest.raises(AckTimeout, match="2 of 3") as failed:
        await crowd.c.adapter.to("room1").timeout(0.3).emit_with_ack("ask")
    silent.end()
    assert failed.value.responses == [Answer(crowd["b1"].sid, crowd.b.adapter.host_id, ("b", 1))]
    assert failed.value.missing == set(crowd.sids("a2 c3"))
    await nothing_is_left(*(node.adapter for node in crowd.nodes))


async def test_a_remote_socket_that_is_gone_is_told_at_once(crowd: Crowd) -> None:
    for name in ("a1", "b1"):
        (socket,) = await crowd.a.adapter.to(crowd[name].sid).fetch_sockets()
        sid = socket.sid
        await socket.disconnect()
        async with asyncio.timeout(3):
            with pytest.raises(AckTimeout) as failed:
                await socket.emit_with_ack("ask", timeout=30)
        assert failed.value.missing == {sid}
        await socket.emit("nobody hears this")
    assert await crowd.hearers(among="a2 a3 b2 b3 c1 c2 c3") == ""


async def test_the_second_acknowledgement_of_a_client_changes_nothing(crowd: Crowd) -> None:
    """A client is free to send what it likes: a forged number, a number twice, a number it was never asked."""
    silent = Silence(crowd["c1"])
    twice = crowd["b1"]
    numbers: list[int] = []

    async def acknowledge(packet: Any) -> None:
        if packet.id is not None:
            numbers.append(packet.id)
            for value in ("first", "second"):
                await twice.socket._send_packet(sio_packet.Packet(sio_packet.ACK, id=packet.id, data=[value]))
            await twice.socket._send_packet(sio_packet.Packet(sio_packet.ACK, id=packet.id + 1, data=["forged"]))

    original = twice.socket._handle_event

    async def handle(namespace: str, number: int | None, data: list[Any]) -> None:
        await original(namespace, None, data)
        await acknowledge(sio_packet.Packet(sio_packet.EVENT, id=number, data=data))

    twice.socket._handle_event = handle
    await crowd.enter("room1", "b1 c1")
    asking = asyncio.ensure_future(crowd.a.adapter.to("room1").emit_with_ack("ask"))
    await silent.asked()
    await until(lambda: numbers)
    silent.end()
    assert sorted((crowd.named([answer.sid]), answer.value) for answer in await asking) == [
        ("b1", "first"),
        ("c1", "late"),
    ]


async def test_an_event_that_cannot_be_sent_waits_for_nobody(crowd: Crowd) -> None:
    for bad in ({"set": {1, 2}}, object(), float("nan")):
        with pytest.raises(EncodeError):
            await crowd.a.adapter.emit_with_ack("ask", bad)
    with pytest.raises(TypeError):
        await crowd.a.adapter.emit_with_ack(cast("Any", 7))
    assert left_behind(crowd.a.adapter) == {}
    assert await crowd.hearers() == ""


async def test_the_server_s_callback_and_the_operators_ask_the_same_clients(crowd: Crowd) -> None:
    await crowd.enter("room1", "a1 b1 b2 c1")
    for name in EVERYONE.split():
        crowd[name].answers["ask"] = name
    for skipped in ("", "a1 c1"):
        called: list[str] = []
        skip = crowd.sids(skipped)
        await crowd.b.sio.emit("ask", room="room1", skip_sid=skip, callback=called.append)
        operator = crowd.b.adapter.to("room1")
        answers = await (operator.except_(*skip) if skip else operator).emit_with_ack("ask")
        expected = [name for name in ("a1", "b1", "b2", "c1") if name not in skipped]
        assert sorted(answer.value for answer in answers) == expected
        await until(lambda called=called, expected=expected: len(called) == len(expected))  # type: ignore[misc]
        assert sorted(called) == expected
    await nothing_is_left(*(node.adapter for node in crowd.nodes))


def echoed(*args: Any) -> tuple[bytes, list[Any]]:
    return b"\0\1", [*args]


@pytest.mark.parametrize("mixed", [False, True])
async def test_servers_that_speak_msgpack(cluster: Cluster, mixed: bool) -> None:
    """Also when one server of the cluster speaks JSON: what it cannot say in JSON, it says with attachments."""
    a = await cluster.node(server={"serializer": "msgpack"})
    b = await cluster.node(server={} if mixed else {"serializer": "msgpack"})
    one = await a.client(serializer="msgpack")
    two = await b.client(serializer="default" if mixed else "msgpack")
    for client in (one, two):
        client.answers["ask"] = echoed
    for node in (a, b):
        answers = await node.adapter.timeout(5).emit_with_ack("ask", b"\xff", {"n": [1, b""]})
        assert sorted(answer.sid for answer in answers) == sorted((one.sid, two.sid))
        assert [answer.args for answer in answers] == [(b"\0\1", [b"\xff", {"n": [1, b""]}])] * 2
        assert set(await fetched(node.adapter)) == {one.sid, two.sid}
    assert issubclass(a.sio.packet_class, msgpack_packet.MsgPackPacket)


class Counted(dict[str, Any]):
    """Data that counts how often it is read."""

    reads = 0

    def items(self) -> Any:
        self.reads += 1
        return super().items()


@pytest.mark.parametrize("payload", ["text", b"\0binary"])
async def test_an_event_for_many_clients_with_acknowledgements_is_encoded_once(
    scheme: str, shared_brokers: SharedBrokers, payload: str | bytes
) -> None:
    async with swarming(broker_url(scheme, shared_brokers)) as swarm:
        for node in swarm.nodes:
            for _ in range(67):
                acknowledging(await node.client("room1"), '["ok"]')
        data = Counted(payload=payload)
        answers = await swarm.nodes[0].adapter.to("room1").emit_with_ack("ask", data)
        assert len(answers) == 201
        assert {answer.args for answer in answers} == {("ok",)}
        # bytes are tried as plain JSON first, once, on the node that emits
        assert data.reads == (1 if isinstance(payload, str) else 2)
        await nothing_is_left(*(node.adapter for node in swarm.nodes))


def doubled(number: int) -> int:
    return number * 2


async def test_acknowledgements_of_many_events_at_once_are_not_confused(crowd: Crowd) -> None:
    for client in crowd.clients():
        client.answers["ask"] = doubled
    await crowd.enter("room1", "a1 b1 c1")

    async def ask(node: Node, number: int) -> None:
        target = (node.adapter.to("room1"), node.adapter.to(crowd["b2"].sid), node.adapter.local)[number % 3]
        answers = await target.emit_with_ack("ask", number)
        assert len(answers) == (3, 1, 3)[number % 3]
        assert {answer.value for answer in answers} == {number * 2}

    await asyncio.gather(*(ask(crowd.nodes[number % 7 % 3], number) for number in range(300)))
    await nothing_is_left(*(node.adapter for node in crowd.nodes))


async def test_a_volatile_event_is_dropped_and_counted_for_a_client_that_does_not_read(crowd: Crowd) -> None:
    stuck = crowd["b1"]
    stuck.socket.eio.ws._response.connection.transport.pause_reading()
    queue = crowd.b.sio.eio.sockets[stuck.socket.eio.sid].queue
    sent = 0
    while queue.qsize() < 2:  # the kernel's buffers are full
        await crowd.b.sio.emit("heavy", "x" * 900_000, to=stuck.sid)
        sent += 1
        assert sent < 100
        await asyncio.sleep(0)
    before = crowd.b.adapter.stats()["volatile_dropped"]
    for name in EVERYONE.split():
        crowd[name].answers["light"] = name
    await crowd.enter("room1", "a1 b1 b2 c1")
    await crowd.a.adapter.volatile.to("room1").timeout(5).emit_with_ack("light", 1)
    answers = await crowd.a.adapter.volatile.to("room1").timeout(5).emit_with_ack("light", 2)
    assert sorted(answer.value for answer in answers) == ["a1", "b2", "c1"]
    assert crowd.b.adapter.stats()["volatile_dropped"] - before == 2
    stuck.socket.eio.ws._response.connection.transport.resume_reading()
    heard = await crowd.everything()
    assert [event for event, *_ in heard["b1"]] == ["heavy"] * sent
    assert {name: [event for event, *_ in events] for name, events in heard.items() if name != "b1"} == {
        name: ["light", "light"] if name in ("a1", "b2", "c1") else [] for name in EVERYONE.split() if name != "b1"
    }
