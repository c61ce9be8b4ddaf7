"""What nodes say to one another, each kind of message by itself, as values and as bytes."""

from contextlib import suppress
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from roomcast.core.errors import EncodeError, WireError
from roomcast.core.messages import (
    KNOWN,
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
    decode_message,
    encode_message,
)
from tests.core.effort import effort

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
rooms = st.one_of(texts, st.integers(-(2**63), 2**64 - 1))
several = st.lists(rooms, max_size=3).map(tuple)
sids = st.lists(texts, max_size=3).map(tuple)
counts = st.integers(0, 2**62)
numbers = st.integers(1, 2**62)
origins = st.from_regex(r"\A[A-Za-z0-9_-]{1,32}\Z")
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | texts
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
raws = anything.map(lambda value: msgspec.Raw(msgspec.msgpack.encode(value)))
packets = st.builds(Packet, texts, texts, st.lists(st.binary(max_size=20), max_size=3).map(tuple))
selections = st.builds(Selection, texts, several, several)
pids = texts.filter(bool)
spots = st.integers(-1, 2**62)
stays = st.lists(st.builds(Stay, rooms, spots, st.none() | spots), max_size=3).map(tuple)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Emit, texts, several, packets, several, counts, st.booleans()),
    st.builds(Expect, numbers, sids, st.booleans()),
    st.builds(Ack, numbers, texts, st.none() | packets),
    st.builds(Join, numbers, selections, several),
    st.builds(Leave, numbers, selections, several),
    st.builds(Disconnect, numbers, selections, st.booleans()),
    st.builds(CloseRoom, texts, rooms),
    st.builds(Reply, numbers, counts, texts, raws, st.booleans()),
    st.builds(
        Hello,
        texts,
        st.floats(allow_nan=False),
        counts,
        st.floats(0, 1e9, exclude_min=True),
        st.booleans(),
        texts,
        st.lists(origins, max_size=3).map(tuple),
        st.floats(0, 1e9),
    ),
    st.builds(Heartbeat, counts, counts),
    st.builds(Bye),
    st.builds(CountClients, numbers, selections),
    st.builds(Fetch, numbers, selections),
    st.builds(ListRooms, numbers, texts),
    st.builds(More, numbers, st.booleans()),
    st.builds(ServerEvent, texts, st.lists(anything, max_size=3).map(tuple), counts),
    st.builds(Census),
    st.builds(Watch, numbers, texts, st.none() | rooms, st.booleans()),
    st.builds(Unwatch, numbers),
    st.builds(Members, numbers, counts, sids, sids, st.booleans(), st.booleans()),
    st.builds(Claim, numbers, texts, texts, numbers),
    st.builds(Evict, numbers, texts, texts, numbers),
    st.builds(Keep, pids, counts, texts, texts, stays, raws, texts, spots, spots, spots, texts),
    st.builds(Part, pids, counts, st.booleans()),
    st.builds(Resume, numbers, pids),
    st.builds(Refuse, pids, counts),
    st.builds(Seize, pids, counts),
    st.builds(Lost, origins),
    st.just(Echo()),
)

