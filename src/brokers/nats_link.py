"""One life of a connection to a NATS server, and everything that ends with it.

A link never reconnects: nats-py's own reconnection buffers publishes and sends them late, and resubscribes
without proof. A lost link fails what it had in flight, says so once, and is thrown away whole. What it uses of
the library is in `nats_client`.

Everything rests on the **echo**: a marker published to a subject that only this link hears. The server
handles what one connection sends in order, so a marker that comes back proves that it has handled all that
was sent before: publishes (rule 5) and subscriptions (rule 2). A marker that does not come back is a dead
link (rule 12), whatever the library believes: its read loop can end while `is_connected` stays true.

An echo answers for one server. In a cluster, a barrier is a probe through all of them: see `nats_reach`.
"""

import asyncio
import re
import secrets
import ssl
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from roomcast.brokers.nats_client import Inflow, Msg, Subscription, make_client, nats_errors
from roomcast.brokers.nats_inlet import Inlet
from roomcast.brokers.nats_outflow import Outflow, Publishing
from roomcast.brokers.nats_reach import Reach
from roomcast.core.broker import Barrier, BrokerConfig, Gap, Subject
from roomcast.core.errors import BrokerClosed, BrokerError, BrokerUnavailable

_CHUNK = 256
"""Subscriptions written without giving other tasks a turn."""
_BEAT, _GRACE = 0.7, 0.2
"""Parts of a heartbeat: between two echoes and for each to come back; and more, for a loop that was busy."""
_LOOK = 0.3
"""Part of the time to connect that the other servers of a cluster get to answer; its own gets as much again."""
_PATIENCE = 3
"""How many such waits an echo may take while other messages arrive: it only stands in the queue."""
_QUEUE = "_pending_queue"
"""nats-py's private attribute of a subscription, by which all of them share one way in."""
_ITERATOR = "_message_iterator"
"""Another one, which would keep the queue that each subscription was made with, and its 3 KB."""
_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"')


