"""The link of a node to a log in RabbitMQ stream queues, over AMQP 0-9-1.

It is a `rabbitmq_link.Link` (frames, confirms, loss) with another use: what is published carries its subject, its time
and the log's epoch in the header; what is delivered is acknowledged once there is room for more, so that the server
waits for a node that lags. A stream tells its offsets only with its messages, so there are two ways to open a link:

1. `look`: publish a hello and see where that ends up. This is the end of the stream, and the proof that the way round
   is whole. Then read the beginning, which has the epoch, and what this node read last, when it read before.
2. `take_up`, after a loss: read each stream on from the last message that was read, that one included. When it comes
   first, as it was, the stream is the same and has lost nothing: no stream that was deleted, made anew, trimmed or set
   back has it there. All this is one round trip, with a hello in it; whatever else happens, there is no such link.

A jump of offsets may be RabbitMQ's own (`rabbitmq_streams_survey`): what follows is held until the beginning of the
stream is known, which says whether anything was trimmed.
"""

import asyncio
import struct
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from secrets import token_hex

from roomcast.brokers.log_broker import Appending, Entry, Intake, Lost, Once
from roomcast.brokers.log_places import Place, View
from roomcast.brokers.log_settings import stream_of
from roomcast.brokers.rabbitmq_link import Confirm, Inlet, Link, Streams, fail
from roomcast.brokers.rabbitmq_streams_messages import (
    NAME,
    NOT_OPEN,
    NotYet,
    entry_of,
    exchange_name,
    holds,
    is_hello,
    mark_of,
    not_open,
    offset_of,
    queue_name,
)
from roomcast.brokers.rabbitmq_streams_survey import Survey
from roomcast.core.broker import BrokerConfig, Subject
from roomcast.core.errors import BrokerError, BrokerUnavailable, ConfigurationError, ReplayUnavailable

try:
    from aiormq.abc import AbstractChannel
    from pamqp import commands
    from pamqp.body import ContentBody
    from pamqp.frame import marshal
    from pamqp.header import ContentHeader
except ImportError as exc:
    raise ConfigurationError('amqp+streams:// needs the RabbitMQ client: pip install "roomcast[rabbitmq]"') from exc

_BATCH = 64 * 1024
_PREFETCH = 1024
"""Messages that may be on their way to this node, and a chunk more; half of them are acknowledged at once."""
_PATIENCE = 0.5
"""Seconds in which a message that was read before has to come again, once a later one is written."""
_HEAD = struct.Struct(">BHI")  # AMQP 0-9-1, 4.2.3: type, channel, size
_CONTENT = struct.Struct(">HHQHB")  # 4.2.6.1: class, weight, body size, flags; delivery mode
_FLAGS = (
    0x1000 | 0x0400 | 0x0020 | 0x0008
)  # delivery mode, correlation id (the time), type (the subject), app id (epoch)

Message = tuple[int, int, ContentHeader, bytes]
"""The number of its stream, its delivery tag, its header, its payload."""


