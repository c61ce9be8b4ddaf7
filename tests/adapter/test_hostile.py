"""P8: any bytes on any subject. No crash, no reconnect, no client cut off, no growth; counted, and life goes on."""

import random
from contextlib import aclosing

import msgspec
import pytest

from roomcast.core.broker import Subject
from roomcast.core.messages import (
    Ack,
    Census,
    Claim,
    CloseRoom,
    CountClients,
    Disconnect,
    Emit,
    Evict,
    Expect,
    Fetch,
    Heartbeat,
    Hello,
    Join,
    Leave,
    ListRooms,
    Members,
    Message,
    More,
    Packet,
    Reply,
    Selection,
    ServerEvent,
    Unwatch,
    Watch,
    encode_message,
)
from roomcast.core.wire import Envelope, Wire
from tests.adapter.foreigner import Wiretap, foreigner
from tests.adapter.servers import Cluster, Node
from tests.waiting import until

LOAD = 600
SECRET, OTHER = "a secret of the cluster", "another secret of the cluster"
NOWHERE = "/nowhere"
PACKET = Packet("json", '2/nowhere,["event",{"n":1}]')
MESSAGES: list[Message] = [
    Emit(NOWHERE, ("red",), PACKET, ("skip",), 7),
    Emit(NOWHERE, (), Packet("json", '51-/nowhere,["event",{"_placeholder":true,"num":0}]', (b"blob",))),
    Expect(3, ("sid",)),
    Ack(3, "sid", Packet("json", "3[1]")),
    Ack(3, "sid"),
    Join(4, Selection(NOWHERE, ("sid",)), ("red",)),
    Leave(5, Selection(NOWHERE), ("red", 7)),
    Disconnect(6, Selection(NOWHERE, ("sid",)), close=True),
    CloseRoom(NOWHERE, "red"),
    Reply(8, 1, "error"),
    Hello("stranger", 1.0, 0, 1.0, answer=True),
    Reply(8, 1, data=msgspec.Raw(b"\xc1"), more=True),
    Hello("stranger", 1.0, 0, 1.0, answer=False, version="9", peers=("ghost",) * 1000),
    Heartbeat(3, 4),
    CountClients(9, Selection(NOWHERE, ("red",), ("blue",))),
    Fetch(10, Selection(NOWHERE)),
    ListRooms(11, NOWHERE),
    More(12),
    More(12, stop=True),
    ServerEvent("connect", (1, {"a": b"b"}), 13),
    ServerEvent("nobody listens", (), 14),
    Census(),
    Watch(15, NOWHERE, "red"),
    Watch(15, NOWHERE, None, again=True),
    Unwatch(16),
    Members(17, 1, ("sid",), ("sid",), whole=True, more=True),
    Claim(18, "key", "sid", 1),
    Evict(19, "key", "sid", 1),
]


def subjects(node: Node) -> list[str]:
    """Everything that a node with a member in room "red" of "/" hears."""
    names = node.inside._node.subjects
    return [names.control, names.inbox(node.adapter.host_id), names.namespace("/"), names.room("/", "red")]


def sealed(subject: str, *messages: Message, origin: str = "hacker", wire: Wire | None = None, sent: int = 1) -> bytes:
    raw = [msgspec.Raw(encode_message(message)) for message in messages]
    return (wire or Wire(max_payload=1 << 20)).seal(Subject(subject), Envelope(origin, sent, 0, 1, raw))


def mutated(rng: random.Random, payload: bytes) -> bytes:
    """A payload with some bytes flipped, cut out, repeated, or put in."""
    data = bytearray(payload)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data[at : at + 1] = rng.randbytes(1)
            case 1:
                del data[at : at + rng.randint(1, 8)]
            case 2:
                data[at:at] = data[at : at + rng.randint(1, 16)]
            case _:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
    return bytes(data)


async def unharmed(cluster: Cluster, a: Node, b: Node) -> None:
    """Nobody reconnected, nobody was cut off, and events pass both ways, to the clients that were there before."""
    clients = [*a.clients, *b.clients]
    for node in (a, b):
        stats = node.adapter.stats()
        assert not stats["disconnects"]
        assert not stats["clients_cut"]
        assert not stats["faults"]
        assert node.adapter.health().connected
        await node.sio.emit("alive", room="red")
        assert await cluster.finish(node, *clients) == [[("alive",)]] * len(clients)
    assert not any(client.gone.is_set() for client in clients)


async def pair_with_members(cluster: Cluster, secret: str | list[str] | None = None) -> tuple[Node, Node]:
    a, b = await cluster.pair(secret=secret)
    for node in (a, b):
        client = await node.client()
        await node.sio.enter_room(client.sid, "red")
    return a, b


