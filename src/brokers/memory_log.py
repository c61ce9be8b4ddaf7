"""A log in one process: `memory+log://name` joins all adapters of that name on the same event loop.

For tests, and for one process that wants what a log gives. The log lives as long as its event loop.
"""

import asyncio
from bisect import bisect_left
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import ClassVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from roomcast.brokers.log_broker import Appending, Entry, Intake, LogBroker, Lost, Once, trimmed
from roomcast.brokers.log_places import Place, View
from roomcast.brokers.log_settings import PARAMETERS, LogSettings, log_settings
from roomcast.core.broker import BrokerConfig, Subject
from roomcast.core.errors import BrokerError, ConfigurationError

_PAGE = 512
_OVERHEAD = 100  # bytes an entry is reckoned with besides its payload
_ORIGINS = 16_384  # whose highest numbers are remembered


@dataclass(frozen=True, slots=True)
class _Stored:
    offset: int
    time: float
    subject: Subject
    payload: bytes


class _Stream:
    """The entries of one stream, and who reads it."""

    def __init__(self, settings: LogSettings) -> None:
        self.epoch = token_hex(6)
        self.first = 1  # offset of the oldest entry, or of the next one
        self.end = 0
        self.trimmed = float("-inf")  # when the newest entry that is gone was appended
        self.links: set[MemoryLogLink] = set()
        self._settings = settings
        self._entries: dict[int, _Stored] = {}
        self._bytes = 0
        self._numbers: dict[str, int] = {}

    def is_repeat(self, once: Once | None) -> bool:
        if once is None:
            return False
        origin, number = once
        highest = self._numbers.pop(origin, -1)
        self._numbers[origin] = max(highest, number)
        if len(self._numbers) > _ORIGINS:
            del self._numbers[next(iter(self._numbers))]
        return number <= highest

    def append(self, subject: Subject, payload: bytes, now: float) -> None:
        self.end += 1
        self._entries[self.end] = _Stored(self.end, now, subject, payload)
        self._bytes += len(payload) + _OVERHEAD
        oldest = now - self._settings.retention
        while self.first < self.end and (
            self._bytes > self._settings.stream_bytes or self._entries[self.first].time < oldest
        ):
            self.trim(1)

    def trim(self, count: int) -> None:
        """Forget so many of the oldest entries."""
        for _ in range(min(count, len(self._entries))):
            gone = self._entries.pop(self.first)
            self.first += 1
            self._bytes -= len(gone.payload) + _OVERHEAD
            self.trimmed = gone.time

    def after(self, offset: int, count: int) -> list[_Stored]:
        """Up to so many entries after an offset."""
        start = max(self.first, offset + 1)
        return [self._entries[one] for one in range(start, min(start + count, self.end + 1))]

    def before(self, moment: float) -> int:
        """The last offset that is older than a moment."""
        return (
            bisect_left(range(self.first, self.end + 1), moment, key=lambda one: self._entries[one].time)
            + self.first
            - 1
        )


class MemoryLog:
    """The log of one name on one event loop."""

    def __init__(self, settings: LogSettings) -> None:
        self.settings = settings
        self.streams = [_Stream(settings) for _ in range(settings.streams)]

    def delete(self) -> None:
        """End every link: the log is gone."""
        for link in {link for stream in self.streams for link in stream.links}:
            link.lose(ConnectionResetError("the log was deleted"))


_logs: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, MemoryLog]] = WeakKeyDictionary()


def memory_logs() -> dict[str, MemoryLog]:
    """The logs of the running event loop, by name."""
    return _logs.setdefault(asyncio.get_running_loop(), {})


