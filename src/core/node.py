"""The one I/O shell of a node: it waits, on the broker and on the clock, and asks the pure modules what to do.

1. `start` returns connected, hearing its inbox and the control subject, or raises `BrokerUnavailable` and leaves
   nothing behind; it may be called again, and twice at the same time.
2. Everything received is opened, put in order and handed to the handler of its kind (see `receiver`); everything said
   goes through `publisher`, and what is to be heard through `subscriber`.
3. After an outage publishing waits until every peer has given a sign of life, at most `regroup_timeout`: what is
   sent before a peer has resubscribed is lost to it.
   A log loses nothing, so there publishing goes on at once.
   While clients are waited for that fall behind (`pace`), no peer is taken for silent.
4. A gap is counted, logged and told to every hook, whatever its cause (see `gaps`).
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Literal

from roomcast.core.broker import Gap, Subject
from roomcast.core.errors import BrokerClosed, BrokerUnavailable, ConfigurationError
from roomcast.core.gaps import Gaps
from roomcast.core.health import Health
from roomcast.core.membership import Membership, NodeInfo
from roomcast.core.messages import Bye, Census, Echo, Heartbeat, Hello, Message, encode_message
from roomcast.core.options import Options
from roomcast.core.pace import Paced
from roomcast.core.publisher import Publisher
from roomcast.core.readback import Readback
from roomcast.core.reader import Reader
from roomcast.core.receiver import Receiver
from roomcast.core.registry import open_broker
from roomcast.core.sids import new_node, owner
from roomcast.core.stats import Stats
from roomcast.core.subjects import Subjects
from roomcast.core.subscriber import Subscriber
from roomcast.core.wire import Wire

logger = logging.getLogger("roomcast")

_PARTLY = "a part of the broker cannot be reached; reconnecting"
_LATE = 0.5  # seconds behind time at which this process was stopped, or kept from the loop for as long
_FAREWELL = 1.0  # seconds that a node's bye may take to reach the broker


class Node:
    """One process of the cluster, without its clients.

    Attributes:
        id: six URL-safe characters, drawn anew for every life of a process.
        pid: the process that made it; in a forked one it must not be used.
        membership: who else is there.
        handlers: what to do with each kind of message: called with the origin's id and the message.
        always: the subjects it hears as long as it runs.
        at_home: what to do with this node's own messages when they come back from a log, with `total`.
        on_a_log: whether the broker keeps a log.
        total: whether one order holds for the clients of all nodes.
        reader: reads the whole log first, where there is recovery.
        readback: knows what of its own has not come back, with `total`.
        paced: the clients that what is read from a log goes to.
        receiver: its receiving half.
        linked: set while there is a link to the broker.
        on_left: each called with the id of a node that is gone.
        on_beat: each called once in each heartbeat.
        on_close: each called when this node closes, before the broker does.

    Args:
        url: the broker.
        settings: of this node; the URL's own win.
        counts: how many clients and rooms it has.
        guest: it is no node itself (see `membership`).
    """

    def __init__(
        self,
        url: str,
        settings: Options,
        counts: Callable[[], tuple[int, int]] = lambda: (0, 0),
        *,
        guest: bool = False,
    ) -> None:
        self.id = new_node()
        self.pid = os.getpid()
        self._who = "emitter" if guest else "adapter"
        self._url = url
        self._broker, applied = open_broker(url, settings, self.id)
        self.settings = applied.on(self._broker, self.broker_name)
        self.on_a_log = self._broker.log is not None
        self.total = self.settings.order == "total"
        recovery = self.settings.recovery
        if guest and recovery is not None:
            raise ConfigurationError("recovery is for adapters: an emitter has no clients that could come back.")
        self.name = (self.settings.name or f"{socket.gethostname()}:{os.getpid()}")[:256]
        self.stats = Stats()
        self.on_left: list[Callable[[str], None]] = []
        self.on_beat: list[Callable[[], None]] = []
        self.on_close: list[Callable[[], None]] = []
        self.gaps = Gaps(self)
        partitions = self._broker.guarantees.partitions
        self.subjects = Subjects(self.settings.prefix, partitions)
        self.wire = Wire(
            self.settings.secret,
            max_payload=self.settings.max_payload,
            freshness=self.settings.freshness,
            keeps=0.0 if self._broker.log is None else self._broker.log.retention,
        )
        self.publisher = Publisher(
            origin=self.id,
            broker_name=self.broker_name,
            settings=self.settings,
            wire=self.wire,
            stats=self.stats,
            tell=self.gaps.tell,
        )
        self.membership = Membership(
            node=self.id,
            name=self.name,
            guest=guest,
            heartbeat=self.settings.heartbeat,
            timeout=self.settings.peer_timeout,
            subjects=self.subjects,
            say=self._say,
            counts=counts,
            window=0.0 if recovery is None else recovery.window,
        )
        self.membership.on_left.append(self._left)
        self.peers = self.membership.peers
        self.handlers: dict[type[Any], Callable[[str, Any], None]] = {
            Hello: self.membership.on_hello,
            Heartbeat: self.membership.on_heartbeat,
            Bye: self.membership.on_bye,
            Census: self.membership.on_census,
        }
        self.at_home: dict[type[Any], Callable[[Any], None]] = {}
        self.reader: Reader | None = None
        self.readback: Readback | None = None
        self.paced: Paced | None = None
        in_order = self._broker.guarantees.order != "subject"
        self.receiver = Receiver(self, on_gap=self._on_gap, heard=self._heard_from, in_order=in_order)
        self.subscriber = Subscriber(
            self.settings.linger,
            dropped=self.receiver.tracking.pause if recovery is None else _read_on,
            fault=self.fault,
            everything=recovery is not None,
        )
        self.always = frozenset({self.subjects.control, self.subjects.inbox(self.id)})
        if self.total and not guest:
            self._read_back()
        self.linked = asyncio.Event()
        self._deaf = False
        self._problem = f"the {self._who} is not started"
        self._loops: list[asyncio.Task[None]] = []
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._regrouping = False
        self._regroup_timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self._start_lock = asyncio.Lock()
        self._closed = False

    def _read_back(self) -> None:
        of_clients = (f"{self.subjects.prefix}.room.", f"{self.subjects.prefix}.all.")
        self.readback = self.publisher.readback = Readback(
            self.settings.request_timeout,
            concerns=lambda subject: subject.startswith(of_clients) or subject in self.always,
            returns=lambda subject: self.reader is not None or subject in self.always,
            ask=lambda: self.answer(self.id, Echo()),
        )
        self.on_close.append(self.readback.close)

    # Life

    async def start(self) -> None:
        """Connect and begin to hear (rule 1).

        Raises:
            BrokerUnavailable: no broker answered within `connect_timeout`.
            BrokerClosed: the node was closed.
            ConfigurationError: the broker will never accept these settings.
            RuntimeError: it was started on another event loop.
        """
        async with self._start_lock:
            self.check_open()
            if not self._loops:
                await self._start()
            elif self._loops[0].get_loop() is not asyncio.get_running_loop():
                raise RuntimeError(
                    f"The {self._who} was started on another event loop and works on that one alone: "
                    "close it before its loop ends, and make another one for this loop."
                )

    def check_open(self) -> None:
        """Raise `BrokerClosed` once this node is closed."""
        if self._closed:
            raise BrokerClosed(f"The {self._who} is closed; make a new one.", broker=self.broker_name)

    async def _start(self) -> None:
        broker = self._broker
        try:
            await broker.start()
            await broker.subscribe(self.always)
            if self.reader is not None and broker.log is not None:
                await self.reader.rebuild(broker.log)
            self.check_open()
        except BaseException:
            await broker.aclose()
            if not self._closed:
                self._broker, _ = open_broker(self._url, self.settings, self.id)
            raise
        self.linked.set()
        self._problem = ""
        self.publisher.attach(broker)
        self._loops = [
            self._spawn_loop("receive", self.receiver.run(broker)),
            self._spawn_loop("subscribe", self.subscriber.run(broker)),
            self._spawn_loop("clock", self._keep_time()),
        ]
        self.membership.start()
        self.publisher.release()
        logger.info("roomcast: node %s (%s) joined by %s", self.id, self.name, self.broker_name)

    async def aclose(self) -> None:
        """Flush, say bye, disconnect; idempotent, and not undone by a caller who does not wait for the end."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._closed = self.receiver.closed = True
        if self.linked.is_set():
            self.publisher.release()  # in case peers still regroup: those that are back shall hear it
            await self.publisher.drain(self.settings.emit_timeout)
            if (bye := self.membership.part()) is not None:
                await asyncio.wait([bye], timeout=_FAREWELL)
        self.publisher.close()
        self.linked.clear()
        self._problem = f"the {self._who} is closed"
        self.membership.close()
        for hook in self.on_close:
            hook()
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

    async def caught_up(self) -> None:
        """Return once this node's clients have what it published before: at once, but with `total` (see `readback`)."""
        if self.readback is not None:
            await self.readback.caught_up()

    async def met(self) -> None:
        """Return once all nodes are known (see `membership`).

        Raises:
            BrokerUnavailable: this node has not joined the cluster.
            BrokerClosed: it was closed.
        """
        self.check_open()
        if not self._loops:
            raise BrokerUnavailable(f"Other nodes cannot be asked: {self._problem}.", broker=self.broker_name)
        await self.membership.met()
        self.check_open()

    def health(self) -> Health:
        """Whether this node can hear and speak."""
        problem = self._problem or self.peers.refusal
        if not problem and any(loop.done() for loop in self._loops):
            problem = "a loop of the node ended: see the log"
        return Health(not problem, problem, self.linked.is_set(), len(self.peers), self.publisher.backlog)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something that belongs to this node and ends with it; a failure is logged and counted."""
        task = asyncio.ensure_future(coroutine)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
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

    def wants(self, subject: Subject) -> bool:
        """Whether what arrives on a subject is for this node."""
        return self.subscriber.active(subject) or subject in self.always

    # Gaps (rules 3 and 4)

    def _on_gap(self, gap: Gap) -> None:
        if gap.reason == "disconnected":
            self.stats.disconnects += 1
            self._deaf = True
            if gap.partial:
                self._problem = _PARTLY
            else:
                self.linked.clear()
                self._problem = "the link to the broker is lost; reconnecting"
                self.publisher.hold(link_down=True)
        elif gap.reason == "reconnected":
            partial = self._deaf and self.linked.is_set()
            self._deaf, self._problem = gap.ongoing, _PARTLY if gap.ongoing else ""
            self.peers.resume(time.monotonic())
            if self.paced is not None:
                self.paced.away()
            if not partial:
                self.linked.set()
                self._regroup()
        elif gap.reason == "trimmed" and self.reader is not None:
            self.reader.cut()
        self.gaps.tell(gap)

    def _regroup(self) -> None:
        self.publisher.hold(link_down=False)
        self.membership.greet()
        if self.on_a_log:
            self.publisher.release()
            return
        self.peers.regroup()
        self._regrouping = True
        if self._regroup_timer is not None:
            self._regroup_timer.cancel()
        self._regroup_timer = asyncio.get_running_loop().call_later(self.settings.regroup_timeout, self._regrouped)
        if not self.peers.awaited:
            self._regrouped()

    def _heard_from(self, node: str) -> None:
        self.peers.heard(node, time.monotonic())
        if self._regrouping and not self.peers.awaited:
            self._regrouped()

    def _regrouped(self) -> None:
        if self._regrouping and self.linked.is_set() and not self._closed:
            self._regrouping = False
            self.publisher.release()

    # Peers and time

    async def _keep_time(self) -> None:
        period = min(1.0, self.settings.heartbeat / 4)
        now = time.monotonic()
        beat = now + self.settings.heartbeat
        while True:
            before = now
            await asyncio.sleep(period)
            now = time.monotonic()
            if (late := now - before - period) > _LATE and self.paced is not None:
                self.paced.away()  # this process was stopped
            if late > self.settings.heartbeat or self.receiver.waited:
                self.peers.resume(now)  # the silence was ours
            self.receiver.waited = False
            self.receiver.tick(now)
            self.membership.period_over()
            self.publisher.tick(now)
            self.wire.forget(time.time_ns() // 1000)
            if now >= beat:
                beat = now + self.settings.heartbeat
                for hook in self.on_beat:
                    hook()
                if self.linked.is_set():
                    self.membership.beat()
            if self.linked.is_set() and not self._deaf:  # else a silence may be ours
                self.membership.tick(now)

    def _left(self, peer: NodeInfo, why: Literal["bye", "lost"]) -> None:
        self.receiver.left(peer.id, why)
        for hook in self.on_left:
            hook(peer.id)
        if not self.peers.awaited:
            self._regrouped()

    def _say(self, subject: Subject, message: Message) -> asyncio.Future[Any]:
        return self.publisher.say(subject, encode_message(message))

    def carries(self, message: Message) -> bool:
        """Whether a message is small enough for any envelope."""
        return self.publisher.carries(len(encode_message(message)))

    def answer(self, node: str, message: Message) -> bool:
        """Send an answer to a node's inbox, in order with what this node emits; never waits.

        False when it cannot be sent: it is larger than a message may be, or the outbox is more than full.
        """
        return self.send(self.subjects.inbox(node), message)

    def send(self, subject: Subject, message: Message, then: Callable[..., None] | None = None) -> bool:
        """The same, on any subject; then `then(taken=...)` is called once the broker has it, or it is given up."""
        raw = encode_message(message)
        if not self.publisher.reserve_anyway(len(raw)):
            return False
        entry = self.publisher.put(subject, raw)
        if then is not None:
            self.publisher.when_settled(entry, then)
        return True

    @property
    def roams(self) -> bool:
        """Whether a client may be on another node than the one that gave it its sid."""
        return self.settings.recovery is not None or self.peers.window > 0

    def holder(self, sid: object) -> str:
        """The node that has a client, as far as its sid says; empty for what is no sid, and when any node may."""
        if self.reader is not None:
            return self.reader.holder(sid)
        return "" if self.roams else owner(sid)


def _read_on(_subjects: Collection[Subject]) -> None:
    """Nobody pauses who reads everything."""
