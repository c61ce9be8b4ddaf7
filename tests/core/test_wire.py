"""What nodes say to one another, as bytes; and what strangers may say without doing harm."""

import tracemalloc
from contextlib import suppress
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from roomcast.core.broker import Subject
from roomcast.core.errors import ConfigurationError, EncodeError, WireError
from roomcast.core.wire import (
    OVERHEAD,
    VERSION,
    Ack,
    Bye,
    CloseRoom,
    Disconnect,
    Emit,
    Enter,
    Envelope,
    Expect,
    Heartbeat,
    Hello,
    Leave,
    Message,
    Packet,
    Reply,
    Wire,
    decode_message,
    encode_message,
)
from tests.core.effort import effort

SUBJECT, ELSEWHERE = Subject("roomcast.control"), Subject("roomcast.inbox.other")
SECRET, OTHER = "a secret of the cluster", b"another secret, as bytes"
NOW = 1_700_000_000_000_000
SECOND = 1_000_000
LIMIT = 1 << 20

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
rooms = st.one_of(texts, st.integers(-(2**63), 2**64 - 1))
requests = st.integers(1, 2**62)
packets = st.builds(Packet, texts, texts, st.lists(st.binary(max_size=20), max_size=3).map(tuple))
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Emit, texts, st.lists(rooms, max_size=3).map(tuple), packets, st.lists(texts, max_size=2).map(tuple),
        st.integers(0, 2**62),
    ),
    st.builds(Expect, requests, st.lists(texts, max_size=3).map(tuple)),
    st.builds(Ack, requests, texts, st.none() | packets),
    st.builds(Enter, requests, texts, texts, rooms),
    st.builds(Leave, requests, texts, texts, rooms),
    st.builds(Disconnect, requests, texts, texts),
    st.builds(CloseRoom, texts, rooms),
    st.builds(Reply, requests, st.integers(0, 2**62), texts),
    st.builds(
        Hello, texts, st.floats(allow_nan=False), st.integers(0, 2**62), st.floats(0, 1e9, exclude_min=True),
        st.booleans(),
    ),
    st.builds(Heartbeat, st.integers(0, 2**62)),
    st.builds(Bye),
)  # fmt: skip
origins = st.from_regex(r"\A[A-Za-z0-9_-]{1,32}\Z")

EXAMPLES: list[Message] = [
    Emit("/", ("red", 7, ""), Packet("json", '2["a",1]'), ("skipped",), 5),
    Emit("/chat", (), Packet("json", '52-["a",{"_placeholder":true,"num":0}]', (b"x", b"y"))),
    Expect(3, ("sid1", "sid2")),
    Ack(3, "sid1", Packet("msgpack", "", (b"\x80",))),
    Ack(3, "sid1"),
    Enter(4, "/", "sid", "red"),
    Leave(4, "/", "sid", -1),
    Disconnect(4, "/", "sid"),
    CloseRoom("/", "red"),
    Reply(4, 1, "no such client"),
    Hello("host:1", 1.5, 64, 5.0, answer=True),
    Heartbeat(12),
    Bye(),
]


def wire(*secrets: str | bytes, limit: int = LIMIT) -> Wire:
    return Wire(secrets, max_payload=limit)


def envelope(*said: Message, origin: str = "node-1", sent: int = NOW) -> Envelope:
    return Envelope(origin, sent, 7, 1, [msgspec.Raw(encode_message(message)) for message in said or (Bye(),)])


def refusal(call: Any, *args: Any) -> str:
    """The kind of the `WireError` that a call ends in."""
    with pytest.raises(WireError) as refused:
        call(*args)
    assert str(refused.value)
    return refused.value.kind


def test_the_examples_are_all_kinds_of_message() -> None:
    assert {type(message) for message in EXAMPLES} == set(get_args(Message))


@given(messages)
@effort(300)
def test_what_is_said_is_what_is_heard(message: Message) -> None:
    raw = encode_message(message)
    assert decode_message(raw) == message
    assert decode_message(msgspec.Raw(raw)) == message


@given(
    said=st.lists(messages, min_size=1, max_size=4),
    origin=origins,
    first=requests,
    secrets=st.sampled_from([(), (SECRET,)]),
)
@effort(100)
def test_an_envelope_arrives_whole(said: list[Message], origin: str, first: int, secrets: tuple[str, ...]) -> None:
    sealed = Envelope(origin, NOW, 7, first, [msgspec.Raw(encode_message(message)) for message in said])
    payload = wire(*secrets).seal(SUBJECT, sealed)
    opened = wire(*secrets).open(SUBJECT, payload, NOW)
    assert (opened.origin, opened.sent, opened.epoch, opened.first) == (origin, NOW, 7, first)
    assert [decode_message(raw) for raw in opened.messages] == said


