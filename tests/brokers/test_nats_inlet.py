"""The reading half of a link to NATS: what is taken directly and what the library reads come in one order."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.protocol.parser import Parser

from roomcast.brokers.nats_client import NatsClient, make_client
from roomcast.brokers.nats_inlet import Inlet

INFO = b'INFO {"server_id":"s"}\r\n'
HEADER = b"NATS/1.0\r\nName: value\r\n\r\n"


class Library:
    """The library's half: its stream, its parser, and a task that reads when it is let."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self.lost: list[Exception] = []
        self._reader = asyncio.StreamReader()
        self._parser = Parser(self)
        client: Any = make_client()
        client._ps = self._parser
        client._transport = self
        self.client: NatsClient = client
        self._io_reader = self._reader
        protocol = asyncio.StreamReaderProtocol(self._reader)
        self.inlet = Inlet(self.client, protocol, self._take, self.lost.append)

    def at_eof(self) -> bool:
        return self._reader.at_eof()

    async def read(self) -> None:
        """What one turn of the library's task does."""
        if self._reader._buffer:  # type: ignore[attr-defined]
            await self._parser.parse(await self._reader.read(64))

    def _take(self, subject: str, payload: bytes) -> None:
        self.seen.append((subject, payload))

    # What the parser calls

    async def _process_msg(self, _sid: int, subject: bytes, _reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.seen.append((subject.decode() + (" with headers" if headers else ""), data))

    async def _process_err(self, error: str) -> None:
        await asyncio.sleep(0)
        self.seen.append(("error", error.encode()))

    async def _process_ping(self) -> None:
        self.seen.append(("ping", b""))

    async def _process_pong(self) -> None:
        self.seen.append(("pong", b""))

    def _process_info(self, _info: object) -> asyncio.Future[None]:
        self.seen.append(("info", b""))
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done  # the parser of 2.9 does not wait for it


def _message(payload: bytes, reply: bytes) -> tuple[bytes, tuple[str, bytes]]:
    return b"MSG app.room 7%b %d\r\n%b\r\n" % (reply, len(payload), payload), ("app.room", payload)


def _with_headers(payload: bytes) -> tuple[bytes, tuple[str, bytes]]:
    head = b"HMSG app.probe 8 %d %d\r\n" % (len(HEADER), len(HEADER) + len(payload))
    return head + HEADER + payload + b"\r\n", ("app.probe with headers", payload)


PAYLOADS = st.binary(max_size=40) | st.sampled_from([b"MSG app.room 7 3\r\n", b"\r\nPING\r\n", b"-ERR 'no'\r\n"])
COMMANDS = st.one_of(
    st.builds(_message, PAYLOADS, st.sampled_from([b"", b" reply.to"])),
    st.builds(_with_headers, PAYLOADS),
    st.sampled_from(
        [
            (b"PING\r\n", ("ping", b"")),
            (b"PONG\r\n", ("pong", b"")),
            (INFO, ("info", b"")),
            (b"-ERR 'Permissions Violation'\r\n", ("error", b"'permissions violation'")),
        ]
    ),
)


@given(st.lists(COMMANDS, max_size=12), st.lists(st.tuples(st.integers(1, 60), st.integers(0, 2)), max_size=40))
async def test_everything_comes_once_and_in_order(
    commands: list[tuple[bytes, tuple[str, bytes]]], cuts: list[tuple[int, int]]
) -> None:
    """Rules 1 and 2, wherever the socket cuts what is sent, and however slow the library is."""
    library = Library()
    data = b"".join(sent for sent, _ in commands)
    for size, turns in cuts:
        if not data:
            break
        library.inlet.data_received(data[:size])
        data = data[size:]
        for _ in range(turns):
            await library.read()
    if data:
        library.inlet.data_received(data)
    while not library.client.all_read:
        await library.read()
    assert library.seen == [seen for _, seen in commands]
    assert not library.lost


async def test_wherever_it_is_cut_nothing_is_taken_for_something_else() -> None:
    """Between two reads the library may be in the midst of a message (rule 2)."""
    inner = b"MSG app.inner 7 0\r\n\r\n"  # the payload looks like a message
    commands = [
        _message(b"first", b""),
        _with_headers(inner),
        (b"PING\r\n", ("ping", b"")),
        _message(inner, b" reply.to"),
    ]
    data = b"".join(sent for sent, _ in commands)
    for at in range(len(data)):
        library = Library()
        for part in (data[:at], data[at:]):
            library.inlet.data_received(part)
            for _ in range(10):
                await library.read()
        assert library.seen == [seen for _, seen in commands]


@pytest.mark.timeout(10)
async def test_a_large_message_in_many_pieces_costs_as_much_as_its_bytes() -> None:
    """Rule 3: put together anew with each piece, these would be copied for minutes."""
    library = Library()
    sent, seen = _message(bytes(32 << 20), b"")
    behind, seen_behind = _message(b"behind", b"")
    data = sent + behind
    for at in range(0, len(data), 1024):
        library.inlet.data_received(data[at : at + 1024])
    assert library.seen == [seen, seen_behind]


@pytest.mark.parametrize("broken", [b"MSG a 1\r\n", b"MSG a 1 2 3 4\r\n", b"MSG a 1 many\r\n", b"MSG \xff 1 0\r\n\r\n"])
async def test_a_broken_message_ends_the_link(broken: bytes) -> None:
    library = Library()
    library.inlet.data_received(broken)
    assert len(library.lost) == 1
    assert not library.seen


async def test_what_a_handler_raises_ends_the_link_and_nothing_else() -> None:
    lost: list[Exception] = []

    def take(_subject: str, _payload: bytes) -> None:
        raise RuntimeError("no")

    library = Library()
    inlet = Inlet(library.client, asyncio.Protocol(), take, lost.append)
    inlet.data_received(b"MSG a 1 0\r\n\r\n")
    assert [str(error) for error in lost] == ["no"]
