"""A client on a bare TCP or TLS connection, which keeps every byte that the server sends after the handshake."""

import asyncio
import base64
import os
import ssl
from dataclasses import dataclass
from typing import Self

from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from tests.adapter.servers import PATIENCE

OFFER = "permessage-deflate; client_max_window_bits"


@dataclass
class Message:
    """One websocket message from the server.

    Attributes:
        data: its payload, decompressed.
        compressed: it was compressed.
    """

    data: bytes
    text: bool
    compressed: bool


class RawClient:
    """Args:
    port: of the server, on loopback.
    deflate: offer compression.
    tls: how to verify a server that has a certificate.
    """

    def __init__(self, port: int, *, deflate: bool = False, tls: ssl.SSLContext | None = None) -> None:
        self._port, self._deflate, self._tls = port, deflate, tls
        self._reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter
        self.wire = bytearray()
        self.compression = False
        self._at = 0
        self._extensions: list[PerMessageDeflate] = []
        self.signals: list[bytes] = []

    async def open(self, sid: str = "") -> Self:
        """Shake hands; with a sid, to upgrade that session."""
        self._reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._tls, limit=2**16)
        query = "EIO=4&transport=websocket" + (f"&sid={sid}" if sid else "")
        key = base64.b64encode(os.urandom(16)).decode()
        offer = f"Sec-WebSocket-Extensions: {OFFER}\r\n" if self._deflate else ""
        self.writer.write(
            f"GET /socket.io/?{query} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{offer}\r\n".encode()
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in head, head
        extensions = [line for line in head.decode().split("\r\n") if line.lower().startswith("sec-websocket-ext")]
        self.compression = bool(extensions)
        if extensions:
            bits = [part.partition("=")[2] for part in extensions[0].split(";") if "server_max_window_bits" in part]
            takeover = "server_no_context_takeover" in extensions[0]
            self._extensions.append(PerMessageDeflate(takeover, False, int(bits[0]) if bits else 15, 15))
        return self

    async def connect(self) -> str:
        """Join "/"; the sid."""
        assert (await self.message()).data.startswith(b"0{")
        self.send("40")
        return (await self.message()).data.decode().partition('"sid":"')[2].partition('"')[0]

    def send(self, text: str) -> None:
        """Send a message."""
        self.writer.write(Frame(Opcode.TEXT, text.encode()).serialize(mask=True))

    async def message(self) -> Message:
        """The next message; a ping of engine.io is answered, and kept in `signals`."""
        while True:
            frame, compressed = await asyncio.wait_for(self._frame(), PATIENCE)
            if frame.opcode in (Opcode.PING, Opcode.PONG):
                continue
            if frame.opcode is Opcode.CLOSE:
                raise ConnectionError("closed")
            assert frame.fin, "a fragment"
            data = bytes(frame.data)
            if data == b"2" and frame.opcode is Opcode.TEXT:
                self.signals.append(data)
                self.send("3")
                continue
            return Message(data, frame.opcode is Opcode.TEXT, compressed)

    async def until(self, end: bytes) -> list[Message]:
        """All messages up to one that contains `end`, without it."""
        messages: list[Message] = []
        while end not in (message := await self.message()).data:
            messages.append(message)
        return messages

    async def _frame(self) -> tuple[Frame, bool]:
        while True:
            stream = StreamReader()
            stream.feed_data(bytes(self.wire[self._at :]))
            parsing = Frame.parse(stream.read_exact, mask=False, extensions=self._extensions)
            try:
                next(parsing)
            except StopIteration as stop:
                compressed = bool(self.wire[self._at] & 0x40)
                self._at = len(self.wire) - len(stream.buffer)
                return stop.value, compressed
            data = await self._reader.read(2**16)
            if not data:
                raise ConnectionError("the connection ended")
            self.wire += data

    def close(self) -> None:
        """Begin the closing handshake."""
        self.writer.write(Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True))

    def abort(self) -> None:
        """Drop the connection, where there is one."""
        if hasattr(self, "writer"):
            self.writer.transport.abort()