SELECTION = Selection("/", ("red", 7), ("a sid",))
EXAMPLES: list[tuple[Message, str]] = [
    (
        Emit("/", ("red", 7, ""), Packet("json", '2["a",1]'), ("skipped", 8), 5, volatile=True),
        "9701a12f93a372656407a093a46a736f6ea8325b2261222c315d9092a7736b69707065640805c3",
    ),
    (
        Emit("/chat", (), Packet("json", '52-["a",{"_placeholder":true,"num":0}]', (b"x", b"y"))),
        "9701a52f636861749093a46a736f6ed92635322d5b2261222c7b225f706c616365686f6c646572223a747275652c226e756d223a307d5d92c40178c401799000c2",
    ),
    (Expect(3, ("sid1", "sid2"), more=True), "94020392a473696431a473696432c3"),
    (Ack(3, "sid1", Packet("msgpack", "", (b"\x80",))), "940303a47369643193a76d73677061636ba091c40180"),
    (Ack(3, "sid1"), "940303a473696431c0"),
    (Join(4, SELECTION, ("red", -1)), "94040493a12f92a37265640791a5612073696492a3726564ff"),
    (Leave(4, SELECTION, ("",)), "94050493a12f92a37265640791a5612073696491a0"),
    (Disconnect(4, SELECTION, close=True), "94060493a12f92a37265640791a56120736964c3"),
    (CloseRoom("/", "red"), "9307a12fa3726564"),
    (Reply(4, 1, "no such client"), "96080401ae6e6f207375636820636c69656e74c0c2"),
    (Reply(2**62, 0, "", msgspec.Raw(b"\x92\x01\xa1x"), more=True), "9608cf400000000000000000a09201a178c3"),
    (
        Hello("host:1", 1.5, 64, 5.0, answer=True),
        "9909a6686f73743a31cb3ff800000000000040cb4014000000000000c3a090cb0000000000000000",
    ),
    (
        Hello("host:1", 1.5, 0, 5.0, answer=False, version="1.0.0", peers=("abc-_1", "abc-_2")),
        "9909a6686f73743a31cb3ff800000000000000cb4014000000000000c2a5312e302e3092a66162632d5f31a66162632d5f32cb0000000000000000",
    ),
    (Heartbeat(12, 34), "930a0c22"),
    (Bye(), "910b"),
    (CountClients(5, SELECTION), "930c0593a12f92a37265640791a56120736964"),
    (Fetch(5, SELECTION), "930d0593a12f92a37265640791a56120736964"),
    (ListRooms(5, "/chat"), "930e05a52f63686174"),
    (More(5), "930f05c2"),
    (More(5, stop=True), "930f05c3"),
    (
        ServerEvent("event", (1, [None, {"k": b"x"}], 1.5), 6),
        "9410a56576656e74930192c081a16bc40178cb3ff800000000000006",
    ),
    (Census(), "9111"),
    (Watch(7, "/", "red", again=True), "951207a12fa3726564c3"),
    (Watch(7, "/", None), "951207a12fc0c2"),
    (Unwatch(7), "921307"),
    (Members(7, 8, ("sid1",), ("sid2",), whole=True, more=True), "9714070891a47369643191a473696432c3c3"),
    (Claim(9, "user:42", "sid1", 10), "951509a7757365723a3432a4736964310a"),
    (Evict(9, "user:42", "sid1", 10), "951609a7757365723a3432a4736964310a"),
    (
        Keep(
            *("pid", 2, "sid1", "/", (Stay("red", 5), Stay(7, 5, 6)), msgspec.Raw(b"\x81\xa1k\x01")),
            *("e", 3, -1, 4, "me", 7),
            number=5,
        ),
        "9e17a370696402a473696431a12f9293a372656405c09307050681a16b01a16503ff04a26d650705",
    ),
    (Part("pid", 2, over=True, number=5), "9618a370696402c305c2"),
    (Resume(9, "pid"), "931909a3706964"),
    (Refuse("pid", 2), "931aa370696402"),
    (Seize("pid", 2), "931ba370696402"),
    (Lost("abc-_1"), "921ca66162632d5f31"),
    (Echo(), "911d"),
]
KINDS = [message for message, _ in EXAMPLES]
LAST = max(msgspec.msgpack.decode(encode_message(message))[0] for message in KINDS)


def kind(message: object) -> str:
    return type(message).__name__


def refusal(raw: bytes | msgspec.Raw) -> str:
    """The kind of the `WireError` that a message is refused with."""
    with pytest.raises(WireError) as refused:
        decode_message(raw)
    assert str(refused.value)
    return refused.value.kind


def test_the_examples_are_all_kinds_of_message() -> None:
    assert {type(message) for message in KINDS} == set(get_args(Message))


@pytest.mark.parametrize(("message", "raw"), EXAMPLES, ids=kind)
def test_a_message_reads_as_written(message: Message, raw: str) -> None:
    """The bytes on the wire. They change only by fields that are appended, or with the version of the envelope."""
    assert encode_message(message).hex() == raw
    assert decode_message(bytes.fromhex(raw)) == message


