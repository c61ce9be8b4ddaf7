"""The broker over Redis Streams: `redis+streams://`, `rediss+streams://` (TLS) and `unix+streams://`.

What stands in Redis is said in `redis_streams_scripts.py`, the connections are `redis_streams_link.StreamsLink`, and
what outlives them is `log_broker.LogBroker`. Redis 6.2 or newer, one server.
"""

import asyncio
from dataclasses import replace
from secrets import token_hex
from typing import ClassVar, cast

from roomcast.brokers.log_broker import Intake, LogBroker, Lost
from roomcast.brokers.log_places import Place, View
from roomcast.brokers.log_settings import PARAMETERS, LogSettings, log_settings
from roomcast.brokers.redis_link import Connection, pack
from roomcast.brokers.redis_servers import TLS_PARAMETERS, ask, endpoint
from roomcast.brokers.redis_streams_link import Keys, StreamsLink, expiry
from roomcast.brokers.redis_streams_scripts import APPEND, OPEN
from roomcast.core.broker import BrokerConfig
from roomcast.core.errors import BrokerUnavailable, ConfigurationError, RoomcastError

try:
    from redis.exceptions import ResponseError
except ImportError as missing:
    raise ConfigurationError('redis+streams:// needs the Redis client: pip install "roomcast[redis]"') from missing


class RedisStreamsDriver:
    """Makes links to a log in one Redis."""

    name = "redis+streams"

    def __init__(self, config: BrokerConfig, settings: LogSettings) -> None:
        own = {name: value for name, value in config.parameters.items() if name not in PARAMETERS}
        scheme, _, rest = config.url.partition("://")
        self._endpoint = endpoint(replace(config, url=f"{scheme.removesuffix('+streams')}://{rest}", parameters=own))
        self._config = config
        self._settings = settings
        self._keys = Keys(config.prefix, settings.streams)
        self.address = self._endpoint.address

    async def dial(self, intake: Intake, lost: Lost) -> StreamsLink:
        """Two connections, the scripts, and the streams as they are."""
        names = [f"{self._config.prefix}:{self._config.node}:{role}" for role in ("reads", "appends")]
        within = self._config.connect_timeout
        deadline = asyncio.get_running_loop().time() + within
        hears, tells = await self._endpoint.dial(names, within=within)
        try:
            async with asyncio.timeout_at(deadline):
                views = await self._open(tells, intake)
        except BaseException as exc:
            for connection in (hears, tells):
                await connection.disconnect(nowait=True)
            raise self._translated(exc) from exc
        return StreamsLink(hears, tells, intake, self._keys, views, lost)

    async def _open(self, connection: Connection, intake: Intake) -> list[View]:
        await ask(connection, pack(b"SCRIPT", b"LOAD", APPEND))
        views = await self._look(connection, "")
        if intake.places.behind(views):  # it lost its end, and with it the right to its epoch
            views = await self._look(connection, views[0].end.epoch)
        return views

    async def _look(self, connection: Connection, replaced: str) -> list[View]:
        """Each stream as it is; made before, with a new epoch instead of the replaced one, where need be."""
        keys = (self._keys.meta, *self._keys.streams)
        seconds, micros = cast("tuple[bytes, bytes]", await ask(connection, pack(b"TIME")))
        reply = await ask(
            connection,
            pack(
                *(b"EVAL", OPEN, b"%d" % len(keys), *keys, token_hex(6).encode()),
                *(text.encode() for text in self._settings.written.values()),
                *(replaced.encode(), expiry(self._settings.retention)),
            ),
        )
        epoch, theirs, *streams = cast("tuple[bytes, list[bytes], *tuple[list[bytes], ...]]", reply)
        self._settings.differs(
            f"The log {self._keys.meta.decode()} in Redis at {self.address}",
            {name: text.decode() for name, text in zip(self._settings.written, theirs, strict=True)},
            remedy=f"DEL {self._keys.meta.decode()} and {self._keys.meta.decode()}:0 and so on",
        )
        time = int(seconds) + int(micros) / 1e6
        return [
            View(
                start=Place(epoch.decode(), 0, since.decode()),
                end=Place(epoch.decode(), int(offset), last.decode()),
                time=time,
            )
            for offset, last, since in streams
        ]

    async def delete(self) -> None:
        """Delete the keys, those of a log with other settings too."""
        (connection,) = await self._endpoint.dial([self._config.prefix], within=self._config.connect_timeout)
        try:
            streams = cast("bytes | None", await ask(connection, pack(b"HGET", self._keys.meta, b"streams")))
            keys = Keys(self._config.prefix, int(streams or 1))
            await ask(connection, pack(b"DEL", keys.meta, *keys.streams))
        finally:
            await connection.disconnect()

    def _translated(self, exc: BaseException) -> BaseException:
        """The client's error in our words (rule 13)."""
        if isinstance(exc, ResponseError):
            return ConfigurationError(f"Redis at {self.address} does not let this user keep a log: {exc}")
        if isinstance(exc, TimeoutError):
            text = f"Redis at {self.address} did not answer within {self._config.connect_timeout:g} s."
            return BrokerUnavailable(text, broker=self.name)
        if isinstance(exc, Exception) and not isinstance(exc, RoomcastError):
            return BrokerUnavailable(f"Redis at {self.address} cannot be used: {exc}", broker=self.name)
        return exc


class RedisStreamsBroker(LogBroker):
    """A log in Redis; an append resolves once Redis has it, which is as durable as Redis is configured to be."""

    parameters: ClassVar[frozenset[str]] = PARAMETERS | TLS_PARAMETERS | {"db"}

    def __init__(self, config: BrokerConfig) -> None:
        super().__init__(config, RedisStreamsDriver(config, log_settings(config.parameters)))
