"""Simulated TCP between the processes of a simulation and its servers: byte by byte, with what can go wrong there.

What asyncio and the kernel do between a protocol and the wire, as far as a protocol can tell:

1. Bytes of one direction arrive in order. They travel in segments, cut anywhere, and are read in pieces, cut anywhere.
2. A direction holds a bounded number of bytes. What is beyond waits in the sender's process, which is told
   (`pause_writing`), and goes on when both sides have had their turn.
3. What is sent to a process that stands still waits for it: its kernel takes connections, and bytes, without it.
4. `close` sends what was written, then the end. `abort`, and the death of a process, send what the kernel has; a
   socket that is closed with something unread, or that bytes reach later, answers with a reset.
5. `cut` loses what is on its way, but for a piece at the head of each direction that ends at any byte, and resets both
   ends. `stall` holds everything up, in one direction or both, and lets it go on later: nobody is told.
6. A process that is barred cannot connect: it is refused, or nobody answers it.

What is free in reality is drawn from the seed.
"""

import asyncio
import errno
import random
from collections import deque
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Literal

Address = tuple[str, int]
Bar = Literal["refused", "silent"]

_FIN, _RESET = "fin", "reset"
_Segment = bytes | str

_WINDOWS = (200, 1500, 16_384, 65_536, 65_536, 65_536)
"""Bytes that a direction may hold."""
_SEGMENT = 1460
_CUTS = 12
"""Writes, or reads, of which one is cut somewhere."""
_HIGH = 65_536
"""Bytes that wait in a process before it is told."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A server's port.

    Attributes:
        accept: makes the protocol of a connection.
        context: the server's process.
    """

    accept: Callable[[], asyncio.Protocol]
    context: Context


