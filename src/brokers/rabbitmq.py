"""The RabbitMQ broker: `amqp://user:password@host:port/vhost` and `amqps://`, one server or nodes of a cluster.

Names: one direct exchange `<prefix>` (not durable, gone with the last node) and, per node and per life of its
link, one exclusive queue `<prefix>.queue.<node>.<random>`. A subject is a routing key, verbatim. One more
key, the queue's own name, is bound for the pulse: an empty message that this node publishes to itself. It
keeps the exchange alive, and its echo proves the whole way round, exchange, queue and consumer included.

The consumer takes no acks and no prefetch: an exclusive queue dies with its connection, so an unacknowledged
message could never come again, and a limit would only move the backlog into the memory of the server. What
this node cannot take is dropped here and told (rule 8).

In a cluster the exchange and the bindings are known to every node; a queue lives on the node that its link is
connected to, and dies with it. The next link has a queue of its own elsewhere. RabbitMQ 3 confirms a bind when all
nodes have it (Mnesia's transaction). RabbitMQ 4 may keep its bindings in Khepri, and then confirms when most nodes
have it: until the others do, some moments later, what is published through them does not come here.

A memory or disk alarm makes the server stop reading. A short one only delays; one that outlasts the watchdog
(rule 12) loses the link, and no new link counts as up before the server has confirmed a publish on it. So
during an alarm every publish fails at once with `BrokerUnavailable`, and none hangs.
"""

import asyncio
import contextlib
import random
import secrets
import ssl
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar
from urllib.parse import parse_qsl

from roomcast.brokers.attempts import cancelling, each_once
from roomcast.brokers.lifecycle import Lifecycle
from roomcast.brokers.rabbitmq_link import Confirm, Link, fail, translated
from roomcast.brokers.rabbitmq_servers import servers
from roomcast.core.arrivals import Arrivals
from roomcast.core.broker import BrokerConfig, Delivery, Gap, Guarantees, Log, Position, Subject
from roomcast.core.errors import (
    BrokerClosed,
    BrokerUnavailable,
    ConfigurationError,
    PayloadTooLarge,
    RoomcastError,
)

_PARTITIONS = 256  # binds take 0.1 ms each, pipelined, on one server and more in a cluster: no bind per room
_READ_LIMIT = 256 * 1024  # bytes read ahead; holds more than one AMQP frame
_LONGEST_DELAY = 0.3  # seconds between two attempts to reconnect, at most


