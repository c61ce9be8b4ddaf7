"""The link of a node to a log in Redis: one connection that reads, with a wait in the server, and one that appends.

They live and die together, as those of `redis_link.Link`. What stands in the streams is said in
`redis_streams_scripts.py`.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import cast

from roomcast.brokers.log_broker import Appending, Entry, Intake, Lost, Once, trimmed
from roomcast.brokers.log_places import Place, View
from roomcast.brokers.redis_link import Answer, Connection, Line, pack
from roomcast.brokers.redis_streams_scripts import APPEND_SHA
from roomcast.core.broker import Position, Subject
from roomcast.core.errors import (
    BrokerClosed,
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    PublishRejected,
    PublishUnconfirmed,
)

try:
    from redis.exceptions import NoScriptError, ResponseError
except ImportError as missing:
    raise ConfigurationError('redis+streams:// needs the Redis client: pip install "roomcast[redis]"') from missing

_NAME = "redis+streams"
_PAGE = 1024
"""Entries read at once, at most."""
_LEAVES = 3600.0
"""Seconds for which a log outlives its retention when no node renews it."""

RawEntry = tuple[bytes, list[bytes]]


class Keys:
    """The keys of one log."""

    def __init__(self, prefix: str, streams: int) -> None:
        self.meta = f"{prefix}:log".encode()
        self.streams = [b"%b:%d" % (self.meta, stream) for stream in range(streams)]

    def origin(self, origin: str) -> bytes:
        """Where the highest number of one who publishes stands."""
        return b"%b:from:%b" % (self.meta, origin.encode())


def expiry(retention: float) -> bytes:
    """After how many milliseconds an abandoned log goes."""
    return b"%d" % ((retention + _LEAVES) * 1000)


class _Appended(Answer):
    """Resolves with the position instead of the server's number."""

    def __init__(self, loop: asyncio.AbstractEventLoop, epoch: str) -> None:
        super().__init__(loop=loop)
        self._epoch = epoch

    def set_result(self, result: object, /) -> None:
        super().set_result(Position(self._epoch, str(result)) if result else None)