class Network:
    """All connections of a simulation.

    Args:
        loop: of all processes.
        seed: from which everything is drawn.
        latency: seconds that a segment travels.
        context: of what happens between the processes.

    Attributes:
        listeners: who accepts connections where.
        links: the connections, in the order in which they were made, until both ends are closed.
        barred: processes that cannot connect (rule 6).
        made: how many connections there have been.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seed: object, *, latency: Callable[[], float], context: Context
    ) -> None:
        self.loop = loop
        self.latency = latency
        self.context = context
        self.drawn = random.Random(f"{seed} network")
        self.listeners: dict[Address, Listener] = {}
        self.links: list[Link] = []
        self.made = 0
        self.barred: dict[str, Bar] = {}
        self._news = asyncio.Event()

    def bar(self, process: str, how: Bar | None) -> None:
        """Let a process connect no more, or again."""
        if how is None:
            self.barred.pop(process, None)
        else:
            self.barred[process] = how
        self._news.set()
        self._news = asyncio.Event()

    async def connect(
        self, process: str, context: Context, make: Callable[[], Any], address: Address
    ) -> "tuple[End, Any]":
        """A transport and its protocol, connected; as `loop.create_connection`."""
        await asyncio.sleep(self.latency())
        while self.barred.get(process) == "silent":
            await self._news.wait()
        listener = self.listeners.get(address)
        if listener is None or process in self.barred:
            await asyncio.sleep(self.latency())
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"Connect call failed {address}")
        link = Link(self, process, context, listener.context)
        self.links.append(link)
        self.made += 1
        link.far.open(listener.accept)
        try:
            await asyncio.sleep(self.latency())
        except BaseException:
            link.near.die()
            raise
        return link.near, link.near.open_now(make)

    def of(self, process: str) -> "list[Link]":
        """The connections of a process that it has not closed."""
        return [link for link in self.links if link.process == process and not link.near.closed]

    def end(self) -> None:
        """The simulation is over: nobody is told, and nothing counts as left open."""
        for link in self.links:
            link.near.vanish()
            link.far.vanish()

    def forget(self, link: "Link") -> None:
        if link in self.links:
            self.links.remove(link)


class Link:
    """One connection.

    Attributes:
        process: who made it.
        near: the end of who made it.
        far: the server's end.
        dead: what is stalled never goes on, as when something on the way has forgotten the connection.
    """

    def __init__(self, network: Network, process: str, near: Context, far: Context) -> None:
        self.network = network
        self.process = process
        self.dead = False
        window = network.drawn.choice(_WINDOWS)
        self.near = End(self, near, window)
        self.far = End(self, far, window)
        self.near.peer, self.far.peer = self.far, self.near

    @property
    def idle(self) -> bool:
        """Nothing is on its way, or waits to be written or read."""
        return self.near.idle and self.far.idle

    def cut(self) -> None:
        """Lose it (rule 5)."""
        for end in (self.near, self.far):
            end.lose_way(self.network.drawn)

    def stall(self, *ends: "End", stalled: bool = True) -> None:
        """Hold up what these ends send, or both (rule 5)."""
        if stalled or not self.dead:
            for end in ends or (self.near, self.far):
                end.stall(stalled=stalled)


class End(asyncio.Transport):
    """One end of a connection: the transport of its process, its socket, and the way to the other end."""

    peer: "End"

    def __init__(self, link: Link, context: Context, window: int) -> None:
        super().__init__({"peername": ("simulated", 0)})
        self._link = link
        self._network = link.network
        self._loop = link.network.loop
        self._context = context
        self._window = window
        self._protocol: Any = None
        # In the process
        self._buffer = bytearray()
        self._closing = self._done = self._paused = self._full = False
        self._high, self._low = _HIGH, _HIGH // 4
        self._reading = self._sending = False
        # In its kernel
        self.closed = False
        self._inbox = bytearray()
        self._ended = ""  # how the other end has ended it
        # On the way
        self._flight: deque[tuple[float, _Segment]] = deque()
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stalled = self._broken = False

    # For the process

    def open(self, make: Callable[[], asyncio.Protocol]) -> None:
        """A connection has come in: its process will notice."""
        self._loop.call_soon(self._accept, make, context=self._context)

    def _accept(self, make: Callable[[], asyncio.Protocol]) -> None:
        if not self.closed:
            self.open_now(make)

    def open_now(self, make: Callable[[], Any]) -> Any:
        """The protocol, which is told at once."""
        self._protocol = make()
        self._protocol.connection_made(self)
        self._look()
        return self._protocol

    def get_protocol(self) -> Any:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._look()

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = _HIGH if high is None else high
        self._low = self._high // 4 if low is None else low

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._done or not data:
            return
        self._buffer += data
        self._send()
        if len(self._buffer) > self._high and not self._full:
            self._full = True
            self._protocol.pause_writing()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if not self._buffer:
                self._finish(None)

    def abort(self) -> None:
        self._fail(None)

    def _fail(self, exc: Exception | None) -> None:
        self._buffer.clear()
        self._closing = True
        self._finish(exc)

    def _finish(self, exc: Exception | None) -> None:
        if not self._done:
            self._done = True
            self._loop.call_soon(self._lost, exc, context=self._context)

    def _lost(self, exc: Exception | None) -> None:
        try:
            if self._protocol is not None:
                self._protocol.connection_lost(exc)
        finally:
            self._shut()

    def _read(self) -> None:
        self._reading = False
        if self._done or self._closing or self._paused or self.closed:
            return
        if self._inbox:
            size = self._cut(len(self._inbox))
            data = bytes(self._inbox[:size])
            del self._inbox[:size]
            self.peer.look_for_room()
            try:
                self._protocol.data_received(data)
            except Exception as exc:  # noqa: BLE001 - as asyncio does
                self._fail(exc)
        elif self._ended == _RESET:
            self._fail(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
        elif self._ended == _FIN:
            self._ended = "read"
            if not self._protocol.eof_received():
                self.close()
        self._look()

    def _look(self) -> None:
        """Let the process read, if there is something to read."""
        readable = self._inbox or self._ended in (_FIN, _RESET)
        if readable and not self._reading and self._protocol is not None and self.is_reading():
            self._reading = True
            self._loop.call_soon(self._read, context=self._context)

    def look_for_room(self) -> None:
        """Let the process write on, if it has something to write."""
        if self._buffer and not self._sending:
            self._sending = True
            self._loop.call_soon(self._write_on, context=self._context)

    def _write_on(self) -> None:
        self._sending = False
        self._send()
        if self._full and len(self._buffer) <= self._low and not self._done:
            self._full = False
            self._protocol.resume_writing()

    def _send(self) -> None:
        """Give the kernel what it takes."""
        if self._done or self.closed:
            return
        if self._ended == _RESET:
            self._fail(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
            return
        room = self._window - self._under_way
        while self._buffer and room > 0:
            size = self._cut(min(len(self._buffer), room, _SEGMENT))
            self._launch(bytes(self._buffer[:size]))
            del self._buffer[:size]
            room -= size
        if self._closing and not self._buffer:
            self._finish(None)

    def _cut(self, size: int) -> int:
        drawn = self._network.drawn
        return drawn.randint(1, size) if size > 1 and not drawn.randrange(_CUTS) else size

    # The kernel

    @property
    def _under_way(self) -> int:
        return sum(len(what) for _, what in self._flight if isinstance(what, bytes)) + self.peer.unread

    @property
    def unread(self) -> int:
        return len(self._inbox)

    @property
    def idle(self) -> bool:
        if self.closed:
            return not self._flight or self.peer.closed
        return not (self._buffer or self._inbox or self._flight)

    def die(self) -> None:
        """The process is gone (rule 4). It would hear of it if it ever ran again."""
        self._fail(None)
        self._shut()

    def vanish(self) -> None:
        """Be closed, without a word."""
        self._done = self._closing = self.closed = True

    def _shut(self) -> None:
        if not self.closed:
            self.closed = True
            if self._ended != _RESET:
                self._launch(_RESET if self._inbox else _FIN)
            self._inbox.clear()
            if self.peer.closed:
                self._network.forget(self._link)

    def arrive(self, what: _Segment) -> None:
        """Something has come from the other end."""
        if self.closed:
            if isinstance(what, bytes):
                self._launch(_RESET)
            return
        if isinstance(what, bytes):
            self._inbox += what
        else:
            self._ended = what
            if what == _RESET:
                if self._network.drawn.random() < 0.5:
                    self._inbox.clear()
                self.look_for_room()
        self._look()

    # The way to the other end

    def _launch(self, what: _Segment) -> None:
        if self._broken:
            return
        self._due = max(self._due, self._loop.time() + self._network.latency())
        self._flight.append((self._due, what))
        self._watch()

    def _watch(self) -> None:
        if self._flight and self._timer is None and not self._stalled:
            self._timer = self._loop.call_at(self._flight[0][0], self._carry, context=self._network.context)

    def _carry(self) -> None:
        self._timer = None
        while self._flight and not self._stalled and self._flight[0][0] <= self._loop.time():
            self.peer.arrive(self._flight.popleft()[1])
        self._watch()

    def stall(self, *, stalled: bool) -> None:
        self._stalled = stalled
        if not stalled:
            later = self._loop.time() + self._network.latency()
            self._flight = deque((max(due, later), what) for due, what in self._flight)
            self._due = max(self._due, later)
            self._watch()

    def lose_way(self, drawn: random.Random) -> None:
        """Lose what is on its way to the other end, but for a piece at the head, and let that end know."""
        self.stall(stalled=False)
        size = self._under_way - self.peer.unread
        kept = drawn.randint(0, size) if drawn.random() < 0.7 else 0
        flight, self._flight = self._flight, deque()
        for due, what in flight:
            if isinstance(what, bytes) and kept > 0:
                self._flight.append((due, what[:kept]))
                kept -= len(what)
        self._launch(_RESET)
        self._broken = True