@pytest.mark.parametrize(("text", "blobs"), [("2[1]", ()), ("2[1]", (b"a", b"b")), ("", (b"a",)), ("", ())])
def test_a_packet_comes_in_parts(text: str, blobs: tuple[bytes, ...]) -> None:
    assert Packet("json", text, blobs).parts == ((text, *blobs) if text else blobs)


@pytest.mark.parametrize("message", [CloseRoom("/\ud800", "x"), CloseRoom("/", 2**64)])
def test_what_no_wire_carries_is_an_encode_error(message: Message) -> None:
    with pytest.raises(EncodeError):
        encode_message(message)


@pytest.mark.parametrize("secrets", [(), (SECRET,)])
def test_an_envelope_adds_no_more_than_it_says(secrets: tuple[str, ...]) -> None:
    """ "Bytes an envelope adds to its messages, at most." """
    most = Envelope("x" * 32, 2**62, 2**62, 2**62, [msgspec.Raw(b"\x91\x0b")] * 65_536)
    assert len(wire(*secrets).seal(SUBJECT, most)) - 2 * 65_536 <= OVERHEAD


# Rule 1: "Size is checked before anything is decoded."


def test_rule_1_a_payload_over_the_limit_is_not_looked_at() -> None:
    assert refusal(wire(limit=10).open, SUBJECT, b"\xff" * 11, NOW) == "too_large"
    assert refusal(wire(limit=11).open, SUBJECT, b"\xff" * 11, NOW) == "version"


# Rule 2: unknown versions, unknown kinds, and bytes that are no message


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b"", "malformed"),
        (b"\x01", "malformed"),
        (b"\x02", "malformed"),
        (b"\x01\x02\x95", "malformed"),
        (b"\x02\x00\x95", "version"),
        (b"\xff\xff", "version"),
        (b"\x01\x00", "malformed"),
        (b"\x01\x00\xc1", "malformed"),
        (b"\x01\x00\x90", "malformed"),
        (b"\x01\x00\x95\xa1a\x01\x00\x01\x90", "malformed"),
        (b"\x01\x01" + bytes(31), "signature"),
    ],
)
def test_rule_2_a_payload_that_is_none(payload: bytes, kind: str) -> None:
    assert refusal(wire().open, SUBJECT, payload, NOW) == kind


@pytest.mark.parametrize("tag", [0, 12, 99, -1, 2**63, -(2**63)])
def test_rule_2_an_unknown_kind_of_message_is_refused_by_itself(tag: int) -> None:
    raws = [encode_message(Heartbeat(1)), msgspec.msgpack.encode([tag, "news"]), encode_message(Bye())]
    payload = wire().seal(SUBJECT, Envelope("a", NOW, 7, 1, [msgspec.Raw(raw) for raw in raws]))
    first, unknown, last = wire().open(SUBJECT, payload, NOW).messages
    assert refusal(decode_message, unknown) == "unknown"
    assert (decode_message(first), decode_message(last)) == (Heartbeat(1), Bye())


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_rule_2_unknown_trailing_fields_are_ignored(message: Message) -> None:
    """So a newer version may append to a message and to an envelope."""
    fields = msgspec.msgpack.decode(encode_message(message))
    whole = [*fields, *[None] * (10 - len(fields)), {"new": [1, 2]}, "x"]
    for field, default in zip(
        type(message).__struct_fields__[::-1], type(message).__struct_defaults__[::-1], strict=False
    ):
        at = 1 + type(message).__struct_fields__.index(field)
        whole[at] = fields[at] if at < len(fields) else default
    assert decode_message(msgspec.msgpack.encode(whole)) == message


def test_rule_2_unknown_trailing_fields_of_an_envelope_are_ignored() -> None:
    payload = wire().seal(SUBJECT, envelope())
    assert payload[2] == 0x95, "an array of five"
    longer = (
        payload[:2] + b"\x98" + payload[3:] + msgspec.msgpack.encode(1) + msgspec.msgpack.encode({"x": [2]}) + b"\xc0"
    )
    assert wire().open(SUBJECT, longer, NOW) == wire().open(SUBJECT, payload, NOW)


WRONG: list[Any] = [{"x": 1}, b"\xff\xfe", [[]]]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_rule_2_fields_of_a_wrong_type_are_refused(message: Message) -> None:
    fields = msgspec.msgpack.decode(encode_message(message))
    for at in range(1, len(fields)):
        for wrong in WRONG:
            changed = [*fields[:at], wrong, *fields[at + 1 :]]
            assert refusal(decode_message, msgspec.msgpack.encode(changed)) == "malformed"


