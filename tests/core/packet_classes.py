"""Events to make packets of, python-socketio's way to make and to read them, and packet classes of applications."""

import json
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import pytest
from hypothesis import strategies as st
from socketio.packet import Packet as SioPacket

from roomcast.core.errors import WireError
from roomcast.core.messages import Packet
from roomcast.core.packets import Packets

NAMESPACES = ("/", "/chat", "/chat/room-1", "/é")

namespaces = st.sampled_from(NAMESPACES)
RESERVED = ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"]
"""Names of Socket.IO itself: no application may emit them."""
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = texts.filter(lambda text: text not in RESERVED)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts
numbers = st.floats(allow_nan=False, allow_infinity=False)


def data_of(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Arguments of an event; a key that looks like a placeholder's is left to tests of its own."""
    anything = st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
    )
    return st.lists(anything, max_size=3)


binary = data_of(scalars | numbers | st.binary(max_size=8))


def theirs(
    packet_class: type[Any], namespace: str, data: list[Any], number: int | None = None
) -> tuple[str | bytes, ...]:
    """What python-socketio makes of the same event."""
    encoded: Any = packet_class(2, data=data, namespace=namespace, id=number).encode()
    return tuple(cast("list[str | bytes]", encoded)) if isinstance(encoded, list) else (encoded,)


def read(packet_class: type[Any], parts: Sequence[str | bytes]) -> Any:
    """What python-socketio reads in the parts."""
    packet = packet_class(encoded_packet=parts[0])
    for part in parts[1:]:
        packet.add_attachment(part)
    return packet


class Spaced:
    """A JSON module of an application: other spaces, and a type of its own."""

    @staticmethod
    def dumps(data: Any, **_settings: Any) -> str:
        return json.dumps(data, default=lambda one: one.isoformat(), ensure_ascii=False)

    loads = staticmethod(json.loads)


class SpacedPacket(SioPacket):  # type: ignore[misc]  # python-socketio has no annotations
    json = Spaced


class Blank:
    @staticmethod
    def dumps(data: Any, **_settings: Any) -> str:
        return " " + json.dumps(data)

    loads = staticmethod(json.loads)


class BlankPacket(SioPacket):  # type: ignore[misc]  # python-socketio has no annotations
    json = Blank


class OwnPacket(SioPacket):  # type: ignore[misc]  # python-socketio has no annotations
    """An application's own packet class, which writes everything backwards."""

    def encode(self) -> Any:
        return json.dumps([self.packet_type, self.namespace, self.id, self.data])[::-1]

    def decode(self, encoded_packet: str) -> int:
        self.packet_type, self.namespace, self.id, self.data = json.loads(encoded_packet[::-1])
        return 0


class TwoTextsPacket(SioPacket):  # type: ignore[misc]  # python-socketio has no annotations
    def encode(self) -> Any:
        return ["2", "text"]


def refusal(packets: Packets, packet: Packet, namespace: str) -> str:
    with pytest.raises(WireError) as refused:
        packets.accept(packet, namespace)
    return refused.value.kind


def packed(**fields: Any) -> bytes:
    return msgspec.msgpack.encode({"type": 2, "data": ["a"], "nsp": "/"} | fields)
