"""The connection to JetStream: what is appended and asked, each with an answer of its own, and what is delivered.

It is a `nats_link.Link` (echo, watchdog, loss) with another use: an append carries a reply subject, and resolves with
the answer of JetStream, not with an echo. All answers and deliveries come to one subject that only this link hears.
"""

import asyncio
import json
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

from roomcast.brokers.log_broker import Appending, failed
from roomcast.brokers.nats_commands import publish
from roomcast.brokers.nats_link import Link
from roomcast.core.broker import BrokerConfig, Subject
from roomcast.core.errors import (
    BrokerClosed,
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    PublishRejected,
    PublishUnconfirmed,
)

NAME = "nats+jetstream"
_CHUNK = 256
"""Appends written without giving other tasks a turn."""
_STATUS = b"NATS/1.0 "
NO_RESPONDERS = "503"

Settle = Callable[[int], object]
"""What an append resolves with, from the sequence that JetStream gave it."""


class ApiError(Exception):
    """JetStream said no.

    Attributes:
        code: its number for the reason.
    """

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{description} ({code})")
        self.code = code


class Answer(NamedTuple):
    """What came back to a request or an append.

    Attributes:
        status: of three digits, where it is no more than that; else empty.
        description: says the status in words.
    """

    payload: bytes
    status: str
    description: str


Delivered = Callable[[str, int, int, str, bytes], None]
"""Called with each entry: consumer, its number there, sequence in the stream, subject, payload."""
Told = Callable[[str, str, str], None]
"""Called with what JetStream says of a request for entries: the request's name, the status, a description."""


