"""One life of a RabbitMQ link: the only module that knows the client library.

The client is aiormq, the AMQP layer of aio-pika. It logs in, frames, and sends AMQP's heartbeats. A channel's
frames come straight to `Link` instead of aio-pika's own objects, which take one task per delivery and one
round trip per bind, and fail what is in flight with errors that nobody sent.

What of aiormq is used is public: `transport_factory`, `Connection.write_queue`, `AbstractChannel.frames`.
"""

import asyncio
import ssl
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, Protocol, cast

from roomcast.core.broker import Barrier, BrokerConfig, Delivery, Position, Subject
from roomcast.core.errors import (
    BrokerClosed,
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    PublishUnconfirmed,
    RoomcastError,
)

try:
    import aiormq.exceptions as amqp
    from aiormq.abc import AbstractChannel, ChannelFrame
    from aiormq.connection import Connection, TransportFactory
    from pamqp import commands
    from pamqp.body import ContentBody
    from pamqp.exceptions import PAMQPException
    from pamqp.frame import marshal
    from pamqp.header import ContentHeader
except ImportError as exc:
    raise ConfigurationError('amqp:// needs the RabbitMQ client: pip install "roomcast[rabbitmq]"') from exc

Confirm = asyncio.Future[Position | None]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_BATCH = 64 * 1024  # bytes handed to the socket in one write
_HEADS = 1024  # marshalled method frames kept, one per subject
_FLUSH = 1.0  # seconds to wait for confirms at the end, and again for the server's goodbye
_DISPOSE = 3.0  # seconds that aiormq gets to end its tasks once the socket is gone
_BY_US = "closed by this node"
_ATTEMPTS = 5  # how often the exchange may vanish between declare and bind
_DEAF = 4  # heartbeats after which a missing echo counts although other frames still come
# A nack speaks for all queues that a message went to: one of them may have died with its server, or be full, and the
# others have it. So it is not a definite failure (rule 5).
_NACK = "RabbitMQ could not put the message into every queue: one is full, or was lost with its server."
_HEADER = struct.Struct(">BHIHHQHBB")  # AMQP 0-9-1, 4.2.6.1: content header with a delivery mode, frame end
_BODY = struct.Struct(">BHI")  # AMQP 0-9-1, 4.2.3: type, channel, size


class _Client(Protocol):
    """What is used of aiormq's connection, which is typed in part."""

    write_queue: asyncio.Queue[ChannelFrame]
    connection_tune: commands.Connection.Tune
    server_properties: Mapping[str, object]

    @property
    def closing(self) -> asyncio.Future[None]: ...
    def connect(self, client_properties: dict[str, str], /) -> Awaitable[object]: ...
    async def channel(self, *, publisher_confirms: bool) -> AbstractChannel: ...
    async def ready(self) -> None: ...
    async def close(self, exc: BaseException, /) -> None: ...


class _Dialled(TransportFactory):
    """Gives aiormq a socket that is open already, so that this module can abort it (rule 12)."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def create(self, url: object, **_: Any) -> Streams:  # noqa: ARG002 - aiormq's signature
        return self._streams


class Inlet(asyncio.Queue[Any]):
    """Takes the place of a channel's frame queue and hands each frame on at once, without a task."""

    def __init__(self, handle: Callable[[object], None]) -> None:
        super().__init__()
        self._handle = handle

    async def put(self, item: tuple[int, object]) -> None:
        """Hand a frame on."""
        self._handle(item[1])


