"""What is fuzzed: everything that reads a payload of a stranger, up to the point where a node would act."""

import msgspec
from socketio.msgpack_packet import MsgPackPacket

from roomcast.core.broker import Subject
from roomcast.core.errors import WireError
from roomcast.core.packets import Packets
from roomcast.core.wire import (
    Ack,
    Bye,
    Emit,
    Enter,
    Envelope,
    Expect,
    Heartbeat,
    Hello,
    Message,
    Packet,
    Reply,
    Wire,
    decode_message,
    encode_message,
)

SUBJECT = Subject("roomcast.control")
SECRET = "a secret of the cluster"  # noqa: S105 - of this file alone
NOW = 1_700_000_000_000_000
PLAIN = Wire(max_payload=1 << 20)
PACKETS = (Packets(), Packets(MsgPackPacket))


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
        for raw in envelope.messages:
            try:
                message = decode_message(raw)
            except WireError:
                continue
            act(message)


def seeds() -> list[bytes]:
    """Good payloads to start from: one of each kind, unsigned and signed."""
    packets = [one.event("a", [1, b"x", {"k": [None, 1.5, "é"]}], "/chat") for one in PACKETS]
    messages: list[Message] = [
        *(Emit("/chat", ("red", 7), packet, ("sid",), 5) for packet in packets),
        *(Ack(5, "sid", one.ack([1, b"x"], "/chat", 5)) for one in PACKETS),
        Expect(5, ("sid",)),
        Enter(5, "/", "sid", "red"),
        Reply(5, 1, "no"),
        Hello("host", 1.5, 64, 5.0, answer=True),
        Heartbeat(3),
        Bye(),
    ]
    raws = [msgspec.Raw(encode_message(message)) for message in messages]
    return [wire.seal(SUBJECT, Envelope("a", NOW, 7, 1, [raw])) for wire in (PLAIN, signed()) for raw in raws]
