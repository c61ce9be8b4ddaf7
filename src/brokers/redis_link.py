"""The link of a node to Redis: two connections that live and die together.

One connection hears and one tells; a node that hears but cannot tell, or the reverse, is a node that is half
there, so when either dies both are lost. The client library is used to connect alone (TLS, authentication): its own
pool, retries and resubscription lose or repeat messages without a word. Once connected, what arrives is parsed and
handed on as it is read from the socket, and what is sent is written at the call when nothing stands in the way: a
task in between would cost every message a turn of the loop.

Replies come back in the order of the commands, so a deque of futures is all the bookkeeping there is, and
many batches may be on their way before the first is confirmed.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable
from contextlib import suppress
from typing import Any, ClassVar, Protocol, cast

from roomcast.brokers.chunks import chunks
from roomcast.brokers.turn import Turn
from roomcast.core.errors import (
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    PublishRejected,
    PublishUnconfirmed,
)

try:
    import hiredis
    from redis.exceptions import ResponseError
except ImportError as missing:
    raise ConfigurationError('redis:// needs the Redis client: pip install "roomcast[redis]"') from missing

_WINDOW = 16_384
"""How many replies may be outstanding on a connection before some of them are waited for."""
_BATCH = 256 * 1024
"""Bytes of one write, and bytes that may wait for the socket before nothing is added to them."""
CHANNELS = 512
"""Channels in one SUBSCRIBE. The confirmations of a boundless one could fill the server's output buffer."""
_NO_MORE = object()
_DEAF = 8
"""Beats after which a missing answer counts although other things still come."""


class _Parser(Protocol):
    """What is used of the client's parser: its names for the errors that a server answers."""

    def parse_error(self, response: str, /) -> Exception: ...


class Connection(Protocol):
    """What is used of `redis.asyncio.Connection`, which is not fully typed."""

    _writer: asyncio.StreamWriter
    _parser: "_Parser"

    async def connect(self) -> None:
        """Connect, and prove who this is."""
        ...

    async def disconnect(self, nowait: bool = False) -> None:
        """Close the socket."""
        ...

    async def send_packed_command(self, command: Iterable[bytes], check_health: bool = True) -> None:
        """Write a command."""
        ...

    async def read_response(self) -> object:
        """The next reply."""
        ...


class Answer(asyncio.Future[object]):
    """The future of a command whose reply is wanted itself, not only that it came."""


class _Inlet(asyncio.Protocol):
    """Takes the place of the client's stream: what is read goes on at once; the rest is the stream's as before."""

    def __init__(
        self, stream: asyncio.Protocol, take: Callable[[bytes], None], ended: Callable[[Exception], None]
    ) -> None:
        self._stream = stream
        self._take = take
        self._ended = ended

    def data_received(self, data: bytes) -> None:
        self._take(data)

    def eof_received(self) -> bool | None:
        self._ended(ConnectionError("Connection closed by server."))
        return self._stream.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(exc or ConnectionError("Connection closed."))
        self._stream.connection_lost(exc)

    def pause_writing(self) -> None:
        self._stream.pause_writing()

    def resume_writing(self) -> None:
        self._stream.resume_writing()


