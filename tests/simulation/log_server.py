"""A server that keeps a log, in virtual time: what a driver of `LogBroker` talks to, with faults that a test commands.

Entries are kept as the log in memory keeps them; between a node and the server there is a way that takes time:

- `cut`: one link is lost. Of the appends under way the first `reach` were in time; all end unconfirmed.
- `crash`, `restart`: every link is lost, and none can be made until the server is back, with all its entries, without
  the last ones (they were not on its disk yet), or without any.
- `stall`: nothing comes through on one link, and it seems fine.
- `refuse`: one node cannot connect.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from roomcast.brokers.log_broker import Appending, Entry, Intake, LogBroker, Lost, Once, failed, trimmed
from roomcast.brokers.log_places import Place, View
from roomcast.brokers.log_settings import PARAMETERS, LogSettings
from roomcast.brokers.memory_log import _Stream
from roomcast.core.broker import BrokerConfig, Subject
from roomcast.core.errors import BrokerError, BrokerUnavailable, PublishUnconfirmed

# pyright: reportPrivateUsage=false

_PAGE = 64


class LogServer:
    """The server.

    Attributes:
        links: the one of each node, by the node's id.
        refused: nodes that cannot connect.
        up: whether it runs.
        began: the offset at which a life began, unless that is 0.
        latency: seconds of one way between a node and the server.
        context: what happens between the nodes happens in it.
    """

    def __init__(self, *, streams: int = 1, latency: Callable[[], float] = lambda: 0.001) -> None:
        self.settings = LogSettings(streams=streams)
        self.links: dict[str, LogServerLink] = {}
        self.refused: set[str] = set()
        self.up = True
        self.latency = latency
        self.context: Context | None = None
        self.began: dict[str, int] = {}
        self._lives = 0
        self.streams = self._new_streams()

    def make(self) -> Callable[[BrokerConfig], LogBroker]:
        """What an entry point for a broker of this server gives."""

        def make(config: BrokerConfig) -> LogBroker:
            return LogBroker(config, _Driver(self, config.node))

        make.parameters = PARAMETERS  # type: ignore[attr-defined]  # a class would have it
        return make

    def cut(self, node: str, *, reach: int = 0) -> None:
        if (link := self.links.get(node)) is not None:
            link.lose(ConnectionResetError("the link was cut"), reach=reach)

    def crash(self, *, tail: int | None = 0) -> None:
        """End every link, and forget so many of the last entries of each stream, or (None) everything."""
        self.up = False
        for link in tuple(self.links.values()):
            link.lose(ConnectionResetError("the server went away"), reach=0)
        if tail is None:
            self.streams = self._new_streams()
        for stream in self.streams:
            if tail:
                self._forget_last(stream, tail)

    def restart(self) -> None:
        self.up = True

    def stall(self, node: str, *, stalled: bool = True) -> None:
        if (link := self.links.get(node)) is not None:
            link.stall(stalled=stalled)

    def trim(self, count: int) -> None:
        for stream in self.streams:
            stream.trim(count)

    def appended(self) -> None:
        for link in tuple(self.links.values()):
            link.notice()

    def _forget_last(self, stream: _Stream, count: int) -> None:
        """Another entry will have the same offset: that is another life."""
        for _ in range(min(count, len(stream._entries))):
            del stream._entries[stream.end]
            stream.end -= 1
        stream._numbers.clear()  # what was a repeat may be new again
        stream.epoch = self._new_life()
        self.began[stream.epoch] = stream.end

    def _new_life(self) -> str:
        self._lives += 1
        return f"life{self._lives}"

    def _new_streams(self) -> list[_Stream]:
        streams = [_Stream(self.settings) for _ in range(self.settings.streams)]
        for stream in streams:
            stream.epoch = self._new_life()
        return streams


@dataclass(eq=False)
class _Flight:
    stream: int
    subject: Subject
    payload: bytes
    once: Once | None
    confirm: Appending
    position: Any = None


class LogServerLink:
    """One node's link to the server."""

    max_payload = 2**31

    def __init__(self, server: LogServer, node: str, intake: Intake, lost: Lost) -> None:
        self.over = asyncio.Event()
        self._server = server
        self._node = node
        self._intake = intake
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._uplink: deque[_Flight] = deque()
        self._unconfirmed: deque[_Flight] = deque()
        self._carrying = self._noticed = self._stalled = False
        self._waiting: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        now = self._loop.time()
        self.views = [
            View(
                Place(stream.epoch, server.began.get(stream.epoch, 0)),
                Place(stream.epoch, stream.end),
                stream.first,
                now,
            )
            for stream in server.streams
        ]

    def carry(self) -> None:
        self._carrying = True
        self.notice()

    def notice(self) -> None:
        """There may be something to read."""
        if self._carrying and not self._noticed and not self._stalled and not self.over.is_set():
            self._noticed = True
            self._later(self._read)

    def _read(self) -> None:
        self._noticed = False
        if self.over.is_set() or self._stalled:
            return
        backlog, places = self._intake.backlog, self._intake.places
        for number, stream in enumerate(self._server.streams):
            if not (room := backlog.room):
                if self._waiting is None:
                    self._waiting = self._loop.create_task(self._wait(), context=self._server.context)
                return
            for stored in stream.after(places.of(number).offset, min(room, _PAGE)):
                self._intake.take(number, Entry(Place(stream.epoch, stored.offset), stored.subject, stored.payload))
            if places.of(number).offset < stream.end:
                self.notice()

    async def _wait(self) -> None:
        await self._intake.backlog.has_room()
        self._waiting = None
        self.notice()

    def append(self, stream: int, subject: Subject, payload: bytes, once: Once | None) -> Appending:
        flight = _Flight(stream, subject, payload, once, self._loop.create_future())
        self._uplink.append(flight)
        self._later(self._arrive)
        return flight.confirm

    def _arrive(self) -> None:
        if self._uplink and not self._stalled and not self.over.is_set():
            flight = self._uplink.popleft()
            self._take(flight)
            self._unconfirmed.append(flight)
            self._later(self._confirm)

    def _take(self, flight: _Flight) -> None:
        stream = self._server.streams[flight.stream]
        if stream.is_repeat(flight.once):
            return
        stream.append(flight.subject, flight.payload, self._loop.time())
        flight.position = self._intake.position(flight.stream, Place(stream.epoch, stream.end))
        self._server.appended()

    def _confirm(self) -> None:
        if self._unconfirmed and not self._stalled and not self.over.is_set():
            flight = self._unconfirmed.popleft()
            if not flight.confirm.done():
                flight.confirm.set_result(flight.position)
            self._check_idle()

    def _later(self, call: Callable[[], None]) -> None:
        self._loop.call_later(self._server.latency(), call, context=self._server.context)

    async def replay(self, stream: int, until: Place, since: float) -> AsyncGenerator[Sequence[Entry]]:
        source = self._server.streams[stream]
        await asyncio.sleep(self._server.latency())
        if source.trimmed >= since:
            raise trimmed()
        offset = source.before(since)
        while offset < until.offset:
            if source.first > offset + 1 or source.end < until.offset:
                raise trimmed()
            page = source.after(offset, min(_PAGE, until.offset - offset))
            yield [Entry(Place(source.epoch, stored.offset), stored.subject, stored.payload) for stored in page]
            offset = page[-1].offset

    async def flush(self, within: float) -> None:
        self._check_idle()
        try:
            async with asyncio.timeout(within):
                await self._idle.wait()
        except TimeoutError:
            pass

    def _check_idle(self) -> None:
        if self._uplink or self._unconfirmed:
            self._idle.clear()
        else:
            self._idle.set()

    def stall(self, *, stalled: bool) -> None:
        self._stalled = stalled
        if not stalled:
            for _ in tuple(self._unconfirmed):
                self._confirm()
            for _ in tuple(self._uplink):
                self._arrive()
            self.notice()

    def lose(self, cause: Exception, *, reach: int) -> None:
        if not self.over.is_set():
            for flight in tuple(self._uplink)[:reach]:
                self._take(flight)
            self._stop()
            self._lost(self, cause)

    def end(self, error: type[BrokerError]) -> None:
        del error  # everything that was appended was sent
        self._stop()

    def _stop(self) -> None:
        if self.over.is_set():
            return
        self.over.set()
        if self._server.links.get(self._node) is self:
            del self._server.links[self._node]
        for flight in (*self._unconfirmed, *self._uplink):
            failed(flight.confirm, PublishUnconfirmed("The link broke before the confirm.", broker="simlog"))
        self._unconfirmed.clear()
        self._uplink.clear()
        self._check_idle()
        if self._waiting is not None:
            self._waiting.cancel()

    async def aclose(self) -> None:
        if self._waiting is not None:
            await asyncio.gather(self._waiting, return_exceptions=True)


class _Driver:
    name = "simlog"
    address = "simlog://server"

    def __init__(self, server: LogServer, node: str) -> None:
        self._server = server
        self._node = node

    async def dial(self, intake: Intake, lost: Lost) -> LogServerLink:
        server = self._server
        await asyncio.sleep(server.latency())
        if not server.up or self._node in server.refused:
            raise BrokerUnavailable("The server does not answer.", broker=self.name)
        link = server.links[self._node] = LogServerLink(server, self._node, intake, lost)
        await asyncio.sleep(server.latency())
        return link

    async def delete(self) -> None:
        self._server.streams = self._server._new_streams()
