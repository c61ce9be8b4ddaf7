"""A loopback TCP proxy that stands between a node and its broker and breaks the link in a named way."""

import asyncio
import socket
import struct
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

USUAL_PORTS = {"redis": 6379, "rediss": 6379, "nats": 4222, "tls": 4222, "amqp": 5672, "amqps": 5671}
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: close() sends RST instead of FIN


class _Pair:
    """One connection of a client, joined to one connection to the server."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.server: asyncio.StreamWriter | None = None
        self.broken = asyncio.Event()
        self.over = asyncio.Event()

    def abort(self, *, reset: bool = False) -> None:
        self.broken.set()
        if reset:
            sock: socket.socket = self.client.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.client.transport.abort()
        if self.server is not None:
            self.server.transport.abort()


class TcpProxy:
    """Forwards bytes to the host and port of a URL; `url` is the same URL through the proxy.

    Faults act on all connections, and on those to come where that has a meaning:

    - `cut` closes every connection, `reset` closes them with RST; both return how many there were.
    - `stall` keeps connections open, accepts new ones, and forwards nothing either way: a black hole. What
      was sent meanwhile is held, and goes on after `resume`.
    - `drop_replies` throws away what the server sends; requests still arrive. After it the stream of replies
      has a hole, so `cut` before `resume` unless the hole is what is tested.
    - `refuse` closes the listening port (and no connection); `accept` opens the same port again.
    - `point` sends the connections to come to another server, as a load balancer does.
    - `hang_up`, while True, closes each new connection once it is accepted, so that attempts are counted.
    - `delay` seconds are spent on each chunk, each way.

    Attributes:
        connections: how many connections were accepted in all.
        bytes_up: bytes that clients sent and the server was given.
        bytes_down: bytes that the server sent and clients were given.
        bytes_dropped: bytes of replies thrown away.
        bytes_held: bytes that arrived here, either way, while stalled.
    """

    def __init__(self, url: str, *, delay: float = 0.0) -> None:
        self._parts = urlsplit(url)
        self._server_at = _address(url)
        self.delay = delay
        self.hang_up = False
        self.port = 0
        self.connections = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.bytes_dropped = 0
        self.bytes_held = 0
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._dropping = False
        self._server: asyncio.Server | None = None
        self._placeholder: socket.socket | None = None

    @property
    def open(self) -> int:
        """How many connections are open now."""
        return len(self._pairs)

    @property
    def stalled(self) -> bool:
        return not self._flowing.is_set()

    @property
    def url(self) -> str:
        """The URL of the server, by way of this proxy, credentials and path kept."""
        credentials, at, _ = self._parts.netloc.rpartition("@")
        return urlunsplit(self._parts._replace(netloc=f"{credentials}{at}127.0.0.1:{self.port}"))

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        if self._placeholder is not None:
            self._placeholder.close()
            self._placeholder = None
        await self.cut()
        await asyncio.gather(*self._tasks)

    async def cut(self) -> int:
        """Close every connection, both sides; returns how many there were."""
        return await self._abort(reset=False)

    async def reset(self) -> int:
        """Close every connection with RST towards the client; returns how many there were."""
        return await self._abort(reset=True)

    def point(self, url: str) -> None:
        self._server_at = _address(url)

    def stall(self) -> None:
        self._flowing.clear()

    def drop_replies(self) -> None:
        self._dropping = True

    def resume(self) -> None:
        """End `stall` and `drop_replies`."""
        self._dropping = False
        self._flowing.set()

    def refuse(self) -> None:
        """Stop listening; the port stays taken, so that nobody else is given it."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        self._placeholder = self._bound(self.port)

    async def accept(self) -> None:
        """Listen, on the same port as before."""
        if self._server is not None:
            return
        sock = self._placeholder or self._bound(0)
        self._placeholder = None
        self.port = sock.getsockname()[1]
        self._server = await asyncio.start_server(self._accepted, sock=sock)

    @staticmethod
    def _bound(port: int) -> socket.socket:
        # With its protocol named, asyncio switches Nagle's algorithm off; else small writes wait 40 ms for one another.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        return sock

    async def _abort(self, *, reset: bool) -> int:
        pairs = list(self._pairs)
        for pair in pairs:
            pair.abort(reset=reset)
        for pair in pairs:
            await pair.over.wait()
        return len(pairs)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        pair = _Pair(writer)
        if self.hang_up or self._server is None:  # it was on its way in when the port was closed
            pair.abort()
        else:
            self._pairs.add(pair)
        task = asyncio.create_task(self._serve(pair, reader))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, pair: _Pair, reader: asyncio.StreamReader) -> None:
        pumps: list[asyncio.Task[Any]] = []
        try:
            if pair.broken.is_set():
                return
            from_server, pair.server = await asyncio.open_connection(*self._server_at)
            if pair.broken.is_set():
                return
            up = asyncio.create_task(self._pump(reader, pair.server, up=True))
            down = asyncio.create_task(self._pump(from_server, pair.client, up=False))
            pumps = [up, down, asyncio.create_task(pair.broken.wait())]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump, writer in ((up, pair.server), (down, pair.client)):
                if pump.done():
                    writer.close()  # what the other side sent before it closed is flushed
        except OSError:
            pass  # the server is not there: its client sees a closed connection
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            sides = [side for side in (pair.client, pair.server) if side is not None]
            for side in sides:
                if not side.is_closing():
                    side.transport.abort()
            await asyncio.gather(*(side.wait_closed() for side in sides), return_exceptions=True)
            self._pairs.discard(pair)
            pair.over.set()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        """Returns once the reading side is closed and what it sent has been forwarded.

        Reading goes on during a stall, so that a client's close is seen; a server's close is held back.
        """
        chunks = asyncio.Queue[bytes](maxsize=16)  # when full TCP pushes back, as a real black hole does
        forward = asyncio.create_task(self._forward(chunks, writer, up=up))
        try:
            while chunk := await _read(reader):
                if self.stalled:
                    self.bytes_held += len(chunk)
                await chunks.put(chunk)
            if up and self.stalled:
                return
            await chunks.put(b"")
            await forward
        finally:
            forward.cancel()
            await asyncio.gather(forward, return_exceptions=True)

    async def _forward(self, chunks: asyncio.Queue[bytes], writer: asyncio.StreamWriter, *, up: bool) -> None:
        while chunk := await chunks.get():
            if self.delay:
                await asyncio.sleep(self.delay)
            await self._flowing.wait()
            if up:
                self.bytes_up += len(chunk)
            elif self._dropping:
                self.bytes_dropped += len(chunk)
                continue
            else:
                self.bytes_down += len(chunk)
            writer.write(chunk)
            await writer.drain()
        await self._flowing.wait()  # a close is not forwarded through a stall either


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or USUAL_PORTS[parts.scheme]


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(65_536)
    except ConnectionError:
        return b""