class Link:
    """A connection that is opened once, used, and lost or discarded once.

    Attributes:
        over: set once nothing arrives and nothing can be sent any more.
        max_payload: what this server carries, in bytes.
        ordered: deliveries keep the order of arrival across subjects.
    """

    def __init__(
        self,
        config: BrokerConfig,
        deliver: Callable[[Subject, bytes], None],
        on_lost: Callable[["Link", Exception], None],
        tell: Callable[[Gap], None],
    ) -> None:
        node = re.sub(r"[^A-Za-z0-9_-]", "_", config.node)
        self._echo = Subject(f"{config.prefix}.echo.{node}.{secrets.token_hex(6)}")
        self._probe = Subject(f"{config.prefix}.probe")
        self._name = f"{config.prefix} {config.node}"
        self._heartbeat = config.heartbeat
        self._deliver = deliver
        self._on_lost: Callable[[Link, Exception], None] | None = on_lost
        self._tell = tell
        self._reach: Reach | None = None
        self._client = make_client()
        self._inflow = Inflow(self._take)
        self._subscriptions: dict[Subject, Subscription] = {}
        self._echoes: dict[bytes, asyncio.Future[bool]] = {}  # markers of barriers and of the watchdog
        self._markers = 0
        self._arrivals = 0
        self._mute: set[str] = set()  # refused to publish to, and to hear; in lower case, as the library tells them
        self._deaf: set[str] = set()
        self._outflow = Outflow(self._client, self._echo, self._next_marker, self._mute, self.lose)
        self._tasks: list[asyncio.Task[None]] = []
        self._said: Exception | None = None
        self.over = asyncio.Event()
        self.ordered = True
        self.max_payload = 0

    @property
    def subjects(self) -> Collection[Subject]:
        """What this link has subscribed to."""
        return self._subscriptions.keys()

    @property
    def others(self) -> list[str]:
        """URLs of the cluster's servers, as this one has named them so far."""
        return [url.geturl() for url in self._client.discovered_servers]

    @property
    def scope(self) -> Barrier:
        """How far its barrier reaches."""
        return "cluster" if self._reach is None else self._reach.scope

    async def open(self, server: str, options: Mapping[str, Any], timeout: float) -> None:
        """Connect to one server and hear the first echo, or raise `BrokerUnavailable`."""
        self._client.secure = server.startswith("tls://")
        try:
            async with asyncio.timeout(timeout):
                await self._client.connect(
                    servers=[server],
                    name=self._name,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,  # 0 would try for ever
                    reconnect_time_wait=0,
                    pending_size=0,  # nothing is buffered without a connection, and no publish ever waits
                    flusher_queue_size=0,  # unbounded, so that no subscribe ever waits: see _flush_pending
                    error_cb=self._failed,
                    closed_cb=self._closed,
                    **{"connect_timeout": timeout, **options},
                )
                self._watch_reader()
                self._guard_writes()
                self.max_payload = self._client.max_payload
                await self._listen(self._echo)
                self._read_directly()
                await self.barrier()
                await self._look_around(timeout * _LOOK)
        except BrokerError:
            raise
        except Exception as exc:  # noqa: BLE001 - rule 13; what a library raises here is open-ended
            cause = self._said if isinstance(exc, nats_errors.NoServersError) and self._said else exc
            advice = _advice(cause, first="tls_handshake_first" in options) if self._client.secure else ""
            raise BrokerUnavailable(
                f"NATS at {server} cannot be used: {str(cause) or type(cause).__name__}.{advice}", broker="nats"
            ) from cause
        for work in (self._write(), self._beat()):
            self._tasks.append(asyncio.create_task(work, name="roomcast-nats-link"))

    def publish(self, subject: Subject, payload: bytes) -> Publishing:
        """Take a publish in the order of the calls (rule 4); resolves when the server has handled it."""
        return self._outflow.publish(subject, payload)

    async def subscribe(self, subjects: Iterable[Subject]) -> frozenset[Subject]:
        """Hear these subjects, and return behind a barrier those that the server has refused (rule 2)."""
        asked: list[Subject] = []
        with self._losing():
            for subject in subjects:
                asked.append(subject)
                if subject not in self._subscriptions:
                    self._deaf.discard(subject.lower())  # whoever else waits for the answer of before has seen it
                    await self._listen(subject)
                if len(asked) % _CHUNK == 0:
                    await asyncio.sleep(0)
        await self.barrier()
        refused = frozenset(subject for subject in asked if subject.lower() in self._deaf)
        for subject in refused:
            self._subscriptions.pop(subject, None)
        return refused

    async def unsubscribe(self, subjects: Iterable[Subject]) -> None:
        """Stop hearing these subjects (rule 3)."""
        with self._losing():
            for subject in subjects:
                if (subscription := self._subscriptions.pop(subject, None)) is not None:
                    await subscription.unsubscribe()

    async def barrier(self) -> None:
        """Return once every server of the cluster has handled all that was sent before."""
        echoed = False
        with self._losing():
            if self._reach is not None and self._reach.beyond:
                await self._reach.everywhere(2 * self._heartbeat)
                echoed = not self.over.is_set()
            else:
                echoed = await (await self._send_marker())
        if not echoed:
            raise BrokerUnavailable("The connection to NATS was lost.", broker="nats") from self._said

    async def _look_around(self, patience: float) -> None:
        """Meet the other servers: each hands the probes of all links to one of its own nodes, in a queue group.

        What comes back shows that this server knows all that the others have subscribed to so far.
        """
        info = self._client.info

        async def send(headers: Mapping[str, str]) -> None:
            await self._client.publish(self._probe, b"", headers=headers)

        self._reach = Reach(info, self._echo, send, self._tell)
        await self._listen(self._probe, queue=str(info.get("server_id", "")))
        await self._reach.meet(patience)

    async def settle(self) -> None:
        """Look for other servers a little longer where none was met."""
        with self._losing():
            if self._reach is not None:
                await self._reach.settle(2 * self._heartbeat)

    async def flush(self, timeout: float) -> None:
        """Wait until all publishes are confirmed, at most so many seconds (rule 11)."""
        if publishes := self._outflow.waiting():
            await asyncio.wait(publishes, timeout=timeout)

    def lose(self, reason: Exception) -> None:
        """Fail what is in flight, each by what is certain about it, and say that the link is gone."""
        if self.over.is_set():
            return
        self.over.set()
        self._said = reason
        if self._reach is not None:
            self._reach.lose()
        for task in self._tasks:
            task.cancel()
        for echo in self._echoes.values():
            if not echo.done():
                echo.set_result(False)
        unsent = BrokerClosed if isinstance(reason, BrokerClosed) else BrokerUnavailable
        text = "The connection to NATS ended before the message was sent."
        self._outflow.fail(lambda: unsent(text, broker="nats"), reason)
        if self._on_lost is not None:
            self._on_lost(self, reason)

    async def aclose(self) -> None:
        """Leave no task and no socket behind; a link that was not lost says nothing about it."""
        self._on_lost = None
        graceful = not self.over.is_set()
        self.lose(BrokerClosed("The NATS broker is closed.", broker="nats"))
        inner: list[asyncio.Task[Any]] = [
            task for task in vars(self._client).values() if isinstance(task, asyncio.Task)
        ]
        if not graceful:
            self._abort()  # close() would wait for a peer that does not read
        try:
            with suppress(Exception):  # of a connection that is given up
                async with asyncio.timeout(1.0):
                    await self._client.close()
        finally:
            self._abort()
            for task in (*self._tasks, *inner):
                task.cancel()
        await asyncio.gather(*self._tasks, *inner, return_exceptions=True)
        await asyncio.sleep(0)  # the transport says goodbye to its socket in the loop's next turn

    def _abort(self) -> None:
        writer = getattr(getattr(self._client, "_transport", None), "_io_writer", None)
        if isinstance(writer, asyncio.StreamWriter):
            with suppress(AttributeError):  # of CPython 3.11's TLS transport, when it was closed twice before
                writer.transport.abort()

    async def _listen(self, subject: Subject, queue: str = "") -> None:
        # The library's count of bytes is only ever lowered by its own readers: 0 switches that limit off.
        cb = None if self.ordered else self._take_later
        subscription = await self._client.subscribe(subject, queue=queue, cb=cb, pending_bytes_limit=0)
        if self.ordered and not hasattr(subscription, _QUEUE):
            self.ordered = False  # a later nats-py: one task per subscription, and no order across them
            await subscription.unsubscribe()
            subscription = await self._client.subscribe(
                subject, queue=queue, cb=self._take_later, pending_bytes_limit=0
            )
        if self.ordered:
            setattr(subscription, _QUEUE, self._inflow)
            if hasattr(subscription, _ITERATOR):
                setattr(subscription, _ITERATOR, None)
        if subject not in {self._echo, self._probe}:
            self._subscriptions[subject] = subscription

    async def _take_later(self, message: Msg) -> None:
        self._take(message)

    def _take(self, message: Msg) -> None:
        """What the server sent, in order; an exception here would end the library's read loop."""
        self._hear(message.subject, message.data)

    def _hear(self, subject: str, payload: bytes) -> None:
        if self.over.is_set():
            return
        self._arrivals += 1
        if subject != self._echo:
            self._deliver(Subject(subject), payload)
        elif not self._outflow.confirm(payload, self._said):
            self._echoed(payload)

    def _echoed(self, marker: bytes) -> None:
        if (echo := self._echoes.pop(marker, None)) is not None:
            if not echo.done():
                echo.set_result(True)
        elif self._reach is not None:
            self._reach.read(marker)

    async def _write(self) -> None:
        """Write what had to wait for the socket."""
        with self._losing():
            await self._outflow.keep_writing()

    async def _send_marker(self) -> asyncio.Future[bool]:
        marker = self._next_marker()
        echo: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self.over.is_set():
            echo.set_result(False)
        else:
            self._echoes[marker] = echo
            await self._client.publish(self._echo, marker)
        return echo

    def _next_marker(self) -> bytes:
        self._markers += 1
        return b"%d" % self._markers

    async def _beat(self) -> None:
        """Declare the link lost when an echo stays out (rule 12)."""
        wait = self._heartbeat * _BEAT
        with self._losing():
            while True:
                await asyncio.sleep(wait)
                echo = await self._send_marker()
                if self._reach is not None:
                    await self._reach.look()
                for _ in range(_PATIENCE):
                    before = self._arrivals
                    await asyncio.wait((echo,), timeout=wait)
                    await asyncio.wait((echo,), timeout=self._heartbeat * _GRACE)
                    if echo.done() or before == self._arrivals:
                        break
                if not echo.done():
                    raise TimeoutError(f"No echo from NATS within {wait:.3g} s")

    @contextmanager
    def _losing(self) -> Generator[None]:
        """Whatever the library raises, of an open-ended set: the link is lost, and its maker sees it (rule 13)."""
        try:
            yield
        except Exception as exc:  # noqa: BLE001 - it is told on, as the reason of the loss
            self.lose(exc)

    def _watch_reader(self) -> None:
        """Notice at once when the library's read loop ends, for whatever reason; the echo would, later."""
        reader: asyncio.Task[Any] | None = getattr(self._client, "_reading_task", None)
        if reader is not None:
            reader.add_done_callback(self._reader_ended)

    def _read_directly(self) -> None:
        """Take messages as they are read, where they come in one order anyway."""
        if self.ordered:
            transport = self._client.transport
            transport.set_protocol(Inlet(self._client, transport.get_protocol(), self._hear, self.lose))

    def _guard_writes(self) -> None:
        """Keep the library from writing to a connection that is lost already.

        `writelines` of CPython 3.12 and 3.13's first releases does not look, and registers a file descriptor that may
        be the next connection's by then, which then never hears that it is connected.
        """
        transport = getattr(self._client, "_transport", None)
        writer = getattr(transport, "_io_writer", None)
        if isinstance(writer, asyncio.StreamWriter):

            def writelines(lines: Iterable[bytes]) -> None:
                if not writer.transport.is_closing():
                    writer.writelines(lines)

            setattr(transport, "writelines", writelines)  # noqa: B010 - of a class that is not typed

    def _reader_ended(self, reader: "asyncio.Task[Any]") -> None:
        failure = None if reader.cancelled() else reader.exception()
        self.lose(failure if isinstance(failure, Exception) else self._last())

    async def _closed(self) -> None:
        self.lose(self._last())

    def _last(self) -> Exception:
        return self._client.last_error or self._said or ConnectionError("The connection was closed")

    async def _failed(self, error: Exception) -> None:
        """What the library reports on the side: refused subjects, and reasons of what follows."""
        self._said = error
        if (denied := _DENIED.search(str(error).lower())) is None:
            return
        what, subject = denied.groups()
        if subject == self._echo.lower():
            self.lose(error)
        else:
            (self._mute if what == "publish" else self._deaf).add(subject)


def _advice(error: Exception, *, first: bool) -> str:
    """What to look at when TLS does not come about: what went wrong says little of why."""
    alert = isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or "")
    if isinstance(error, ssl.SSLCertVerificationError):
        return " See tls_ca and tls_hostname."
    if alert or isinstance(error, ConnectionResetError | BrokenPipeError):  # the alert may be lost in a reset
        return " The server may ask for another client certificate: see tls_cert and tls_key."
    if isinstance(error, TimeoutError | ssl.SSLError) or "INFO" in str(error):  # each waits for the other's first word
        want = "may not have handshake_first: then leave out" if first else "may have handshake_first: then set"
        return f" The server {want} tls_handshake_first=1."
    return ""
