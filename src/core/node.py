"""The one I/O shell of a node: it waits, on the broker and on the clock, and asks the pure modules what to do.

1. `start` returns connected, hearing its inbox and the control subject, or raises `BrokerUnavailable` and leaves
   nothing behind; it may be called again, and twice at the same time.
2. Everything received is opened, put in order and handed to the handler of its kind. Nothing that arrives can
   end the receive loop: what cannot be read is counted and logged once per kind, a handler that fails is logged.
3. After an outage publishing waits until every peer has given a sign of life, at most `regroup_timeout`: what is
   sent before a peer has resubscribed is lost to it.
4. A gap is counted, logged and told to every hook, whatever its cause.
"""

import asyncio
import inspect
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from roomcast.core.broker import Broker, Delivery, Gap, Subject
from roomcast.core.errors import BrokerClosed, RequestTimeout, WireError
from roomcast.core.health import Health
from roomcast.core.options import Options
from roomcast.core.peers import PeerJoined, PeerLeft, PeerRefused, Peers
from roomcast.core.publisher import Publisher
from roomcast.core.registry import open_broker
from roomcast.core.requests import Request, Requests
from roomcast.core.sequences import Tracking
from roomcast.core.sids import new_node
from roomcast.core.stats import Stats
from roomcast.core.subjects import Subjects
from roomcast.core.subscriber import Subscriber
from roomcast.core.wire import (
    Bye,
    Heartbeat,
    Hello,
    Message,
    Reply,
    Wire,
    decode_message,
    encode_message,
)

logger = logging.getLogger("roomcast")

GapHook = Callable[[Gap], Awaitable[None] | None]

_SLICE = 0.005  # seconds of handling after which the loop gets a turn
_MOURNED = 600.0  # seconds for which the numbers of a lost peer are kept
_INTRODUCTIONS = 1000  # nodes that are told hello in one period of the clock
_AGAIN = 1.0  # seconds until what was refused is asked for again, or what repeats is logged again