class Wire(Link):
    """One connection to a server with JetStream."""

    def __init__(
        self, config: BrokerConfig, delivered: Delivered, told: Told, on_lost: Callable[[Exception], None]
    ) -> None:
        super().__init__(config, _ignore, lambda _link, reason: on_lost(reason), _ignore_gap)
        self.inbox = f"{config.prefix}.reply.{secrets.token_hex(6)}"
        self._entries = f"{config.prefix}.log.".encode()
        self._answers = f"{self.inbox}.".encode()
        self._delivered = delivered
        self._told_of = told
        self._appends: deque[tuple[str, bytes, Appending, Settle, str | None]] = deque()
        self._wake = asyncio.Event()  # there are some
        self._pending: dict[str, tuple[str, Appending, Settle]] = {}
        self._asked: dict[str, asyncio.Future[Answer]] = {}
        self._tokens = 0
        self._answered = 0
        self._loop = asyncio.get_running_loop()

    @property
    def jetstream(self) -> bool:
        """Whether the server says that it has JetStream."""
        return bool(self._connection.info.get("jetstream"))

    async def _look_around(self, patience: float) -> None:  # noqa: ARG002 - the log is the same everywhere
        self._listen([Subject(f"{self.inbox}.>")])
        await self.barrier()
        self._tasks.append(self._loop.create_task(self._expire(), name="roomcast-jetstream-answers"))

    def append(self, subject: str, payload: bytes, settle: Settle, once: str | None) -> Appending:
        """Take an append in the order of the calls."""
        future: Appending = self._loop.create_future()
        if self.over.is_set():
            failed(future, BrokerUnavailable("NATS is not connected.", broker=NAME), self._said)
        else:
            self._appends.append((subject, payload, future, settle, once))
            self._wake.set()
        return future

    async def ask(self, verb: str, payload: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer of JetStream's API.

        Raises:
            ApiError: it said no.
            BrokerUnavailable: nobody answers.
            ConfigurationError: this user may not ask.
        """
        token = self._token("a")
        subject = Subject(f"$JS.API.{verb}")
        answered: asyncio.Future[Answer] = self._loop.create_future()
        self._asked[token] = answered
        try:
            with self._losing():
                self.send(verb, token, payload)
            await self.barrier()  # behind it a refusal of the server has come
            if subject in self._mute:
                self._mute.discard(subject)
                text = f"The NATS account may not publish to {subject}: its permissions must allow $JS.API.>"
                raise ConfigurationError(text)
            answer = await answered
        finally:
            self._asked.pop(token, None)
        if answer.status == NO_RESPONDERS:
            if self.jetstream:
                raise BrokerUnavailable("JetStream does not answer now.", broker=NAME)
            raise ConfigurationError("This NATS has no JetStream: start nats-server with -js, or use nats://.")
        reply = cast("dict[str, Any]", json.loads(answer.payload))
        if (error := reply.get("error")) is not None:
            raise ApiError(int(error.get("err_code", 0)), str(error.get("description", "no description")))
        return reply

    def send(self, verb: str, token: str, payload: Mapping[str, Any] | None = None) -> None:
        """Ask JetStream's API for what is answered to a token."""
        data = b"" if payload is None else json.dumps(payload).encode()
        self._connection.send(publish(f"$JS.API.{verb}", data, reply=f"{self.inbox}.{token}"))

    async def flush(self, timeout: float) -> None:
        """Wait until all appends are answered, at most so many seconds."""
        waiting = [one[2] for one in self._appends] + [one[1] for one in self._pending.values()]
        if waiting:
            await asyncio.wait(waiting, timeout=timeout)

    def fail(self, unsent: BrokerError, cause: Exception | None) -> None:
        """Fail every append, by what is certain about it, and every question."""
        for _, _, future, _, _ in self._appends:
            failed(future, type(unsent)(str(unsent), broker=NAME), cause)
        for _, future, _ in self._pending.values():
            text = "The connection to NATS ended before JetStream confirmed the message."
            failed(future, PublishUnconfirmed(text, broker=NAME), cause)
        for answer in self._asked.values():
            failed(answer, BrokerUnavailable("The connection to NATS was lost.", broker=NAME), cause)
        self._appends.clear()
        self._pending.clear()

    def lose(self, reason: Exception) -> None:
        """End with everything that waits."""
        if not self.over.is_set():
            kind = BrokerClosed if isinstance(reason, BrokerClosed) else BrokerUnavailable
            self.fail(kind("The connection to NATS ended before the message was sent.", broker=NAME), reason)
            super().lose(reason)

    def _token(self, kind: str) -> str:
        self._tokens += 1
        return f"{kind}{self._tokens}"

    async def _write(self) -> None:
        with self._losing():
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._appends:
                    size = min(_CHUNK, len(self._appends))
                    self._connection.send(b"".join([self._next_append() for _ in range(size)]))
                    await self._breathe()

    def _next_append(self) -> bytes:
        subject, payload, future, settle, once = self._appends.popleft()
        token = self._token("p")
        headers = None if once is None else {"Nats-Msg-Id": once}
        command = publish(subject, payload, reply=f"{self.inbox}.{token}", headers=headers)
        self._pending[token] = (subject, future, settle)
        return command

    def _hear(self, number: bytes, subject: bytes, payload: bytes, reply: bytes, headers: bytes) -> None:
        if self.over.is_set():
            return
        if reply.startswith(b"$JS.ACK.") and subject.startswith(self._entries):
            self._arrivals += 1
            self._enter(subject, payload, reply)
        elif subject.startswith(self._answers):
            self._arrivals += 1
            self._answer(subject[len(self._answers) :].decode(), Answer(payload, *_status(headers)))
        else:
            super()._hear(number, subject, payload, reply, headers)

    def _enter(self, subject: bytes, payload: bytes, reply: bytes) -> None:
        # $JS.ACK.[domain.account.]stream.consumer.delivered.sequence.number.time.pending[.more]
        parts = reply.decode().split(".")
        at = 2 if len(parts) == 9 else 4  # noqa: PLR2004 - the short form
        try:
            consumer, sequence, number = parts[at + 1], int(parts[at + 3]), int(parts[at + 4])
        except (ValueError, IndexError):
            return
        self._delivered(consumer, number, sequence, subject.decode(), payload)

    def _answer(self, token: str, answer: Answer) -> None:
        if (append := self._pending.pop(token, None)) is not None:
            self._answered += 1
            self._settle(append, answer)
        elif (asked := self._asked.get(token)) is not None:
            if not asked.done():
                asked.set_result(answer)
        elif answer.status:
            self._told_of(token, answer.status, answer.description)

    def _settle(self, append: tuple[str, Appending, Settle], answer: Answer) -> None:
        _, future, settle = append
        if answer.status == NO_RESPONDERS:
            gone = LookupError("the stream was deleted")
            failed(future, BrokerUnavailable("The log is being taken up again.", broker=NAME), gone)
            self._loop.call_soon(self.lose, gone)
            return
        try:
            reply = json.loads(answer.payload)
            if (error := reply.get("error")) is not None:
                text = f"JetStream refused the message: {error.get('description', 'no reason given')}"
                failed(future, PublishRejected(text, broker=NAME))
            elif not future.done():
                future.set_result(cast("Any", settle(int(reply["seq"]))))
        except (ValueError, KeyError, AttributeError, TypeError) as exc:
            failed(future, PublishUnconfirmed("JetStream gave an answer that makes no sense.", broker=NAME), exc)

    def _refused(self, text: str) -> None:
        super()._refused(text)
        for subject in [denied for denied in self._mute if denied.encode().startswith(self._entries)]:
            self._mute.discard(subject)
            for token in [token for token, (name, _, _) in self._pending.items() if name == subject]:
                advice = "The NATS account may not publish to a subject of this log: allow <prefix>.>"
                failed(self._pending.pop(token)[1], PublishRejected(advice, broker=NAME), self._said)

    async def _expire(self) -> None:
        """Declare the link lost when JetStream answers nothing for two heartbeats, although NATS does (rule 12)."""
        silent, before = 0, -1
        with self._losing():
            while True:
                await asyncio.sleep(self._heartbeat / 2)
                silent = silent + 1 if self._pending and self._answered == before else 0
                before = self._answered
                if silent > 3:  # noqa: PLR2004 - half heartbeats
                    raise TimeoutError("JetStream does not answer")


def _status(headers: bytes) -> tuple[str, str]:
    """Status and description, of headers that begin with them."""
    if not headers.startswith(_STATUS):
        return "", ""
    line = headers[len(_STATUS) :].partition(b"\r\n")[0].decode(errors="replace")
    return line[:3], line[4:]


def _ignore(_subject: Subject, _payload: bytes) -> None:
    """Nothing is heard but answers."""


def _ignore_gap(_gap: object) -> None:
    """Nothing is lost but late."""