class MemoryLogLink:
    """Reads at the append, without a task, as long as there is room."""

    max_payload = 2**31

    def __init__(self, log: MemoryLog, intake: Intake, lost: Lost) -> None:
        self.over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._log = log
        self._intake = intake
        self._lost = lost
        self._waiting: asyncio.Task[None] | None = None
        now = self._loop.time()
        self.views = [
            View(Place(stream.epoch, 0), Place(stream.epoch, stream.end), stream.first, now) for stream in log.streams
        ]

    def carry(self) -> None:
        """Join the readers of each stream, and read what is there."""
        for stream in self._log.streams:
            stream.links.add(self)
        self.read()

    def read(self) -> None:
        """Read on while there is room, and again once there is some."""
        backlog, places = self._intake.backlog, self._intake.places
        for number, stream in enumerate(self._log.streams):
            while (offset := places.of(number).offset) < stream.end:
                if not (room := backlog.room):
                    if self._waiting is None:
                        self._waiting = self._loop.create_task(self._wait(), name="roomcast-memory-log")
                    return
                for stored in stream.after(offset, room):
                    at = Place(stream.epoch, stored.offset)
                    self._intake.take(number, Entry(at, stored.subject, stored.payload))

    async def _wait(self) -> None:
        await self._intake.backlog.has_room()
        self._waiting = None
        self.read()

    def append(self, stream: int, subject: Subject, payload: bytes, once: Once | None) -> Appending:
        """Append, and let every node read it that has room."""
        target = self._log.streams[stream]
        future: Appending = self._loop.create_future()
        if target.is_repeat(once):
            future.set_result(None)
            return future
        target.append(subject, payload, self._loop.time())
        future.set_result(self._intake.position(stream, Place(target.epoch, target.end)))
        for link in tuple(target.links):
            link.read()
        return future

    async def replay(self, stream: int, until: Place, since: float) -> AsyncGenerator[Sequence[Entry]]:
        """What was appended since, up to a place."""
        source = self._log.streams[stream]
        if source.trimmed >= since:
            raise trimmed()
        offset = source.before(since)
        while offset < until.offset:
            if source.first > offset + 1:
                raise trimmed()
            page = source.after(offset, min(_PAGE, until.offset - offset))
            yield [Entry(Place(source.epoch, stored.offset), stored.subject, stored.payload) for stored in page]
            offset = page[-1].offset

    async def flush(self, within: float) -> None:
        """Nothing is ever on its way."""

    def lose(self, cause: Exception) -> None:
        """End as a link to a server ends that goes away."""
        if not self.over.is_set():
            self._stop()
            self._lost(self, cause)

    def end(self, error: type[BrokerError]) -> None:
        """Leave; nothing waits here that could fail."""
        del error
        self._stop()

    async def aclose(self) -> None:
        """Wait for the task that waited for room."""
        if self._waiting is not None:
            await asyncio.gather(self._waiting, return_exceptions=True)

    def _stop(self) -> None:
        self.over.set()
        for stream in self._log.streams:
            stream.links.discard(self)
        if self._waiting is not None:
            self._waiting.cancel()


class _MemoryDriver:
    name = "memory+log"

    def __init__(self, name: str, settings: LogSettings) -> None:
        self.address = f"memory+log://{name}"
        self._log = name
        self._settings = settings

    async def dial(self, intake: Intake, lost: Lost) -> MemoryLogLink:
        log = memory_logs().setdefault(self._log, MemoryLog(self._settings))
        self._settings.differs(f"The log {self.address}", log.settings.written, remedy="end the process")
        return MemoryLogLink(log, intake, lost)

    async def delete(self) -> None:
        if (log := memory_logs().pop(self._log, None)) is not None:
            log.delete()


class MemoryLogBroker(LogBroker):
    """A log in memory, one order for everybody, without a copy and without a wait."""

    parameters: ClassVar[frozenset[str]] = PARAMETERS

    def __init__(self, config: BrokerConfig) -> None:
        parts = urlsplit(config.url)
        if parts.path.strip("/") or parts.username or parts.port:
            raise ConfigurationError("A URL of a log in memory is memory+log:// or memory+log://name.")
        super().__init__(config, _MemoryDriver(parts.hostname or "", log_settings(config.parameters)))
