"""What is fuzzed: everything that reads a payload of a stranger, up to the point where a node would act."""

from contextlib import suppress
from typing import Any

import msgspec
from socketio.msgpack_packet import MsgPackPacket

from roomcast.core.broker import Subject
from roomcast.core.descriptions import Description, Handshake, describe
from roomcast.core.errors import WireError
from roomcast.core.messages import (
    DECODE_ERRORS,
    Ack,
    Bye,
    Census,
    Claim,
    CloseRoom,
    CountClients,
    Disconnect,
    Echo,
    Emit,
    Evict,
    Expect,
    Fetch,
    Heartbeat,
    Hello,
    Join,
    Keep,
    Leave,
    ListRooms,
    Lost,
    Members,
    Message,
    More,
    Packet,
    Part,
    Refuse,
    Reply,
    Resume,
    Seize,
    Selection,
    ServerEvent,
    Stay,
    Unwatch,
    Watch,
    encode_message,
)
from roomcast.core.packets import Packets
from roomcast.core.wire import Envelope, Wire

SUBJECT = Subject("roomcast.control")
SECRET = "a secret of the cluster"  # noqa: S105 - of this file alone
NOW = 1_700_000_000_000_000
PLAIN = Wire(max_payload=1 << 20)
PACKETS = (Packets(), Packets(MsgPackPacket))
DATA = tuple(msgspec.msgpack.Decoder(kind) for kind in (Any, list[Description]))
"""What the data of a reply is read as."""


def signed() -> Wire:
    """A receiver that has heard nothing yet: it refuses what it has heard before."""
    return Wire([SECRET], max_payload=1 << 20)


def accept(packets: Packets, packet: Packet, namespace: str) -> None:
    try:
        parts = packets.accept(packet, namespace)
    except WireError:
        return
    packets.with_id(parts, namespace, 7)


def act(message: Message) -> None:
    encode_message(message)  # what was let in could have been sent
    if isinstance(message, Reply):
        for decoder in DATA:
            with suppress(*DECODE_ERRORS):
                decoder.decode(message.data)
    for packets in PACKETS:
        if isinstance(message, Emit):
            accept(packets, message.packet, message.namespace)
        elif isinstance(message, Ack) and message.packet is not None:
            try:
                packets.ack_data(message.packet)
            except WireError:
                continue


def target(payload: bytes) -> None:
    """What a node does with a payload, up to the point where it would act."""
    for wire in (PLAIN, signed()):
        try:
            envelope = wire.open(SUBJECT, payload, NOW)
        except WireError:
            continue
        for message in envelope.messages:
            if not isinstance(message, WireError):
                act(message)


def seeds() -> list[bytes]:
    """Good payloads to start from: one of each kind, unsigned and signed."""
    packets = [one.event("a", [1, b"x", {"k": [None, 1.5, "é"]}], "/chat") for one in PACKETS]
    selection = Selection("/chat", ("red", 7), ("sid",))
    shaken = Handshake({"host": "a"}, "1.2.3.4", {"EIO": "4"}, {"token": 1}, 1.5, secure=True)
    described = describe("sid", ("sid", "red"), {"name": "é", "set": {1}}, shaken, 1000)
    messages: list[Message] = [
        *(Emit("/chat", ("red", 7), packet, ("sid",), 5, volatile=True) for packet in packets),
        *(Ack(5, "sid", one.ack([1, b"x"], "/chat", 5)) for one in PACKETS),
        Expect(5, ("sid",), more=True),
        Join(5, selection, ("blue",)),
        Leave(5, selection, ("blue",)),
        Disconnect(5, selection, close=True),
        CloseRoom("/", "red"),
        Reply(5, 1, "no"),
        Reply(5, 1, "", msgspec.Raw(msgspec.msgpack.encode([msgspec.Raw(described)])), more=True),
        Hello("host", 1.5, 64, 5.0, answer=True, version="1.0", peers=("b", "c")),
        Heartbeat(3, 4),
        Bye(),
        Echo(),
        CountClients(5, selection),
        Fetch(5, selection),
        ListRooms(5, "/chat"),
        More(5, stop=True),
        ServerEvent("event", (1, [None, {"k": b"x"}], 1.5, "é"), 5),
        Census(),
        Watch(5, "/", "red", again=True),
        Unwatch(5),
        Members(5, 6, ("sid",), ("other",), whole=True, more=True),
        Claim(5, "key", "sid", 6),
        Evict(5, "key", "sid", 6),
        Keep("pid", 1, "sid", "/", (Stay("red", 5, 6),), msgspec.Raw(b"\x80"), "epoch", 3, 4, 5, "me", 7),
        Part("pid", 1, over=True),
        Resume(5, "pid"),
        Refuse("pid", 1),
        Seize("pid", 1),
        Lost("b"),
    ]
    raws = [msgspec.Raw(encode_message(message)) for message in messages]
    return [wire.seal(SUBJECT, Envelope("a", NOW, 7, 1, [raw])) for wire in (PLAIN, signed()) for raw in raws]