@pytest.mark.parametrize("origin", ["", "a b", "a.b", "*", ">", "a\r\nPUB x 1\r\n", "a\n", "é", "x" * 33])
def test_rule_2_an_origin_that_is_no_token_is_refused(origin: str) -> None:
    """It becomes part of the subject that an answer goes to."""
    payload = wire().seal(SUBJECT, envelope(origin=origin))
    assert refusal(wire().open, SUBJECT, payload, NOW) == "malformed"


@pytest.mark.parametrize("heartbeat", [0.0, -1.0, float("nan")])
def test_rule_2_a_heartbeat_that_never_comes_is_refused(heartbeat: float) -> None:
    raw = encode_message(Hello("n", 0.0, 0, heartbeat, answer=True))
    assert refusal(decode_message, raw) == "malformed"


# Rule 3: signatures


@pytest.fixture
def signed() -> bytes:
    return wire(SECRET).seal(SUBJECT, envelope())


def test_rule_3_what_was_signed_with_any_of_the_secrets_is_accepted(signed: bytes) -> None:
    """Key rotation: "signed ... with the first secret and accepted under any"."""
    assert wire(OTHER, SECRET).open(SUBJECT, signed, NOW).origin == "node-1"
    by_other = wire(OTHER, SECRET).seal(SUBJECT, envelope())
    assert wire(OTHER).open(SUBJECT, by_other, NOW).origin == "node-1"
    assert refusal(wire(SECRET).open, SUBJECT, by_other, NOW) == "signature"
    assert (wire().signed, wire(SECRET).signed) == (False, True)


def test_rule_3_text_and_bytes_are_one_secret(signed: bytes) -> None:
    assert wire(SECRET.encode()).open(SUBJECT, signed, NOW).origin == "node-1"


