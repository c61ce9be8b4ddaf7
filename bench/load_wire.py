"""What a load client says and hears, without a socket: the handshakes by hand, and events checked by comparison.

1. A run's events are known beforehand, frame by frame (`EventStream`): the number of the event, padded to the size
   asked for. A client that got the right events in the right order has received exactly these bytes, so checking
   costs one comparison of memory for each read, whatever the number of frames in it.
2. Where the bytes differ, they are read frame by frame (`Cursor.feed`): pings of Engine.IO and of the websocket are
   answered, and events out of turn are counted as lost, duplicated or reordered.
3. Nothing here reads a clock, waits or touches a socket.

Frames are those of RFC 6455; the mask that clients must apply is all zeros, which leaves the payload as it is.
"""

import base64
import hashlib
from dataclasses import dataclass

EVENT = "event"
"""Name of the events that are counted."""

DIGITS = 9
"""Width of an event's number, at the head of its payload."""

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_KEY = base64.b64encode(b"roomcast's bench")
_ACCEPT = base64.b64encode(hashlib.sha1(_KEY + _GUID, usedforsecurity=False).digest())

_TEXT, _BINARY, _CLOSE, _PING = 0x1, 0x2, 0x8, 0x9


class ProtocolBroken(Exception):
    """A server has said what no Socket.IO server says here."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One websocket frame of a server: its opcode, its payload, and where the next one begins."""

    opcode: int
    payload: bytes
    end: int


def read_frame(data: bytes, at: int = 0) -> Frame | None:
    """The frame of a server that begins at an index, or None while it is not complete.

    Raises:
        ProtocolBroken: it is fragmented, masked or compressed; nobody asked for that.
    """
    if len(data) < at + 2:
        return None
    first, length = data[at], data[at + 1]
    if first & 0xF0 != 0x80 or length & 0x80:  # noqa: PLR2004 - final, no extension; not masked
        raise ProtocolBroken(f"A frame begins with {data[at : at + 2].hex()}.")
    begin = at + 2
    if length >= 126:  # noqa: PLR2004 - the length follows, in 2 or 8 bytes
        begin += 2 if length == 126 else 8  # noqa: PLR2004
        if len(data) < begin:
            return None
        length = int.from_bytes(data[at + 2 : begin])
    end = begin + length
    return Frame(first & 0x0F, data[begin:end], end) if len(data) >= end else None


def server_frame(payload: bytes, opcode: int = _TEXT) -> bytes:
    """A frame as a server writes it."""
    return bytes([0x80 | opcode]) + _length(len(payload), 0) + payload


def client_frame(payload: bytes, opcode: int = _TEXT) -> bytes:
    """A frame as a client writes it, masked with zeros."""
    return bytes([0x80 | opcode]) + _length(len(payload), 0x80) + bytes(4) + payload


def _length(length: int, mask: int) -> bytes:
    if length < 126:  # noqa: PLR2004
        return bytes([mask | length])
    return bytes([mask | 126]) + length.to_bytes(2) if length < 1 << 16 else bytes([mask | 127]) + length.to_bytes(8)


def payload(number: int, size: int) -> str:
    """The payload of an event: its number, padded to `size` characters."""
    return f"{number:0{DIGITS}d}".ljust(size, "x")


class EventStream:
    """The bytes of a run's events, as a client receives them (rule 1).

    Args:
        count: how many events there may be.
        size: characters of one payload, at least `DIGITS`.
    """

    def __init__(self, count: int, size: int) -> None:
        frames = [server_frame(f'42["{EVENT}","{payload(number, size)}"]'.encode()) for number in range(count)]
        self.frame_length = len(frames[0])
        self.data = b"".join(frames)
        self._text = len(f'42["{EVENT}","')

    def number(self, text: bytes) -> int | None:
        """The number of the event in a packet, or None when the packet is something else."""
        if not text.startswith(b'42["' + EVENT.encode() + b'","'):
            return None
        return int(text[self._text : self._text + DIGITS])


