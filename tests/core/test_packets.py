"""Socket.IO packets, against python-socketio's own and against a strict reading of protocol v5."""

import math
from contextlib import suppress
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
    "\ud800",
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
    with pytest.raises(EncodeError):
        JSON.event("price", [{"x": bad}, *beside], "/")
    assert MSGPACK.event("price", [bad], "/").blobs, "msgpack has words for those"


@pytest.mark.parametrize(
    "data", [[Word.RED, Digit.ONE], [("t", 1)], [{1: "int key", None: 2, 1.5: 3}], [10**30], ["\u2028\x00\x1e"]]
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


# Accepting


def refusal(packets: Packets, packet: Packet, namespace: str) -> str:
    with pytest.raises(WireError) as refused:
        packets.accept(packet, namespace)
    return refused.value.kind


ONE = '["a",{"_placeholder":true,"num":0}]'


@pytest.mark.parametrize(
    ("text", "blobs"),
    [
        ("", ()),
        ("", (b'2["a"]',)),
        ("2", ()),
        ("2[]", ()),
        ("2[1]", ()),
        ("2null", ()),
        ('2"a"', ()),
        ('2{"0":"a"}', ()),
        ('2["a"', ()),
        ('2["a"]]', ()),
        ('2["a"]x', ()),
        ('2["a",NaN]', ()),
        ('2["a",-Infinity]', ()),
        ('2["a","\n"]', ()),
        ('2["a","\x1e"]', ()),
        ('2["a","\\x"]', ()),
        ('2["a",01]', ()),
        ('2["a",]', ()),
        ("2['a']", ()),
        ('21["a"]', ()),
        ('2 ["a"]', ()),
        ('2\t["a"]', ()),
        ('2\n["a"]', ()),
        ('2/chat,["a"]', ()),
        (' 2["a"]', ()),
        ('0["a"]', ()),
        ('1["a"]', ()),
        ('3["a"]', ()),
        ('4{"message":"x"}', ()),
        ('6["a"]', ()),
        ('2["a"]', (b"x",)),
        ('5["a"]', (b"x",)),
        ('50-["a"]', ()),
        (f"51-{ONE}", ()),
        (f"51-{ONE}", (b"x", b"y")),
        (f"52-{ONE}", (b"x", b"y")),
        (f"51- {ONE}", (b"x",)),
        (f"501-{ONE}", (b"x",)),
        (f"5+1-{ONE}", (b"x",)),
        (f"5\u0661-{ONE}", (b"x",)),
        ('51-["a"]', (b"x",)),
        ('51-["a",{"_placeholder":true}]', (b"x",)),
        ('51-["a",{"_placeholder":true,"num":1}]', (b"x",)),
        ('51-["a",{"_placeholder":true,"num":-1}]', (b"x",)),
        ('51-["a",{"_placeholder":true,"num":"0"}]', (b"x",)),
        ('51-["a",{"_placeholder":true,"num":false}]', (b"x",)),
        ('51-["a",{"_placeholder":1,"num":0}]', (b"x",)),
        ('51-["a",{"_placeholder":true,"num":0},{"_placeholder":true,"num":0}]', (b"x",)),
    ],
)
def test_rule_2_a_broken_packet_reaches_no_client(text: str, blobs: tuple[bytes, ...]) -> None:
    for packets in (JSON, MSGPACK):
        assert refusal(packets, Packet("json", text, blobs), "/") == "packet"


@pytest.mark.parametrize(
    "text", ['2["a"]', '2/chat["a"]', '2/chatter,["a"]', '2/,["a"]', '2/cha,["a"]', '2/chat,/chat,["a"]']
)
def test_rule_2_a_packet_of_another_namespace_is_refused(text: str) -> None:
    """ "a well-formed packet of its namespace" """
    assert refusal(JSON, Packet("json", text), "/chat") == "packet"


def packed(**fields: Any) -> bytes:
    return msgspec.msgpack.encode({"type": 2, "data": ["a"], "nsp": "/"} | fields)


@pytest.mark.parametrize(
    "blobs",
    [
        (),
        (b"",),
        (b"\xc1",),
        (packed(), packed()),
        (packed() + b"\x00",),
        (packed()[:-1],),
        (packed(type=3),),
        (packed(type="2"),),
        (packed(nsp="/chat"),),
        (packed(nsp=None),),
        (packed(id=1),),
        (packed(data=[]),),
        (packed(data="a"),),
        (packed(data=[b"a"]),),
        (packed(data=None),),
        (packed().replace(b"\x91\xa1a", b"\x92\xa1a\xa1\xff"),),
        (packed().replace(b"\x91\xa1a", b"\x92\xa1a\xdd\xff\xff\xff\xff"),),
        (msgspec.msgpack.encode(["a"]),),
        (packed().replace(b"\x91\xa1a", b"\x92\xa1a\x81\x91\xa1k\x01"),),
        (packed().replace(b"\x91\xa1a", b"\x92\xa1a\x81\x01\x01"),),
        (packed().replace(b"\x91\xa1a", b"\x92\xa1a\x81\x80\x01"),),
        (packed().replace(b"\x91\xa1a", b"\x92\xa1a\x81\x91\x80\x01"),),
        (packed().replace(b"\x91\xa1a", b"\x92\xa1a\xd7\xff" + b"\xff" * 8),),
    ],
)
def test_rule_2_nor_does_a_broken_msgpack_packet(blobs: tuple[bytes, ...]) -> None:
    for packets in (MSGPACK, JSON):
        assert refusal(packets, Packet("msgpack", "", blobs), "/") == "packet"
    assert refusal(MSGPACK, Packet("msgpack", "text", blobs), "/") == "packet"


def mutate(data: st.DataObject, text: str) -> str:
    """The text with some characters changed, inserted or gone."""
    pieces = st.sampled_from(
        [*'[]{}:,"\\-+.0123456789eE /\n\t\x1e', "NaN", "null", "true", '"_placeholder"', "/chat", "é", "\u0661"]
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        kept = data.draw(st.integers(0, 2))
        text = text[:at] + data.draw(pieces | st.just("")) + text[at + kept :]
    return text


@given(data=st.data(), args=binary, namespace=namespaces)
@effort(600)
def test_whatever_is_let_in_is_a_packet_by_a_strict_parser(
    data: st.DataObject, args: list[Any], namespace: str
) -> None:
    """Mutated packets: what `accept` lets through, a client can read."""
    good = JSON.event("a", args, namespace)
    blobs = data.draw(st.sampled_from([good.blobs, good.blobs, good.blobs[1:], (*good.blobs, b"more")]))
    with suppress(WireError):
        parts = JSON.accept(Packet("json", mutate(data, good.text), blobs), namespace)
        strict_event(parts, namespace)


@given(data=st.data(), args=binary, namespace=namespaces)
@effort(600)
def test_whatever_is_let_in_of_msgpack_can_be_read(data: st.DataObject, args: list[Any], namespace: str) -> None:
    """As it is by a server of msgpack, and translated by a server of JSON."""
    raw = bytearray(MSGPACK.event("a", args, namespace).blobs[0])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    packet = Packet("msgpack", "", (bytes(raw),))
    parts: tuple[str | bytes, ...] = ()
    with suppress(WireError):
        parts = MSGPACK.accept(packet, namespace)
    if parts:
        decoded = read(MsgPackPacket, parts)
        assert (decoded.packet_type, decoded.namespace, decoded.id) == (2, namespace, None)
        assert isinstance(decoded.data[0], str)
        MSGPACK.with_id(parts, namespace, 7)
    with suppress(WireError):
        strict_event(JSON.accept(packet, namespace), namespace)


@given(
    text=st.text(max_size=30),
    blobs=st.lists(st.binary(max_size=30), max_size=2),
    codec=st.sampled_from(["json", "msgpack", "x"]),
)
@effort(300)
def test_arbitrary_packets_end_in_a_wire_error(text: str, blobs: list[bytes], codec: str) -> None:
    for packets in (JSON, MSGPACK, Packets(OwnPacket)):
        with suppress(WireError):
            packets.accept(Packet(codec, text, tuple(blobs)), "/")
        with suppress(WireError):
            packets.ack_data(Packet(codec, text, tuple(blobs)))


# Translating


@given(data=binary, namespace=namespaces)
@effort(150)
def test_rule_3_a_packet_of_the_other_standard_serializer_is_encoded_again(data: list[Any], namespace: str) -> None:
    """ "One made by the other standard serializer is decoded and encoded again" """
    from_msgpack = JSON.accept(MSGPACK.event("a", data, namespace), namespace)
    assert from_msgpack == theirs(SioPacket, namespace, ["a", *data])
    strict_event(from_msgpack, namespace)
    from_json = MSGPACK.accept(JSON.event("a", data, namespace), namespace)
    assert read(MsgPackPacket, from_json).data == ["a", *data]


@pytest.mark.parametrize(
    "data",
    [
        [math.nan],
        [b"x", math.inf],
        [b"x", {"_placeholder": True, "num": 7}],
        [b"x", {"_placeholder": True, "num": 0}],
        [datetime(2020, 1, 1, tzinfo=UTC)],
        [msgspec.msgpack.Ext(5, b"x")],
    ],
)
def test_rule_2_a_translation_is_checked_too(data: list[Any]) -> None:
    packet = Packet("msgpack", "", (packed(data=["a", *data]),))
    assert MSGPACK.accept(packet, "/") == packet.parts
    assert refusal(JSON, packet, "/") == "packet"


def test_a_number_that_msgpack_cannot_carry_is_refused_where_it_arrives() -> None:
    packet = JSON.event("a", [2**64], "/")
    assert JSON.accept(packet, "/")
    assert refusal(MSGPACK, packet, "/") == "packet"


# Last in this file: what measures coverage in Python 3.11 loses its thread where a recursion is cut


@pytest.mark.parametrize("bad", [circular(), nested(100_000)], ids=["circular", "deep"])
def test_rule_1_data_without_an_end_is_an_encode_error(bad: list[Any]) -> None:
    for packets in (JSON, MSGPACK):
        with pytest.raises(EncodeError, match="'price'"):
            packets.event("price", [bad], "/")


@pytest.mark.parametrize(
    "packet",
    [
        Packet("json", '2["a",' + "[" * 100_000 + "]" * 100_000 + "]"),
        Packet("msgpack", "", (packed().replace(b"\x91\xa1a", b"\x92\xa1a" + b"\x91" * 50_000),)),
    ],
    ids=["json", "msgpack"],
)
def test_rule_2_a_deep_packet_reaches_no_client(packet: Packet) -> None:
    for packets in (JSON, MSGPACK):
        assert refusal(packets, packet, "/") == "packet"
