"""A model of a NATS server: what the broker's connection needs of it, over any transport.

1. What one connection sends is carried out in order; a message goes to every subscription of its subject at that
   moment, and to one of each queue group. There are no wildcards: nobody here uses them.
2. What a piece of input makes to be said, to anybody, is written when the piece has been carried out.
3. It says INFO first, and again once it knows the client. It says PING now and then, and gives up who owes two answers.
4. A connection whose output waits for longer than the limit of bytes is closed (`max_pending`).
5. A message that asks for it is traced: a report goes to where it says, a moment later.

`test_servers_alike.py` puts the same bytes to it and to a real one.
"""

import asyncio
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.simulation.talking import Talking

_FIRST_PING, _PING = 2.0, 20.0
"""Seconds after which it asks for a sign of life, at first and then."""
_REPORTS_LATER = 0.0005
_PAYLOAD = 1024 * 1024
_OPERATION = re.compile(rb"[ \t]*(?P<verb>[A-Za-z+-]+)(?:[ \t]+(?P<rest>[^\r\n]*?))?[ \t]*\r\n")
_LONGEST = 4096
"""Bytes of a line."""


@dataclass(frozen=True, slots=True, eq=False)
class _Subscription:
    connection: "NatsConnection"
    sid: bytes
    subject: bytes
    queue: bytes


class NatsModel(Talking):
    """The server.

    Args:
        name: of itself.
        limit: bytes of output that may wait for one connection.
        draw: decides who of a queue group gets a message.

    Attributes:
        cut: how many connections were closed because they read too slowly.
    """

    def __init__(
        self, name: str = "simulated", *, limit: int = 64 * 1024 * 1024, draw: random.Random | None = None
    ) -> None:
        super().__init__()
        self.name = name
        self.limit = limit
        self.cut = 0
        self._draw = draw or random.Random(0)
        self._clients = 0
        self._heard: dict[bytes, dict[_Subscription, None]] = {}

    def accept(self) -> "NatsConnection":
        self._clients += 1
        return NatsConnection(self, self._clients)

    def info(self, client: int) -> dict[str, object]:
        """What it says of itself."""
        return {
            "server_id": self.name,
            "server_name": self.name,
            "version": "2.15.1",
            "proto": 1,
            "go": "go1.27.2",
            "host": "127.0.0.1",
            "port": 4222,
            "headers": True,
            "max_payload": _PAYLOAD,
            "client_id": client,
            "client_ip": "127.0.0.1",
        }

    def add(self, subscription: _Subscription) -> None:
        self._heard.setdefault(subscription.subject, {})[subscription] = None

    def remove(self, subscription: _Subscription) -> None:
        if (same := self._heard.get(subscription.subject)) is not None:
            same.pop(subscription, None)
            if not same:
                del self._heard[subscription.subject]

    def route(self, subject: bytes, reply: bytes, header: bytes, payload: bytes, by: "NatsConnection | None") -> bool:
        """Rule 1: whether anybody hears it."""
        return bool(self.deliver(self.matching(subject), subject, reply, header, payload, by))

    def deliver(
        self,
        subscriptions: list[_Subscription],
        subject: bytes,
        reply: bytes,
        header: bytes,
        payload: bytes,
        by: "NatsConnection | None",
    ) -> list[_Subscription]:
        """Send a message to these, but for who wants to hear nothing of its own."""
        chosen = [one for one in subscriptions if one.connection is not by or one.connection.echo]
        for one in chosen:
            one.connection.message(one.sid, subject, reply, header, payload)
        return chosen

    def matching(self, subject: bytes) -> list[_Subscription]:
        """All subscriptions without a queue, and one of each queue group."""
        found = tuple(self._heard.get(subject, ()))
        groups: dict[bytes, list[_Subscription]] = {}
        for one in found:
            if one.queue:
                groups.setdefault(one.queue, []).append(one)
        return [one for one in found if not one.queue] + [self._draw.choice(group) for group in groups.values()]

    def inject(self, subject: bytes, payload: bytes) -> None:
        """Somebody publishes."""
        self.route(subject, b"", b"", payload, None)
        self.flush()