def test_each_kind_has_a_number_of_its_own() -> None:
    """ "a msgpack array whose first item is the kind's number" """
    numbered = {msgspec.msgpack.decode(encode_message(message))[0]: type(message) for message in KINDS}
    assert len(numbered) == len(get_args(Message))


@given(messages)
@effort(500)
def test_what_is_said_is_what_is_heard(message: Message) -> None:
    raw = encode_message(message)
    assert decode_message(raw) == message
    assert decode_message(msgspec.Raw(raw)) == message


@pytest.mark.parametrize(("text", "blobs"), [("2[1]", ()), ("2[1]", (b"a", b"b")), ("", (b"a",)), ("", ())])
def test_a_packet_comes_in_parts(text: str, blobs: tuple[bytes, ...]) -> None:
    assert Packet("json", text, blobs).parts == ((text, *blobs) if text else blobs)


# "newer versions only append fields. Unknown trailing fields are ignored"


@pytest.mark.parametrize("message", KINDS, ids=kind)
def test_unknown_trailing_fields_are_ignored(message: Message) -> None:
    fields = msgspec.msgpack.decode(encode_message(message))
    assert len(fields) == 1 + len(message.__struct_fields__), "every field travels, also one that is its default"
    assert decode_message(msgspec.msgpack.encode([*fields, {"new": [1, 2]}, "x", None])) == message


@pytest.mark.parametrize("message", KINDS, ids=kind)
def test_a_field_with_a_default_may_be_left_out(message: Message) -> None:
    """So a field can be appended: older nodes do not send it."""
    fields = msgspec.msgpack.decode(encode_message(message))
    defaults = message.__struct_defaults__
    required = len(fields) - len(defaults)
    short = decode_message(msgspec.msgpack.encode(fields[:required]))
    assert type(short) is type(message)
    assert all(
        getattr(short, name) == default
        for name, default in zip(message.__struct_fields__[required - 1 :], defaults, strict=True)
    )
    if required > 1:
        assert refusal(msgspec.msgpack.encode(fields[: required - 1])) == "malformed"


# "unknown kinds and what does not fit are refused with a `WireError`"


@pytest.mark.parametrize("tag", [0, LAST + 1, 99, -1, 2**63, -(2**63)])
def test_an_unknown_kind_is_refused_as_such(tag: int) -> None:
    """The other kind of refusal means that somebody sends rubbish, this one that a node is newer."""
    assert refusal(msgspec.msgpack.encode([tag, "news"])) == "unknown"


@pytest.mark.parametrize(
    "raw", [b"", b"\xc0", b"\x90", b"\x91", b"\x91\xc0", b"\x91\xa1a", b"\x80", b"\xc1", b"\x91\x0b0"]
)
def test_what_is_no_message_is_refused(raw: bytes) -> None:
    assert refusal(raw) == "malformed"


WRONG: list[Any] = [{"x": 1}, b"\xff\xfe", [[]], -1.5]
FREE: dict[tuple[type[Any], str], list[Any]] = {
    (Reply, "data"): WRONG,
    (ServerEvent, "args"): [[[]]],
    (Hello, "started"): [-1.5],
    (Keep, "data"): WRONG,
}
"""What fits in spite of that: msgpack of any kind is the application's."""


@pytest.mark.parametrize("message", KINDS, ids=kind)
def test_fields_of_a_wrong_type_are_refused(message: Message) -> None:
    fields = msgspec.msgpack.decode(encode_message(message))
    for at, name in enumerate(message.__struct_fields__, start=1):
        free = FREE.get((type(message), name), [])
        for wrong in WRONG:
            raw = msgspec.msgpack.encode([*fields[:at], wrong, *fields[at + 1 :]])
            if wrong in free:
                assert isinstance(decode_message(raw), type(message))
            else:
                assert refusal(raw) == "malformed", (name, wrong)


