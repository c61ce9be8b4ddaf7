"""What is asked of stream queues in RabbitMQ besides reading them on, each time by a consumer of its own.

RabbitMQ puts chunks of its own into a stream, which no consumer is given, and each takes one offset: at the head of a
segment what it knows of publishers (osiris: CHNK_TRK_SNAPSHOT), and what clients of its stream protocol store
(CHNK_TRK_DELTA). So a jump of offsets is not yet a hole. But retention takes whole segments from the beginning: as long
as the stream has the message before a jump, it has all that was ever behind it.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

from roomcast.brokers.log_broker import Entry, trimmed
from roomcast.brokers.log_places import Place
from roomcast.brokers.rabbitmq_streams_messages import NAME, entry_of, holds, offset_of, queue_name, time_of
from roomcast.core.broker import BrokerConfig
from roomcast.core.errors import BrokerUnavailable, ConfigurationError

try:
    import aiormq.exceptions as amqp
    from aiormq.abc import AbstractChannel, DeliveredMessage
    from pamqp import commands
except ImportError as exc:
    raise ConfigurationError('amqp+streams:// needs the RabbitMQ client: pip install "roomcast[rabbitmq]"') from exc

_PAGE = 512
"""Messages that are read in one go."""


class Survey:
    """Asks over one connection.

    Args:
        channel: opens a channel of the client's own.
        config: of the broker; each answer has `connect_timeout`.
    """

    def __init__(self, channel: Callable[[], Awaitable[AbstractChannel]], config: BrokerConfig) -> None:
        self._channel = channel
        self._prefix = config.prefix
        self._within = config.connect_timeout

    async def end(self, stream: int, token: str, hello: Callable[[], Awaitable[object]]) -> Place:
        """Where a hello with this token ends up that is published now."""
        async with self._reading(stream, "next") as reader:
            await hello()
            while True:
                for message in await reader.some():
                    if message.header.properties.message_id == token:
                        return Place("", offset_of(message.header), token)

    async def has(self, stream: int, place: Place) -> bool:
        """Whether what was read last is still there."""
        async with self._reading(stream, place.offset) as reader:
            return holds(place, (await reader.some())[0].header)

    async def first(self, stream: int) -> int:
        """The oldest offset that the stream has now, of those that are given to anybody."""
        async with self._reading(stream, "first", 1) as reader, asyncio.timeout(self._within):
            return offset_of((await reader.some())[0].header)

    async def beginning(self, stream: int, end: int) -> tuple[int, str]:
        """The first offset, and the epoch: that of the first entry, or the first hello of a log that is whole."""
        first, spare = -1, ""
        async with self._reading(stream, "first") as reader:
            while True:
                for message in await reader.some():
                    offset, properties = offset_of(message.header), message.header.properties
                    first = offset if first < 0 else first
                    if properties.app_id:
                        return first, str(properties.app_id)
                    spare = spare or str(properties.message_id or "")
                    if spare and (first == 0 or offset >= end):
                        return first, spare

    async def replay(self, stream: int, until: Place, since: float) -> AsyncGenerator[Sequence[Entry]]:
        """Pages from a little before the moment; see `LogLink.replay`."""
        last, oldest = -1, since * 1000
        try:
            async with self._reading(stream, datetime.fromtimestamp(int(since) - 1, UTC)) as reader:
                await self._covered(stream, since)  # what goes from now on leaves a jump
                while last < until.offset:
                    async with asyncio.timeout(self._within):
                        messages = await reader.some(_PAGE)
                    page: list[Entry] = []
                    for message in messages:
                        offset = offset_of(message.header)
                        if last >= 0 and offset != last + 1 and await self.first(stream) > last + 1:
                            raise trimmed()
                        last = offset
                        entry = entry_of(until.epoch, offset, message.header, message.body)
                        if entry is not None and offset <= until.offset and time_of(message.header) >= oldest:
                            page.append(entry)
                    if page:
                        yield page
        except (amqp.AMQPError, OSError, TimeoutError) as exc:
            raise BrokerUnavailable("The log in RabbitMQ cannot be read now.", broker=NAME) from exc

    async def _covered(self, stream: int, since: float) -> None:
        """Refuse when entries that young may be gone: the oldest one there is younger."""
        async with self._reading(stream, "first") as reader, asyncio.timeout(self._within):
            while True:
                for message in await reader.some():
                    if offset_of(message.header) == 0:
                        return
                    if (moment := time_of(message.header)) > 0:
                        if moment < since * 1000:
                            return
                        raise trimmed()

    @asynccontextmanager
    async def _reading(self, stream: int, start: str | int | datetime, ahead: int = _PAGE) -> AsyncGenerator["_Reader"]:
        async with asyncio.timeout(self._within):
            reader = _Reader(await self._channel(), queue_name(self._prefix, stream))
            await reader.open(start, ahead)
        try:
            yield reader
        finally:
            await reader.aclose()


class _Reader:
    """A consumer by the client's own means, for a few messages."""

    def __init__(self, channel: AbstractChannel, queue: str) -> None:
        self._channel = channel
        self._queue = queue
        self._messages: asyncio.Queue[DeliveredMessage] = asyncio.Queue()

    async def open(self, start: str | int | datetime, ahead: int) -> None:
        """Begin at `"first"`, at `"next"`, at an offset or about a moment; so many may be on their way."""
        await self._channel.basic_qos(prefetch_count=ahead)
        await self._channel.basic_consume(
            self._queue, self._messages.put, arguments=cast("Any", {"x-stream-offset": start})
        )

    async def some(self, most: int = 64) -> list[DeliveredMessage]:
        """At least one message, and those behind it; their places are free for others."""
        messages = [await self._messages.get()]
        while not self._messages.empty() and len(messages) < most:
            messages.append(self._messages.get_nowait())
        last = cast("commands.Basic.Deliver", messages[-1].delivery)
        await self._channel.basic_ack(last.delivery_tag or 0, multiple=True)
        return messages

    async def aclose(self) -> None:
        """Leave nothing on the server."""
        await self._channel.close()
