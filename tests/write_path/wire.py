"""One Engine.IO connection over a wire of the tests: python-engineio's own socket and writer, a driver and a transport
that the test stalls and drains, and the fan-out of one node.

The wire keeps every byte that leaves the server, and knows nothing of the two ways out: what engine.io's writer sends
goes through `Wire.send`, which frames it as a server does, and what the node writes goes through `WireWriter.write`.
"""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import engineio
from engineio import packet as eio_packet
from websockets.frames import Frame as Reference
from websockets.frames import Opcode

from roomcast.core.client_queue import Bounds
from roomcast.core.fanout import FanOut
from roomcast.core.packets import Parts
from roomcast.core.rooms import Client
from roomcast.core.stats import Stats
from roomcast.core.writers import Writer

# pyright: reportPrivateUsage=false

HIGH_WATER = 2000
WIDE = Bounds(packets=10**6, size=10**9)


def framed(message: str | bytes) -> bytes:
    """A message as a server without compression writes it."""
    if isinstance(message, str):
        return Reference(Opcode.TEXT, message.encode()).serialize(mask=False)
    return Reference(Opcode.BINARY, message).serialize(mask=False)


class Wire:
    """The driver's websocket and the transport behind it.

    Attributes:
        out: every byte that left the server.
        buffered: those that the peer has not taken.
        wrong: what was done to it that must not be done to a transport.
    """

    def __init__(self) -> None:
        self.out = bytearray()
        self.buffered = 0
        self.wrong: list[str] = []
        self.stalled = False
        self.closing = False
        self.aborted = False
        self.sends = 0
        self._writable = asyncio.Event()
        self._writable.set()
        self.incoming: asyncio.Queue[str | None] = asyncio.Queue()

    # The driver's websocket

    async def send(self, message: str | bytes) -> None:
        self.sends += 1
        await self._writable.wait()
        if self.closing:
            raise OSError("closed")
        self.put(framed(message))

    async def wait(self) -> str | None:
        return await self.incoming.get()

    async def close(self) -> None:
        self.closing = True

    # The transport

    def put(self, data: bytes) -> None:
        if self.closing:
            self.wrong.append("written to a transport that is closing")
        self.out += data
        if self.stalled:
            self.buffered += len(data)
            if self.buffered > HIGH_WATER:
                self._writable.clear()

    def stall(self) -> None:
        self.stalled = True

    def drain(self) -> None:
        self.stalled = False
        self.buffered = 0
        self._writable.set()

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return HIGH_WATER // 4, HIGH_WATER

    def write(self, data: bytes) -> None:
        if self.buffered > HIGH_WATER:
            self.wrong.append("written to a transport that is over its high-water mark")
        self.put(data)

    def abort(self) -> None:
        self.aborted = True
        self.closing = True
        self._writable.set()
        self.incoming.put_nowait(None)


class Connection:
    """A client of a fan-out, on a wire.

    Args:
        bounds: of what waits for it.
        direct: whether its transport is one that can be written to directly.
        compressed: whether it has negotiated compression.
        beside: another one of the same server.
    """

    def __init__(
        self,
        bounds: Bounds = WIDE,
        *,
        direct: bool = True,
        compressed: bool = False,
        beside: "Connection | None" = None,
    ) -> None:
        self.wire = Wire()
        self._writer = Writer(self.wire, compressed=compressed) if direct else None
        self.socket: Any = None
        if beside is None:
            self.stats = Stats()
            self.eio: Any = cast("Any", engineio).AsyncServer(async_mode="asgi", monitor_clients=False)
            self.server = SimpleNamespace(eio=self.eio, reason=self.eio.reason)
            self.eio._async = self.eio._async | {"websocket": self._driver}
            self.fanout = FanOut(self.server, bounds, self.stats)
        else:
            self.stats, self.eio, self.server, self.fanout = beside.stats, beside.eio, beside.server, beside.fanout
        self.name = f"eio{len(self.eio.sockets)}"
        self.client = Client("sid", self.name)
        self._handler: asyncio.Future[Any] | None = None

    @staticmethod
    def _driver(handler: Callable[[Any], Any], _server: object) -> Any:
        async def accept(wire: Wire) -> None:
            await handler(wire)

        return accept

    async def start(self) -> None:
        """Connect, as a client does that starts with a websocket."""
        from engineio.async_socket import AsyncSocket  # noqa: PLC0415 - made by the server in reality

        self.socket = AsyncSocket(self.eio, self.name)
        self.eio.sockets[self.name] = self.socket
        await self.socket.send(eio_packet.Packet(eio_packet.OPEN, {"sid": "eio"}))
        with mock.patch("roomcast.core.fanout.writer_of", return_value=self._writer):
            self._handler = asyncio.ensure_future(self.socket._upgrade_websocket(self.wire))
            await turns(10)
        assert self.socket.queue._find_writer is None, "it has not been looked for yet"

    def emit(self, parts: Parts, *, volatile: bool = False) -> None:
        """What a node does with an event for this client."""
        self.fanout.send([self.client], parts, volatile=volatile)

    async def send(self, text: str) -> None:
        """What python-socketio does with a packet of its own."""
        await self.eio.send(self.name, text)

    async def signal(self, kind: int) -> None:
        """A packet of engine.io."""
        await self.socket.send(eio_packet.Packet(kind))

    async def settle(self) -> None:
        """Let everything out."""
        self.wire.drain()
        for _ in range(10_000):
            await turns(3)
            if not self.socket.queue.qsize() and not self.fanout._due:
                break
        await turns(20)

    async def end(self) -> None:
        """The client closes the connection."""
        await self.wire.incoming.put(None)
        assert self._handler is not None
        await asyncio.wait_for(self._handler, 10)


async def turns(count: int) -> None:
    """Let the loop run."""
    for _ in range(count):
        await asyncio.sleep(0)
