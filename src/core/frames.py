"""One packet in every form that a connection may want: made once, shared by all clients that get it.

1. A form is made when the first connection wants it, and then kept: Engine.IO packets for python-engineio's own
   writer, one run of bytes for a websocket.
2. The bytes are unmasked, unfragmented, uncompressed frames, text for text and binary for bytes (RFC 6455, section
   5.2), in the order of the packet's parts, so that an attachment follows its event at once.
3. On a connection that has negotiated compression such frames are messages that were not compressed: legal beside
   compressed ones, and outside their window (RFC 7692, section 6).
4. `size` counts the payload in bytes, without headers. A packet that engine.io made counts at least `_OVERHEAD`.
"""

import struct
from typing import Any, Protocol, cast

from engineio import packet as eio_packet

from roomcast.core.packets import Parts

_TEXT = 0x81  # final, opcode 1
_BINARY = 0x82  # final, opcode 2
_SHORT, _MEDIUM = 126, 1 << 16  # lengths from which the header is longer
_MESSAGE = b"4"  # Engine.IO's type of a message, which binary ones do not carry
_OVERHEAD = 64


class EioPacket(Protocol):
    """What roomcast uses of `engineio.packet.Packet`."""

    packet_type: int
    data: Any

    def encode(self, b64: bool = False) -> str | bytes:
        """The packet as a transport carries it."""
        ...


class Frame:
    """A packet with its attachments, as it waits for a client.

    Attributes:
        size: bytes of payload (rule 4).
        event: it is a node's event, which a policy may drop; what python-socketio and engine.io send is not.
        message: it is a message of Engine.IO; its own signals (ping, noop, close) are not.
    """

    __slots__ = ("_packets", "_parts", "_wire", "event", "message", "size")

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._packets: tuple[EioPacket | None, ...] = ()
        self._wire = b""
        self.event = True
        self.message = True
        self.size = sum(map(_size, parts))

    @classmethod
    def own(cls, packet: EioPacket | None) -> "Frame":
        """The frame of a packet that engine.io or python-socketio sends, or of the end of it all (None)."""
        frame = cls(())
        frame.event = False
        frame._packets = (packet,)
        frame.message = packet is not None and packet.packet_type == eio_packet.MESSAGE
        data = None if packet is None else packet.data
        frame.size = max(_OVERHEAD, _size(data) if isinstance(data, (str, bytes)) else 0)
        return frame

    @property
    def packets(self) -> tuple[EioPacket | None, ...]:
        """The packet for engine.io's own writer; None ends that."""
        if not self._packets:
            self._packets = tuple(_wrap(part) for part in self._parts)
        return self._packets

    @property
    def wire(self) -> bytes:
        """The packet as a websocket carries it (rules 2 and 3).

        Raises:
            UnicodeEncodeError: text with half of a surrogate pair, which no websocket may carry.
        """
        if not self._wire:
            if self._parts:
                self._wire = b"".join(_frame(part, _MESSAGE) for part in self._parts)
            else:
                self._wire = b"".join(_frame(packet.encode()) for packet in self._packets if packet is not None)
        return self._wire


class _Binary(eio_packet.Packet):  # type: ignore[misc]  # engineio has no annotations
    """A binary packet that polling and websocket clients may share: engineio's own caches one of the two forms."""

    def __init__(self, data: bytes) -> None:
        super().__init__(eio_packet.MESSAGE, data)  # pyright: ignore[reportUnknownMemberType]  # likewise
        self._blob = data
        self._text: str | None = None

    def encode(self, b64: bool = False) -> str | bytes:
        """The bytes themselves for a websocket, base64 text for polling."""
        if not b64:
            return self._blob
        if self._text is None:
            self.encode_cache = None
            self._text = cast("str", super().encode(b64=True))
        return self._text


def _wrap(part: str | bytes) -> EioPacket:
    if isinstance(part, str):
        return cast("EioPacket", eio_packet.Packet(eio_packet.MESSAGE, part))
    return _Binary(part)


def _size(part: str | bytes) -> int:
    return len(part) if isinstance(part, bytes) or part.isascii() else len(part.encode(errors="replace"))


def _frame(part: str | bytes, prefix: bytes = b"") -> bytes:
    payload, kind = (prefix + part.encode(), _TEXT) if isinstance(part, str) else (part, _BINARY)
    length = len(payload)
    if length < _SHORT:
        return bytes((kind, length)) + payload
    if length < _MEDIUM:
        return struct.pack("!BBH", kind, 126, length) + payload
    return struct.pack("!BBQ", kind, 127, length) + payload
