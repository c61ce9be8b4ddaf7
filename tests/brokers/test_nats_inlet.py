"""The reading half of a link to NATS: everything comes once and in order, however the socket cuts it."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.brokers.nats_inlet import Inlet

HEADER = b"NATS/1.0\r\nName: value\r\n\r\n"
Seen = tuple[bytes, ...]
"""A line, or subscription, subject, payload, where to reply and headers of a message."""


class Reader:
    """An inlet, and what it hands on."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.lost: list[Exception] = []
        self.gone = 0
        self.stream = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        self.inlet = Inlet(self.stream, message=self._message, line=self._line, lose=self.lost.append, gone=self.went)

    def _message(self, *message: bytes) -> None:
        self.seen.append(message)

    def _line(self, line: bytes) -> None:
        self.seen.append((line,))

    def went(self) -> None:
        self.gone += 1


def _message(payload: bytes, reply: bytes) -> tuple[bytes, Seen]:
    head = b"MSG app.room 7 %b %d\r\n" % (reply, len(payload)) if reply else b"MSG app.room 7 %d\r\n" % len(payload)
    return head + payload + b"\r\n", (b"7", b"app.room", payload, reply, b"")


def _with_headers(payload: bytes, reply: bytes, headers: bytes = HEADER) -> tuple[bytes, Seen]:
    to = b"app.probe 8 " + (reply + b" " if reply else b"")
    head = b"HMSG %b%d %d\r\n" % (to, len(headers), len(headers) + len(payload))
    return head + headers + payload + b"\r\n", (b"8", b"app.probe", payload, reply, headers)


def _line(line: bytes) -> tuple[bytes, Seen]:
    return line + b"\r\n", (line,)


PAYLOADS = st.binary(max_size=40) | st.sampled_from([b"MSG app.room 7 3\r\n", b"\r\nPING\r\n", b"-ERR 'no'\r\n"])
REPLIES = st.sampled_from([b"", b"reply.to"])
COMMANDS = st.one_of(
    st.builds(_message, PAYLOADS, REPLIES),
    st.builds(_with_headers, PAYLOADS, REPLIES, st.sampled_from([HEADER, b"NATS/1.0 503\r\n\r\n", b"x"])),
    st.builds(_line, st.sampled_from([b"PING", b"PONG", b'INFO {"server_id":"s"}', b"-ERR 'Permissions'", b"", b"MS"])),
)


@given(st.lists(COMMANDS, max_size=12), st.lists(st.integers(1, 60), max_size=40))
async def test_everything_comes_once_and_in_order(commands: list[tuple[bytes, Seen]], cuts: list[int]) -> None:
    """Rules 1 and 3, wherever the socket cuts what is sent."""
    reader = Reader()
    data = b"".join(sent for sent, _ in commands)
    for size in cuts:
        if not data:
            break
        reader.inlet.data_received(data[:size])
        data = data[size:]
    if data:
        reader.inlet.data_received(data)
    assert reader.seen == [seen for _, seen in commands]
    assert not reader.lost


@pytest.mark.timeout(10)
async def test_a_large_message_in_many_pieces_costs_as_much_as_its_bytes() -> None:
    """Rule 3: put together anew with each piece, these would be copied for minutes."""
    reader = Reader()
    sent, seen = _message(bytes(32 << 20), b"")
    behind, seen_behind = _message(b"behind", b"")
    data = sent + behind
    for at in range(0, len(data), 1024):
        reader.inlet.data_received(data[at : at + 1024])
    assert reader.seen == [seen, seen_behind]


@pytest.mark.parametrize(
    "broken",
    [
        b"MSG a 1\r\n",
        b"MSG a 1 2 3 4\r\n",
        b"MSG a 1 many\r\n",
        b"MSG a 1 -40\r\n\r\n",
        b"HMSG a 1 5\r\n",
        b"HMSG a 1 8 5\r\nNATS/1.0\r\n",
        b"HMSG a 1 -1 5\r\n12345\r\n",
        bytes((1 << 20) + 1),
    ],
)
async def test_what_is_no_part_of_the_protocol_ends_the_link(broken: bytes) -> None:
    """Rule 2."""
    reader = Reader()
    reader.inlet.data_received(broken)
    assert len(reader.lost) == 1
    assert not reader.seen


async def test_what_a_handler_raises_ends_the_link_and_nothing_else() -> None:
    """Rule 2."""
    reader = Reader()

    def refuse(*_: bytes) -> None:
        raise RuntimeError("no")

    inlet = Inlet(reader.stream, message=refuse, line=refuse, lose=reader.lost.append, gone=reader.went)
    inlet.data_received(b"MSG a 1 0\r\n\r\n")
    inlet.data_received(b"PING\r\n")
    assert [str(error) for error in reader.lost] == ["no", "no"]


async def test_the_end_of_the_connection_is_told_with_its_reason() -> None:
    reader = Reader()
    reader.inlet.eof_received()
    reset = ConnectionResetError("by the peer")
    reader.inlet.connection_lost(reset)
    assert [str(error) for error in reader.lost] == ["The connection was closed", "by the peer"]
    assert reader.lost[1] is reset
    assert reader.gone == 1
