"""One life of a connection to a NATS server, and everything that ends with it.

A link never reconnects: nats-py's own reconnection buffers publishes and sends them late, and resubscribes without
proof. A lost link fails what it had in flight, says so once, and is thrown away whole. How it is connected:
`nats_connection`; what it reads: `nats_inlet`; what it publishes: `nats_outflow`.

Everything rests on the **echo**: a marker published to a subject that only this link hears. The server
handles what one connection sends in order, so a marker that comes back proves that it has handled all that
was sent before: publishes (rule 5) and subscriptions (rule 2). A marker that does not come back is a dead
link (rule 12), whatever the socket looks like.

An echo answers for one server. In a cluster, a barrier is a probe through all of them: see `nats_reach`.
"""

import asyncio
import json
import re
import secrets
import ssl
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

from roomcast.brokers.chunks import chunks
from roomcast.brokers.nats_commands import PONG, publish, subscribe, unsubscribe
from roomcast.brokers.nats_connection import Connection
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
_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"', re.IGNORECASE)


class Link:
    """A connection that is opened once, used, and lost or discarded once.

    Attributes:
        over: set once nothing arrives and nothing can be sent any more.
        max_payload: what this server carries, in bytes.
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
        self._connection = Connection()
        self._scheme = "nats"
        # Both ways, and nothing else, because there is one for each room: the subject that is delivered is the one that
        # was asked for, and not one more text.
        self._numbers: dict[Subject, bytes] = {}
        self._heard: dict[bytes, Subject] = {}
        self._last_number = 0
        self._echoes: dict[bytes, asyncio.Future[bool]] = {}  # markers of barriers and of the watchdog
        self._markers = 0
        self._arrivals = 0
        self._mute: set[Subject] = set()  # refused to publish to, and to hear
        self._deaf: set[Subject] = set()
        self._outflow = Outflow(self._connection, self._echo, self._next_marker, self._mute, self.lose)
        self._own = self._echo.encode()
        self._tasks: list[asyncio.Task[None]] = []
        self._said: Exception | None = None
        self.over = asyncio.Event()
        self.max_payload = 0

    @property
    def subjects(self) -> Collection[Subject]:
        """What this link has subscribed to."""
        return self._numbers.keys()

    @property
    def others(self) -> list[str]:
        """URLs of the cluster's servers, as this one has named them last."""
        named = self._connection.info.get("connect_urls") or ()
        return [f"{self._scheme}://{address}" for address in named]

    @property
    def scope(self) -> Barrier:
        """How far its barrier reaches."""
        return "cluster" if self._reach is None else self._reach.scope

    async def open(self, server: str, options: Mapping[str, Any], timeout: float) -> None:
        """Connect to one server and hear the first echo, or raise `BrokerUnavailable`."""
        secure = server.startswith("tls://")
        self._scheme = "tls" if secure else "nats"
        connection = self._connection
        try:
            async with asyncio.timeout(timeout):
                await connection.open(server, name=self._name, timeout=timeout, options=options)
                connection.read_with(
                    lambda stream: Inlet(
                        stream, message=self._hear, line=self._told, lose=self.lose, gone=connection.gone
                    )
                )
                self.max_payload = int(connection.info["max_payload"])
                self._listen([self._echo])
                await self.barrier()
                await self._look_around(timeout * _LOOK)
        except BrokerError:
            raise
        except Exception as exc:
            advice = _advice(exc, first="tls_handshake_first" in options) if secure else ""
            raise BrokerUnavailable(
                f"NATS at {server} cannot be used: {str(exc) or type(exc).__name__}.{advice}", broker="nats"
            ) from exc
        for work in (self._write(), self._beat()):
            self._tasks.append(asyncio.create_task(work, name="roomcast-nats-link"))

    def publish(self, subject: Subject, payload: bytes) -> Publishing:
        """Take a publish in the order of the calls (rule 4); resolves when the server has handled it."""
        return self._outflow.publish(subject, payload)

    async def subscribe(self, subjects: Iterable[Subject]) -> frozenset[Subject]:
        """Hear these subjects, and return behind a barrier those that the server has refused (rule 2)."""
        asked = dict.fromkeys(subjects)
        with self._losing():
            for some in chunks(asked, _CHUNK):
                new = [subject for subject in some if subject not in self._numbers]
                self._deaf.difference_update(new)  # whoever else waits for the answer of before has seen it
                self._listen(new)
                await self._breathe()
        await self.barrier()
        refused = self._deaf.intersection(asked)
        self._drop(refused)
        return frozenset(refused)

    async def unsubscribe(self, subjects: Iterable[Subject]) -> None:
        """Stop hearing these subjects (rule 3)."""
        with self._losing():
            for some in chunks(subjects, _CHUNK):
                self._connection.send(b"".join(map(unsubscribe, self._drop(some))))
                await self._breathe()

    def _drop(self, subjects: Iterable[Subject]) -> list[bytes]:
        """Forget subscriptions; their numbers."""
        numbers = [self._numbers.pop(subject) for subject in subjects if subject in self._numbers]
        for number in numbers:
            del self._heard[number]
        return numbers

    async def barrier(self) -> None:
        """Return once every server of the cluster has handled all that was sent before."""
        echoed = False
        with self._losing():
            if self._reach is not None and self._reach.beyond:
                await self._reach.everywhere(2 * self._heartbeat)
                echoed = not self.over.is_set()
            else:
                echoed = await self._send_marker()
        if not echoed:
            raise BrokerUnavailable("The connection to NATS was lost.", broker="nats") from self._said

    async def _look_around(self, patience: float) -> None:
        """Meet the other servers: each hands the probes of all links to one of its own nodes, in a queue group.

        What comes back shows that this server knows all that the others have subscribed to so far.
        """
        info = self._connection.info

        def send(headers: Mapping[str, str]) -> None:
            self._connection.send(publish(self._probe, b"", headers=headers))

        self._reach = Reach(info, self._echo, send, self._tell)
        self._listen([self._probe], queue=str(info.get("server_id", "")))
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
        try:
            await self._connection.aclose(graceful=graceful)
        finally:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _listen(self, subjects: Iterable[Subject], queue: str = "") -> None:
        commands: list[bytes] = []
        for subject in subjects:
            self._last_number += 1
            number = b"%d" % self._last_number
            commands.append(subscribe(subject, number, queue=queue))
            if subject not in {self._echo, self._probe}:
                self._numbers[subject] = number
                self._heard[number] = subject
        self._connection.send(b"".join(commands))

    async def _breathe(self) -> None:
        """Give other tasks a turn, and the socket the time that it takes."""
        if self._connection.clogged:
            await self._connection.drained()
        else:
            await asyncio.sleep(0)

    def _hear(self, number: bytes, subject: bytes, payload: bytes, _reply: bytes, _headers: bytes) -> None:
        """A message, in order."""
        if self.over.is_set():
            return
        self._arrivals += 1
        heard = self._heard.get(number)
        if heard is not None:
            self._deliver(heard, payload)
        elif subject == self._own and not self._outflow.confirm(payload, self._said):
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

    def _send_marker(self) -> asyncio.Future[bool]:
        marker = self._next_marker()
        echo: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self.over.is_set():
            echo.set_result(False)
        else:
            self._echoes[marker] = echo
            self._connection.send(publish(self._echo, marker))
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
                echo = self._send_marker()
                if self._reach is not None:
                    self._reach.look()
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

    def _told(self, line: bytes) -> None:
        """What the server says besides messages (NATS protocol)."""
        verb, _, rest = line.partition(b" ")
        match verb.upper():
            case b"PING":
                self._connection.send(PONG)
            case b"INFO":
                self._connection.info = {**self._connection.info, **json.loads(rest)}
            case b"-ERR":
                self._refused(rest.strip(b" '").decode(errors="replace"))
            case b"PONG" | b"+OK":
                pass
            case _:
                raise ConnectionError("NATS sent a line that is no part of its protocol.")

    def _refused(self, text: str) -> None:
        """The server did not do something: a refusal concerns one subject, anything else the link."""
        error = ConnectionError(f"NATS says: {text}")
        denied = _DENIED.search(text)
        if denied is None or denied[2] == self._echo:
            self.lose(error)
            return
        self._said = error
        (self._mute if denied[1].lower() == "publish" else self._deaf).add(Subject(denied[2]))


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
