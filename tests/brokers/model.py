"""A broker made of nothing but memory and a link that can break: the reference for the conformance checks.

It keeps every rule in the plainest way, so that a twin with one bug breaks one rule.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

from roomcast.core.broker import BrokerConfig, Delivery, Gap, Guarantees, Log, Position, Subject
from roomcast.core.errors import (
    BrokerClosed,
    BrokerUnavailable,
    PayloadTooLarge,
    PublishUnconfirmed,
)

Ask = tuple[str, Any, bytes]
Receive = Callable[[Delivery], None]


class Connection:
    """Two ordered ways between one broker object and the hub, through the link if it is a linked one."""

    def __init__(self, hub: "Hub", receive: Receive, link: "ModelLink | None") -> None:
        self.open = True
        self.lost = asyncio.Event()
        self.asked: dict[int, asyncio.Future[None]] = {}
        self._hub = hub
        self._link = link
        self._receive = receive
        self._number = 0
        self._ways: dict[str, deque[Any]] = {"up": deque(), "down": deque()}
        self._due: list[str] = []

    def ask(self, verb: str, subjects: Iterable[Subject] = (), payload: bytes = b"") -> "asyncio.Future[None]":
        """Send a request; the future resolves with the hub's answer, or fails with the connection."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self.open:
            future.set_exception(ConnectionResetError("closed"))
            return future
        self._number += 1
        self.asked[self._number] = future
        self._send("up", (self._number, verb, tuple(subjects), payload))
        return future

    def deliver(self, delivery: Delivery) -> None:
        self._send("down", delivery)

    def close(self) -> None:
        """Both ends are closed at once; what was asked fails."""
        self.open = False
        self._hub.forget(self)
        if self._link is not None:
            self._link.carried.discard(self)
        for future in self.asked.values():
            if not future.done():
                future.set_exception(ConnectionResetError("closed"))
                future.exception()  # an answer that nobody waits for is not an error
        self.asked.clear()
        self.lost.set()

    def release(self) -> None:
        """Carry on with what became due while the link was stalled."""
        due, self._due = self._due, []
        for way in due:
            self._arrive(way)

    def _send(self, way: str, what: Any) -> None:
        self._ways[way].append(what)
        delay = self._link.delay if self._link is not None else 0.0
        asyncio.get_running_loop().call_later(delay, self._arrive, way)

    def _arrive(self, way: str) -> None:
        if not self.open:
            return
        if self._link is not None and self._link.stalled:
            self._due.append(way)
            return
        what = self._ways[way].popleft()
        if way == "up":
            number, verb, subjects, payload = what
            self._hub.obey(self, verb, subjects, payload)
            self._send("down", number)
            return
        if self._link is not None:
            if self._link.dropping:
                return
            self._link.bytes_down += 1
        if isinstance(what, Delivery):
            self._receive(what)
        elif not (future := self.asked.pop(what)).done():
            future.set_result(None)


class ModelLink:
    """A link in memory with the verbs of `tests.proxy.TcpProxy`."""

    url = "model://linked"

    def __init__(self) -> None:
        self.delay = 0.0
        self.connections = 0
        self.bytes_down = 0
        self.hang_up = False
        self.stalled = False
        self.dropping = False
        self.listening = True
        self.carried: set[Connection] = set()

    @property
    def open(self) -> int:
        return len(self.carried)

    async def cut(self) -> int:
        cut = tuple(self.carried)
        for connection in cut:
            connection.close()
        return len(cut)

    reset = cut

    def stall(self) -> None:
        self.stalled = True

    def drop_replies(self) -> None:
        self.dropping = True

    def resume(self) -> None:
        self.stalled = self.dropping = False
        for connection in tuple(self.carried):
            connection.release()

    def refuse(self) -> None:
        self.listening = False

    async def accept(self) -> None:
        self.listening = True


class Hub:
    """The server: who hears what, and the link to it."""

    def __init__(self) -> None:
        self.link = ModelLink()
        self._members: dict[Subject, list[Connection]] = {}

    def connect(self, url: str, receive: Receive) -> Connection:
        if not url.endswith("linked"):
            return Connection(self, receive, None)
        if not self.link.listening:
            raise ConnectionRefusedError("refused")
        self.link.connections += 1
        if self.link.hang_up:
            raise ConnectionResetError("hung up")
        connection = Connection(self, receive, self.link)
        self.link.carried.add(connection)
        return connection

    def obey(self, connection: Connection, verb: str, subjects: Sequence[Subject], payload: bytes) -> None:
        for subject in subjects:
            members = self._members.setdefault(subject, [])
            if verb == "publish":
                for member in members:
                    member.deliver(Delivery(subject, payload))
            elif verb == "subscribe" and connection not in members:
                members.append(connection)
            elif verb == "unsubscribe" and connection in members:
                members.remove(connection)

    def forget(self, connection: Connection) -> None:
        for members in self._members.values():
            if connection in members:
                members.remove(connection)