class Link:
    """One life of the connection: it is opened, carries, and is lost once; a new life is a new object.

    Publishes, confirms and deliveries have one channel, binds another: a bind is a transaction of the server,
    and whatever follows on the same channel waits for it.
    """

    def __init__(self, streams: Streams, url: str, config: BrokerConfig) -> None:
        self._transport = streams[1].transport
        self._connection = cast("_Client", Connection(url, transport_factory=_Dialled(streams)))
        self._exchange = config.prefix
        self._title = f"{config.prefix}.{config.node}"  # what an operator sees in the list of connections
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._echoed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._heads: dict[str, bytes] = {}
        self._control: list[bytes] = []
        self._outgoing: deque[tuple[Subject, bytes, Confirm]] = deque()
        self._unconfirmed: dict[int, Confirm] = {}
        self._tag = 0
        self._lowest = 1
        self._replies: deque[asyncio.Future[None]] = deque()
        self.bound: set[Subject] = set()
        self._incoming = Subject("")
        self._chunks: list[bytes] = []
        self._missing = 0
        self._heard = self._loop.time()
        self._closing = False
        self._on_lost: Callable[[Link], None] | None = None
        self.over = asyncio.Event()
        self.why = ""

    async def open(self, name: str) -> None:
        """Log in, declare, and prove that the server routes and is not blocked by an alarm."""
        self._name = Subject(name)
        await self._connection.connect({"connection_name": self._title})
        traffic: AbstractChannel = await self._connection.channel(publisher_confirms=True)
        topology = await self._declare()
        await traffic.basic_publish(b"", exchange=self._exchange, routing_key=name)
        await traffic.basic_get(name, no_ack=True)
        self._tag = 1
        self._lowest = 2
        self._traffic, self._topology = traffic.number, topology.number
        limit = self._connection.connection_tune.frame_max
        self._chunk = limit - 8 if limit else 2**31
        traffic.frames = Inlet(self._on_traffic)
        topology.frames = Inlet(self._on_topology)
        self._connection.closing.add_done_callback(self._on_closing)
        self._run(self._write())

    async def _declare(self) -> AbstractChannel:
        for attempt in range(_ATTEMPTS):
            channel: AbstractChannel = await self._connection.channel(publisher_confirms=False)
            await channel.exchange_declare(exchange=self._exchange, exchange_type="direct", auto_delete=True)
            await channel.queue_declare(self._name, exclusive=True, auto_delete=True)
            try:
                await channel.queue_bind(self._name, self._exchange, routing_key=self._name)
            except amqp.ChannelNotFoundEntity:
                # The last other node left between the two calls and took the exchange with it.
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                return channel
        raise AssertionError  # pragma: no cover - the loop returns or raises

    def carry(self, deliver: Callable[[Delivery], None], on_lost: "Callable[[Link], None]", heartbeat: float) -> None:
        """Let deliveries in, and watch the link from now on."""
        self._deliver = deliver
        self._on_lost = on_lost
        frame = commands.Basic.Consume(queue=self._name, no_ack=True, exclusive=True, nowait=True)
        self._send(marshal(frame, self._traffic))
        self._run(self._watch(heartbeat))

    def publish(self, subject: Subject, payload: bytes) -> Confirm:
        """Queue one message; the order is this call's (rule 4)."""
        confirm: Confirm = self._loop.create_future()
        self._outgoing.append((subject, payload, confirm))
        self._wake.set()
        return confirm

    async def bind(self, subjects: Iterable[Subject]) -> None:
        """Bind in one round trip; returns when the server has bound them all (rule 2).

        A channel is worked through in order, so the reply to the last bind answers for those before it.
        """
        if new := [subject for subject in dict.fromkeys(subjects) if subject not in self.bound]:
            self.bound.update(new)
            for subject in new:
                frame = commands.Queue.Bind(
                    queue=self._name,
                    exchange=self._exchange,
                    routing_key=subject,
                    nowait=subject is not new[-1],
                )
                self._control.append(marshal(frame, self._topology))
            self._expect_reply()
        await self._settled()

    async def forget(self) -> None:
        """Forget what came while binds were under way: other messages between them were lost (rule 8)."""
        self._control.append(marshal(commands.Queue.Purge(queue=self._name), self._topology))
        self._expect_reply()
        await self._settled()

    async def unbind(self, subjects: Iterable[Subject]) -> None:
        """Unbind in one round trip (rule 3)."""
        for subject in dict.fromkeys(subjects):
            if subject in self.bound:
                self.bound.discard(subject)
                frame = commands.Queue.Unbind(queue=self._name, exchange=self._exchange, routing_key=subject)
                self._control.append(marshal(frame, self._topology))
                self._expect_reply()
        await self._settled()

    def _expect_reply(self) -> None:
        self._replies.append(self._loop.create_future())
        self._wake.set()

    @property
    def scope(self) -> Barrier:
        """How far a bind reaches when it is confirmed: to every node of a cluster, or surely to this one alone."""
        version = str(self._connection.server_properties.get("version", ""))
        return "cluster" if version.startswith("3.") else "server"

    def check(self) -> None:
        """Raise when this life is over."""
        if self.over.is_set():
            raise self._gone()

    async def _settled(self) -> None:
        self.check()
        if self._replies:
            last = self._replies[-1]
            await asyncio.wait({last})  # not `await last`: callers share it, and one may be cancelled
            last.result()

    async def finish(self) -> None:
        """Flush what was accepted, delete the queue, say goodbye; all within a bound (rule 11)."""
        self._closing = True
        try:
            async with asyncio.timeout(_FLUSH):
                if pending := [*self._unconfirmed.values(), *(entry[2] for entry in self._outgoing)]:
                    await asyncio.wait({*pending, self.publish(self._name, b"")})
                self._control.append(marshal(commands.Queue.Delete(queue=self._name), self._topology))
                self._expect_reply()
                await self._settled()
        except (TimeoutError, BrokerUnavailable):
            self._transport.abort()
        finally:
            self.end(BrokerClosed)

    def lose(self, why: str, cause: BaseException | None = None, *, by_us: bool = False) -> None:
        """End this life: everything that waits on it fails, each with what is certain about it (rule 5)."""
        if self.over.is_set():
            return
        self.why = why
        self.over.set()
        for task in self._tasks:
            task.cancel()
        for confirm in self._unconfirmed.values():
            text = f"The link to RabbitMQ was lost before the confirm: {why}."
            fail(confirm, PublishUnconfirmed(text, broker="amqp"), cause)
        waiting: list[asyncio.Future[Any]] = [confirm for _, _, confirm in self._outgoing]
        for future in (*waiting, *self._replies):
            fail(future, closed() if by_us else self._gone(), cause)
        self._unconfirmed.clear()
        self._outgoing.clear()
        if self._on_lost is not None:
            self._on_lost(self)

    def end(self, error: type[BrokerError]) -> None:
        """Stop on purpose; what was not sent fails with this error."""
        self.lose(_BY_US, by_us=error is BrokerClosed)

    async def aclose(self) -> None:
        """Leave no socket and no task of the client behind."""
        self.end(BrokerUnavailable)
        if self.why != _BY_US:
            self._transport.abort()
        reason = amqp.ConnectionClosed(320, _BY_US)
        try:
            for patience in (_FLUSH, _DISPOSE):
                try:
                    async with asyncio.timeout(patience):
                        await self._connection.close(reason)
                        break
                except TimeoutError:
                    self._transport.abort()
        finally:
            self._transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _gone(self) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"The link to RabbitMQ was lost: {self.why}. It is being made again; try later.", broker="amqp"
        )

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        task.add_done_callback(self._on_task_done)
        self._tasks.append(task)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.lose(f"a task of the link failed ({type(error).__name__})", error)

    # Out: one task packs what is queued into few large writes.

    def _send(self, frame: bytes) -> None:
        self._control.append(frame)
        self._wake.set()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._control or self._outgoing:
                drained: asyncio.Future[Any] = self._loop.create_future()
                await self._connection.write_queue.put(ChannelFrame(self._batch(), False, drained))
                await drained

    def _batch(self) -> bytes:
        parts, self._control = self._control, []
        size = 0
        while self._outgoing and size < _BATCH:
            subject, payload, confirm = self._outgoing.popleft()
            self._tag += 1
            self._unconfirmed[self._tag] = confirm
            parts.append(self._heads.get(subject) or self._head(subject))
            parts.append(_HEADER.pack(2, self._traffic, 15, 60, 0, len(payload), 0x1000, 1, 0xCE))
            for at in range(0, len(payload), self._chunk):
                chunk = payload[at : at + self._chunk]
                parts += (_BODY.pack(3, self._traffic, len(chunk)), chunk, b"\xce")
            size += len(payload)
        return b"".join(parts)

    def _head(self, subject: Subject) -> bytes:
        if len(self._heads) >= _HEADS:
            self._heads.clear()
        frame = commands.Basic.Publish(exchange=self._exchange, routing_key=subject)
        head = self._heads[subject] = marshal(frame, self._traffic)
        return head

    # In: aiormq's reader calls these for every frame; they must not raise.

    def _on_traffic(self, frame: object) -> None:
        self._heard = self._loop.time()
        if isinstance(frame, ContentBody):
            chunk = frame.value
            self._chunks.append(chunk)
            self._missing -= len(chunk)
            if self._missing <= 0:
                self._arrived()
        elif isinstance(frame, commands.Basic.Deliver):
            self._incoming = Subject(frame.routing_key or "")
        elif isinstance(frame, ContentHeader):
            self._missing = frame.body_size or 0
            if not self._missing:
                self._arrived()
        else:
            self._on_verdict(frame)

    def _on_verdict(self, frame: object) -> None:
        if isinstance(frame, commands.Basic.Ack):
            for confirm in self._confirmed(frame.delivery_tag, frame.multiple):
                if not confirm.done():
                    confirm.set_result(None)
        elif isinstance(frame, commands.Basic.Nack):
            for confirm in self._confirmed(frame.delivery_tag, frame.multiple):
                fail(confirm, PublishUnconfirmed(_NACK, broker="amqp"))
        elif isinstance(frame, commands.Basic.Cancel):
            if not self._closing:
                self.lose("the server cancelled the consumer (was the queue deleted?)")
        elif isinstance(frame, commands.Channel.Close):
            self._on_channel_close(frame)

    def _on_topology(self, frame: object) -> None:
        self._heard = self._loop.time()
        if isinstance(frame, commands.Channel.Close):
            self._on_channel_close(frame)
        elif self._replies and not (reply := self._replies.popleft()).done():
            reply.set_result(None)

    def _arrived(self) -> None:
        payload = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        if self._incoming == self._name:
            self._echoed.set()
        elif not self.over.is_set():
            self._deliver(Delivery(self._incoming, payload))

    def _confirmed(self, tag: int, multiple: bool) -> list[Confirm]:
        first = self._lowest if multiple else tag
        if multiple:
            self._lowest = tag + 1
        found = (self._unconfirmed.pop(number, None) for number in range(first, tag + 1))
        return [confirm for confirm in found if confirm is not None]

    def _on_channel_close(self, frame: commands.Channel.Close) -> None:
        # The reply code alone: the text may name the user.
        self.lose(f"the server closed a channel (AMQP reply code {frame.reply_code})")

    def _on_closing(self, closing: "asyncio.Future[Any]") -> None:
        cause = None if closing.cancelled() else closing.exception()
        self.lose("the connection was closed", cause)

    # The watchdog.

    async def _watch(self, heartbeat: float) -> None:
        """Declare the link lost when it falls silent (rule 12).

        Half a heartbeat lies between an echo and the next pulse, and a pulse has one heartbeat for its echo,
        counted from the last frame that came, whatever it was: under load the echo stands in line. One fifth
        more lets a loop that was busy read first what has arrived. In all: 1.7 heartbeats.
        """
        while True:
            sent = self._loop.time()
            self._echoed.clear()
            self._outgoing.appendleft((self._name, b"", self._loop.create_future()))
            self._wake.set()
            deaf = sent + _DEAF * heartbeat
            while not self._echoed.is_set():
                quiet = max(sent, self._heard)
                try:
                    async with asyncio.timeout_at(min(quiet + heartbeat, deaf)):
                        await self._echoed.wait()
                except TimeoutError:
                    await asyncio.sleep(heartbeat / 5)
                    heard = self._heard > quiet and self._loop.time() < deaf
                    if not heard and not self._echoed.is_set():
                        self.lose(await self._silence())
                        return
            await asyncio.sleep(heartbeat / 2)

    async def _silence(self) -> str:
        try:
            async with asyncio.timeout(0):
                await self._connection.ready()
        except TimeoutError:
            return "the server blocks publishers (memory or disk alarm)"
        return "nothing came back within the heartbeat"


