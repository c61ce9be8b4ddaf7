"""The publishing half of a node: a place in the outbox, the flush once per tick, confirms, outages.

1. `reserve` gives a place or waits its turn for one, up to `emit_timeout`, then raises `Backpressure`. While the
   link is down it does not wait: the oldest message gives up its place, counted and told.
2. `put` never suspends. What is put in one tick leaves in one flush, in the order of the calls.
3. A batch whose confirm was lost with the link is sent again, before anything newer, once publishing resumes.
4. Nothing is sent while publishing is held: before the start, without a link, and while peers regroup.
5. What became of the payloads of one flush is looked at once, when the last of them is done, where one connection
   carries everything; else when each is.
6. Who waits for a message is kept apart from it. An error has a traceback, with the frames of who waited, and these
   may have the message, which the garbage collector does not see: nothing would ever free a ring through it.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

import msgspec

from roomcast.core.broker import Broker, Gap, Position, Subject
from roomcast.core.errors import (
    Backpressure,
    BrokerClosed,
    BrokerError,
    PayloadTooLarge,
    PublishRejected,
    PublishUnconfirmed,
)
from roomcast.core.options import Options
from roomcast.core.outbox import Batch, Entry, Outbox
from roomcast.core.readback import Readback
from roomcast.core.sequences import Numbering
from roomcast.core.stats import Stats
from roomcast.core.wire import OVERHEAD, Envelope, Wire

logger = logging.getLogger("roomcast")

_RETRY = 0.2  # seconds until a failed publish is tried again on a link that was not reported lost
_FLUSH = 512  # batches per flush: the loop breathes between two of them


class Publisher:
    """Publishes for one node, in order, through a bounded outbox.

    Args:
        origin: the node's id.
        broker_name: what the broker is called in errors.
        settings: bounds and deadlines.
        wire: seals envelopes.
        stats: where to count.
        tell: told of messages given up.

    Attributes:
        before: each called before a message takes its turn, to send what must not come after it.
        readback: is told what becomes of each message, where this node hears its own.
    """

    def __init__(
        self,
        *,
        origin: str,
        broker_name: str,
        settings: Options,
        wire: Wire,
        stats: Stats,
        tell: Callable[[Gap], None],
    ) -> None:
        self.before: list[Callable[[], None]] = []
        self.readback: Readback | None = None
        self._origin = origin
        self._name = broker_name
        self._settings = settings
        self._wire = wire
        self._stats = stats
        self._tell = tell
        self._limit = settings.max_payload
        self._outbox = Outbox(
            max_messages=settings.outbox_messages,
            max_bytes=settings.outbox_bytes,
            max_age=settings.outbox_age,
            batch_bytes=min(65_536, settings.max_payload - OVERHEAD),
        )
        self._sent = time.time_ns() // 1000
        self._numbering = Numbering(self._sent)
        self._place = 0
        self._queue: deque[tuple[asyncio.Future[None], int]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        # Rule 6. Who waits for a confirm, in the order of the deadlines; who is told whenever it is settled.
        self._waiters: dict[Entry, asyncio.Future[None]] = {}
        self._told: dict[Entry, Callable[..., None]] = {}
        self._patience: asyncio.TimerHandle | None = None
        self._broker: Broker | None = None
        self._in_line = False
        self._held = True
        self._link_down = False
        self._closed = False
        self._scheduled = False
        self._retrying: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()

    @property
    def backlog(self) -> int:
        """Messages queued or unconfirmed."""
        return len(self._outbox)

    @property
    def waited_for(self) -> bool:
        """Whether anybody waits for a place."""
        return bool(self._queue)

    @property
    def limit(self) -> int:
        """Bytes of the largest payload."""
        return self._limit

    def carries(self, size: int) -> bool:
        """Whether a message of `size` bytes fits the broker."""
        return size + OVERHEAD <= self._limit

    def attach(self, broker: Broker) -> None:
        """Publish to this broker, once released."""
        self._broker = broker
        self._loop = asyncio.get_running_loop()  # which costs a system call each time it is asked for
        # Rule 5. A connection that stands still must not keep back what the others confirm.
        self._in_line = broker.log is None and broker.guarantees.order != "subject"
        self._limit = min(self._settings.max_payload, broker.guarantees.max_payload)
        self._outbox.batch_bytes = min(self._outbox.batch_bytes, self._limit - OVERHEAD)

    async def reserve(self, size: int) -> None:
        """Take a place for a message of `size` bytes (rule 1); does not suspend while there is room.

        Raises:
            PayloadTooLarge: no envelope of this message fits the broker.
            Backpressure: the outbox stayed full until the deadline.
            BrokerClosed: the adapter is closed.
        """
        if self.reserve_now(size):
            return
        if self._link_down and not self._queue:
            self._make_room(size)
        else:
            await self._wait_for_place(size)

    def reserve_now(self, size: int) -> bool:
        """Take a place as `reserve` does while there is room; False, and no place, when it is to be waited for.

        Raises:
            PayloadTooLarge, BrokerClosed: as `reserve`.
        """
        if self._closed or size + OVERHEAD > self._limit:
            self._check(size)
        return not self._queue and self._outbox.claim(size)

    def fits(self, size: int) -> bool:
        """Whether a message of `size` bytes could leave now, without waiting for a place or for the link."""
        self._check(size)
        return not self._queue and not self._link_down and self._outbox.fits(size)

    async def turn(self) -> None:
        """Wait behind those who wait for a place, without taking one; does not suspend when nobody does.

        Raises:
            Backpressure: the outbox stayed full until the deadline.
            BrokerClosed: the adapter is closed.
        """
        if self._queue:
            await self._wait_for_place(0)
            self.release_place(0)

    def reserve_anyway(self, size: int) -> bool:
        """Take a place for an answer to another node, which cannot wait; False when even that is too much."""
        outbox, bounds = self._outbox, self._settings
        full = len(outbox) >= 2 * bounds.outbox_messages or outbox.bytes + size > 2 * bounds.outbox_bytes
        if self._closed or full or size + OVERHEAD > self._limit:
            self._stats.given_up += 1
            self._tell(Gap("given_up", origin=self._origin, missed=1))
            return False
        self._outbox.reserve(size)
        return True

    def release_place(self, size: int) -> None:
        """Give back a place that is not used after all."""
        self._outbox.release(size)
        self._admit()

    def put(self, subject: Subject, message: bytes) -> Entry:
        """Send a message in the place reserved for it (rule 2)."""
        for send_first in self.before:
            send_first()
        epoch, number = self._numbering.next(subject)
        self._place = place = self._place + 1
        entry = Entry(subject, message, epoch, number, time.monotonic(), place)
        self._outbox.put(entry)
        if self.readback is not None:
            self.readback.put(entry)
        if not self._scheduled:
            self._schedule()
        return entry

    def confirmed(self, entry: Entry) -> asyncio.Future[None]:
        """Is done once the broker has the message.

        Raises:
            PublishUnconfirmed: it had not confirmed within `emit_timeout`, and the message stays in the outbox;
                or the outbox gave it up after it had been sent.
            PublishRejected: the broker refused it, or the outbox gave it up before it was sent.
        """
        waiter: asyncio.Future[None] = asyncio.Future(loop=self._loop)
        self._waiters[entry] = waiter
        if self._patience is None:  # one timer for all
            self._patience = waiter.get_loop().call_later(self._settings.emit_timeout, self._lose_patience)
        return waiter

    def when_settled(self, entry: Entry, then: Callable[..., None]) -> None:
        """Call `then(taken=...)` once the broker has the message, or it is given up."""
        self._told[entry] = then

    def _lose_patience(self) -> None:
        """Let those go on whose deadline is over, and come back when the next one is."""
        self._patience = None
        patience, now = self._settings.emit_timeout, time.monotonic()
        over: list[Entry] = []
        for entry in self._waiters:
            if entry.queued + patience > now:
                delay = entry.queued + patience - now
                self._patience = asyncio.get_running_loop().call_later(delay, self._lose_patience)
                break
            over.append(entry)
        for entry in over:
            text = f"The broker did not confirm the message within {patience} s; it may still be delivered."
            self._disappoint(entry, PublishUnconfirmed(text, broker=self._name))

    def _disappoint(self, entry: Entry, error: BaseException) -> None:
        """Let who waits for the confirm of a message go on without it."""
        if (waiter := self._waiters.pop(entry, None)) is not None and not waiter.done():
            waiter.set_exception(error)

    def _tell_settled(self, entries: Iterable[Entry], *, taken: bool) -> None:
        for entry in entries:
            if (then := self._told.pop(entry, None)) is not None:
                asyncio.get_running_loop().call_soon(partial(then, taken=taken))

    def say(self, subject: Subject, message: bytes) -> asyncio.Future[Position | None]:
        """Send a message of this moment (a hello, a heartbeat): past the outbox, unnumbered, never again."""
        said = self._publish(subject, 0, 1, 0, [msgspec.Raw(message)])
        said.add_done_callback(_forget)
        return said

    def hold(self, *, link_down: bool) -> None:
        """Send nothing until `release` (rule 4)."""
        self._held = True
        self._link_down = link_down
        if self._retrying is not None:
            self._retrying.cancel()  # whoever holds decides when to release
        if link_down:
            self._idle.set()
            self._admit()

    def release(self) -> None:
        """Send again, the unconfirmed first (rule 3)."""
        self._held = self._link_down = False
        self._schedule()

    def tick(self, now: float) -> None:
        """Give up what is too old; `now` is the monotonic clock."""
        self._give_up(self._outbox.expire(now), "the outage outlasted outbox_age")
        self._admit()

    async def drain(self, timeout: float) -> None:
        """Wait until everything is confirmed, at most `timeout` seconds."""
        self._schedule()
        try:
            async with asyncio.timeout(timeout):
                while not self._outbox.idle and not self._link_down:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            logger.warning("roomcast: %d messages were not confirmed within %s s", len(self._outbox), timeout)

    def close(self) -> None:
        """Accept nothing more; what is left is given up, and whoever waits gets `BrokerClosed`."""
        self._closed = True
        if self._patience is not None:
            self._patience.cancel()
        for future, _ in self._queue:
            if not future.done():
                future.set_exception(BrokerClosed("The adapter was closed.", broker=self._name))
        self._queue.clear()
        self._give_up(self._outbox.clear(), "the adapter was closed")

    def _check(self, size: int) -> None:
        if self._closed:
            raise BrokerClosed("The adapter is closed: nothing can be sent any more.", broker=self._name)
        if size + OVERHEAD > self._limit:
            raise PayloadTooLarge(size=size + OVERHEAD, limit=self._limit, broker=self._name)

    def _make_room(self, size: int) -> None:
        self._give_up(self._outbox.evict(size), "the outbox was full during the outage")
        self._outbox.reserve(size)

    async def _wait_for_place(self, size: int) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket = (future, size)
        self._queue.append(ticket)
        if self._link_down:
            asyncio.get_running_loop().call_soon(self._admit)  # not now: it would overtake those let in before
        try:
            async with asyncio.timeout(self._settings.emit_timeout):
                await future
        except TimeoutError:
            self._abandon(future, size)
            raise Backpressure(
                f"The outbox stayed full for {self._settings.emit_timeout} s ({len(self._outbox)} messages): this "
                "node emits faster than its broker accepts. Emit less, or raise outbox_messages and outbox_bytes.",
                broker=self._name,
            ) from None
        except asyncio.CancelledError:
            self._abandon(future, size)
            raise
        finally:
            if ticket in self._queue:
                self._queue.remove(ticket)
            self._admit()
        if self._closed:
            self._outbox.release(size)
            raise BrokerClosed("The adapter was closed.", broker=self._name)

    def _abandon(self, future: asyncio.Future[None], size: int) -> None:
        if future.done() and not future.cancelled() and future.exception() is None:
            self._outbox.release(size)

    def _admit(self) -> None:
        """Let those who wait in, first come first served; each stays in line until it has run (rule 2)."""
        for future, size in self._queue:
            if future.done():
                continue
            if self._link_down:
                self._make_room(size)
            elif self._outbox.fits(size):
                self._outbox.reserve(size)
            else:
                break
            future.set_result(None)

    def _schedule(self) -> None:
        if not self._scheduled and not self._held:
            self._scheduled = True
            (self._loop or asyncio.get_running_loop()).call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        flight: list[Batch] = []
        outcomes: list[asyncio.Future[Position | None]] = []
        for _ in range(_FLUSH):
            if self._held or self._closed or (batch := self._outbox.take()) is None:
                break
            outcomes.append(self._send(batch))
            flight.append(batch)
        else:
            self._schedule()
        if not flight:
            return
        if self._in_line:
            outcomes[-1].add_done_callback(partial(self._landed, flight, outcomes))
        else:
            for batch, outcome in zip(flight, outcomes, strict=True):
                outcome.add_done_callback(partial(self._settled, batch))

    def _send(self, batch: Batch) -> asyncio.Future[Position | None]:
        first = batch.entries[0]
        messages = [msgspec.Raw(entry.message) for entry in batch.entries]
        try:
            return self._publish(batch.subject, first.epoch, first.number, first.place, messages)
        except Exception as exc:  # noqa: BLE001 - of a broker that breaks its rule 5: not a reason to lose sight of a flush
            failed: asyncio.Future[Position | None] = asyncio.Future(loop=self._loop)
            failed.set_exception(exc)
            return failed

    def _publish(
        self, subject: Subject, epoch: int, first: int, place: int, messages: list[msgspec.Raw]
    ) -> asyncio.Future[Position | None]:
        assert self._broker is not None, "published before attach"  # noqa: S101 - states an invariant
        now = time.time_ns() // 1000
        self._sent = now if now > self._sent else self._sent + 1
        payload = self._wire.seal(subject, Envelope(self._origin, self._sent, epoch, first, messages, place))
        log = self._broker.log
        if log is not None and place:
            published = log.publish(subject, payload, once=(self._origin, place))
        else:
            published = self._broker.publish(subject, payload)
        return published if isinstance(published, asyncio.Future) else asyncio.ensure_future(published)

    def _landed(self, flight: list[Batch], outcomes: list[asyncio.Future[Position | None]], _last: object) -> None:
        """The last batch of a flush is done, and so are those before it, as a rule (rule 5)."""
        for batch, outcome in zip(flight, outcomes, strict=True):
            if outcome.done():
                self._settle(batch, outcome)
            else:
                outcome.add_done_callback(partial(self._settled, batch))
        self._go_on()

    def _settled(self, batch: Batch, outcome: asyncio.Future[Position | None]) -> None:
        self._settle(batch, outcome)
        self._go_on()

    def _settle(self, batch: Batch, outcome: asyncio.Future[Position | None]) -> None:
        error = _error(outcome)
        if error is None:
            self._outbox.confirm(batch)
            self._stats.payloads += 1
            self._stats.published += len(batch.entries)
            if self.readback is not None:
                self.readback.confirmed(batch.entries[-1])
            if waiters := self._waiters:
                for entry in batch.entries:
                    if (waiter := waiters.pop(entry, None)) is not None and not waiter.done():
                        waiter.set_result(None)
            if self._told:
                self._tell_settled(batch.entries, taken=True)
        elif isinstance(error, PublishRejected):
            self._outbox.confirm(batch)
            self._give_up(batch.entries, str(error), error)
        elif not self._closed:
            self._outbox.give_back(batch)
            self._stats.resent += len(batch.entries)
            self._pause(error)

    def _go_on(self) -> None:
        if self._outbox.idle:
            self._idle.set()
        if self._queue:
            self._admit()
        self._schedule()

    def _pause(self, error: BaseException) -> None:
        if not isinstance(error, BrokerError):
            logger.error("roomcast: %s failed to publish with a foreign error", self._name, exc_info=error)
        if not self._held:
            self._held = True
            self._retrying = asyncio.get_running_loop().call_later(_RETRY, self._retry)

    def _retry(self) -> None:
        if self._closed:
            return
        if self._outbox.flying:  # what is still under way would overtake what came back
            self._retrying = asyncio.get_running_loop().call_later(_RETRY, self._retry)
        else:
            self.release()

    def _give_up(self, entries: Iterable[Entry], why: str, error: BrokerError | None = None) -> None:
        lost = list(entries)
        if not lost:
            return
        self._stats.given_up += len(lost)
        if self.readback is not None:
            self.readback.given_up(lost, self._outbox.entries)
        for entry in lost:
            kind = PublishUnconfirmed if entry.sent else PublishRejected
            self._disappoint(entry, error or kind(f"The message was given up: {why}.", broker=self._name))
        self._tell_settled(lost, taken=False)
        subjects = {entry.subject for entry in lost}
        self._tell(
            Gap(
                "given_up",
                subject=subjects.pop() if len(subjects) == 1 else None,
                origin=self._origin,
                missed=len(lost),
            )
        )
        self._idle.set()


def _error(done: asyncio.Future[Position | None]) -> BaseException | None:
    if done.cancelled():
        return PublishUnconfirmed("The broker cancelled a publish.", broker="the broker")
    return done.exception()


def _forget(done: asyncio.Future[Position | None]) -> None:
    if not done.cancelled():
        done.exception()  # a lost heartbeat needs no report: the link's own gap tells