class NatsConnection(asyncio.Protocol):
    """What the server knows of one client.

    Attributes:
        echo: it hears what it publishes.
    """

    def __init__(self, server: NatsModel, number: int) -> None:
        self.echo = True
        self._server = server
        self._number = number
        self._transport: Any = None
        self._input = bytearray()
        self._output: list[bytes] = []
        self._subscriptions: dict[bytes, _Subscription] = {}
        self._name = ""
        self._verbose = self._no_responders = self._greeted = self._over = False
        self._owed = 0
        self._pinging: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._say_info({})
        self._server.flush()
        self._ping_in(_FIRST_PING)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._over = True
        if self._pinging is not None:
            self._pinging.cancel()
        for subscription in self._subscriptions.values():
            self._server.remove(subscription)
        self._subscriptions.clear()

    def data_received(self, data: bytes) -> None:
        self._input += data
        while not self._over and self._step():
            pass
        self._server.flush()
        if self._over:
            self._transport.close()

    def say(self, raw: bytes) -> None:
        self._output.append(raw)
        self._server.talks(self)

    def message(self, sid: bytes, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        middle = b" ".join(filter(None, (subject, sid, reply)))
        if header:
            sizes = b"%d %d" % (len(header), len(header) + len(payload))
            self.say(b"HMSG %b %b\r\n%b%b\r\n" % (middle, sizes, header, payload))
        else:
            self.say(b"MSG %b %d\r\n%b\r\n" % (middle, len(payload), payload))

    def flush(self) -> None:
        output, self._output = self._output, []
        self._transport.write(b"".join(output))
        if self._transport.get_write_buffer_size() > self._server.limit:
            self._server.cut += 1
            self._transport.abort()

    def _step(self) -> bool:
        """Carry out the first operation, if it is complete."""
        operation = _OPERATION.match(self._input)
        if operation is None:
            if b"\r\n" in self._input or len(self._input) > _LONGEST:
                self._end("Unknown Protocol Operation")
            return False
        verb, rest, end = operation["verb"].upper(), operation["rest"] or b"", operation.end()
        if verb in (b"PUB", b"HPUB"):
            return self._publish(verb, rest.split(), end)
        del self._input[:end]
        self._carry_out(verb, rest)
        return True

    def _carry_out(self, verb: bytes, rest: bytes) -> None:
        match verb, rest.split():
            case b"CONNECT", _:
                self._greet(json.loads(rest))
            case b"PING", _:
                self.say(b"PONG\r\n")
                if not self._greeted:
                    self._greeted = True
                    self._say_info({"connect_info": True, "remote_account": "$G"})
            case b"PONG", _:
                self._owed = 0
            case b"SUB", [subject, *queue, sid]:
                self._subscribe(subject, b"".join(queue), sid)
            case b"UNSUB", [sid]:
                if (subscription := self._subscriptions.pop(sid, None)) is not None:
                    self._server.remove(subscription)
                self._confirm()
            case _:
                self._end("Unknown Protocol Operation")

    def _greet(self, options: dict[str, Any]) -> None:
        self.echo = options.get("echo", True)
        self._name = options.get("name", "")
        self._verbose = options.get("verbose", True)
        self._no_responders = options.get("no_responders", False) and options.get("headers", False)
        self._confirm()

    def _subscribe(self, subject: bytes, queue: bytes, sid: bytes) -> None:
        if not all(subject.split(b".")):
            self.say(b"-ERR 'Invalid Subject'\r\n")
            return
        if sid not in self._subscriptions:
            subscription = self._subscriptions[sid] = _Subscription(self, sid, subject, queue)
            self._server.add(subscription)
        self._confirm()

    def _publish(self, verb: bytes, words: list[bytes], at: int) -> bool:
        headed = verb == b"HPUB"
        try:
            subject, *replies = words[: -2 if headed else -1]
            sizes = [int(word) for word in words[-2 if headed else -1 :]]
        except ValueError:
            self._end("Unknown Protocol Operation")
            return False
        size, header_size = sizes[-1], sizes[0] if headed else 0
        if size > _PAYLOAD:
            self._end("Maximum Payload Violation")
            return False
        if len(self._input) < at + size + 2:
            return False
        raw = bytes(self._input[at : at + size])
        del self._input[: at + size + 2]
        self._confirm()
        header, payload = raw[:header_size], raw[header_size:]
        reply = b"".join(replies)
        traced = dict(_fields(header))
        if destination := traced.get("Nats-Trace-Dest"):
            found = self._server.matching(subject)
            self._report(destination.encode(), header, size, subject, found)
            if traced.get("Nats-Trace-Only", "false") != "true":
                self._server.deliver(found, subject, reply, header, payload, self)
        elif not self._server.route(subject, reply, header, payload, self) and reply and self._no_responders:
            status = b"NATS/1.0 503\r\nNats-Subject: %b\r\n\r\n" % subject
            for one in self._subscriptions.values():
                if one.subject == reply:
                    self.message(one.sid, reply, b"", status, b"")
                    break
        return True

    def _report(self, to: bytes, header: bytes, size: int, subject: bytes, found: list[_Subscription]) -> None:
        """Rule 5."""
        fields: dict[str, list[str]] = {}
        for name, value in _fields(header):
            fields.setdefault(name, []).append(value)
        own = {"kind": 0, "cid": self._number, "name": self._name, "acc": "$G"}
        events: list[dict[str, object]] = [{"type": "in", **own, "subj": subject.decode()}]
        for one in found:
            hears, queue = one.connection, one.queue.decode()
            whom = {"kind": 0, "cid": hears._number, "name": hears._name, "sub": one.subject.decode()}
            events.append({"type": "eg", **whom, **({"queue": queue} if queue else {})})
        report = {
            "server": {"name": self._server.name, "id": self._server.name, "ver": "2.15.1"},
            "request": {"header": fields, "msgsize": size},
            "events": events,
        }
        raw = json.dumps(report, separators=(",", ":")).encode()
        asyncio.get_running_loop().call_later(_REPORTS_LATER, self._send_report, to, raw)

    def _send_report(self, to: bytes, raw: bytes) -> None:
        self._server.inject(to, raw)

    def _say_info(self, more: dict[str, object]) -> None:
        told = self._server.info(self._number) | more
        self.say(b"INFO %b \r\n" % json.dumps(told, separators=(",", ":")).encode())

    def _confirm(self) -> None:
        if self._verbose:
            self.say(b"+OK\r\n")

    def _end(self, why: str) -> None:
        self.say(f"-ERR '{why}'\r\n".encode())
        self._over = True

    def _ping_in(self, seconds: float) -> None:
        self._pinging = asyncio.get_running_loop().call_later(seconds, self._ping)

    def _ping(self) -> None:
        if self._owed >= 2:
            self._end("Stale Connection")
        else:
            self._owed += 1
            self.say(b"PING\r\n")
            self._ping_in(_PING)
        self._server.flush()
        if self._over:
            self._transport.close()


def _fields(header: bytes) -> Iterator[tuple[str, str]]:
    for line in header.decode().split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            yield name.strip(), value.strip()