class Line:
    """One connection: commands leave in the order of the calls, and replies settle them in that order.

    Args:
        connection: connected.
        deliver: is called with the channel and the payload of everything heard.
        refused: makes an error of ours from one that the server answers.
        fail: is called with what ended the connection.
    """

    message: ClassVar[bytes] = b"message"
    """What a reply that carries something published begins with."""

    def __init__(
        self,
        connection: Connection,
        deliver: Callable[[bytes, bytes], None],
        refused: Callable[[ResponseError], Exception],
        fail: Callable[[Exception], None],
    ) -> None:
        self._connection = connection
        # Two private attributes: who has the transport reads and writes without a task, and can drop what a silent
        # server will never read; the parser knows the errors.
        self._writer = connection._writer  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        self._transport = self._writer.transport
        self._deliver = deliver
        self._refused = refused
        self._fail = fail
        self._loop = asyncio.get_running_loop()
        self._pending: deque[tuple[bytes, asyncio.Future[Any], int]] = deque()
        # A command with n replies stands here n times: None, and last the future it resolves.
        self._inflight: deque[asyncio.Future[Any] | None] = deque()
        self._turn = Turn()
        self._full = False
        self._clogged = asyncio.Event()
        self._gone: Callable[[], BrokerError] | None = None
        self.heard = self.answered = True
        self.silences = self.unanswered = 0
        # Nothing has arrived that the client has not read: it has had the answer to all it has asked.
        parse_error = connection._parser.parse_error  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        self._replies = hiredis.Reader(replyError=parse_error, notEnoughData=_NO_MORE)
        stream = cast("asyncio.Protocol", self._transport.get_protocol())
        self._transport.set_protocol(_Inlet(stream, self._read, self._over))
        self._drainer = self._loop.create_task(self._drain(), name="roomcast-redis-write")

    def send(self, command: bytes, replies: int = 1, future: asyncio.Future[Any] | None = None) -> asyncio.Future[Any]:
        """Queue a packed command; the future, one that exists already or a new one, resolves with its last reply."""
        if future is None:
            future = asyncio.Future(loop=self._loop)
        if self._gone is not None:
            future.set_exception(self._gone())
        else:
            self._pending.append((command, future, replies))
            if not self._turn.under_way:
                self._loop.call_soon(self._end_turn)
                if self._turn.begin():
                    self._write()
        return future

    def ask(self, *words: bytes) -> Answer:
        """Queue a command; the future resolves with its reply, or with its error."""
        future = Answer(loop=self._loop)
        self.send(pack(*words), future=future)
        return future

    def ping(self) -> None:
        """Ask for a sign of life; that it came is seen in `heard`."""
        self.send(b"*1\r\n$4\r\nPING\r\n").cancel()

    def waiting(self) -> list[asyncio.Future[Any]]:
        """The futures of all commands without a reply, written or not."""
        futures = [future for future in self._inflight if future is not None]
        futures.extend(future for _, future, _ in self._pending)
        return [future for future in futures if not future.done()]

    def abandon(self, sent: Callable[[], BrokerError], unsent: Callable[[], BrokerError]) -> None:
        """Stop both directions at once and fail every future, by whether its command was ever written."""
        self._gone = unsent
        self._drainer.cancel()
        self._transport.abort()
        for future in self._inflight:
            if future is not None and not future.done():
                future.set_exception(sent())
        for _, future, _ in self._pending:
            if not future.done():
                future.set_exception(unsent())
        self._inflight.clear()
        self._pending.clear()

    async def aclose(self) -> None:
        """Wait until the task and the socket of an abandoned line are gone."""
        await asyncio.gather(self._drainer, return_exceptions=True)
        await self._connection.disconnect(nowait=True)
        with suppress(OSError):  # the error that ended the connection, told before
            await self._writer.wait_closed()

    def _end_turn(self) -> None:
        self._turn.end(len(self._pending))
        self._write()

    def _write(self) -> None:
        """Write what waits, as far as the socket and the window take it; what is left goes on when they do."""
        while self._pending and self._gone is None and not self._transport.is_closing():  # what it takes then is lost
            self._full = len(self._inflight) >= _WINDOW
            if self._full:
                return
            if self._transport.get_write_buffer_size() >= _BATCH:
                self._clogged.set()
                return
            self._transport.write(b"".join(self._next_batch()))

    async def _drain(self) -> None:
        """Write on when the socket has taken what it was given."""
        try:
            while True:
                await self._clogged.wait()
                await self._writer.drain()
                self._clogged.clear()
                self._write()
        except Exception as exc:  # noqa: BLE001 - whatever ends this loop ends the link, and says so
            self._over(exc)

    def _next_batch(self) -> list[bytes]:
        batch: list[bytes] = []
        size = 0
        pending, inflight = self._pending, self._inflight
        while pending and size < _BATCH and len(inflight) < _WINDOW:
            command, future, replies = pending.popleft()
            batch.append(command)
            size += len(command)
            if replies > 1:
                inflight.extend([None] * (replies - 1))
            inflight.append(future)
        return batch

    def _read(self, data: bytes) -> None:
        deliver, inflight, message = self._deliver, self._inflight, self.message
        self.heard = True
        try:
            self._replies.feed(data)
            next_reply: Callable[[], object] = self._replies.gets
            while (reply := next_reply()) is not _NO_MORE and self._gone is None:
                if isinstance(reply, list) and reply:
                    parts = cast("list[bytes]", reply)
                    if parts[0] == message:
                        deliver(parts[1], parts[2])
                        continue
                    if self._pushed(parts):
                        continue
                self.answered = True
                if isinstance(reply, Exception):
                    if not isinstance(reply, ResponseError):  # of the connection, such as "still loading"
                        raise reply  # noqa: TRY301 - it ends as an error of the socket does
                    self._refuse(reply)
                    continue
                future = inflight.popleft()
                if future is not None and not future.done():
                    future.set_result(reply if isinstance(future, Answer) else None)
        except Exception as exc:  # noqa: BLE001 - whatever cannot be read ends the link, and says so
            self._over(exc)
        if self._full:
            self._write()

    def _over(self, cause: Exception) -> None:
        if self._gone is None:
            self._fail(cause)

    def _pushed(self, parts: list[bytes]) -> bool:  # noqa: ARG002 - for those who expect any
        """Whether this is no reply to a command, but something that the server says by itself."""
        return False

    def _refuse(self, exc: ResponseError) -> None:
        """Settle the oldest command with the error that is its only reply, however many it could have had."""
        while (future := self._inflight.popleft()) is None:
            pass
        self._spurn(future, exc)

    def _spurn(self, future: asyncio.Future[Any], exc: ResponseError) -> None:
        if not future.done():
            future.set_exception(self._refused(exc))


