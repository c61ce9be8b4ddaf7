"""What waits for one client, in one order: engine.io's own packets and the node's events.

python-engineio makes a queue for each connection; a `ClientQueue` stands in the place of the `asyncio.Queue`.

1. What is put first leaves first, whichever way it leaves, and the parts of one packet leave together.
2. There are two ways out. Engine.IO's writer (or a polling request) takes packets by `get`; or `flush` writes frames
   straight to the transport. `flush` does so only while the queue is `direct`: the writer stands in `get`, and all that
   it ever took has been sent. So the two never overtake each other.
3. A connection earns `direct` (`Tap`): a packet taken from the queue has come out at the websocket as it was. Only
   then is its writer looked for, because only then is the websocket's handshake over with every server.
4. Only messages are written directly. Engine.IO's signals and the end (None) go to the writer, and so does everything
   while the transport is over its high-water mark or closing, and what compression is wanted for. The writer is back
   in `get` when it has sent what it took.
5. At most `Bounds.packets` packets and `Bounds.size` bytes wait, with their attachments, and with what the writer has
   taken and not sent yet. A packet that finds nothing waiting is always taken, whatever its size. A queue that is
   full is flushed first: only a client that does not read is slow.
6. Beyond the bound the policy decides: the client is cut, the new event is dropped, or the oldest events are. Whole
   packets are dropped, with their attachments. What the client could not do without (engine.io's and python-socketio's
   own packets, acknowledgements) is never dropped: it takes the place of events, and when there are none left, the
   client is cut, whatever the policy.
7. A queue that is more than half full says so to a keeper who can wait (`late`).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from roomcast.core.frames import EioPacket, Frame
from roomcast.core.options import SlowClient
from roomcast.core.stats import Stats
from roomcast.core.taps import Tap
from roomcast.core.writers import Writer

_CHUNK = 64 * 1024  # bytes per write to a transport, so that a slow one is noticed
_BATCH = 64  # packets that the writer takes at a time: what it has taken can no longer be dropped
_END = Frame.own(None)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may wait for one client (rules 5 and 6).

    Attributes:
        packets: how many.
        size: their payload in bytes.
        policy: what happens beyond that.
        compress_from: bytes from which a packet is left to the server to compress, where that was negotiated.
    """

    packets: int
    size: int
    policy: SlowClient = "disconnect"
    compress_from: int = 0


class Keeper(Protocol):
    """Who looks after the queues of a node."""

    bounds: Bounds
    stats: Stats
    paced: bool

    def due(self, queue: "ClientQueue") -> None:
        """Flush a queue soon."""
        ...

    def settle(self, queue: "ClientQueue") -> None:
        """Put into a queue what was sent to it so far."""
        ...

    def late(self, queue: "ClientQueue") -> None:
        """A queue is more than half full."""
        ...

    def cut(self, queue: "ClientQueue") -> None:
        """Disconnect a client that reads too slowly."""
        ...

    def dropped(self, packets: int) -> None:
        """Tell that events were dropped for a slow client."""
        ...