class RabbitBroker:
    """Joins nodes through one direct exchange and one exclusive queue per node."""

    parameters: ClassVar[frozenset[str]] = frozenset(
        {"auth", "cafile", "capath", "certfile", "keyfile", "no_verify_ssl"}
    )
    log: Log | None = None

    def __init__(self, config: BrokerConfig) -> None:
        self._config = config
        options = dict(parse_qsl(config.url.partition("?")[2])) | dict(config.parameters)
        self._servers = servers(config.url, options, config.heartbeat)
        random.shuffle(self._servers)  # so that the nodes of a lost server spread over the others
        self._server = self._servers[-1]  # in use, or tried last
        self._tls = tls_context(options) if config.url.startswith("amqps:") else None
        self._subjects: set[Subject] = set()
        self._arrivals = Arrivals(config.buffer, self._check_open)
        self._life = Lifecycle[Link](
            "amqp",
            lambda: f"RabbitMQ at {self._server}",
            self._arrivals,
            connect=self._connect,
            flush=Link.finish,
            drop=self._drop,
            longest=_LONGEST_DELAY,
        )
        self.guarantees = Guarantees(
            order="publisher", confirmed=True, max_payload=config.max_payload, partitions=_PARTITIONS
        )

    async def start(self) -> None:
        """Connect (rule 1); what no retry mends, such as a wrong password, is a `ConfigurationError`."""
        await self._life.start()

    async def aclose(self) -> None:
        """Flush, delete the queue, disconnect; blocked calls raise `BrokerClosed` (rule 11)."""
        await self._life.aclose()

    def publish(self, subject: Subject, payload: bytes, /) -> asyncio.Future[Position | None]:
        """Send one message; the future is done when the server has confirmed it (rules 4 and 5).

        Many messages may be unconfirmed at once. A message stays pending until its confirm comes or the link
        is lost, which the watchdog decides within two heartbeats of silence.
        """
        if (link := self._life.link) is not None and len(payload) <= self.guarantees.max_payload:
            return link.publish(subject, payload)
        failed: Confirm = asyncio.get_running_loop().create_future()
        if link is None:
            fail(failed, self._life.no_link())
        else:
            fail(failed, PayloadTooLarge(size=len(payload), limit=self.guarantees.max_payload, broker="amqp"))
        return failed

    async def subscribe(self, subjects: Collection[Subject], /) -> None:
        """Hear these subjects; returns when the server has bound them (rule 2)."""
        self._check_open()
        self._subjects.update(subjects)
        await self._life.require().bind(subjects)

    async def unsubscribe(self, subjects: Collection[Subject], /) -> None:
        """Stop hearing these subjects (rule 3)."""
        self._subjects.difference_update(subjects)
        if (link := self._life.link) is not None:
            with contextlib.suppress(BrokerUnavailable, BrokerClosed):  # the next life binds without them
                await link.unbind(subjects)

    async def receive(self) -> Sequence[Delivery | Gap]:
        """All that has arrived, at least one event (rule 7)."""
        return await self._arrivals.take()

    async def _connect(self) -> Link:
        """A link to one of the servers, each tried once, all within `connect_timeout`."""
        return await each_once(len(self._servers), self._config.connect_timeout, self._open)

    async def _open(self, timeout: float) -> Link:
        """A link to the next server with every subject restored (rule 1), or an error that says what is wrong (13)."""
        self._server = self._servers[(self._servers.index(self._server) + 1) % len(self._servers)]
        link: Link | None = None
        try:
            async with asyncio.timeout(timeout):
                link = await self._dial()
                await link.open(f"{self._config.prefix}.queue.{self._config.node}.{secrets.token_hex(4)}")
                restored = False
                while not restored or link.bound != self._subjects:  # they may change while they are being restored
                    await link.bind(self._subjects - link.bound)
                    await link.unbind(link.bound - self._subjects)
                    await link.forget()
                    restored = True
            link.check()
        except BaseException as exc:
            if link is not None:
                link.lose("it could not be opened")
                await link.aclose()
            # aiormq raises a CancelledError that nobody sent when a connection ends under a call (rule 5).
            foreign = isinstance(exc, asyncio.CancelledError) and not cancelling()
            if isinstance(exc, RoomcastError) or not (foreign or isinstance(exc, Exception)):
                raise
            raise translated(exc, f"RabbitMQ at {self._server}", self._config, timeout) from exc
        self._life.use(link)
        self.guarantees = replace(self.guarantees, barrier=link.scope)
        link.carry(self._arrivals.put, self._on_lost, self._config.heartbeat)
        return link

    async def _dial(self) -> Link:
        server = self._server
        streams = await asyncio.open_connection(server.host, server.port, ssl=self._tls, limit=_READ_LIMIT)
        return Link(streams, server.url, self._config)

    async def _drop(self, link: Link) -> None:
        """End a link on purpose, and wait until nothing of it is left."""
        link.end(BrokerClosed if self._life.closed else BrokerUnavailable)
        await link.aclose()

    def _on_lost(self, link: Link) -> None:
        self._life.lost(link, link.why)

    def _check_open(self) -> None:
        self._life.check_open()


def tls_context(options: Mapping[str, str]) -> ssl.SSLContext:
    """What the certificate options of a URL ask for, or `ConfigurationError`."""
    try:
        context = ssl.create_default_context(cafile=options.get("cafile"), capath=options.get("capath"))
        if (certificate := options.get("certfile")) is not None:
            context.load_cert_chain(certificate, options.get("keyfile"))
    except OSError as exc:
        raise ConfigurationError("cafile, capath, certfile or keyfile cannot be loaded.") from exc
    unverified = options.get("no_verify_ssl", "0")
    if unverified not in {"0", "1"}:
        raise ConfigurationError("no_verify_ssl is 0 or 1.")
    if unverified == "1":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
