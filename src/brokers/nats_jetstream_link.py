"""The link of a node to a log in JetStream: it appends, and asks each stream for as many entries as it wants.

A consumer is made for each stream and each link, starts right after the last entry that was read, takes no acks and
goes by itself when the link is gone. Requests for entries are served in their order; one that runs out is told.

1. A stream that was deleted may have been made anew between two questions. So its life is looked at again once the
   consumer is there: the consumer of another life starts at a place that means nothing in it, and ends the link.
2. A deleted stream takes its consumers with it, and JetStream may go without a word to those who wait. So while a
   request is out, the consumer is to give a sign of life each quarter of a heartbeat, and silence ends the link.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from secrets import token_hex
from typing import Any, cast

from roomcast.brokers.log_broker import Appending, Entry, Intake, Lost, Once, trimmed
from roomcast.brokers.log_places import Place, View
from roomcast.brokers.nats_jetstream_wire import NAME, ApiError, Wire
from roomcast.core.broker import BrokerConfig, Position, Subject
from roomcast.core.errors import BrokerClosed, BrokerError, BrokerUnavailable, ReplayUnavailable

_PAGE = 512
"""Entries asked for at once, at most."""
_EXPIRES = 30.0
"""Seconds after which a request for entries runs out, and is made again."""
_SILENT = 3
"""Signs of life that may be missing, one after the other (rule 2)."""
_LEAVES = 300.0
"""Seconds after which JetStream removes a consumer that nobody asks any more."""
_GOODBYE = 0.5
"""Seconds that the removal of consumers may take at the end."""
_OVERHEAD = 1024
"""Bytes an entry may take in the stream besides its payload."""


def stream_name(prefix: str, stream: int) -> str:
    """The stream's name: dots of the prefix cannot stand in one."""
    return f"{prefix.replace('.', '_')}_log_{stream}"


