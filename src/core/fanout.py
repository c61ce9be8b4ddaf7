"""From one packet to many clients: a shared frame, put straight into each client's queue, and written soon after.

1. A packet is put into the queues of all its clients without a suspension; there is no task per recipient. For more
   than a thousand clients it is put in slices, as in rule 6; nothing overtakes it meanwhile: what else is sent to a
   client that has still to get it, a packet of python-socketio's or engine.io's own too, finds it in the queue, and so
   does a client's end. No more than some ten thousand puts are left to do at a time.
2. What waits for a client is bounded, and a policy decides beyond the bound (`client_queue`).
3. A client that is closing gets nothing.
4. A volatile packet is dropped, and counted, for a client for whom others wait.
5. Who reads from a log asks us to `serve` before reading on, and waits, in the bounds of `pace`, for slow clients.
6. Frames are written, and writers woken, in slices of a few milliseconds; the loop runs between two slices, and a
   client's frames keep their order. So many members do not hold up the loop, however long all the writes take. Who
   emits to many members many times in a row lets the loop run, too: see `crowded`. Python's garbage collector waits
   until more than a thousand have their packet, a second at most (`collector`).
7. All that is special about a connection (its transport, its server's websocket code, engine.io's version) is found by
   looking (`writers`, `Tap`); where anything is not as expected, packets go through engine.io's own writer.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Coroutine, Iterable, Mapping
from typing import Any, cast

from roomcast.core import sweep
from roomcast.core.client_queue import Bounds, ClientQueue
from roomcast.core.collector import Hold
from roomcast.core.frames import Frame
from roomcast.core.held_queue import HeldQueue
from roomcast.core.pace import Pace
from roomcast.core.packets import Parts
from roomcast.core.replay import Missed
from roomcast.core.rooms import Client, State
from roomcast.core.spread import Spread
from roomcast.core.stats import Stats
from roomcast.core.taps import Tap
from roomcast.core.writers import writer_of

logger = logging.getLogger("roomcast")

_SLICE = 0.003  # seconds of putting, and of writing, before the loop runs
_CLOCK = 16  # queues flushed between two looks at the clock
_PUTS = 128  # queues put into between two looks at the clock: 0.1 to 0.3 ms, as what they belong to is in the cache
_MANY = 1_000  # queues put into at once
_WOKEN = 64  # writers woken per slice: each is a task that takes some 50 us of the next turn
_CROWD = 20_000  # packets put into queues before the loop ought to run: some 5 ms
_LOOK = 0.005  # seconds between two looks at clients that are waited for
_QUIET = 1.0  # seconds between two log lines about dropped packets


class FanOut:
    """Hands packets to the clients of one python-socketio server.

    Args:
        server: the `socketio.AsyncServer`.
        bounds: what may wait for one client (rule 2).
        stats: where to count.
        paced: somebody calls `serve`.

    Attributes:
        fell_behind: whether a queue has become more than half full since `serve` was last called.
    """

    def __init__(self, server: Any, bounds: Bounds, stats: Stats, *, paced: bool = False) -> None:
        self.bounds = bounds
        self.stats = stats
        self._server = server
        self.paced = paced
        self.fell_behind = False
        self._due: list[ClientQueue] = []
        self._spread = Spread[object, Client]()  # by connection
        self._spreading = False
        self._sliced = hasattr(server.eio, "create_queue")  # else packets of others go past us
        self._late: dict[ClientQueue, None] = {}
        self._pace = Pace()
        self._put = 0  # since `crowded` was last true
        self._closing: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._dropped = 0
        self._told = -_QUIET
        self._install(server.eio)
        sweep.install(server.eio)

    def ready(self, clients: Iterable[Client], *, volatile: bool) -> list[Client]:
        """Those of the clients who can be given a packet now (rules 3 and 4), and can answer it."""
        ready: list[Client] = []
        for client in clients:
            queue = client.queue or self._queue_of(client)
            if queue is None or client.state is State.DISCONNECTING or queue.socket.closed or queue.socket.closing:
                continue
            if volatile and queue.busy():
                self.stats.volatile_dropped += 1
                continue
            ready.append(client)
        return ready

    def send(self, clients: Collection[Client], parts: Parts, *, volatile: bool = False) -> None:
        """Put a packet into the queue of each client (rules 1 to 4)."""
        frame = Frame(parts)
        self._put += len(clients)
        if len(clients) > _MANY and self._sliced:
            self._put_later(frame, clients, volatile=volatile)
            return
        if self._spread.left:
            for client in clients:
                self.settle(client.queue)
        self._put_now(frame, clients, volatile=volatile)

    def hold(self, client: Client, missed: Missed) -> bool:
        """Let a client wait for what it gets from now on, and this before, until `let_go`; False when it is gone."""
        queue = client.queue or self._queue_of(client)
        if queue is None or queue.socket.closed or queue.socket.closing:
            return False
        client.queue = HeldQueue(queue, missed, self.bounds, self._turn, cut=self.cut, lost=self._lost)
        return True

    def let_go(self, client: Client) -> Coroutine[Any, Any, None] | None:
        """Give a client what it waits for; what is returned goes on with it, when it is too much for once."""
        held = client.queue
        self.settle(held)
        return held.let_go(client) if isinstance(held, HeldQueue) else None

    def went(self, client: Client) -> None:
        """A client has left the server: it has what was sent while it was there (rule 1)."""
        self.settle(client.queue)

    async def end(self, client: Client) -> None:
        """End the connection of a client at once, as if it were lost."""
        socket = self._server.eio.sockets.get(client.eio_sid)
        if socket is not None:
            if isinstance(socket.queue, ClientQueue):
                socket.queue.clear()
            await _close(self._server, socket)

    def crowded(self) -> bool:
        """Whether so much was put since this was last true that the loop ought to run now."""
        if self._put <= _CROWD:
            return False
        self._put = 0
        return True

    def away(self) -> None:
        """This node was away until now: what it has missed is about to come (rule 5)."""
        self._pace.away(time.monotonic())

    async def serve(self) -> bool:
        """Write to all clients what they were given, and wait for those that fall behind; whether that was so."""
        waited = False
        while self._spread.left or self._due:  # noqa: ASYNC110 - they are served turn by turn
            await asyncio.sleep(0)
        while self._pace.waits(self._behind(), time.monotonic()):
            waited = True
            await asyncio.sleep(_LOOK)
        return waited

    def _behind(self) -> Mapping[object, object]:
        """The queues that are more than half full, each with what changes when its client takes something."""
        self.fell_behind = False
        gone = [queue for queue in self._late if not queue.behind() or getattr(queue.socket, "closed", True)]
        for queue in gone:
            del self._late[queue]
        return {queue: queue.state() for queue in self._late}

    def reachable(self, client: Client) -> bool:
        """Whether a client's connection is still there."""
        socket = self._server.eio.sockets.get(client.eio_sid)
        return socket is not None and socket.closed is not True

    # What the queues call

    def settle(self, queue: ClientQueue | None) -> None:
        """Put what was sent so far into the queue of a connection, before something else is (rule 1)."""
        if self._spread.left and queue is not None:
            for frame, clients, volatile in self._spread.owed(queue.socket):
                self._put_now(frame, clients, volatile=volatile)

    def due(self, queue: ClientQueue) -> None:
        """Flush a queue in the next turn of the loop."""
        queue.is_due = True
        if not self._due:
            self._schedule()
        self._due.append(queue)

    def late(self, queue: ClientQueue) -> None:
        """Take note of a queue that is more than half full."""
        if queue not in self._late:
            self._late[queue] = None
            self.fell_behind = True

    def cut(self, queue: ClientQueue) -> None:
        """Disconnect a client that reads too slowly."""
        self.stats.clients_cut += 1
        socket = self._socket_of(queue)
        logger.warning(
            "roomcast: the client of connection %s reads too slowly, %d packets and %d bytes wait for it: disconnected",
            getattr(socket, "sid", "?"),
            len(queue.items),
            queue.size,
        )
        self._end(queue, socket)

    def _lost(self, queue: ClientQueue) -> None:
        """End the connection of a client that cannot be given all that it missed."""
        socket = self._socket_of(queue)
        sid = getattr(socket, "sid", "?")
        logger.warning("roomcast: the client of connection %s took too long to read what it had missed: cut", sid)
        self._end(queue, socket)

    def _socket_of(self, queue: ClientQueue) -> Any:
        return queue.socket or next((s for s in self._server.eio.sockets.values() if s.queue is queue), None)

    def _end(self, queue: ClientQueue, socket: Any) -> None:
        queue.clear()
        if socket is not None:
            task = asyncio.ensure_future(_close(self._server, socket))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def dropped(self, packets: int) -> None:
        """Tell of dropped events, at most once a second."""
        self._dropped += packets
        if (now := time.monotonic()) - self._told >= _QUIET:
            logger.warning(
                "roomcast: dropped %d events for clients that read too slowly (%s)", self._dropped, self.bounds.policy
            )
            self._told, self._dropped = now, 0

    # Putting

    def _put_now(self, frame: Frame, clients: Iterable[Client], *, volatile: bool) -> None:
        size = frame.size
        few, little = self.bounds.packets // 2, self.bounds.size // 2 - size
        due = self._due
        count = 0
        for client in clients:
            queue = client.queue or self._queue_of(client)
            if queue is None or (socket := queue.socket).closed or socket.closing:
                continue
            if volatile and queue.busy():
                self.stats.volatile_dropped += 1
                continue
            items = queue.items
            if queue.quick and len(items) < few and queue.size < little and not queue.taken:
                items.append(frame)  # as `offer` would, without a call: far less waits than may
                queue.size += size
                if not queue.is_due:
                    queue.is_due = True
                    if not due:
                        self._schedule()
                    due.append(queue)
            elif not queue.offer(frame):
                continue
            count += 1
        self.stats.deliveries += count

    def _put_later(self, frame: Frame, clients: Iterable[Client], *, volatile: bool) -> None:
        if self._spread.left > _CROWD:
            self._put_some(float("inf"))
        to = {q.socket: client for client in clients if (q := client.queue or self._queue_of(client)) is not None}
        self._spread.add(frame, to, volatile=volatile)
        if not self._spreading:
            self._spreading = True
            asyncio.get_running_loop().call_soon(self._go_on, Hold())

    def _go_on(self, hold: Hold | None) -> None:
        self._put_some(time.perf_counter() + _SLICE)
        self._spreading = self._spread.left > 0 or (hold is not None and len(self._due) > 0)
        if self._spreading:  # with a hold: until the last one is written
            asyncio.get_running_loop().call_soon(self._go_on, None if hold is None or hold.over else hold)

    def _put_some(self, until: float) -> None:
        while self._spread.left:
            frame, clients, volatile = self._spread.some(_PUTS)
            self._put_now(frame, clients, volatile=volatile)
            if time.perf_counter() > until:
                return

    # Flushing

    def _schedule(self) -> None:
        asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Rule 6."""
        due = self._due
        woken = 0
        until = time.perf_counter() + _SLICE
        for number, queue in enumerate(due, 1):
            woken += queue.flush()
            if woken >= _WOKEN or (number % _CLOCK == 0 and time.perf_counter() > until):
                del due[:number]
                if due:
                    self._schedule()
                return
        due.clear()

    # Finding connections

    def _queue_of(self, client: Client) -> ClientQueue | None:
        socket = self._server.eio.sockets.get(client.eio_sid)
        if socket is None:
            return None
        queue = socket.queue if isinstance(socket.queue, ClientQueue) else cast("ClientQueue", _Foreign(socket, self))
        queue.socket = socket
        client.queue = queue
        return queue

    def _install(self, eio: Any) -> None:
        """Give each connection a queue of ours, and see its websocket when it has one (rule 7)."""
        if hasattr(eio, "create_queue"):
            eio.create_queue = self._make_queue
        driver: object = getattr(eio, "_async", None)
        if isinstance(driver, dict):
            drivers = cast("dict[str, Any]", driver)
            websocket = getattr(drivers.get("websocket"), "roomcast_original", drivers.get("websocket"))
            if websocket is not None:
                eio._async = drivers | {"websocket": _watched(websocket)}  # noqa: SLF001 - there is no other way in

    def _make_queue(self, *_args: Any, **_options: Any) -> ClientQueue:
        return ClientQueue(self)


class _Gone:
    """The socket of a connection that is over."""

    sid = "?"
    closed = closing = True


class _Foreign:
    """A queue that is not ours, because engine.io's internals differ.

    It is bounded in packets alone, and of its packets none can be dropped: `drop_oldest` drops the newest, too.
    """

    direct = False
    is_due = False
    items = ()
    size = 0
    quick = False

    def __init__(self, socket: Any, fanout: FanOut) -> None:
        self.socket = socket
        self._fanout = fanout
        self._closed = False

    def busy(self) -> bool:
        """Whether anything waits."""
        return not self.socket.queue.empty()

    def offer(self, frame: Frame) -> bool:
        """Take in an event if the bound and the policy allow it."""
        fanout, queue = self._fanout, self.socket.queue
        if self._closed:
            return False
        if queue.qsize() >= fanout.bounds.packets:
            if fanout.bounds.policy == "disconnect":
                fanout.cut(cast("ClientQueue", self))
            else:
                fanout.stats.dropped_newest += 1
                fanout.dropped(1)
            return False
        for packet in frame.packets:
            queue.put_nowait(packet)
        fanout.stats.sent_queued += 1
        return True

    def clear(self) -> None:
        """Forget all that waits, and end the writer, which closes the connection."""
        self._closed = True
        queue = self.socket.queue
        while not queue.empty():
            queue.get_nowait()
            queue.task_done()
        queue.put_nowait(None)


def _watched(websocket: Any) -> Any:
    """engine.io's driver class for a websocket, with a tap in each connection."""

    def connect(handler: Any, *args: Any, **options: Any) -> Any:
        socket: Any = getattr(handler, "__self__", None)
        queue = getattr(socket, "queue", None)
        if not isinstance(queue, ClientQueue):
            return websocket(handler, *args, **options)

        async def watched(connection: Any) -> Any:
            tap = Tap(connection, socket)
            queue.attach(tap, lambda: writer_of(connection))
            try:
                return await handler(tap)
            finally:
                queue.detach(tap)
                if socket.closed:
                    queue.socket = _Gone

        return websocket(watched, *args, **options)

    connect.roomcast_original = websocket  # type: ignore[attr-defined]  # a server may be served anew, after a fork
    return connect


async def _close(server: Any, socket: Any) -> None:
    await socket.close(wait=False, abort=True, reason=server.reason.TRANSPORT_ERROR)