async def test_random_bytes_on_every_subject(cluster: Cluster) -> None:
    a, b = await pair_with_members(cluster)
    rng = random.Random(8)
    payloads = [b"", b"\x01", b"\x01\x00", b"\x01\x01", b"\x02\x00", b"\x01\x00\xc1", b"\x80\x04N."]
    payloads += [rng.randbytes(rng.choice((1, 2, 8, 64, 512))) for _ in range(LOAD // 2)]
    payloads += [b"\x01\x00" + rng.randbytes(rng.choice((1, 8, 64, 512))) for _ in range(LOAD // 2)]
    async with foreigner(cluster.url, cluster.prefix) as send:
        for subject in subjects(b):
            for payload in payloads:
                await send(subject, payload)
    refused = len(subjects(b)) * len(payloads)
    await until(lambda: sum(b.adapter.stats()["refused"].values()) == refused, what="all of it to be counted")
    await unharmed(cluster, a, b)


async def test_mutated_messages_on_every_subject(cluster: Cluster) -> None:
    a, b = await pair_with_members(cluster)
    rng = random.Random(9)
    sent = 0
    async with foreigner(cluster.url, cluster.prefix) as send:
        for subject in subjects(b):
            whole = [sealed(subject, message) for message in MESSAGES]
            whole.append(sealed(subject, *MESSAGES))
            for payload in whole:
                await send(subject, payload)
            for _ in range(LOAD):
                await send(subject, mutated(rng, rng.choice(whole)))
                sent += 1
        await send(subjects(b)[1], b"the last one")
    await until(lambda: sum(b.adapter.stats()["refused"].values()) > sent // 4, what="much of it to be refused")
    await unharmed(cluster, a, b)
    inside = b.inside._node
    assert len(inside.receiver.tracking) <= inside.receiver.tracking._limit
    assert len(b.inside._broadcast.acks) == 0
    assert len(inside.peers) <= 2 + sent // 4
    assert dict(b.sio.manager.rooms).keys() == {"/"}


@pytest.mark.parametrize(
    "packet",
    [
        Packet("json", ""),
        Packet("json", "2"),
        Packet("json", "2[]"),
        Packet("json", '2["event"'),
        Packet("json", '2["event",NaN]'),
        Packet("json", '2[{"not":"a name"}]'),
        Packet("json", '2/other,["event"]'),
        Packet("json", '0{"sid":"forged"}'),
        Packet("json", "1"),
        Packet("json", '4"error"'),
        Packet("json", '51-["event",{"_placeholder":true,"num":0}]'),
        Packet("json", '52-["event",{"_placeholder":true,"num":0}]', (b"one",)),
        Packet("json", '51-["event",{"_placeholder":true,"num":9}]', (b"one",)),
        Packet("json", '2["event"]', (b"one",)),
        Packet("json", "", (b"2[]",)),
        Packet("msgpack", "", (b"\xc1",)),
        Packet("msgpack", '2["event"]'),
        Packet("app.Packet", '2["event"]'),
        Packet("", '2["event"]'),
    ],
    ids=repr,
)
async def test_a_nonsense_packet_in_a_valid_envelope_reaches_no_client(alone: Cluster, packet: Packet) -> None:
    a, b = await pair_with_members(alone)
    async with foreigner(alone.url, alone.prefix) as send:
        for subject in subjects(b):
            for request in (0, 5):
                await send(subject, sealed(subject, Emit("/", ("red",), packet, (), request)))
    await until(lambda: sum(b.adapter.stats()["refused"].values()) == 8)
    await unharmed(alone, a, b)


async def test_unsigned_wrongly_signed_moved_and_replayed_payloads_are_dropped(cluster: Cluster) -> None:
    a, b = await pair_with_members(cluster, SECRET)
    control, inbox, everyone, room = subjects(b)
    wiretap = Wiretap(cluster.url, cluster.prefix)
    async with aclosing(wiretap), foreigner(cluster.url, cluster.prefix) as send:
        await wiretap.start([room])
        await a.sio.emit("secret", room="red")
        captured = await wiretap.next(room)
        (far,) = b.clients
        assert await far.hear("secret") == [("secret",)]
        (near,) = a.clients
        assert await near.hear("secret") == [("secret",)]
        forged = Emit("/", ("red",), Packet("json", '2["forged"]'))
        wrong = Wire([OTHER], max_payload=1 << 20)
        await send(room, captured)
        await send(room, captured)
        for subject in (control, inbox, everyone):
            await send(subject, captured)
        await send(room, sealed(room, forged))
        await send(room, sealed(room, forged, wire=wrong))
        await send(room, captured[:2] + bytes(32) + captured[34:])
        await send(room, captured[:-1] + bytes([captured[-1] ^ 1]))
        right = Wire([SECRET], max_payload=1 << 20)
        await send(room, sealed(room, forged, wire=right, sent=1))  # signed long ago
    await until(lambda: sum(b.adapter.stats()["refused"].values()) == 10)
    assert b.adapter.stats()["refused"] == {"replayed": 3, "signature": 7}
    await unharmed(cluster, a, b)


@pytest.mark.parametrize(
    ("before", "after"),
    [([SECRET], [SECRET, OTHER]), ([SECRET, OTHER], [OTHER, SECRET]), ([OTHER, SECRET], [OTHER])],
    ids=["accept the new", "sign with the new", "drop the old"],
)
async def test_secrets_are_rotated_in_three_steps_without_a_break(
    cluster: Cluster, before: list[str], after: list[str]
) -> None:
    nodes = [await cluster.node(secret=before), await cluster.node(secret=after)]
    clients = [await node.client() for node in nodes]
    for node in nodes:
        await node.sio.emit("signed", room=clients[0].sid)
        await node.sio.emit("signed", room=clients[1].sid)
        assert await cluster.finish(node, *clients) == [[("signed",)]] * 2
        assert not node.adapter.stats()["refused"]


async def test_nodes_of_different_secrets_do_not_hear_each_other(cluster: Cluster) -> None:
    a, b = await pair_with_members(cluster, SECRET)
    stranger = await cluster.node(secret=OTHER, start=False)
    await stranger.adapter.start()
    await stranger.sio.emit("from a stranger")
    await stranger.adapter.emit("from a stranger", room="red")
    await stranger.adapter.aclose()
    await until(lambda: b.adapter.stats()["refused"].get("signature", 0) >= 3, what="its hello and its events")
    assert set(b.adapter.stats()["refused"]) == {"signature"}
    assert b.adapter.health().peers == 1
    await unharmed(cluster, a, b)
