"""What one link to NATS publishes: written at the call when nothing stands in the way, confirmed by markers.

A **marker** goes out behind what was published, to a subject that only this link hears. The server handles what one
connection sends in order, so a marker that comes back proves that it has handled all that was written before.

1. Publishes are written in the order of the calls: at once, or at the end of the turn of the loop, as `Turn` says.
2. While the socket takes no more they wait, and `keep_writing` goes on with them.
3. Each publish has a marker behind it, two markers in a turn at most; it resolves when that comes back.
4. When the link is gone, what was not written has failed as such, and what was written is unconfirmed.

nats-py's own `publish` costs several times as much, and hands everything to a task that writes a turn later.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from roomcast.brokers.nats_commands import PUBLISH
from roomcast.brokers.nats_connection import CLOG, Connection
from roomcast.brokers.turn import Turn
from roomcast.core.broker import Position, Subject
from roomcast.core.errors import BrokerError, PublishRejected, PublishUnconfirmed

Publishing = asyncio.Future[Position | None]


class Outflow:
    """The publishing half of a link.

    Args:
        connection: open.
        echo: the subject of the markers.
        next_marker: gives another one.
        denied: subjects to which the server has refused a publish; those that were noticed are removed.
        lose: is called with what keeps from writing.
    """

    def __init__(
        self,
        connection: Connection,
        echo: Subject,
        next_marker: Callable[[], bytes],
        denied: set[Subject],
        lose: Callable[[Exception], None],
    ) -> None:
        self._connection = connection
        self._echo = echo.encode()
        self._next_marker = next_marker
        self._denied = denied
        self._lose = lose
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[Subject, bytes, Publishing]] = deque()
        self._written: list[tuple[Subject, Publishing]] = []  # since the last marker
        # Each marker that is out, with what was written between it and the one before.
        self._marked: deque[tuple[bytes, list[tuple[Subject, Publishing]]]] = deque()
        self._turn = Turn()
        self._clogged = asyncio.Event()
        self._gone: Callable[[], BrokerError] | None = None

    def publish(self, subject: Subject, payload: bytes) -> Publishing:
        """Take a publish (rule 1); resolves when the server has handled it."""
        future: Publishing = asyncio.Future(loop=self._loop)
        if self._gone is not None:
            _fail(future, self._gone(), None)
            return future
        self._queue.append((subject, payload, future))
        if not self._turn.under_way:
            self._loop.call_soon(self._end_turn)
            if self._turn.begin():
                self._write()
        return future

    def confirm(self, marker: bytes, why: Exception | None) -> bool:
        """A message has come to the subject of the markers; whether it is the one that is due.

        Args:
            marker: what it says.
            why: what the server said when it refused something.
        """
        if not self._marked or self._marked[0][0] != marker:
            return False
        _, published = self._marked.popleft()
        denied = self._denied
        for subject, future in published:
            if future.done():
                continue
            if denied and subject in denied:
                text = "The NATS account may not publish to a subject of this prefix: allow <prefix>.>"
                _fail(future, PublishRejected(text, broker="nats"), why)
            else:
                future.set_result(None)
        if denied:
            denied.difference_update(subject for subject, _ in published)
        return True

    def waiting(self) -> list[Publishing]:
        """All that is not confirmed, written or not."""
        written = [*(one for _, marked in self._marked for one in marked), *self._written]
        return [*(future for _, future in written), *(future for _, _, future in self._queue)]

    def fail(self, unsent: Callable[[], BrokerError], reason: Exception) -> None:
        """The link is gone (rule 4)."""
        self._gone = unsent
        for _, _, future in self._queue:
            _fail(future, unsent(), reason)
        for _, marked in (*self._marked, (b"", self._written)):
            for _, future in marked:
                text = "The connection to NATS ended before the server confirmed the message."
                _fail(future, PublishUnconfirmed(text, broker="nats"), reason)
        self._queue.clear()
        self._marked.clear()
        self._written = []

    async def keep_writing(self) -> None:
        """Write on whenever the socket has taken what it was given (rule 2)."""
        while True:
            await self._clogged.wait()
            await self._connection.drained()
            self._clogged.clear()
            self._write()

    def _end_turn(self) -> None:
        self._turn.end(len(self._queue))
        self._write()

    def _write(self) -> None:
        """Write what waits, as far as the socket takes it, and a marker behind it unless that comes later (rule 3)."""
        if self._gone is not None:
            return
        try:
            while self._queue:
                if self._connection.closing:
                    raise ConnectionResetError("The connection was closed")  # noqa: TRY301 - as what the library raises
                if self._connection.clogged:
                    self._clogged.set()
                    return
                self._connection.send(b"".join(self._next_chunk()))
            if self._written and not (self._turn.under_way and self._marked):
                self._connection.send(self._mark())
        except Exception as exc:  # noqa: BLE001 - whatever the library raises here ends the link, and says so
            self._lose(exc)

    def _next_chunk(self) -> list[bytes]:
        chunk: list[bytes] = []
        size = 0
        queue, written = self._queue, self._written
        while queue and size < CLOG:
            subject, payload, future = queue.popleft()
            chunk.append(PUBLISH % (subject.encode(), len(payload), payload))
            size += len(payload)
            written.append((subject, future))
        if not (self._turn.under_way and self._marked):
            chunk.append(self._mark())
        return chunk

    def _mark(self) -> bytes:
        marker = self._next_marker()
        self._marked.append((marker, self._written))
        self._written = []
        return PUBLISH % (self._echo, len(marker), marker)


def _fail(future: Publishing, error: BrokerError, cause: Exception | None) -> None:
    if not future.done():
        error.__cause__ = cause
        future.set_exception(error)