class Cursor:
    """How far one client has come in the events of a run (rules 1 and 2).

    Attributes:
        pos: bytes of the stream received, without a break; a reader whose data equals the stream from here on may add
            to it itself, as long as `rest` is empty.
        rest: bytes received that do not continue the stream, the beginning of another frame.
        missing: events that others have overtaken.
        duplicated, reordered: events that came twice, and behind a later one.
        closed: the server has closed the connection.
    """

    __slots__ = ("_stream", "closed", "duplicated", "missing", "pos", "reordered", "rest")

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream
        self.pos = 0
        self.rest: bytes = b""
        self.missing: set[int] = set()
        self.duplicated = 0
        self.reordered = 0
        self.closed = False

    @property
    def next(self) -> int:
        """The number of the event that comes next."""
        return self.pos // self._stream.frame_length

    def lost(self, until: int) -> int:
        """How many of the first `until` events have not come."""
        return len(self.missing) + max(0, until - self.next)

    def feed(self, data: bytes) -> bytes:
        """Take what was received, and give back what is to be answered.

        Raises:
            ProtocolBroken: it cannot be read, or holds an event with another payload than was sent.
        """
        stream, size = self._stream, self._stream.frame_length
        begin = self.pos - self.pos % size
        buffer = (self.rest or stream.data[begin : self.pos]) + data
        at = 0
        answers = b""
        while True:
            if len(buffer) - at >= size and buffer.startswith(stream.data[begin : begin + size], at):
                at, begin = at + size, begin + size
                continue
            frame = read_frame(buffer, at)
            if frame is None:
                break
            at = frame.end
            if frame.opcode == _PING:
                answers += client_frame(frame.payload, 0xA)
            elif frame.opcode == _CLOSE:
                self.closed = True
            elif frame.payload == b"2":
                answers += client_frame(b"3")
            elif (number := stream.number(frame.payload)) is not None:
                begin = self._out_of_turn(number, begin // size) * size
        tail = buffer[at:]
        expected = stream.data.startswith(tail, begin)
        self.pos, self.rest = (begin + len(tail), b"") if expected else (begin, tail)
        return answers

    def _out_of_turn(self, number: int, following: int) -> int:
        if number > following:
            self.missing.update(range(following, number))
            return number + 1
        if number == following:
            raise ProtocolBroken(f"The payload of event {number} is not the one that was sent.")
        if number in self.missing:
            self.missing.discard(number)
            self.reordered += 1
        else:
            self.duplicated += 1
        return following


class Handshake:
    """The way from a new connection to a client of the namespace "/": websocket, then Engine.IO, then Socket.IO.

    Attributes:
        done: the client is connected; what was received behind that is in `rest`.
    """

    __slots__ = ("_upgraded", "done", "rest")

    def __init__(self) -> None:
        self._upgraded = False
        self.done = False
        self.rest: bytes = b""

    @staticmethod
    def request(host: str) -> bytes:
        """What a client sends first."""
        return (
            b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: %b\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Key: %b\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ) % (host.encode(), _KEY)

    def feed(self, data: bytes) -> bytes:
        """Take what was received, and give back what is to be answered.

        Raises:
            ProtocolBroken: the server refuses, or speaks another protocol.
        """
        buffer = self.rest + data
        if not self._upgraded:
            head, end, buffer_after = buffer.partition(b"\r\n\r\n")
            if not end:
                self.rest = buffer
                return b""
            if not head.startswith(b"HTTP/1.1 101 ") or _ACCEPT not in head:
                raise ProtocolBroken(f"The server does not open a websocket: {head[:200]!r}")
            self._upgraded, buffer = True, buffer_after
        answers = b""
        at = 0
        while not self.done and (frame := read_frame(buffer, at)) is not None:
            at = frame.end
            if frame.opcode == _TEXT and frame.payload.startswith(b"0{"):
                answers += client_frame(b"40")
            elif frame.opcode == _TEXT and frame.payload.startswith(b"40"):
                self.done = True
            elif frame.opcode == _TEXT and frame.payload == b"2":
                answers += client_frame(b"3")
            elif frame.opcode == _PING:
                answers += client_frame(frame.payload, 0xA)
            else:
                raise ProtocolBroken(f"The server does not connect a client: {frame.payload[:200]!r}")
        self.rest = buffer[at:]
        return answers