def moment(seconds: float) -> str:
    """A moment as JetStream writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def seconds_of(text: str) -> float:
    """The seconds since 1970 of a moment that JetStream wrote; it has nine digits, and Python reads six."""
    head, _, rest = text.partition(".")
    fraction = rest.rstrip("Z")[:6] or "0"
    return datetime.fromisoformat(f"{head.rstrip('Z')}+00:00").timestamp() + float(f"0.{fraction}")


@dataclass(slots=True)
class _Request:
    """A request for entries: its name, and how many are still to come."""

    name: str
    left: int


@dataclass(slots=True)
class _Reading:
    """One consumer, and what was asked of it."""

    stream: int
    consumer: str
    number: int = 0  # of the last entry it sent
    asked: int = 0
    silent: int = 0  # signs of life that were due since the last one
    requests: deque[_Request] = field(default_factory=deque["_Request"])

    def arrived(self) -> None:
        self.number += 1
        self.asked -= 1
        self.silent = 0
        self.requests[0].left -= 1
        if not self.requests[0].left:
            self.requests.popleft()

    def ended(self, request: _Request) -> None:
        self.asked -= request.left
        self.requests.remove(request)


class JetStreamLink:
    """One life of the connection.

    Args:
        config: of the broker.
        intake: where entries go.
        lost: is called once, at the moment the link is lost.
    """

    def __init__(self, config: BrokerConfig, intake: Intake, lost: Lost) -> None:
        self.over = asyncio.Event()
        self.views: Sequence[View] = ()
        self.wire = Wire(config, self._delivered, self._told, self._on_lost)
        self._loop = asyncio.get_running_loop()
        self._config = config
        self._intake = intake
        self._lost = lost
        self._ended = False
        self._readings: dict[str, _Reading] = {}
        self._pages: dict[str, asyncio.Queue[Entry | None]] = {}
        self._replaying: dict[str, str] = {}  # consumer, by the request that is out
        self._requests = 0
        self._sign = min(config.heartbeat / 4, _EXPIRES / 2)
        self._ask = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._settle: list[Callable[[int], Position]] = []

    @property
    def max_payload(self) -> int:
        """What the server carries; some of it goes for the header."""
        return self.wire.max_payload - 128

    def found(self, views: Sequence[View]) -> None:
        """Take note of how each stream was found."""
        self.views = views
        self._settle = [self._settling(stream, view.end.epoch) for stream, view in enumerate(views)]

    def _settling(self, stream: int, epoch: str) -> Callable[[int], Position]:
        return lambda sequence: self._intake.position(stream, Place(epoch, sequence))

    def carry(self) -> None:
        """Make the consumers, and ask for entries."""
        self._tasks.append(self._loop.create_task(self._read(), name="roomcast-jetstream-read"))
        self._tasks.append(self._loop.create_task(self._watch(), name="roomcast-jetstream-watch"))

    def append(self, stream: int, subject: Subject, payload: bytes, once: Once | None) -> Appending:
        """Publish to the stream's subject, the entry's own behind it."""
        name = f"{self._config.prefix}.log.{stream}.{subject}"
        return self.wire.append(name, payload, self._settle[stream], None if once is None else f"{once[0]}:{once[1]}")

    async def flush(self, within: float) -> None:
        """Wait for what was appended, for so many seconds at most."""
        await self.wire.flush(within)

    async def replay(self, stream: int, until: Place, since: float) -> AsyncGenerator[Sequence[Entry]]:
        """Pages from a consumer that starts at a moment."""
        if until.offset == 0:
            return
        try:
            first = await self._covered(stream, since)
            if first > until.offset:
                return
            consumer = await self._consumer(
                stream, {"deliver_policy": "by_start_time", "opt_start_time": moment(since)}
            )
            entries: asyncio.Queue[Entry | None] = asyncio.Queue()
            self._pages[consumer] = entries
            last = 0
            try:
                while last < until.offset:
                    page = await self._page(stream, consumer, entries)
                    if not page or (last and page[0].at.offset != last + 1):
                        raise trimmed()
                    for one, other in pairwise(page):
                        if other.at.offset != one.at.offset + 1:
                            raise trimmed()
                    last = page[-1].at.offset
                    if kept := [entry for entry in page if entry.at.offset <= until.offset]:
                        yield kept
            finally:
                del self._pages[consumer]
                await self._remove(stream, consumer)
        except ApiError as exc:
            raise BrokerUnavailable(f"The log in JetStream cannot be read now: {exc}", broker=NAME) from exc

    async def _state(self, stream: int) -> dict[str, Any]:
        """The stream's state, or a refusal when it is not the one that this link found (rule 1)."""
        info = await self.wire.ask(f"STREAM.INFO.{stream_name(self._config.prefix, stream)}")
        if info["created"] != self.views[stream].end.epoch:
            raise ReplayUnavailable("The log was deleted and made anew.", reason="epoch_changed")
        return cast("dict[str, Any]", info["state"])

    async def _covered(self, stream: int, since: float) -> int:
        """The first sequence of the stream, or a refusal when entries that young may be gone."""
        state, view, settings = await self._state(stream), self.views[stream], self._intake.settings
        first = int(state["first_seq"]) or 1
        whole = first == 1 or (state["messages"] and seconds_of(state["first_ts"]) < since)
        by_age = view.time - since <= settings.retention
        spare = int(state["bytes"]) + self._config.max_payload + _OVERHEAD <= settings.stream_bytes
        # Had max_bytes pushed out anything of that age, the stream would still be as full as it may be.
        if not whole and not (by_age and spare):
            raise trimmed()
        return first

    async def _page(self, stream: int, consumer: str, entries: asyncio.Queue[Entry | None]) -> list[Entry]:
        self._requests += 1
        request = f"n{self._requests}"
        self._replaying[request] = consumer
        page: list[Entry] = []
        try:
            verb = f"CONSUMER.MSG.NEXT.{stream_name(self._config.prefix, stream)}.{consumer}"
            self.wire.send(verb, request, {"batch": _PAGE, "no_wait": True})
            while len(page) < _PAGE and (entry := await entries.get()) is not None:
                page.append(entry)
        finally:
            del self._replaying[request]
        if self.wire.over.is_set():
            raise BrokerUnavailable("The connection to NATS was lost.", broker=NAME)
        return page

    async def _consumer(self, stream: int, start: dict[str, Any]) -> str:
        name, consumer = stream_name(self._config.prefix, stream), f"{token_hex(8)}"
        config = {
            **start,
            "name": consumer,
            "ack_policy": "none",
            "max_deliver": 1,
            "replay_policy": "instant",
            "inactive_threshold": int(_LEAVES * 1e9),
            "mem_storage": True,
            "num_replicas": 1,
            "description": f"{self._config.prefix} {self._config.node}",
        }
        request = {"stream_name": name, "config": config, "action": "create"}
        await self.wire.ask(f"CONSUMER.CREATE.{name}.{consumer}", request)
        try:
            await self._state(stream)
        except ReplayUnavailable:
            await self._remove(stream, consumer)
            raise
        return consumer

    async def _remove(self, stream: int, consumer: str) -> None:
        with suppress(Exception):  # it goes by itself
            self.wire.send(f"CONSUMER.DELETE.{stream_name(self._config.prefix, stream)}.{consumer}", "gone")

    async def _read(self) -> None:
        """Keep as many entries asked for as are wanted."""
        backlog, places = self._intake.backlog, self._intake.places
        try:
            for stream in range(len(self.views)):
                start = {"deliver_policy": "by_start_sequence", "opt_start_seq": places.of(stream).offset + 1}
                consumer = await self._consumer(stream, start)
                self._readings[consumer] = _Reading(stream, consumer)
            while True:
                self._ask.clear()
                room = min(_PAGE, backlog.room // len(self._readings))
                if not room and not any(reading.asked for reading in self._readings.values()):
                    await backlog.has_room()
                    room = max(1, min(_PAGE, backlog.room // len(self._readings)))
                for reading in self._readings.values():
                    if (wanted := room - reading.asked) > room // 2 or (wanted > 0 and not reading.asked):
                        await self._request(reading, wanted)
                await self._ask.wait()
        except Exception as exc:  # noqa: BLE001 - whatever ends this loop ends the link, and says so
            self.wire.lose(exc)

    async def _watch(self) -> None:
        """End the link when a consumer is silent (rule 2)."""
        while True:
            await asyncio.sleep(self._sign)
            for reading in self._readings.values():
                reading.silent = reading.silent + 1 if reading.requests else 0
                if reading.silent > _SILENT:
                    self.wire.lose(TimeoutError("JetStream does not answer a request for entries"))

    async def _request(self, reading: _Reading, wanted: int) -> None:
        self._requests += 1
        request = f"r{self._requests}"
        reading.requests.append(_Request(request, wanted))
        reading.asked += wanted
        verb = f"CONSUMER.MSG.NEXT.{stream_name(self._config.prefix, reading.stream)}.{reading.consumer}"
        times = {"expires": int(_EXPIRES * 1e9), "idle_heartbeat": int(self._sign * 1e9)}
        self.wire.send(verb, request, {"batch": wanted, **times})

    def _delivered(self, consumer: str, number: int, sequence: int, subject: str, payload: bytes) -> None:
        if (reading := self._readings.get(consumer)) is not None:
            if number != reading.number + 1 or not reading.requests:
                self.wire.lose(LookupError("JetStream left out an entry"))
                return
            reading.arrived()
            epoch = self.views[reading.stream].end.epoch
            entry = Entry(Place(epoch, sequence), self._subject(reading.stream, subject), payload)
            self._intake.take(reading.stream, entry)
            self._ask.set()
        elif (entries := self._pages.get(consumer)) is not None:
            stream = int(subject[len(self._config.prefix) + 5 :].partition(".")[0])
            place = Place(self.views[stream].end.epoch, sequence)
            entries.put_nowait(Entry(place, self._subject(stream, subject), payload))

    def _subject(self, stream: int, subject: str) -> Subject:
        return Subject(subject[len(self._config.prefix) + 6 + len(str(stream)) :])

    def _told(self, request: str, status: str, description: str) -> None:
        if (consumer := self._replaying.get(request)) is not None:
            self._pages[consumer].put_nowait(None)
        elif status in {"100", "404", "408"}:
            for reading in self._readings.values():
                for one in [one for one in reading.requests if one.name == request]:
                    reading.silent = 0
                    if status != "100":
                        reading.ended(one)
                        self._ask.set()
        elif request.startswith("r"):
            self._loop.call_soon(self.wire.lose, LookupError(f"JetStream ended a request: {status} {description}"))

    def _on_lost(self, reason: Exception) -> None:
        self._stop()
        if not self._ended:
            self._lost(self, reason)

    def end(self, error: type[BrokerError]) -> None:
        """Stop on purpose."""
        self._ended = True
        text = "The broker is closed." if error is BrokerClosed else "NATS is not connected."
        self.wire.fail(error(text, broker=NAME), None)
        self._stop()

    def _stop(self) -> None:
        self.over.set()
        for task in self._tasks:
            task.cancel()
        for entries in self._pages.values():
            entries.put_nowait(None)

    async def aclose(self) -> None:
        """Leave no consumer, task or socket behind."""
        self._ended = True
        try:
            if self._readings and not self.wire.over.is_set():
                with suppress(BrokerUnavailable, TimeoutError):  # then they go by themselves
                    async with asyncio.timeout(_GOODBYE):
                        for reading in self._readings.values():
                            await self._remove(reading.stream, reading.consumer)
                        await self.wire.barrier()
        finally:
            await self.wire.aclose()
            await asyncio.gather(*self._tasks, return_exceptions=True)
