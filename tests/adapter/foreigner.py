"""A foreign client of each broker: publishes any bytes on any subject, and listens in on the nodes."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import uuid4

import aio_pika
import nats
import redis.asyncio

from roomcast.brokers.memory import MemoryBroker
from roomcast.core.broker import BrokerConfig, Delivery, Subject
from roomcast.core.options import Options
from roomcast.core.registry import open_broker

Send = Callable[[str, bytes], Awaitable[Any]]


@asynccontextmanager
async def foreigner(url: str, prefix: str) -> AsyncGenerator[Send]:
    """Publishes through the broker's own client library, past everything that roomcast checks."""
    match url.partition(":")[0]:
        case "redis":
            async with cast("Any", redis.asyncio).from_url(url) as client:
                yield client.publish
        case "nats":
            connection = await cast("Any", nats).connect(url)
            try:
                yield connection.publish
                await connection.flush()
            finally:
                await connection.close()
        case "amqp":
            async with await aio_pika.connect(url) as link:
                channel = await link.channel(publisher_confirms=False)
                exchange = await channel.get_exchange(prefix, ensure=False)

                async def send(subject: str, payload: bytes) -> None:
                    await exchange.publish(aio_pika.Message(payload), subject)

                yield send
                await (await link.channel()).close()  # a round trip: all of it is with the broker
        case _:
            broker = MemoryBroker(BrokerConfig(url))
            await broker.start()

            async def publish(subject: str, payload: bytes) -> None:
                await broker.publish(Subject(subject), payload)

            yield publish
            await broker.aclose()


class Wiretap:
    """Hears what nodes publish on some subjects, as the broker carries it."""

    def __init__(self, url: str, prefix: str) -> None:
        self._broker, _ = open_broker(url, Options(prefix=prefix), f"w{uuid4().hex[:5]}")

    async def start(self, subjects: Sequence[str]) -> None:
        await self._broker.start()
        await self._broker.subscribe([Subject(subject) for subject in subjects])

    async def next(self, subject: str) -> bytes:
        """The next payload on a subject."""
        while True:
            for event in await self._broker.receive():
                if isinstance(event, Delivery) and event.subject == subject:
                    return event.payload

    async def aclose(self) -> None:
        await self._broker.aclose()