class ModelBroker:
    """Keeps the rules of the seam; each method is one that some twin breaks."""

    parameters: ClassVar[frozenset[str]] = frozenset()
    log: Log | None = None

    def __init__(self, config: BrokerConfig, hub: Hub) -> None:
        self.config = config
        self.hub = hub
        self.subjects: set[Subject] = set()
        self.events: deque[Delivery | Gap] = deque()
        self.ready = asyncio.Event()
        self.connection: Connection | None = None
        self.keeper: asyncio.Task[None] | None = None
        self.closed = False
        self.guarantees = Guarantees(order="publisher", confirmed=True, max_payload=config.max_payload)

    async def start(self) -> None:
        self.check_open()
        try:
            async with asyncio.timeout(self.config.connect_timeout):
                await self.connect()
        except OSError as exc:
            raise self.unavailable() from exc
        self.keeper = asyncio.create_task(self.keep())

    async def aclose(self) -> None:
        if self.closed:
            return
        self.closed = True
        await self.flush()
        self.stop()
        self.wake()

    def wake(self) -> None:
        self.ready.set()

    async def flush(self) -> None:
        if self.connection is not None and self.connection.asked:
            await asyncio.wait(self.connection.asked.values(), timeout=0.3)

    def stop(self) -> None:
        if self.keeper is not None:
            self.keeper.cancel()
        if self.connection is not None:
            self.connection.close()

    def publish(self, subject: Subject, payload: bytes, /) -> "asyncio.Future[Position | None]":
        outer: asyncio.Future[Position | None] = asyncio.get_running_loop().create_future()
        if self.closed:
            outer.set_exception(BrokerClosed("closed", broker="model"))
        elif len(payload) > self.guarantees.max_payload:
            limit = self.guarantees.max_payload
            outer.set_exception(PayloadTooLarge(size=len(payload), limit=limit, broker="model"))
        elif (connection := self.up()) is None:
            self.publish_while_down(outer, subject, payload)
        else:
            self.send(connection, outer, subject, payload)
        return outer

    def publish_while_down(self, outer: "asyncio.Future[Position | None]", _subject: Subject, _payload: bytes) -> None:
        outer.set_exception(self.unavailable())

    def send(
        self, connection: Connection, outer: "asyncio.Future[Position | None]", subject: Subject, payload: bytes
    ) -> None:
        connection.ask("publish", [subject], payload).add_done_callback(partial(self.settle, outer))

    def settle(self, outer: "asyncio.Future[Position | None]", answer: "asyncio.Future[None]") -> None:
        if outer.done():
            return
        if (error := answer.exception()) is None:
            outer.set_result(None)
        else:
            unconfirmed = PublishUnconfirmed("the link was lost", broker="model")
            unconfirmed.__cause__ = error
            outer.set_exception(unconfirmed)

    async def subscribe(self, subjects: Collection[Subject], /) -> None:
        self.check_open()
        self.subjects.update(subjects)
        if (connection := self.up()) is None:
            raise self.unavailable()
        try:
            await connection.ask("subscribe", subjects)
        except ConnectionResetError as exc:
            self.check_open()
            raise self.unavailable() from exc

    async def unsubscribe(self, subjects: Collection[Subject], /) -> None:
        self.subjects.difference_update(subjects)
        if (connection := self.up()) is not None:
            connection.ask("unsubscribe", subjects)

    async def receive(self) -> Sequence[Delivery | Gap]:
        while not self.events:
            self.check_open()
            self.ready.clear()
            await self.ready.wait()
        events = tuple(self.events)
        self.events.clear()
        return events

    async def connect(self) -> None:
        connection = self.hub.connect(self.config.url, self.deliver)
        try:
            await self.greet(connection)
        except BaseException:
            connection.close()
            raise
        self.connection = connection

    async def greet(self, connection: Connection) -> None:
        await connection.ask("ping")
        await connection.ask("subscribe", self.subjects)

    async def keep(self) -> None:
        while self.connection is not None:
            await self.watch(self.connection)
            self.connection.close()
            self.put(Gap("disconnected", ongoing=True))
            await self.reconnect()
            self.put(Gap("reconnected"))

    async def watch(self, connection: Connection) -> None:
        """Return once the connection is lost, or has not answered for a heartbeat (rule 12)."""
        try:
            while not connection.lost.is_set():
                async with asyncio.timeout(self.config.heartbeat):
                    await connection.ask("ping")
                await asyncio.wait([lost := asyncio.ensure_future(connection.lost.wait())], timeout=self.beat())
                lost.cancel()
        except OSError:
            return

    def beat(self) -> float:
        return self.config.heartbeat / 2

    async def reconnect(self) -> None:
        pause = 0.0
        while True:
            try:
                async with asyncio.timeout(self.config.connect_timeout):
                    return await self.connect()
            except OSError:
                await asyncio.sleep(pause)
            pause = min(2 * pause + 0.05, 0.3)

    def deliver(self, delivery: Delivery) -> None:
        self.put(delivery)

    def put(self, event: Delivery | Gap) -> None:
        if isinstance(event, Gap) or len(self.events) < self.config.buffer:
            self.events.append(event)
        else:
            self.overflow()
        self.ready.set()

    def overflow(self) -> None:
        last = self.events[-1]
        if isinstance(last, Gap) and last.reason == "overflow":
            self.events[-1] = Gap("overflow", missed=(last.missed or 0) + 1)
        else:
            self.events.append(Gap("overflow", missed=1))

    def up(self) -> Connection | None:
        return self.connection if self.connection is not None and self.connection.open else None

    def check_open(self) -> None:
        if self.closed:
            raise BrokerClosed("closed", broker="model")

    def unavailable(self) -> BrokerUnavailable:
        return BrokerUnavailable("not connected", broker="model")