@pytest.mark.parametrize(
    "message",
    [
        Expect(0, ()),
        Reply(0),
        Reply(2**62 + 1),
        Reply(1, -1),
        More(0),
        Claim(1, "key", "sid", 0),
        Heartbeat(-1),
        Heartbeat(0, -1),
        Members(1, -1),
        Emit("/", (), Packet("json", "2[]"), request=-1),
        Emit("x" * 100_001, (), Packet("json", "2[]")),
        CountClients(1, Selection("x" * 100_001)),
        ServerEvent("x" * 100_001, ()),
        Claim(1, "x" * 100_001, "sid", 1),
        Hello("x" * 257, 0.0, 0, 1.0, answer=True),
        Hello("n", 0.0, 0, 1.0, answer=True, version="1" * 65),
        *(
            Hello("n", 0.0, 0, 1.0, answer=True, peers=("good", bad))
            for bad in ("", "a b", "a.b", "*", "a\r\n", "x" * 33)
        ),
        *(Hello("n", 0.0, 0, beat, answer=True) for beat in (0.0, -1.0, float("nan"))),
    ],
    ids=kind,
)
def test_values_out_of_their_range_are_refused(message: Message) -> None:
    """A hello's peers become parts of subjects; a heartbeat that never comes would keep a dead peer for ever."""
    assert refusal(encode_message(message)) == "malformed"


def test_a_hello_that_names_all_it_may_is_a_small_message() -> None:
    """The bound that `KNOWN` is there for: a node's id has six characters."""
    most = Hello("x" * 256, 1.5, 64, 5.0, answer=False, version="1" * 64, peers=("abcdef",) * KNOWN)
    assert len(encode_message(most)) < 8192
    assert decode_message(encode_message(most)) == most


@pytest.mark.parametrize(
    "message",
    [
        CloseRoom("/\ud800", "x"),
        CloseRoom("/", 2**64),
        CountClients(1, Selection("/", (-(2**63) - 1,))),
        ServerEvent("event", ({1, object()},)),
        ServerEvent("event", ("\udfff",)),
        ServerEvent("event", (2**64,)),
    ],
    ids=kind,
)
def test_what_no_wire_carries_is_an_encode_error(message: Message) -> None:
    with pytest.raises(EncodeError, match="cannot be encoded"):
        encode_message(message)


def test_what_contains_itself_is_an_encode_error() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(EncodeError):
        encode_message(ServerEvent("event", (endless,)))


# Strangers


@given(st.binary(max_size=100))
@effort(300)
def test_arbitrary_bytes_are_read_or_refused(noise: bytes) -> None:
    with suppress(WireError):
        assert isinstance(decode_message(noise), get_args(Message))


@given(tag=st.integers(0, LAST + 2), fields=st.lists(anything, max_size=8))
@example(tag=1, fields=["/", [], ["json", "2[1]", []], [], 0])
@effort(300)
def test_what_is_let_in_could_have_been_sent(tag: int, fields: list[Any]) -> None:
    try:
        message = decode_message(msgspec.msgpack.encode([tag, *fields]))
    except WireError:
        return
    assert decode_message(encode_message(message)) == message


@given(message=messages, data=st.data())
@effort(300)
def test_what_is_let_in_of_a_changed_message_could_have_been_sent(message: Message, data: st.DataObject) -> None:
    """One field of a good message is replaced, or one of its bytes."""
    fields = msgspec.msgpack.decode(encode_message(message))
    at = data.draw(st.integers(0, len(fields) - 1))
    raw = bytearray(msgspec.msgpack.encode([*fields[:at], data.draw(anything), *fields[at + 1 :]]))
    if data.draw(st.booleans()):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        accepted = decode_message(bytes(raw))
    except WireError:
        return
    again = encode_message(accepted)
    assert encode_message(decode_message(again)) == again, "compared as bytes: a changed byte can make a nan"


@pytest.mark.parametrize("depth", [100, 10_000, 500_000])
def test_deep_nesting_is_refused_where_nothing_nests(depth: int) -> None:
    deep = b"\x91" * depth
    assert refusal(b"\x94\x01\xa1/" + deep) == "malformed"
    assert refusal(b"\x9f\x0b" + deep) == "malformed"
    assert refusal(b"\x94\x10\xa1e\x91" + deep) == "malformed", "not even in an application's data"
    assert refusal(b"\x95\x08\x01\x00\xa0" + deep) == "malformed"
