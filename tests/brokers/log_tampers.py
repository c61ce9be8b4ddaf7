"""What somebody else may do to a log, for each broker that keeps one."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import aiormq
from aiormq.abc import AbstractChannel
from nats.aio.client import Client
from pamqp import commands

from roomcast.brokers.memory_log import memory_logs
from roomcast.brokers.redis_link import pack
from roomcast.brokers.redis_servers import ask, endpoint
from roomcast.core.broker import BrokerConfig
from tests.brokers.checks_log import Tamper
from tests.brokers.cluster import Cluster


class MemoryTamper:
    """A log in memory has no strangers, but a test may reach into it."""

    async def poison(self, cluster: Cluster) -> None:
        """Nobody can."""

    async def trim(self, cluster: Cluster, count: int) -> bool:
        for stream in memory_logs()[urlsplit(cluster.url).hostname or ""].streams:
            stream.trim(count)
        return True

    async def delete(self, cluster: Cluster) -> None:
        memory_logs().pop(urlsplit(cluster.url).hostname or "").delete()


class RedisTamper:
    """A client of the same Redis."""

    async def poison(self, cluster: Cluster) -> None:
        for words in (
            ("x", "y"),
            ("s", "a", "p", "b"),
            ("s", "a", "p", "b", "n", "nonsense"),
            ("s", "a", "p", "b", "n", "abc-x1"),
            ("p", "a", "s", "b", "n", "abc-1"),
            ("s", "a", "p", "b", "n", "abc-1", "z", "1"),
        ):
            await redis_command(cluster, "XADD", f"{cluster.prefix}:log:0", "*", *words)

    async def trim(self, cluster: Cluster, count: int) -> bool:
        length = await redis_command(cluster, "XLEN", f"{cluster.prefix}:log:0")
        await redis_command(cluster, "XTRIM", f"{cluster.prefix}:log:0", "MAXLEN", str(int(str(length)) - count))
        return True

    async def delete(self, cluster: Cluster) -> None:
        await redis_command(cluster, "DEL", f"{cluster.prefix}:log", f"{cluster.prefix}:log:0")


async def redis_command(cluster: Cluster, *words: str) -> object:
    """What the cluster's Redis answers to one command."""
    point = endpoint(BrokerConfig(cluster.url.replace("+streams", "", 1)))
    (connection,) = await point.dial(["test"], within=5.0)
    try:
        return await ask(connection, pack(*(word.encode() for word in words)))
    finally:
        await connection.disconnect()


class JetStreamTamper:
    """A client of the same NATS."""

    async def poison(self, cluster: Cluster) -> None:
        """Any payload on a subject of the log is an entry; another's are for the core to refuse."""

    async def trim(self, cluster: Cluster, count: int) -> bool:
        name = f"{cluster.prefix}_log_0"
        info = json.loads(await nats_request(cluster, f"STREAM.INFO.{name}", b""))
        upto = json.dumps({"seq": info["state"]["first_seq"] + count}).encode()
        assert json.loads(await nats_request(cluster, f"STREAM.PURGE.{name}", upto))["purged"] == count
        return True

    async def delete(self, cluster: Cluster) -> None:
        assert json.loads(await nats_request(cluster, f"STREAM.DELETE.{cluster.prefix}_log_0", b""))["success"]


async def nats_request(cluster: Cluster, verb: str, payload: bytes) -> bytes:
    """What JetStream answers to one request."""
    client = cast("Any", Client())
    await client.connect(cluster.url.replace("+jetstream", "", 1))
    try:
        return bytes((await client.request(f"$JS.API.{verb}", payload, timeout=5)).data)
    finally:
        await client.close()


class RabbitTamper:
    """A client of the same RabbitMQ."""

    async def poison(self, cluster: Cluster) -> None:
        queue = f"{cluster.prefix}.log.0"
        for properties in (
            commands.Basic.Properties(),
            commands.Basic.Properties(message_type="a"),
            commands.Basic.Properties(message_type="a", app_id="b"),
            commands.Basic.Properties(message_type="a", app_id="b", correlation_id="soon"),
        ):
            async with amqp_channel(cluster) as channel:
                await channel.basic_publish(b"poison", routing_key=queue, properties=properties)

    async def trim(self, cluster: Cluster, count: int) -> bool:
        del cluster, count
        return False  # a stream loses whole segments

    async def delete(self, cluster: Cluster) -> None:
        async with amqp_channel(cluster) as channel:
            await channel.queue_delete(f"{cluster.prefix}.log.0")


@asynccontextmanager
async def amqp_channel(cluster: Cluster) -> AsyncGenerator[AbstractChannel]:
    """A channel of a client that waits for confirms."""
    connection = await aiormq.connect(cluster.url.replace("+streams", "", 1))
    try:
        yield await connection.channel()
    finally:
        await connection.close()


TAMPERS: dict[str, Tamper] = {
    "memory+log": MemoryTamper(),
    "redis+streams": RedisTamper(),
    "nats+jetstream": JetStreamTamper(),
    "amqp+streams": RabbitTamper(),
}