class Link:
    """The two lines of one life of the broker, and the task that watches over both.

    Args:
        hears: the connection that subscribes.
        tells: the connection that publishes.
        heartbeat: seconds, see rule 12.
        deliver: is called with the channel and the payload of everything heard.
        lost: is called once, at the moment the link is lost.

    Attributes:
        over: set once the link is lost or ended.
    """

    def __init__(
        self,
        hears: Connection,
        tells: Connection,
        *,
        heartbeat: float,
        deliver: Callable[[bytes, bytes], None],
        lost: Callable[["Link", Exception], None],
    ) -> None:
        self._lost = lost
        self.over = asyncio.Event()
        self._hears = self._hearing(hears, deliver)
        self._tells = self._telling(tells, deliver)
        self._company = [asyncio.create_task(self._watch(heartbeat / 2), name="roomcast-redis-watch")]

    def _hearing(self, connection: Connection, deliver: Callable[[bytes, bytes], None]) -> Line:
        return Line(connection, deliver, channels_refused, self.lose)

    def _telling(self, connection: Connection, deliver: Callable[[bytes, bytes], None]) -> Line:
        return Line(connection, deliver, publish_refused, self.lose)

    def accompany(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """Run something as long as the link lives."""
        self._company.append(asyncio.create_task(coroutine, name=name))

    def publish(self, channel: bytes, payload: bytes) -> asyncio.Future[None]:
        """Queue one PUBLISH; packing it by hand takes a tenth of the time of the library's packer."""
        return self._tells.send(
            b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(channel), channel, len(payload), payload)
        )

    async def subscribe(self, channels: Collection[bytes]) -> None:
        """Hear these channels; returns when every one is confirmed."""
        await self._tell_channels(b"SUBSCRIBE", channels)

    async def unsubscribe(self, channels: Collection[bytes]) -> None:
        """Hear these channels no more; returns when every one is confirmed."""
        await self._tell_channels(b"UNSUBSCRIBE", channels)

    async def _tell_channels(self, verb: bytes, channels: Collection[bytes]) -> None:
        """Send commands for all channels, one behind the other, then wait for all confirmations."""
        await asyncio.gather(*(self._hears.send(pack(verb, *some), len(some)) for some in chunks(channels, CHANNELS)))

    async def flush(self, within: float) -> None:
        """Wait for the confirmation of everything published, for so many seconds at most."""
        if futures := self._tells.waiting():
            await asyncio.wait(futures, timeout=within)

    def ask(self, *words: bytes) -> Answer:
        """Ask the server something, on the connection that publishes; fails as a publish does."""
        return self._tells.ask(*words)

    def end(self, sent: Callable[[], BrokerError], unsent: Callable[[], BrokerError]) -> None:
        """Stop everything: what is published and unconfirmed fails as `sent`, the rest as `unsent`."""
        self.over.set()
        for task in self._company:
            task.cancel()
        self._tells.abandon(sent, unsent)
        self._hears.abandon(unsent, unsent)

    async def aclose(self) -> None:
        """Wait until the tasks and sockets of an ended link are gone."""
        await asyncio.gather(*self._company, return_exceptions=True)
        await self._hears.aclose()
        await self._tells.aclose()

    def lose(self, cause: Exception) -> None:
        """Declare the link lost, once: nothing stays in flight, and nothing is sent or heard any more."""
        if self.over.is_set():
            return
        self.end(
            lambda: caused(PublishUnconfirmed, "The link broke before Redis confirmed the message.", cause),
            lambda: caused(BrokerUnavailable, "The link to Redis broke; it is being restored.", cause),
        )
        self._lost(self, cause)

    async def _watch(self, beat: float) -> None:
        """Ask both lines for a sign of life each beat, half a heartbeat (rule 12).

        A server that falls silent just after an answer is asked one beat later, and has been silent for
        three beats when two have passed without any answer. Beats are counted, not seconds: when this process
        was held up itself, what came meanwhile is read before the next beat. What it hears without an answer among it
        counts for `_DEAF` beats alone: an answer may stand in a long line, or what we ask may never arrive.
        """
        while True:
            for line in (self._hears, self._tells):
                line.unanswered = 0 if line.answered else line.unanswered + 1
                line.answered = False
                if line.unanswered > _DEAF:
                    self.lose(TimeoutError(f"Redis has sent, and not answered, for {_DEAF * beat:g} s."))
                    return
                if line.heard:
                    line.heard, line.silences = False, 0
                    line.ping()
                elif line.silences == 1:
                    self.lose(TimeoutError(f"Redis has been silent for {2 * beat:g} s."))
                    return
                else:
                    line.silences += 1
            await asyncio.sleep(beat)


def caused(kind: type[BrokerError], message: str, cause: Exception) -> BrokerError:
    """An error of ours, raised from one that is not."""
    error = kind(message, broker="redis")
    error.__cause__ = cause
    return error


def publish_refused(exc: ResponseError) -> PublishRejected:
    """What a PUBLISH ends in that the server answers with an error."""
    error = PublishRejected(f"Redis refused the message: {exc}", broker="redis")
    error.__cause__ = exc
    return error


def channels_refused(exc: ResponseError) -> ConfigurationError:
    """What a SUBSCRIBE ends in that the server answers with an error."""
    error = ConfigurationError(f"Redis refused the subscription, let its user hear these channels: {exc}")
    error.__cause__ = exc
    return error


def pack(*parts: bytes) -> bytes:
    """One command as the wire wants it."""
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