def translated(exc: BaseException, where: str, config: BrokerConfig, timeout: float) -> RoomcastError:
    """The client's error in our words (rule 13); none of its own text, since some of it names the user."""
    for kind, text in _HOPELESS.items():
        if isinstance(exc, kind):
            return ConfigurationError(f"{where} {text.format(prefix=config.prefix)}.")
    if isinstance(exc, TimeoutError):
        text = f"was not ready within {timeout:.3g} s: stopped, or blocked by a memory or disk alarm"
    elif isinstance(exc, (amqp.AMQPError, PAMQPException)):
        text = "ended the connection at its opening: does the virtual host exist, and may this user use it"
    elif isinstance(exc, ssl.SSLError):
        text = f"failed the TLS handshake: {exc.reason}"
    elif isinstance(exc, OSError):
        text = f"cannot be reached: {exc.strerror or type(exc).__name__}"
    else:
        text = f"did not open the link ({type(exc).__name__})"
    return BrokerUnavailable(f"{where} {text}.", broker="amqp")


_HOPELESS: dict[type[BaseException], str] = {
    amqp.ProbableAuthenticationError: "refused the login: check user, password and virtual host",
    amqp.AuthenticationError: "does not offer this login mechanism: see the URL parameter auth",
    amqp.ChannelAccessRefused: "does not let this user configure, write and read names under {prefix}",
    amqp.ChannelPreconditionFailed: "has an exchange {prefix} of another kind: choose another prefix",
}


def closed() -> BrokerClosed:
    """The error of whatever is used after aclose (rule 11)."""
    return BrokerClosed("The RabbitMQ broker is closed.", broker="amqp")


def fail(future: "asyncio.Future[Any]", error: Exception, cause: BaseException | None = None) -> None:
    """Fail a future that nobody may be waiting for any more."""
    if not future.done():
        error.__cause__ = cause
        future.set_exception(error)
        future.exception()  # seen: a caller that dropped the future gets no noise at exit
