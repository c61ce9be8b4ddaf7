"""Socket.IO packets, against python-socketio's own and against a strict reading of protocol v5."""

import math
from datetime import UTC, datetime
from enum import Enum, IntEnum, StrEnum
from typing import Any

import engineio.json
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from socketio.msgpack_packet import MsgPackPacket
from socketio.packet import Packet as SioPacket

from roomcast.core.errors import EncodeError, WireError
from roomcast.core.messages import Packet
from roomcast.core.packets import Packets
from tests.core.effort import effort
from tests.core.packet_classes import (
    RESERVED,
    BlankPacket,
    OwnPacket,
    SpacedPacket,
    TwoTextsPacket,
    binary,
    names,
    namespaces,
    read,
    refusal,
    theirs,
)
from tests.core.protocol import strict_event

JSON, MSGPACK = Packets(), Packets(MsgPackPacket)


@given(event=names, data=binary, namespace=namespaces)
@example(event="a", data=[b"x", [b"y", {"k": b""}]], namespace="/chat")
@effort(200)
def test_an_event_is_byte_for_byte_what_socketio_makes(event: str, data: list[Any], namespace: str) -> None:
    packet = JSON.event(event, data, namespace)
    assert packet.codec == "json"
    assert packet.parts == theirs(SioPacket, namespace, [event, *data])
    assert strict_event(packet.parts, namespace)[0] == event
    decoded = read(SioPacket, packet.parts)
    assert decoded.data == [event, *data]
    assert JSON.accept(packet, namespace) == packet.parts, "rule 3: the same bytes"


@given(event=names, data=binary, namespace=namespaces)
@effort(100)
def test_an_event_in_msgpack_is_what_socketio_makes(event: str, data: list[Any], namespace: str) -> None:
    packet = MSGPACK.event(event, data, namespace)
    assert packet.codec == "msgpack"
    assert packet.parts == theirs(MsgPackPacket, namespace, [event, *data])
    assert read(MsgPackPacket, packet.parts).data == [event, *data]
    assert MSGPACK.accept(packet, namespace) == packet.parts


@pytest.mark.parametrize("packet_class", [SioPacket, MsgPackPacket])
@pytest.mark.parametrize("name", RESERVED)
def test_rule_2_names_of_socketio_itself_are_refused_on_both_sides(name: str, packet_class: type[Any]) -> None:
    packets = Packets(packet_class)
    with pytest.raises(EncodeError, match="reserved"):
        packets.event(name, [], "/")
    made = packets.event("x" * len(name), [], "/")
    forged = Packet(
        made.codec,
        made.text.replace("x" * len(name), name),
        tuple(blob.replace(b"x" * len(name), name.encode()) for blob in made.blobs),
    )
    with pytest.raises(WireError):
        packets.accept(forged, "/")


@pytest.mark.parametrize(
    "data",
    [
        (b"x",),
        [(b"x", "y")],
        [{"deep": ({"er": [(b"x",)]},)}],
        [bytearray(b"x")],
        [memoryview(b"x")],
        [({"v": memoryview(b"x")},)],
    ],
)
def test_rule_1_bytes_at_any_depth_travel_as_attachments(data: Any) -> None:
    """Also inside tuples and views, which python-socketio does not look into."""
    packet = JSON.event("a", data, "/chat")
    assert packet.text.startswith("51-/chat,")
    assert packet.blobs == (b"x",)
    strict_event(packet.parts, "/chat")
    assert b"x" in str(read(SioPacket, packet.parts).data).encode()
    assert b"x" in MSGPACK.event("a", data, "/chat").blobs[0]


class Colour(Enum):
    RED = "red"


class Word(StrEnum):
    RED = "red"


class Digit(IntEnum):
    ONE = 1


def circular() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


def nested(depth: int) -> list[Any]:
    data: list[Any] = []
    for _ in range(depth):
        data = [data]
    return data


BAD = [
    datetime(2020, 1, 1, tzinfo=UTC),
    {1, 2},
    Colour.RED,
    object(),
    1j,
    {("a", "b"): 1},
    {b"key": 1},
    [b"bytes", {1, 2}],
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: type(bad).__name__)
def test_rule_1_what_cannot_be_serialised_is_an_encode_error(bad: Any) -> None:
    """ "A packet is encoded before any client sees the event; what cannot be serialised is an `EncodeError`." """
    with pytest.raises(EncodeError, match="'price'"):
        JSON.event("price", [{"deep": [bad]}], "/")


