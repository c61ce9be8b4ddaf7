"""The broker over RabbitMQ stream queues: `amqp+streams://` and `amqps+streams://`, over AMQP 0-9-1, without a plugin.

| on the server          | what it is                                                                       |
|------------------------|----------------------------------------------------------------------------------|
| exchange `<prefix>.log` | direct, durable: leads to the streams, by their numbers                          |
| queue `<prefix>.log.<n>` | stream, durable: the entries; RabbitMQ trims them by age and size, in segments  |

An epoch is a random word in the first message that a stream ever had, and in every entry. What a message consists of
is in `rabbitmq_streams_messages`, the connection is `rabbitmq_streams_link.StreamsLink`, and what outlives it
`log_broker.LogBroker`. RabbitMQ 3.9 or newer.

Both outlive the nodes: RabbitMQ lets no stream expire. `rabbitmqctl delete_queue <prefix>.log.0` deletes one.
"""

import asyncio
import math
import random
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from roomcast.brokers.attempts import LEAST, Pauses, cancelling, each_once
from roomcast.brokers.log_broker import Intake, LogBroker, Lost
from roomcast.brokers.log_settings import PARAMETERS, LogSettings, log_settings
from roomcast.brokers.rabbitmq import RabbitBroker, tls_context
from roomcast.brokers.rabbitmq_link import translated
from roomcast.brokers.rabbitmq_servers import Server, servers
from roomcast.brokers.rabbitmq_streams_link import StreamsLink
from roomcast.brokers.rabbitmq_streams_messages import NAME, NOT_OPEN, NotYet, exchange_name, not_open, queue_name
from roomcast.core.backlog import Backlog
from roomcast.core.broker import BrokerConfig
from roomcast.core.errors import ConfigurationError, RoomcastError

try:
    import aiormq.exceptions as amqp
except ImportError as exc:
    raise ConfigurationError('amqp+streams:// needs the RabbitMQ client: pip install "roomcast[rabbitmq]"') from exc

_READ_LIMIT = 256 * 1024  # bytes read ahead; holds more than one AMQP frame
_SEGMENTS = 8  # of which the oldest goes as a whole
_SMALLEST, _LARGEST = 64 * 1024, 64 * 1024 * 1024
_LONGEST_PAUSE = 0.2  # seconds until a server that does not serve the log yet is asked again
_UNLIKE = re.compile(r"inequivalent arg '([\w-]+)' .*received '?(.*?)'? but current is '?(.*?)'?$", re.DOTALL)