class Node:
    """One process of the cluster, without its clients.

    Attributes:
        id: six URL-safe characters, drawn anew for every life of a process.
        pid: the process that made it; in a forked one it must not be used.
        handlers: what to do with each kind of message: called with the origin's id and the message.
        on_left: called with the id of a node that is gone.
        on_beat: called once in each heartbeat.
    """

    def __init__(self, url: str, settings: Options, clients: Callable[[], int]) -> None:
        self.id = new_node()
        self.pid = os.getpid()
        self._url = url
        self._clients = clients
        self._broker, self.settings = open_broker(url, settings, self.id)
        self.name = (self.settings.name or f"{socket.gethostname()}:{os.getpid()}")[:256]
        self.stats = Stats()
        self.handlers: dict[type[Any], Callable[[str, Any], None]] = {
            Hello: self._on_hello,
            Heartbeat: self._on_heartbeat,
            Bye: self._on_bye,
            Reply: self._on_reply,
        }
        self.on_left: Callable[[str], None] = lambda _node: None
        self.on_beat: Callable[[], None] = lambda: None
        self.gap_hooks: list[GapHook] = []
        partitions = self._broker.guarantees.partitions
        self.subjects = Subjects(self.settings.prefix, partitions)
        self.peers = Peers(partitions=partitions or 0, timeout=self.settings.peer_timeout)
        self.wire = Wire(self.settings.secret, max_payload=self.settings.max_payload, freshness=self.settings.freshness)
        self.publisher = Publisher(
            origin=self.id,
            broker_name=self.broker_name,
            settings=self.settings,
            wire=self.wire,
            stats=self.stats,
            tell=self._tell,
        )
        self._tracking = Tracking()
        self.subscriber = Subscriber(self.settings.linger, dropped=self._tracking.pause, fault=self.fault)
        self._requests = Requests()
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._always = frozenset({self.subjects.control, self.subjects.inbox(self.id)})
        self._started = 0.0
        self._connected = False
        self._problem = "the adapter is not started"
        self._loops: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._logged: set[str] = set()
        self._gaps_logged: dict[str, float] = {}
        self._regrouping = False
        self._regroup_timer: asyncio.TimerHandle | None = None
        self._introduced: set[str] = set()
        self._closing: asyncio.Task[None] | None = None
        self._mourned: deque[tuple[float, str]] = deque()
        self._start_lock = asyncio.Lock()
        self._closed = False

    # Life

    async def start(self) -> None:
        """Connect and begin to hear (rule 1).

        Raises:
            BrokerUnavailable: no broker answered within `connect_timeout`.
            BrokerClosed: the node was closed.
            ConfigurationError: the broker will never accept these settings.
        """
        async with self._start_lock:
            self._check_open()
            if not self._loops:
                await self._start()

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerClosed("The adapter is closed; make a new one.", broker=self.broker_name)

    async def _start(self) -> None:
        broker = self._broker
        try:
            await broker.start()
            await broker.subscribe(self._always)
            self._check_open()
        except BaseException:
            await broker.aclose()
            if not self._closed:
                self._broker, _ = open_broker(self._url, self.settings, self.id)
            raise
        self._started = time.time()
        self._connected, self._problem = True, ""
        self.publisher.attach(broker)
        self._loops = [
            self._spawn_loop("receive", self._receive(broker)),
            self._spawn_loop("subscribe", self.subscriber.run(broker)),
            self._spawn_loop("clock", self._keep_time()),
        ]
        self._hello(self.subjects.control, answer=True)
        self.publisher.release()
        logger.info("roomcast: node %s (%s) joined by %s", self.id, self.name, self.broker_name)

    async def aclose(self) -> None:
        """Flush, say bye, disconnect; idempotent, and not undone by a caller who does not wait for the end."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._closed = True
        if self._connected:
            self.publisher.release()  # in case peers still regroup: those that are back shall hear it
            await self.publisher.drain(self.settings.emit_timeout)
            bye = self.publisher.say(self.subjects.control, encode_message(Bye()))
            await asyncio.wait([bye], timeout=_AGAIN)
        self.publisher.close()
        self._connected, self._problem = False, "the adapter is closed"
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(BrokerClosed("The adapter was closed.", broker=self.broker_name))
        self.subscriber.close()
        await self._broker.aclose()
        if self._regroup_timer is not None:
            self._regroup_timer.cancel()
        tasks = (*self._loops, *self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def broker_name(self) -> str:
        """What the broker is called in errors and logs."""
        return self._url.partition(":")[0]

    @property
    def running(self) -> bool:
        """Started, and not closed."""
        return bool(self._loops) and not self._closed

    def health(self) -> Health:
        """Whether this node can hear and speak."""
        problem = self._problem or self.peers.refusal
        if not problem and any(loop.done() for loop in self._loops):
            problem = "a loop of the node ended: see the log"
        return Health(not problem, problem, self._connected, len(self.peers), self.publisher.backlog)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something that belongs to this node and ends with it; a failure is logged and counted."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fault("a background task failed", error)

    def _spawn_loop(self, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        loop = asyncio.create_task(coroutine, name=f"roomcast-{self.id}-{name}")
        loop.add_done_callback(self._loop_ended)
        return loop

    def _loop_ended(self, loop: asyncio.Task[None]) -> None:
        if not loop.cancelled() and (error := loop.exception()) is not None:
            self.fault(f"{loop.get_name()} ended, this node is deaf or mute", error)

    def fault(self, what: str, error: BaseException) -> None:
        """Count and log an error that no caller is there to see."""
        self.stats.faults += 1
        logger.error("roomcast: %s", what, exc_info=error)

    # Receiving (rule 2)

    async def _receive(self, broker: Broker) -> None:
        turn = time.monotonic()
        while True:
            try:
                events = await broker.receive()
            except BrokerClosed:
                if self._closed:
                    return
                raise
            for event in events:
                if isinstance(event, Gap):
                    self._on_gap(event)
                else:
                    self._on_delivery(event)
                if time.monotonic() - turn > _SLICE:
                    await asyncio.sleep(0)
                    turn = time.monotonic()

    def _on_delivery(self, delivery: Delivery) -> None:
        subject = delivery.subject
        if subject not in self._always and not self.subscriber.active(subject):
            return  # in flight while the subject was given up
        try:
            envelope = self.wire.open(subject, delivery.payload, time.time_ns() // 1000)
        except WireError as exc:
            self.refuse(exc)
            return
        origin = envelope.origin
        if origin == self.id:
            return
        self._heard_from(origin)
        messages = envelope.messages
        if envelope.epoch:
            reading = self._tracking.read(subject, origin, envelope.epoch, envelope.first, len(messages))
            if reading.missed:
                self.stats.missed += reading.missed
                self._tell(Gap("missed", subject=subject, origin=origin, missed=reading.missed))
            if reading.repeats:
                self.stats.repeats += reading.repeats
                messages = messages[reading.repeats :]
        for raw in messages:
            try:
                message = decode_message(raw)
            except WireError as exc:
                self.refuse(exc)
                continue
            self.stats.received += 1
            self._handle(origin, message)

    def _handle(self, origin: str, message: Message) -> None:
        handler = self.handlers.get(type(message))
        if handler is None:
            self.refuse(WireError("unexpected", f"A {type(message).__name__} arrived, and nobody here handles it."))
            return
        try:
            handler(origin, message)
        except WireError as exc:
            self.refuse(exc)
        except Exception as exc:  # noqa: BLE001 - rule 2: no message ends the loop
            self.fault(f"handling a {type(message).__name__} failed", exc)

    def refuse(self, error: WireError) -> None:
        """Count something that arrived and is not accepted; log the first of its kind."""
        self.stats.refused[error.kind] += 1
        if error.kind not in self._logged:
            self._logged.add(error.kind)
            logger.warning("roomcast: %s More of this kind (%s) is only counted.", error, error.kind)

    # Gaps (rules 3 and 4)

    def _on_gap(self, gap: Gap) -> None:
        if gap.reason == "disconnected":
            self._connected, self._problem = False, "the link to the broker is lost; reconnecting"
            self.stats.disconnects += 1
            self.publisher.hold(link_down=True)
        elif gap.reason == "reconnected":
            self._connected, self._problem = True, ""
            self.peers.resume(time.monotonic())
            self.peers.regroup()
            self.publisher.hold(link_down=False)
            self._hello(self.subjects.control, answer=True)
            self._regrouping = True
            if self._regroup_timer is not None:
                self._regroup_timer.cancel()
            self._regroup_timer = asyncio.get_running_loop().call_later(self.settings.regroup_timeout, self._regrouped)
            if not self.peers.awaited:
                self._regrouped()
        self._tell(gap)

    def _heard_from(self, node: str) -> None:
        self.peers.heard(node, time.monotonic())
        if self._regrouping and not self.peers.awaited:
            self._regrouped()

    def _regrouped(self) -> None:
        if self._regrouping and self._connected and not self._closed:
            self._regrouping = False
            self.publisher.release()

    def _tell(self, gap: Gap) -> None:
        self.stats.gaps += 1
        self._log_gap(gap)
        for hook in self.gap_hooks:
            try:
                result = hook(gap)
            except Exception as exc:  # noqa: BLE001 - an application's hook must not end the loop
                self.fault("an on_gap hook failed", exc)
            else:
                if inspect.isawaitable(result):
                    self.spawn(_await(result))

    def _log_gap(self, gap: Gap) -> None:
        """Once a second for each reason: a lossy link must not flood the log. Hooks and counters hear every one."""
        now = time.monotonic()
        if now - self._gaps_logged.get(gap.reason, -_AGAIN) < _AGAIN:
            return
        self._gaps_logged[gap.reason] = now
        logger.warning(
            "roomcast: gap on node %s: %s%s%s%s",
            self.id,
            gap.reason,
            f", {gap.missed} messages" if gap.missed is not None else "",
            f", from node {gap.origin}" if gap.origin else "",
            f", on {gap.subject}" if gap.subject else "",
        )

    # Peers and time

    async def _keep_time(self) -> None:
        period = min(1.0, self.settings.heartbeat / 4)
        now = time.monotonic()
        beat = now + self.settings.heartbeat
        while True:
            before = now
            await asyncio.sleep(period)
            now = time.monotonic()
            if now - before > period + self.settings.heartbeat:
                self.peers.resume(now)  # this process was stopped: the silence was ours
            while self._mourned and self._mourned[0][0] < now:
                self._tracking.forget_origin(self._mourned.popleft()[1])
            self._introduced.clear()
            self.publisher.tick(now)
            self.wire.forget(time.time_ns() // 1000)
            if now >= beat:
                beat = now + self.settings.heartbeat
                self.on_beat()
                if self._connected:
                    self.publisher.say(self.subjects.control, encode_message(Heartbeat(self._clients())))
            if self._connected:
                for left in self.peers.tick(now):
                    self._left(left)

    def _hello(self, subject: Subject, *, answer: bool) -> None:
        hello = Hello(
            name=self.name,
            started=self._started,
            partitions=self.subjects.partitions or 0,
            heartbeat=self.settings.heartbeat,
            answer=answer,
        )
        self.publisher.say(subject, encode_message(hello))

    def _on_hello(self, origin: str, hello: Hello) -> None:
        news = self.peers.hello(origin, hello, time.monotonic())
        if isinstance(news, PeerRefused):
            logger.error("roomcast: %s", news.reason)
        elif isinstance(news, PeerJoined):
            logger.info("roomcast: node %s (%s) is here", origin, hello.name)
        if hello.answer:
            self._introduce(origin, answer=False)

    def _on_heartbeat(self, origin: str, beat: Heartbeat) -> None:
        if not self.peers.heartbeat(origin, beat.clients, time.monotonic()):
            self._introduce(origin, answer=True)

    def _introduce(self, node: str, *, answer: bool) -> None:
        """Say hello to one node, once in each period of the clock: a flood must not be answered by another one."""
        if node not in self._introduced and len(self._introduced) < _INTRODUCTIONS:
            self._introduced.add(node)
            self._hello(self.subjects.inbox(node), answer=answer)

    def _on_bye(self, origin: str, _bye: Bye) -> None:
        if (left := self.peers.bye(origin)) is not None:
            self._left(left)

    def _left(self, left: PeerLeft) -> None:
        logger.info("roomcast: node %s (%s) is gone: %s", left.peer.id, left.peer.name, left.why)
        if left.why == "bye":
            self._tracking.forget_origin(left.peer.id)
        else:  # it may come back, and then its numbers tell what was lost
            self._mourned.append((time.monotonic() + _MOURNED, left.peer.id))
        for request in self._requests.left(left.peer.id):
            self._wake(request)
        self.on_left(left.peer.id)
        if not self.peers.awaited:
            self._regrouped()

    # Requests

    async def request(self, node: str, make: Callable[[int], Message]) -> Reply:
        """Ask one node and wait for its answer.

        Raises:
            RequestTimeout: it left, or did not answer within `request_timeout`.
        """
        deadline = time.monotonic() + self.settings.request_timeout
        request = self._requests.begin({node}, deadline)
        answer = self._answers[request.number] = asyncio.get_running_loop().create_future()
        try:
            message = encode_message(make(request.number))
            await self.publisher.reserve(len(message))
            self.publisher.put(self.subjects.inbox(node), message)
            async with asyncio.timeout(deadline - time.monotonic()):
                await answer
        except TimeoutError:
            request.gone.update(request.waiting)
        finally:
            self._requests.end(request)
            del self._answers[request.number]
        if request.missing:
            raise RequestTimeout(
                f"Node {node} did not answer within {self.settings.request_timeout} s, or left.",
                replies=request.replies,
                missing=request.missing,
            )
        return request.replies[node]

    def answer(self, node: str, message: Message) -> bool:
        """Send an answer to a node's inbox, in order with what this node emits; never waits.

        False when it cannot be sent: it is larger than a message may be, or the outbox is more than full.
        """
        raw = encode_message(message)
        if not self.publisher.reserve_anyway(len(raw)):
            return False
        self.publisher.put(self.subjects.inbox(node), raw)
        return True

    def _on_reply(self, origin: str, reply: Reply) -> None:
        try:
            over = self._requests.reply(origin, reply)
        except KeyError:
            self.stats.stray_replies += 1
            return
        if over is not None:
            self._wake(over)

    def _wake(self, request: Request) -> None:
        answer = self._answers.get(request.number)
        if answer is not None and not answer.done():
            answer.set_result(None)


async def _await(result: Awaitable[None]) -> None:
    await result