@pytest.mark.parametrize("bad", [datetime(2020, 1, 1, tzinfo=UTC), {1}, Colour.RED, 2**64, "\ud800"])
def test_rule_1_nor_can_msgpack(bad: Any) -> None:
    with pytest.raises(EncodeError, match="'price'"):
        MSGPACK.event("price", [bad], "/")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("beside", [[], [b"bytes"]])
def test_rule_2_no_number_that_breaks_a_browser(bad: float, beside: list[Any]) -> None:
    """ "valid JSON (no NaN, which breaks a browser's parser)" """
    with pytest.raises(EncodeError, match="neither NaN nor infinity"):
        JSON.event("price", [{"x": bad}, *beside], "/")
    assert MSGPACK.event("price", [bad], "/").blobs, "msgpack has words for those"


@pytest.mark.parametrize(
    "data",
    [
        [Word.RED, Digit.ONE],
        [("t", 1)],
        [{1: "int key", None: 2, 1.5: 3}],
        [10**30],
        ["\u2028\x00\x1e"],
        ["\ud83d", "\ude00\ud83d", "\U0001f600\udfff", {"\ud800": "\\ud800"}, "x" * 2000],
    ],
)
def test_what_json_can_say_goes_as_socketio_says_it(data: list[Any]) -> None:
    packet = JSON.event("a", data, "/")
    assert packet.parts == theirs(SioPacket, "/", ["a", *data])
    strict_event(packet.parts, "/")


@pytest.mark.parametrize("name", [None, 7, b"a", Colour.RED, ["a"]])
def test_an_event_is_named_by_text(name: object) -> None:
    with pytest.raises(TypeError, match="named by text"):
        JSON.event(name, [], "/")


@pytest.mark.parametrize(
    "placeholder", [{"_placeholder": True, "num": 0}, {"_placeholder": True, "num": 7}, {"_placeholder": True}]
)
def test_rule_2_data_that_looks_like_a_placeholder_cannot_stand_beside_bytes(placeholder: dict[str, Any]) -> None:
    """ "placeholders that fit the attachments": a browser would take it for one of them."""
    with pytest.raises(EncodeError):
        JSON.event("a", [b"bytes", placeholder], "/")
    assert JSON.event("a", [placeholder], "/").blobs == (), "without bytes it is data like any other"


def test_an_applications_json_module_is_used() -> None:
    packets = Packets(SpacedPacket)
    packet = packets.event("é", [datetime(2020, 1, 1, tzinfo=UTC), b"x"], "/")
    assert packets.codec == "json", "any JSON is JSON to the others"
    assert packet.text == '51-["é", "2020-01-01T00:00:00+00:00", {"_placeholder": true, "num": 0}]'
    assert JSON.accept(packet, "/") == packet.parts
    with pytest.raises(EncodeError):
        packets.event("a", ["\ud800"], "/")
    with pytest.raises(EncodeError):
        packets.event("a", [math.nan], "/")


def test_a_json_module_that_begins_with_a_blank_makes_no_packet() -> None:
    """The JavaScript parser would read the blank as the id 0."""
    with pytest.raises(EncodeError):
        Packets(BlankPacket).event("a", [1], "/")


def test_rule_3_a_packet_class_that_only_its_own_servers_use() -> None:
    """ "one made by a packet class that this server does not use is refused" """
    own = Packets(OwnPacket)
    packet = own.event("a", [1], "/chat")
    assert packet.codec.endswith("packet_classes.OwnPacket")
    assert own.accept(packet, "/chat") == packet.parts
    assert read(OwnPacket, own.with_id(packet.parts, "/chat", 7)).id == 7
    for packets in (JSON, MSGPACK):
        assert refusal(packets, packet, "/chat") == "codec"
    assert refusal(own, Packet(own.codec, "no JSON"), "/") == "packet"
    assert read(OwnPacket, own.accept(JSON.event("a", [1], "/chat"), "/chat")).data == ["a", 1]
    with pytest.raises(EncodeError, match="more than one piece of text"):
        Packets(TwoTextsPacket).event("a", [], "/")