class StreamsLink:
    """One life of the two connections.

    Args:
        hears: the connection that reads.
        tells: the connection that appends.
        intake: where entries go.
        keys: of the log.
        views: of its streams, as they were found.
        lost: is called once, at the moment the link is lost.
    """

    max_payload = 512 * 1024 * 1024

    def __init__(
        self, hears: Connection, tells: Connection, intake: Intake, keys: Keys, views: Sequence[View], lost: Lost
    ) -> None:
        self.over = asyncio.Event()
        self.views = views
        self._loop = asyncio.get_running_loop()
        self._intake = intake
        self._keys = keys
        self._lost = lost
        self._epoch = views[0].end.epoch
        self._positions = [intake.position(stream, view.end).epoch for stream, view in enumerate(views)]
        epoch = self._epoch.encode()
        self._heads = [  # EVALSHA with a third key for numbers, and without; up to the subject
            [
                b"$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n%d\r\n" % (APPEND_SHA, count)
                + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in (key, keys.meta))
                for count in (2, 3)
            ]
            for key in keys.streams
        ]
        counters = [b"n:%b:%d" % (epoch, stream) for stream in range(len(views))]
        self._tails = [
            b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in (counter, epoch)) for counter in counters
        ]
        self._hears = Line(hears, _ignore, _reading_refused, self.lose)
        self._tells = Line(tells, _ignore, self._append_refused, self.lose)
        beat = intake.config.heartbeat / 2
        self._block = b"%d" % max(1, int(beat * 500))
        self._paused = False
        self._tasks = [self._loop.create_task(self._watch(beat), name="roomcast-redis-watch")]

    def carry(self) -> None:
        """Read on from where this node is."""
        self._tasks.append(self._loop.create_task(self._read(), name="roomcast-redis-streams"))

    def append(self, stream: int, subject: Subject, payload: bytes, once: Once | None) -> Appending:
        """Queue one call of the script that appends."""
        head, tail = self._heads[stream], self._tails[stream]
        name = subject.encode()
        if once is None:
            command = b"*9\r\n%b%b$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
                head[0], tail, len(name), name, len(payload), payload,
            )  # fmt: skip
        else:
            key, number = self._keys.origin(once[0]), b"%d" % once[1]
            command = b"*11\r\n%b$%d\r\n%b\r\n%b$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
                head[1], len(key), key, tail, len(name), name, len(payload), payload, len(number), number,
            )  # fmt: skip
        future = _Appended(self._loop, self._positions[stream])
        self._tells.send(command, future=future)
        return cast("Appending", future)

    async def flush(self, within: float) -> None:
        """Wait for what was appended, for so many seconds at most."""
        if futures := self._tells.waiting():
            await asyncio.wait(futures, timeout=within)

    async def replay(self, stream: int, until: Place, since: float) -> AsyncGenerator[Sequence[Entry]]:
        """Pages of what is there from a moment on; the offsets prove that nothing is missing in between."""
        key = self._keys.streams[stream]
        oldest = int(since * 1000)
        if until.offset == 0:
            return
        await self._covers(stream, oldest)
        start, last = b"%d" % max(0, oldest), None
        while True:
            reply = await self._query(b"XRANGE", key, start, until.mark.encode(), b"COUNT", b"%d" % _PAGE)
            raw = cast("list[RawEntry]", reply)
            page = [entry for entry in map(_decode, raw) if entry is not None]
            for entry in page:
                if entry.at.epoch != until.epoch or (last is not None and entry.at.offset != last + 1):
                    raise trimmed()
                last = entry.at.offset
            if page:
                yield page
            if len(raw) < _PAGE:
                break
            start = b"(%b" % raw[-1][0]
        if last is not None and last != until.offset:
            raise trimmed()

    async def _covers(self, stream: int, oldest: int) -> None:
        """Refuse when entries that young may be gone."""
        key = self._keys.streams[stream]
        reply = await self._query(b"XRANGE", key, b"-", b"+", b"COUNT", b"1")
        cut = cast("bytes | None", await self._query(b"HGET", self._keys.meta, b"cut:%d" % stream))
        for raw in cast("list[RawEntry]", reply):
            first = _decode(raw)
            if _time(raw[0]) < oldest or (first is not None and first.at.offset == 1):
                return
        kept = int(self.views[stream].time * 1000) - oldest <= self._intake.settings.retention * 1000
        if not kept or (cut is not None and _time(cut) >= oldest):
            raise trimmed()

    async def _query(self, *words: bytes) -> object:
        try:
            return await self._tells.ask(*words)
        except (PublishUnconfirmed, PublishRejected) as exc:
            raise BrokerUnavailable(f"The log in Redis cannot be read now: {exc}", broker=_NAME) from exc

    def lose(self, cause: Exception) -> None:
        """Declare the link lost, once."""
        if self.over.is_set():
            return
        self._stop(BrokerUnavailable, "The link to the log in Redis broke; it is being restored.", cause)
        self._lost(self, cause)

    def end(self, error: type[BrokerError]) -> None:
        """Stop on purpose."""
        text = "The broker is closed." if error is BrokerClosed else "There is no link to Redis now."
        self._stop(error, text, None)

    def _stop(self, kind: type[BrokerError], text: str, cause: Exception | None) -> None:
        def caused(error: BrokerError) -> BrokerError:
            error.__cause__ = cause
            return error

        self.over.set()
        for task in self._tasks:
            task.cancel()
        self._tells.abandon(
            lambda: caused(PublishUnconfirmed("The link broke before Redis confirmed the message.", broker=_NAME)),
            lambda: caused(kind(text, broker=_NAME)),
        )
        self._hears.abandon(lambda: kind(text, broker=_NAME), lambda: kind(text, broker=_NAME))

    async def aclose(self) -> None:
        """Wait until the tasks and sockets of an ended link are gone."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._hears.aclose()
        await self._tells.aclose()

    async def _read(self) -> None:
        """Read all streams on, as much as is wanted at a time; wait in the server for what is not there yet."""
        backlog, places, keys = self._intake.backlog, self._intake.places, self._keys.streams
        streams = {key: stream for stream, key in enumerate(keys)}
        try:
            while True:
                if not (room := min(_PAGE, backlog.room)):
                    self._paused = True
                    await backlog.has_room()
                    self._paused = False
                    continue
                marks = [places.of(stream).mark.encode() for stream in range(len(keys))]
                # Each stream may give so many: what the last of them are not wanted for is little.
                words = (b"XREAD", b"COUNT", b"%d" % max(1, room // len(keys)), b"BLOCK", self._block, b"STREAMS")
                reply = await self._hears.ask(*words, *keys, *marks)
                for key, raw in cast("list[tuple[bytes, list[RawEntry]]]", reply or []):
                    self._take(streams[key], raw)
        except Exception as exc:  # noqa: BLE001 - whatever ends this loop ends the link, and says so
            self.lose(exc)

    def _take(self, stream: int, page: Sequence[RawEntry]) -> None:
        for raw in page:
            if (entry := _decode(raw)) is None:
                self._intake.skip(stream, raw[0].decode())
            else:
                self._intake.take(stream, entry)

    def _append_refused(self, exc: ResponseError) -> BrokerError:
        error: BrokerError
        if isinstance(exc, NoScriptError) or str(exc).startswith("EPOCH"):
            self._loop.call_soon(self.lose, exc)
            error = BrokerUnavailable(f"The log is being taken up again: {exc}", broker=_NAME)
        else:
            error = PublishRejected(f"Redis refused the message: {exc}", broker=_NAME)
        error.__cause__ = exc
        return error

    async def _watch(self, beat: float) -> None:
        """Each beat, half a heartbeat: renew the expiry, and see that the epoch stands and both lines answer (rule 12).

        The line that reads answers twice a beat, because its waits are that short. Beats are counted, not seconds:
        when this process was held up itself, what came meanwhile is read before the next beat.
        """
        leaves = expiry(self._intake.settings.retention)
        while True:
            for line in (self._hears, self._tells):
                if line.heard or (line is self._hears and self._paused):
                    line.heard, line.silences = False, 0
                elif line.silences == 1:
                    self.lose(TimeoutError(f"Redis has been silent for {2 * beat:g} s."))
                    return
                else:
                    line.silences += 1
            if not self._tells.silences:
                self._tells.ask(b"HGET", self._keys.meta, b"epoch").add_done_callback(self._check_epoch)
                for key in (self._keys.meta, *self._keys.streams):
                    self._tells.send(pack(b"PEXPIRE", key, leaves)).cancel()
            await asyncio.sleep(beat)

    def _check_epoch(self, answer: "asyncio.Future[object]") -> None:
        if answer.cancelled() or answer.exception() is not None:
            return  # the link is lost, and that is told
        if answer.result() != self._epoch.encode():
            self.lose(LookupError("the log was deleted"))


def _decode(raw: RawEntry) -> Entry | None:
    """An entry of ours, or None."""
    mark, fields = raw
    try:
        name, subject, data, payload, count, tag = fields
        if (name, data, count) != (b"s", b"p", b"n"):
            return None
        epoch, _, offset = tag.decode().rpartition("-")
        return Entry(Place(epoch, int(offset), mark.decode()), Subject(subject.decode()), payload)
    except (ValueError, TypeError):  # another number of fields, or none; not text; not a number
        return None


def _time(mark: bytes) -> int:
    """The milliseconds in an id."""
    return int(mark.partition(b"-")[0])


def _ignore(_channel: bytes, _payload: bytes) -> None:
    """Nobody subscribes here."""


def _reading_refused(exc: ResponseError) -> BrokerError:
    error = BrokerUnavailable(f"Redis refused to read the log: {exc}", broker=_NAME)
    error.__cause__ = exc
    return error