class ClientQueue:
    """The queue of one Engine.IO connection.

    Args:
        keeper: is told what happens, and flushes.

    Attributes:
        items: what waits, oldest first; appended to by `put_nowait`, `offer`, and, where `quick` allows, the fan-out.
        size: bytes of payload in `items`.
        direct: rule 2.
        is_due: it waits to be flushed.
        quick: as long as less than half of what may wait does, the fan-out may put events into it as `offer` would.
        closed: its client was cut; nothing is taken in any more.
        socket: the engine.io socket, once it is known.
        taken: how many packets a websocket's writer has taken and not sent yet.
    """

    __slots__ = (
        "_find_writer",
        "_getters",
        "_joiner",
        "_keeper",
        "_rest",
        "_taken_size",
        "_tap",
        "_writer",
        "closed",
        "direct",
        "is_due",
        "items",
        "quick",
        "size",
        "socket",
        "taken",
    )
    maxsize = 0  # an `asyncio.Queue` without a bound of its own

    def __init__(self, keeper: Keeper) -> None:
        self.items: list[Frame] = []
        self.size = 0
        self.direct = False
        self.is_due = False
        self.quick = True
        self.closed = False
        self.socket: Any = None
        self._keeper = keeper
        self._writer: Writer | None = None
        self._find_writer: Callable[[], Writer | None] | None = None
        self._tap: Tap | None = None
        self._rest: list[EioPacket | None] = []  # of the packet that was taken last
        self.taken = 0
        self._taken_size = 0
        self._getters: deque[asyncio.Future[None]] | None = None  # made when needed: a deque is large
        self._joiner: asyncio.Future[None] | None = None

    # What engine.io calls: the face of an asyncio.Queue

    def qsize(self) -> int:
        """How many packets wait."""
        return len(self.items) + len(self._rest)

    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self.items and not self._rest

    def full(self) -> bool:
        """Never: see rule 6."""
        return False

    async def put(self, item: EioPacket | None) -> None:
        """Put a packet that may not be dropped."""
        self.put_nowait(item)

    def put_nowait(self, item: EioPacket | None) -> None:
        """Put a packet that may not be dropped, or the end (rules 4 and 6)."""
        self._keeper.settle(self)
        frame = _END if item is None else Frame.own(item)
        if frame.message and not self._fits(frame) and not self._make_way(frame):
            if not self.closed:
                self._keeper.cut(self)
            return
        self._append(frame)

    async def get(self) -> EioPacket | None:
        """The next packet, when there is one; who calls has sent all it had taken."""
        self.taken = self._taken_size = 0
        if self.items and self._proven():
            self.direct = True
            self.flush()  # the writer has been too slow, or was woken for a signal: back to the direct way
        while self.empty():
            if self._getters is None:
                self._getters = deque()
            getter = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            self.direct = len(self._getters) == 1 and self._proven()
            try:
                await getter
            except BaseException:
                self.direct = False
                getter.cancel()
                if getter in self._getters:
                    self._getters.remove(getter)
                if not self.empty() and not getter.cancelled():
                    self._wake()
                raise
        return self._take()

    def get_nowait(self) -> EioPacket | None:
        """The next packet of this batch.

        Raises:
            asyncio.QueueEmpty: there is none, or a websocket's writer shall send first what it has taken.
        """
        if self.empty() or (self.taken and self._batch_is_full()):
            raise asyncio.QueueEmpty
        return self._take()

    def task_done(self) -> None:
        """Nothing: `join` does not count."""

    async def join(self) -> None:
        """Wait until everything has been taken."""
        while not self.empty():
            if self._joiner is None:
                self._joiner = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._joiner)

    # What the fan-out calls

    def offer(self, frame: Frame) -> bool:
        """Take in an event if the bound and the policy allow it (rules 5 and 6)."""
        if self.closed:
            return False
        if not self._fits(frame) and not self._admit(frame):
            return False
        self._append(frame)
        return True

    def busy(self) -> bool:
        """Whether anything waits that was meant for the client before."""
        return not self.empty() or self.taken > 0 or not (self._writer is None or self._writer.idle())

    def behind(self) -> bool:
        """Whether more than half of what may wait does (rule 7)."""
        if self.closed:
            return False
        bounds = self._keeper.bounds
        return len(self.items) + self.taken > bounds.packets // 2 or self.size + self._taken_size > bounds.size // 2

    def state(self) -> object:
        """What is another one whenever the client has taken something."""
        return id(self.items[0]) if self.items else None, self.taken, None if self._tap is None else self._tap.sends

    def flush(self) -> bool:
        """Write what waits, as far as the transport takes it; what remains is the writer's (rules 2 and 4).

        Returns:
            Whether the writer was woken, which then has work to do.
        """
        self.is_due = False
        if self.direct and self._writer is not None:
            try:
                self._write(self._writer)
            except Exception:  # noqa: BLE001 - a server that is not what it seemed: engine.io's writer finds out
                self._writer = None
        if self.items:
            return self._wake()
        if self._joiner is not None:
            self._joined()
        return False

    def attach(self, tap: Tap, find_writer: Callable[[], Writer | None]) -> None:
        """A websocket takes over; once it is proven, its writer is looked for (rule 3)."""
        self._tap, self._writer, self._find_writer = tap, None, find_writer

    def detach(self, tap: Tap) -> None:
        """A websocket has ended."""
        if self._tap is tap:
            self.direct, self._writer, self._tap, self._find_writer = False, None, None, None

    def clear(self) -> None:
        """Forget all that waits, drop the connection where that is possible, and end the writer."""
        self.closed = True
        self.quick = False
        self.items.clear()
        self._rest.clear()
        self.size = 0
        if self._writer is not None:
            self._writer.abort()
        self._append(_END)

    # Inside

    def _proven(self) -> bool:
        if self._tap is None or not self._tap.proven():
            return False
        if self._find_writer is not None:
            self._writer = self._tap.writer = self._find_writer()
            self._find_writer = None
        return self._writer is not None

    def _append(self, frame: Frame) -> None:
        self.items.append(frame)
        self.size += frame.size
        if not (self.direct and frame.message) and not frame.event:
            self._wake()
        elif not self.is_due:
            self._keeper.due(self)
        if self._keeper.paced and self.behind():
            self._keeper.late(self)

    def _wake(self) -> bool:
        self.direct = False
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return True
        return False

    def _take(self) -> EioPacket | None:
        if self._rest:
            packet = self._rest.pop(0)
        else:
            frame = self.items.pop(0)
            self.size -= frame.size
            packet, *self._rest = frame.packets
            if self._tap is not None:
                self.taken += 1
                self._taken_size += frame.size
            self._keeper.stats.sent_queued += frame.message
        if self._tap is not None:
            self._tap.expect(packet)
        if self._joiner is not None and self.empty():
            self._joined()
        return packet

    def _joined(self) -> None:
        if self._joiner is not None:
            self._joiner.set_result(None)
            self._joiner = None

    def _batch_is_full(self) -> bool:
        bounds = self._keeper.bounds
        most = min(_BATCH, max(1, bounds.packets // 2))
        return not self._rest and (self.taken >= most or self._taken_size >= bounds.size // 2)

    def _write(self, writer: Writer) -> None:
        items = self.items
        compressed = self._keeper.bounds.compress_from if writer.compressed else None
        while items and writer.ready():
            size = count = 0
            for frame in items:
                if not frame.message or (compressed is not None and frame.size >= compressed):
                    break
                count += 1
                size += frame.size
                if size >= _CHUNK:
                    break
            if not count:
                return
            writer.write(items[0].wire if count == 1 else b"".join([frame.wire for frame in items[:count]]))
            self._keeper.stats.sent_direct += count
            del items[:count]
            self.size -= size

    def _fits(self, frame: Frame) -> bool:
        bounds = self._keeper.bounds
        waiting = len(self.items) + self.taken
        return waiting == 0 or (waiting < bounds.packets and self.size + self._taken_size + frame.size <= bounds.size)

    def _admit(self, frame: Frame) -> bool:
        """Whether there is, or can be made, room for an event."""
        if self.direct:
            self.flush()
            if self._fits(frame):
                return True
        keeper = self._keeper
        if keeper.bounds.policy == "disconnect":
            keeper.cut(self)
            return False
        if keeper.bounds.policy == "drop_oldest" and self._drop(frame, oldest=True):
            return True
        keeper.stats.dropped_newest += 1
        keeper.dropped(1)
        return False

    def _make_way(self, frame: Frame) -> bool:
        """Whether there is, or can be made, room for what may not be dropped."""
        if self.direct:
            self.flush()
        policy = self._keeper.bounds.policy
        return self._fits(frame) or (policy != "disconnect" and self._drop(frame, oldest=policy == "drop_oldest"))

    def _drop(self, frame: Frame, *, oldest: bool) -> bool:
        """Drop events until a packet fits; False when it cannot."""
        dropped = 0
        at = 0 if oldest else len(self.items) - 1
        while not (fits := self._fits(frame)) and 0 <= at < len(self.items):
            if self.items[at].event:
                self.size -= self.items.pop(at).size
                dropped += 1
                at -= not oldest
            else:
                at += 1 if oldest else -1
        if dropped:
            stats = self._keeper.stats
            if oldest:
                stats.dropped_oldest += dropped
            else:
                stats.dropped_newest += dropped
            self._keeper.dropped(dropped)
        return fits