def test_a_configured_msgpack_packet_is_msgpack_too() -> None:
    assert Packets(type("Configured", (MsgPackPacket,), {"dumps_default": str})).codec == "msgpack"
    assert Packets(type("Renamed", (SioPacket,), {"json": engineio.json})).codec == "json"


@given(data=binary, namespace=namespaces, number=st.integers(0, 10**9))
@effort(100)
def test_an_id_is_put_where_socketio_puts_it(data: list[Any], namespace: str, number: int) -> None:
    for packets, packet_class in ((JSON, SioPacket), (MSGPACK, MsgPackPacket)):
        parts = packets.event("a", data, namespace).parts
        asking = packets.with_id(parts, namespace, number)
        assert asking == theirs(packet_class, namespace, ["a", *data], number)
        decoded = read(packet_class, asking)
        assert (decoded.id, decoded.data) == (number, ["a", *data])


@given(data=binary, namespace=namespaces)
@effort(100)
def test_a_place_is_one_more_argument_and_the_last(data: list[Any], namespace: str) -> None:
    for packets, packet_class in ((JSON, SioPacket), (MSGPACK, MsgPackPacket)):
        parts = packets.event("a", data, namespace).parts
        placed = packets.with_place(parts, namespace, "e.1.2")
        decoded = read(packet_class, placed)
        assert decoded.data == ["a", *data, "e.1.2"]
        head, *blobs = placed
        binaries = tuple(blob for blob in blobs if isinstance(blob, bytes))
        again = Packet(packets.codec, head, binaries) if isinstance(head, str) else Packet(packets.codec, "", (head,))
        assert packets.accept(again, namespace) == placed
    own = Packets(OwnPacket)
    assert read(OwnPacket, own.with_place(own.event("a", [1], "/chat").parts, "/chat", "e")).data == ["a", 1, "e"]


# Acknowledgements


@given(data=binary, namespace=namespaces)
@effort(100)
def test_an_answer_travels_back(data: list[Any], namespace: str) -> None:
    for packets in (JSON, MSGPACK):
        packet = packets.ack(data, namespace, 5)
        assert packets.ack_data(packet) == data
    assert JSON.ack_data(MSGPACK.ack(data, namespace, 5)) == data
    assert MSGPACK.ack_data(JSON.ack(data, namespace, 5)) == data


@pytest.mark.parametrize(
    "packet",
    [
        Packet("json", '2["event"]'),
        Packet("json", "0"),
        Packet("json", "3"),
        Packet("json", '3{"a":1}'),
        Packet("json", "35[NaN"),
        Packet("json", "x"),
        Packet("json", ""),
        Packet("json", "", (b"3[]",)),
        Packet("json", '61-[{"_placeholder":true,"num":0}]'),
        Packet("json", '62-[{"_placeholder":true,"num":0}]', (b"x",)),
        Packet("json", '61-[{"_placeholder":true,"num":9}]', (b"x",)),
        Packet("json", "3[]", (b"x",)),
        Packet("msgpack", "", (b"\x80",)),
        Packet("msgpack", "", (b"\xc1",)),
        Packet("msgpack", "", (msgspec.msgpack.encode({"type": 2, "data": [], "nsp": "/"}),)),
        Packet("unheard.of", "", (b"\xc1",)),
    ],
)
def test_what_is_no_answer_is_refused(packet: Packet) -> None:
    for packets in (JSON, MSGPACK):
        with pytest.raises(WireError) as refused:
            packets.ack_data(packet)
        assert refused.value.kind == "packet"


def test_an_answer_that_cannot_be_serialised_again() -> None:
    with pytest.raises(EncodeError):
        JSON.ack([{1, 2}], "/", 5)


# Last in this file: what measures coverage in Python 3.11 loses its thread where a recursion is cut


@pytest.mark.parametrize("bad", [circular(), nested(100_000)], ids=["circular", "deep"])
def test_rule_1_data_without_an_end_is_an_encode_error(bad: list[Any]) -> None:
    for packets in (JSON, MSGPACK):
        with pytest.raises(EncodeError, match="'price'"):
            packets.event("price", [bad], "/")
