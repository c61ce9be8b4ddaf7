"""A websocket client that notes every event it gets, and when."""

import asyncio
import time

from bench.faults.account import Arrival
from bench.load_wire import EventStream, Handshake, ProtocolBroken, client_frame, read_frame

_PING, _CLOSE = 0x9, 0x8


class Client:
    """One client of a node; `connect` first.

    Attributes:
        arrivals: the numbered events, in the order in which they were read.
        probes: how many other events came.
        ended: why there is no connection any more; None: there is one.
    """

    def __init__(self, size: int) -> None:
        self.arrivals: list[Arrival] = []
        self.probes = 0
        self.ended: str | None = None
        self._stream = EventStream(1, size)
        self._handshake: Handshake | None = Handshake()
        self._rest = b""
        self._connected = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def connect(self, port: int) -> None:
        """Connect to the namespace "/".

        Raises:
            ProtocolBroken: the server does not let it.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(Handshake.request(f"127.0.0.1:{port}"))
        self._reading = asyncio.create_task(self._read(reader, writer))
        async with asyncio.timeout(20):
            await self._connected.wait()
        if self.ended is not None:
            raise ProtocolBroken(self.ended)

    async def close(self) -> None:
        """Drop the connection."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(self._feed(data))
            self.ended = "The server has closed the connection."
        except (OSError, ProtocolBroken) as exc:
            self.ended = str(exc)
        finally:
            self._connected.set()
            writer.transport.abort()

    def _feed(self, data: bytes) -> bytes:
        """Take what was received, and give back what is to be answered."""
        handshake = self._handshake
        if handshake is None:
            return self._hear(data)
        answers = handshake.feed(data)
        if handshake.done:
            self._handshake = None
            self._connected.set()
            answers += self._hear(handshake.rest)
        return answers

    def _hear(self, data: bytes) -> bytes:
        now = time.monotonic()
        answers = b""
        buffer, at = self._rest + data, 0
        while (frame := read_frame(buffer, at)) is not None:
            at = frame.end
            if frame.opcode == _PING:
                answers += client_frame(frame.payload, 0xA)
            elif frame.opcode == _CLOSE:
                raise ProtocolBroken("The server has closed the websocket.")
            elif frame.payload == b"2":
                answers += client_frame(b"3")
            elif (number := self._stream.number(frame.payload)) is not None:
                self.arrivals.append(Arrival(number, now))
            elif frame.payload.startswith(b"42"):
                self.probes += 1
        self._rest = buffer[at:]
        return answers