class RabbitStreamsDriver:
    """Makes links to a log in RabbitMQ."""

    name = NAME

    def __init__(self, config: BrokerConfig, settings: LogSettings) -> None:
        scheme, _, rest = config.url.partition("://")
        self._config = replace(config, url=f"{scheme.removesuffix('+streams')}://{rest}")
        options = dict(parse_qsl(rest.partition("?")[2])) | dict(config.parameters)
        self._servers = servers(self._config.url, options, config.heartbeat)
        random.shuffle(self._servers)  # so that the nodes of a lost server spread over the others
        self._tls = tls_context(options) if scheme.startswith("amqps") else None
        self._settings = settings
        self._turn = 0
        self.address = ", ".join(str(server) for server in self._servers)

    async def dial(self, intake: Intake, lost: Lost) -> StreamsLink:
        """Try each server once, all within `connect_timeout`, and as long again as one does not serve the log yet."""
        opening = partial(self._open, intake, lost)
        loop, pauses = asyncio.get_running_loop(), Pauses(_LONGEST_PAUSE)
        deadline = loop.time() + self._config.connect_timeout
        while True:
            await pauses.wait()
            try:
                return await each_once(len(self._servers), max(LEAST, deadline - loop.time()), opening)
            except NotYet:
                if deadline - loop.time() <= _LONGEST_PAUSE:
                    raise

    async def _open(self, intake: Intake, lost: Lost, within: float) -> StreamsLink:
        server = self._servers[self._turn % len(self._servers)]
        self._turn += 1
        link: StreamsLink | None = None
        opened = False
        try:
            async with asyncio.timeout(within):
                link = await self._log_in(server, intake, lost)
                if not await link.take_up():
                    if link.over.is_set():
                        await link.aclose()
                        link = await self._log_in(server, intake, lost)
                    await self._look(link, intake)
            link.check()
            opened = True
            return link  # noqa: TRY300 - the next clauses are for those that are not
        except (Exception, asyncio.CancelledError) as exc:
            # aiormq raises a CancelledError that nobody sent when a connection ends under a call (rule 5).
            foreign = isinstance(exc, asyncio.CancelledError) and not cancelling()
            if isinstance(exc, RoomcastError) or not (foreign or isinstance(exc, Exception)):
                raise
            if not_open(str(exc)) or isinstance(exc, amqp.ConnectionInternalError):
                raise NotYet(f"RabbitMQ at {server} {NOT_OPEN}.", broker=NAME) from exc
            raise translated(exc, f"RabbitMQ at {server}", self._config, within) from exc
        finally:
            if not opened and link is not None:
                link.lose("it could not be opened")
                await link.aclose()

    async def _log_in(self, server: Server, intake: Intake, lost: Lost) -> StreamsLink:
        streams = await asyncio.open_connection(server.host, server.port, ssl=self._tls, limit=_READ_LIMIT)
        link = StreamsLink(streams, server.url, self._config, intake, lost)
        try:
            await link.log_in()
        except BaseException:
            link.lose("it could not be opened")
            await link.aclose()
            raise
        return link

    async def _look(self, link: StreamsLink, intake: Intake) -> None:
        await self._declare(link)
        await link.look()
        if behind := intake.places.behind(link.views):  # they lost their end, and the right to their epoch
            await self._remove(link, behind)
            await self._declare(link)
            await link.look()

    async def _declare(self, link: StreamsLink) -> None:
        """Make the streams, or see that they are as asked for.

        They are made from the last to the first, so that a first one without a last one is a log of fewer; and what
        could be one too many is looked for last, when no other can still be made without seeing this one.
        """
        prefix, wanted = self._config.prefix, self._settings.streams
        if await self._exists(link, 0) and not await self._exists(link, wanted - 1):
            await self._differs(link)
        channel = await link.channel()
        await channel.exchange_declare(exchange=exchange_name(prefix), exchange_type="direct", durable=True)
        for stream in range(wanted - 1, -1, -1):
            try:
                await channel.queue_declare(queue_name(prefix, stream), durable=True, arguments=self._arguments)
            except amqp.ChannelPreconditionFailed as exc:
                self._unlike(stream, str(exc))
                raise
            await channel.queue_bind(queue_name(prefix, stream), exchange_name(prefix), routing_key=str(stream))
        await channel.close()
        if await self._exists(link, wanted):
            await self._differs(link)

    @property
    def _arguments(self) -> dict[str, Any]:
        return {
            "x-queue-type": "stream",
            "x-max-age": f"{math.ceil(self._settings.retention)}s",
            "x-max-length-bytes": self._settings.stream_bytes,
            "x-stream-max-segment-size-bytes": self._segment,
        }

    @property
    def _segment(self) -> int:
        return min(_LARGEST, max(_SMALLEST, self._settings.stream_bytes // _SEGMENTS))

    async def _exists(self, link: StreamsLink, stream: int) -> bool:
        channel = await link.channel()
        try:
            await channel.queue_declare(queue_name(self._config.prefix, stream), passive=True)
        except amqp.ChannelNotFoundEntity:
            return False
        await channel.close()
        return True

    async def _differs(self, link: StreamsLink) -> None:
        count = 0
        while await self._exists(link, count):
            count += 1
        self._refuse(0, {"streams": str(count)})

    def _unlike(self, stream: int, text: str) -> None:
        """Say which setting another log has, as RabbitMQ names it."""
        if (match := _UNLIKE.search(text)) is None:
            return
        argument, theirs = match[1], match[3]
        if argument == "x-max-age":
            self._refuse(stream, {"retention": theirs})
        elif theirs.isdigit():
            parts = {"x-max-length-bytes": 1, "x-stream-max-segment-size-bytes": _SEGMENTS}.get(argument, 0)
            self._refuse(stream, {"max_bytes": str(int(theirs) * parts * self._settings.streams)} if parts else {})

    def _refuse(self, stream: int, theirs: Mapping[str, str]) -> None:
        name = queue_name(self._config.prefix, stream)
        where = f"The stream {name} in RabbitMQ"
        self._settings.differs(where, theirs, remedy=f"rabbitmqctl delete_queue {name}")

    async def _remove(self, link: StreamsLink, streams: list[int]) -> None:
        channel = await link.channel()
        for stream in streams:
            await channel.queue_delete(queue_name(self._config.prefix, stream))
        await channel.close()

    async def delete(self) -> None:
        """Delete the queues and the exchange, those of a log with other settings too."""
        server = self._servers[0]
        settings = replace(self._settings, streams=1)
        intake = Intake(self._config, settings, Backlog(1, _always_open))
        link = await self._log_in(server, intake, _nobody)
        try:
            count = 0
            while await self._exists(link, count):
                count += 1
            await self._remove(link, list(range(count)))
            channel = await link.channel()
            await channel.exchange_delete(exchange_name(self._config.prefix))
        finally:
            await link.aclose()


def _always_open() -> None:
    """Nothing is read here."""


def _nobody(_link: object, _cause: Exception) -> None:
    """Nobody waits for this link."""


class RabbitStreamsBroker(LogBroker):
    """A log in RabbitMQ streams; an append resolves once RabbitMQ has confirmed it."""

    parameters: ClassVar[frozenset[str]] = PARAMETERS | RabbitBroker.parameters

    def __init__(self, config: BrokerConfig) -> None:
        super().__init__(config, RabbitStreamsDriver(config, log_settings(config.parameters)))
