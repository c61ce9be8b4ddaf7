"""Who may come back, and who may not."""

import asyncio
import time
from typing import Any

import msgspec
import pytest

from roomcast.core.messages import Bye, Keep, Message, Part, Refuse, Resume, Seize, encode_message
from roomcast.core.wire import Envelope, Wire
from tests.adapter.homes import (
    LONG,
    Home,
    accept,
    emit,
    events,
    free,
    user_of,
)
from tests.adapter.returning import Returning
from tests.waiting import until


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