class StreamsLink(Link):
    """One life of the connection; the link and the log link in one."""

    max_payload = 128 * 1024 * 1024

    def __init__(self, streams: Streams, url: str, config: BrokerConfig, intake: Intake, lost: Lost) -> None:
        super().__init__(streams, url, config)
        self.views: Sequence[View] = ()
        self._config = config
        self._intake = intake
        self._tell_lost = lost
        self._survey = Survey(self.channel, config)
        self._ended = False
        self._count = intake.settings.streams
        self._prefetch = max(1, min(_PREFETCH, config.buffer // 2))
        self._header: ContentHeader | None = None
        self._from = -1  # the stream of what is being delivered
        self._delivery = 0
        self._taken = 0  # the delivery that was taken last
        self._unacknowledged = 0
        self._waiting: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._epochs: list[bytes] = []
        self._held: deque[Message] | None = None  # what comes before the link, or a jump, is known to be good
        self._proofs: list[asyncio.Future[bool]] = []
        self._not_open = False

    # Opening.

    async def log_in(self) -> None:
        """Connect, and take over the frames of two channels from the client."""
        await self._connection.connect({"connection_name": self._title})
        self._connection.closing.add_done_callback(self._on_closing)
        traffic, topology = await asyncio.gather(
            *(self._connection.channel(publisher_confirms=False) for _ in range(2))
        )
        self._traffic, self._topology = traffic.number, topology.number
        limit = self._connection.connection_tune.frame_max
        self._chunk = limit - 8 if limit else 2**31
        traffic.frames = Inlet(self._on_traffic)
        topology.frames = Inlet(self._on_topology)
        self._on_lost = self._was_lost
        self._send(marshal(commands.Confirm.Select(nowait=True), self._traffic))
        self._send(marshal(commands.Basic.Qos(prefetch_count=self._prefetch), self._traffic))
        self._run(self._write())

    async def channel(self) -> AbstractChannel:
        """A channel for a few calls of the client's own; an error of the server ends it."""
        return await self._connection.channel(publisher_confirms=True)

    async def take_up(self) -> bool:
        """Read on from where this node is, when each stream is seen to be the same; else this link may be lost."""
        places = self._intake.places.marked
        if not places:
            return False
        self._held = deque()
        self._proofs = [self._loop.create_future() for _ in places]
        for stream, place in enumerate(places):
            self._consume(stream, place.offset)
        hellos = [self._hello(stream, token_hex(6), None) for stream in range(self._count)]
        try:
            await asyncio.gather(*hellos)
        except BrokerError as exc:
            if self._not_open:
                raise NotYet(f"RabbitMQ {NOT_OPEN}.", broker=NAME) from exc
            return False
        await asyncio.wait(self._proofs, timeout=_PATIENCE)  # nothing comes from behind the end
        if not all(proof.done() and proof.result() for proof in self._proofs):
            self.lose("the log is not as it was")
        if self.over.is_set():
            return False
        now = time.time()
        self._found([View(Place(place.epoch, -1), place, time=now) for place in places])
        return True

    async def look(self) -> None:
        """Find the end, the beginning and the epoch of each stream."""
        self._found([await self._view(stream) for stream in range(self._count)])

    async def _view(self, stream: int) -> View:
        token = token_hex(6)
        end = await self._survey.end(stream, token, lambda: self._hello(stream, token, None))
        first, epoch = await self._survey.beginning(stream, end.offset)
        kept = True
        for place in self._intake.places.marked[stream : stream + 1]:
            if place.epoch == epoch and first <= place.offset <= end.offset:
                kept = await self._survey.has(stream, place)
        return View(Place(epoch, -1), replace(end, epoch=epoch), first, time.time(), kept)

    def _found(self, views: Sequence[View]) -> None:
        self.views = views
        self._epochs = [view.end.epoch.encode() for view in views]
        for stream, view in enumerate(views):  # so that the epoch stands in what is not trimmed yet
            self._hello(stream, token_hex(6), view.end.epoch)

    def _hello(self, stream: int, token: str, epoch: str | None) -> Confirm:
        """Publish what only links read; without the epoch, until it is known to be the one of the stream."""
        confirm: Confirm = self._loop.create_future()
        self._tag += 1
        self._unconfirmed[self._tag] = confirm
        properties = commands.Basic.Properties(
            delivery_mode=2, message_id=token, app_id=epoch, correlation_id=str(int(time.time() * 1000))
        )
        self._send(self._route(stream) + marshal(ContentHeader(0, 0, properties), self._traffic))
        return confirm

    def carry(self) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        """Read each stream on, and watch the link from now on."""
        if self._held is None:
            for stream in range(self._count):
                self._consume(stream, self._intake.places.of(stream).offset + 1)
        else:
            self._release()
        self._run(self._watch(self._config.heartbeat))

    def _consume(self, stream: int, offset: int) -> None:
        frame = commands.Basic.Consume(
            queue=queue_name(self._config.prefix, stream),
            consumer_tag=str(stream),
            nowait=True,
            arguments={"x-stream-offset": offset},
        )
        self._send(marshal(frame, self._traffic))

    def append(self, stream: int, subject: Subject, payload: bytes, once: Once | None) -> Appending:
        """Queue one message; RabbitMQ does not know what was sent before, so numbers are left to receivers."""
        del stream, once
        if self.over.is_set():
            future: Appending = self._loop.create_future()
            fail(future, self._gone())
            return future
        return self.publish(subject, payload)

    async def flush(self, within: float) -> None:
        """Wait for the confirms of what was appended, for so many seconds at most."""
        if pending := [*self._unconfirmed.values(), *(entry[2] for entry in self._outgoing)]:
            await asyncio.wait(pending, timeout=within)

    def replay(self, stream: int, until: Place, since: float) -> AsyncGenerator[Sequence[Entry]]:
        """Pages from a consumer of its own."""
        if self.views[stream].end.epoch != until.epoch:
            raise ReplayUnavailable("The log was deleted and made anew.", reason="epoch_changed")
        return self._survey.replay(stream, until, since)

    # The end.

    def _on_channel_close(self, frame: commands.Channel.Close) -> None:
        self._not_open = not_open(frame.reply_text or "")
        super()._on_channel_close(frame)

    def _was_lost(self, _link: Link) -> None:
        for task in (self._waiting, self._asking):
            if task is not None:
                task.cancel()
        for proof in self._proofs:
            if not proof.done():
                proof.set_result(False)
        if not self._ended:
            self._tell_lost(self, ConnectionError(self.why))

    def end(self, error: type[BrokerError]) -> None:
        """Stop on purpose."""
        self._ended = True
        super().end(error)

    async def aclose(self) -> None:
        """Leave no socket and no task behind."""
        await super().aclose()
        tasks = [task for task in (self._waiting, self._asking) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def _gone(self) -> BrokerUnavailable:
        return BrokerUnavailable(f"The link to the log in RabbitMQ was lost: {self.why}.", broker=NAME)

    # Out.

    def _batch(self) -> bytes:
        parts, self._control = self._control, []
        size = 0
        now = b"%d" % (time.time() * 1000)
        while self._outgoing and size < _BATCH:
            subject, payload, confirm = self._outgoing.popleft()
            self._tag += 1
            self._unconfirmed[self._tag] = confirm
            stream = stream_of(subject, self._count)
            name, epoch = subject.encode(), self._epochs[stream]
            parts.append(self._heads.get(str(stream)) or self._route(stream))
            properties = b"%c%b%c%b%c%b" % (len(now), now, len(name), name, len(epoch), epoch)
            parts += (
                _HEAD.pack(2, self._traffic, _CONTENT.size + len(properties)),
                _CONTENT.pack(60, 0, len(payload), _FLAGS, 2),
                properties,
                b"\xce",
            )
            for at in range(0, len(payload), self._chunk):
                chunk = payload[at : at + self._chunk]
                parts += (_HEAD.pack(3, self._traffic, len(chunk)), chunk, b"\xce")
            size += len(payload)
        return b"".join(parts)

    def _route(self, stream: int) -> bytes:
        frame = commands.Basic.Publish(
            exchange=exchange_name(self._config.prefix), routing_key=str(stream), mandatory=True
        )
        head = self._heads[str(stream)] = marshal(frame, self._traffic)
        return head

    # In: the client's reader calls these for every frame; they must not raise.

    def _on_traffic(self, frame: object) -> None:
        self._heard = self._loop.time()
        if isinstance(frame, ContentBody):
            self._chunks.append(frame.value)
            self._missing -= len(frame.value)
            if self._missing <= 0:
                self._arrived()
        elif isinstance(frame, commands.Basic.Deliver):
            tag = frame.consumer_tag or ""
            self._from = int(tag) if tag.isdigit() else -1
            self._delivery = frame.delivery_tag or 0
        elif isinstance(frame, ContentHeader):
            self._header = frame
            self._missing = frame.body_size or 0
            if not self._missing:
                self._arrived()
        elif isinstance(frame, commands.Basic.Return):
            self._from = -1
            self.lose("the log was deleted")
        else:
            self._on_verdict(frame)

    def _arrived(self) -> None:
        payload = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        stream, header = self._from, self._header
        if self.over.is_set() or header is None or not 0 <= stream < self._count:
            return
        message = (stream, self._delivery, header, payload)
        if self._held is None:
            self._held = None if self._take(message) else deque([message])
            return
        self._held.append(message)
        if self._proofs and not (proof := self._proofs[stream]).done():
            proof.set_result(holds(self._intake.places.of(stream), header))

    def _take(self, message: Message, first: int | None = None) -> bool:
        """Take one in; False when it must wait until the beginning of its stream is known."""
        stream, delivery, header, payload = message
        offset = offset_of(header)
        if first is None and self._intake.places.jumps(stream, offset):
            self._asking = self._loop.create_task(self._ask(stream), name="roomcast-rabbitmq-first")
            return False
        entry = entry_of(self.views[stream].end.epoch, offset, header, payload)
        if entry is not None:
            self._intake.take(stream, entry, first)
        elif is_hello(header):
            self._intake.skip(stream, mark_of(header), offset, first=first, quiet=True)
        else:
            self._intake.skip(stream, "", offset, first=first)
        self._taken = delivery
        self._unacknowledged += 1
        if self._unacknowledged >= (self._prefetch + 1) // 2 and self._waiting is None:
            if self._intake.backlog.room:
                self._acknowledge()
            else:
                self._waiting = self._loop.create_task(self._acknowledge_later(), name="roomcast-rabbitmq-room")
        return True

    async def _ask(self, stream: int) -> None:
        """See what the stream still has, with all that comes held, and not acknowledged."""
        first = -1
        try:
            first = await self._survey.first(stream)
        finally:
            if first < 0:
                self.lose("the beginning of the log could not be read")
        self._release(first)

    def _release(self, first: int | None = None) -> None:
        """Take what was held, up to the next jump; `first` answers for the one at its head."""
        held = self._held or deque()
        while held and self._take(held[0], first):
            held.popleft()
            first = None
        self._held = held or None

    def _acknowledge(self) -> None:
        self._unacknowledged = 0
        self._send(marshal(commands.Basic.Ack(delivery_tag=self._taken, multiple=True), self._traffic))

    async def _acknowledge_later(self) -> None:
        await self._intake.backlog.has_room()
        self._waiting = None
        self._acknowledge()

    # The watchdog.

    async def _watch(self, heartbeat: float) -> None:
        """Ask for a sign of life; the question is whether the streams are still there (rule 12).

        Half a heartbeat lies between an answer and the next question, which has one heartbeat, counted from the last
        frame that came, and one fifth more for a loop that was busy.
        """
        while True:
            asked = self._loop.time()
            for stream in range(self._count):
                frame = commands.Queue.Declare(queue=queue_name(self._config.prefix, stream), passive=True)
                self._control.append(marshal(frame, self._topology))
                self._expect_reply()
            answer = self._replies[-1]
            while not answer.done():
                quiet = max(asked, self._heard)
                await asyncio.wait({answer}, timeout=max(0.0, quiet + heartbeat - self._loop.time()))
                if not answer.done():
                    await asyncio.sleep(heartbeat / 5)
                    if not answer.done() and self._heard <= quiet:
                        self.lose(await self._silence())
                        return
            await asyncio.sleep(heartbeat / 2)