@given(st.data())
@effort(200)
def test_rule_3_any_bit_flip_is_refused(data: st.DataObject) -> None:
    payload = bytearray(wire(SECRET).seal(SUBJECT, envelope(Heartbeat(5))))
    bit = data.draw(st.integers(0, 8 * len(payload) - 1))
    payload[bit // 8] ^= 1 << bit % 8
    kind = refusal(wire(SECRET).open, SUBJECT, bytes(payload), NOW)
    assert kind == ("version" if bit < 8 else kind)
    assert kind in ("signature", "version", "malformed") if bit < 16 else kind == "signature"


def test_rule_3_another_subject_another_secret_or_none_is_refused(signed: bytes) -> None:
    assert refusal(wire(SECRET).open, ELSEWHERE, signed, NOW) == "signature"
    assert refusal(wire(OTHER).open, SUBJECT, signed, NOW) == "signature"
    assert refusal(wire().open, SUBJECT, signed, NOW) == "signature"
    assert refusal(wire(SECRET).open, SUBJECT, wire().seal(SUBJECT, envelope()), NOW) == "signature"
    assert refusal(wire(SECRET).open, SUBJECT, signed[:-1], NOW) == "signature"
    assert refusal(wire(SECRET).open, SUBJECT, signed + b"\x00", NOW) == "signature"


@pytest.mark.parametrize(("late", "kind"), [(30, ""), (-30, ""), (31, "stale"), (-31, "stale"), (86_400, "stale")])
def test_rule_3_what_is_not_fresh_is_refused(signed: bytes, late: int, kind: str) -> None:
    opens = wire(SECRET).open
    if kind:
        assert refusal(opens, SUBJECT, signed, NOW + late * SECOND) == kind
    else:
        assert opens(SUBJECT, signed, NOW + late * SECOND).sent == NOW


def test_rule_3_what_was_played_before_is_refused() -> None:
    """ "and so is one that was not sent later than the last one of its origin" """
    sender, receiver = wire(SECRET), wire(SECRET)
    first, second = (sender.seal(SUBJECT, envelope(sent=NOW + step)) for step in (1, 2))
    other = sender.seal(SUBJECT, envelope(origin="node-2", sent=NOW + 1))
    receiver.open(SUBJECT, first, NOW)
    assert refusal(receiver.open, SUBJECT, first, NOW) == "replayed"
    receiver.open(SUBJECT, second, NOW)
    assert refusal(receiver.open, SUBJECT, first, NOW) == "replayed"
    assert receiver.open(SUBJECT, other, NOW).origin == "node-2"


def test_rule_3_forgetting_an_origin_lets_nothing_be_played_again() -> None:
    receiver = wire(SECRET)
    payload = wire(SECRET).seal(SUBJECT, envelope())
    receiver.open(SUBJECT, payload, NOW)
    receiver.forget(NOW + 60 * SECOND)
    assert refusal(receiver.open, SUBJECT, payload, NOW + 29 * SECOND) == "replayed"
    receiver.forget(NOW + 61 * SECOND)
    assert receiver._last_sent == {}  # pyright: ignore[reportPrivateUsage]  # memory shows nowhere else
    assert refusal(receiver.open, SUBJECT, payload, NOW + 61 * SECOND) == "stale"


def test_an_unsigned_cluster_compares_no_clocks() -> None:
    payload = wire().seal(SUBJECT, envelope())
    for now in (0, NOW, 2 * NOW):
        assert wire().open(SUBJECT, payload, now).sent == NOW


@pytest.mark.parametrize("secret", ["", "short", b"fifteen bytes..", 16, None])
def test_a_secret_that_protects_nothing_is_refused(secret: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        wire(secret)
    assert "short" not in str(refused.value), "no secret in any text"


# Rule 4: "Decoding costs nothing that grows beyond the payload, and raises nothing but `WireError`."


def read(payload: bytes) -> None:
    """Everything a node does with a payload before it acts: raises `WireError` or nothing."""
    for opener in (wire(), wire(SECRET)):
        try:
            opened = opener.open(SUBJECT, payload, NOW)
        except WireError:
            continue
        for raw in opened.messages:
            with suppress(WireError):
                decode_message(raw)


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x01\x00", b"\x01\x00\x95\xa1a\x01\x00\x01"]))
@effort(300)
def test_rule_4_arbitrary_bytes(noise: bytes, head: bytes) -> None:
    read(head + noise)


@given(st.binary(max_size=100))
@effort(300)
def test_rule_4_arbitrary_messages(noise: bytes) -> None:
    with suppress(WireError):
        decode_message(noise)


@given(said=st.lists(messages, min_size=1, max_size=3), data=st.data())
@effort(300)
def test_rule_4_mutated_payloads(said: list[Message], data: st.DataObject) -> None:
    payload = bytearray(wire().seal(SUBJECT, envelope(*said)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        change = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if change == "set":
            payload[at] = data.draw(st.integers(0, 255))
        elif change == "cut" and len(payload) > 1:
            del payload[at : at + data.draw(st.integers(1, 5))]
            assume(payload)
        else:
            payload[at:at] = data.draw(st.binary(max_size=5))
    read(bytes(payload))


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


@given(tag=st.integers(0, 13), fields=st.lists(json_like, max_size=6))
@example(tag=1, fields=["/", [], ["json", "2[1]", []], [], 0])
@effort(300)
def test_rule_4_well_formed_msgpack_of_any_shape(tag: int, fields: list[Any]) -> None:
    with suppress(WireError):
        message = decode_message(msgspec.msgpack.encode([tag, *fields]))
        assert decode_message(encode_message(message)) == message, "what is let in could have been sent"


@pytest.mark.parametrize("depth", [100, 10_000, 500_000])
def test_rule_4_deep_nesting(depth: int) -> None:
    deep = b"\x91" * depth
    read(b"\x01\x00\x95\xa1a\x01\x00\x01\x91" + deep)
    assert refusal(decode_message, b"\x94\x01\xa1/" + deep) == "malformed"
    assert refusal(decode_message, b"\x9f\x0b" + deep) == "malformed"


HUGE = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x05",
]


@pytest.mark.parametrize("huge", HUGE)
def test_rule_4_huge_declared_lengths(huge: bytes) -> None:
    tracemalloc.start()
    try:
        for head in (
            b"\x94\x01\xa1/",
            b"\x93\x02\x01",
            b"\x95\x01\xa1/\x90",
            b"\x95\x01\xa1/\x90\x93\xa4json\xa0",
            b"",
        ):
            assert refusal(decode_message, head + huge) == "malformed"
        for head in (
            b"\x01\x00",
            b"\x01\x00\x95",
            b"\x01\x00\x95\xa1a\x01\x00\x01",
            b"\x01\x00\x95\xa1a\x01\x00\x01\x91",
        ):
            assert refusal(wire().open, SUBJECT, head + huge, NOW) == "malformed"
        assert tracemalloc.get_traced_memory()[1] < LIMIT, "nothing was allocated on a stranger's word"
    finally:
        tracemalloc.stop()


def test_a_payload_of_this_version_reads_as_written() -> None:
    """The bytes on the wire; they change with `VERSION` and with nothing else."""
    assert VERSION == 1
    assert wire().seal(SUBJECT, Envelope("a", 2, 3, 4, [msgspec.Raw(encode_message(Heartbeat(5)))])) == bytes.fromhex(
        "010095a16102030491920a05"
    )
