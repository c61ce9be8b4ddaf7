"""The broker over NATS JetStream: `nats+jetstream://` and `tls+jetstream://`, one or several servers.

| on the server                    | what it is                                                          |
|----------------------------------|---------------------------------------------------------------------|
| stream `<prefix>_log_<n>`        | the entries; JetStream trims them by age and size                   |
| subject `<prefix>.log.<n>.<...>` | of an entry of this stream: the entry's own subject stands behind    |
| subject `<prefix>.reply.<...>`   | answers to one link                                                 |

A sequence number is an offset, and the moment at which JetStream made the stream is its epoch. The connection is
`nats_jetstream_link.JetStreamLink`; what outlives it is `log_broker.LogBroker`. nats-server 2.9 or newer.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from roomcast.brokers.attempts import each_once
from roomcast.brokers.log_broker import Intake, LogBroker, Lost
from roomcast.brokers.log_places import Place, View
from roomcast.brokers.log_settings import PARAMETERS, LogSettings, log_settings
from roomcast.brokers.nats import NatsBroker, endpoints, flag, login_files
from roomcast.brokers.nats_jetstream_link import JetStreamLink, seconds_of, stream_name
from roomcast.brokers.nats_jetstream_wire import NAME, ApiError, Wire
from roomcast.brokers.nats_servers import Servers
from roomcast.core.broker import BrokerConfig
from roomcast.core.errors import BrokerError, BrokerUnavailable, ConfigurationError

_NO_STREAM = 10059
_IN_USE = 10058
_PASSING = {10008, 10009, 10074, 10076}  # no leader now, and the like
_REPEATS = 120.0
"""Seconds for which JetStream knows the numbers of messages again."""
_OWN = frozenset({"replicas", "storage"})


class JetStreamDriver:
    """Makes links to a log in JetStream."""

    name = NAME

    def __init__(self, config: BrokerConfig, settings: LogSettings) -> None:
        own = {name: value for name, value in config.parameters.items() if name not in PARAMETERS | _OWN}
        scheme, _, rest = config.url.partition("://")
        self._config = replace(config, url=f"{scheme.removesuffix('+jetstream')}://{rest}", parameters=own)
        urls, self._options = endpoints(self._config)
        self._servers = Servers(urls)
        self._gossip = flag(own, "gossip", default="1")
        self._settings = settings
        self._replicas = _replicas(config.parameters)
        self._storage = _storage(config.parameters)
        self.address = ", ".join(urls)

    async def dial(self, intake: Intake, lost: Lost) -> JetStreamLink:
        """Try each server once, all within `connect_timeout`."""
        opening = partial(self._open, intake, lost)
        return await each_once(len(self._servers), self._config.connect_timeout, opening)

    async def _open(self, intake: Intake, lost: Lost, within: float) -> JetStreamLink:
        link = JetStreamLink(self._config, intake, lost)
        opened = False
        try:
            async with asyncio.timeout(within):
                await self._connect(link.wire, within)
                views = await self._look(link.wire)
                for stream in intake.places.behind(views):  # it lost its end, and with it the right to its epoch
                    await self._renew(link.wire, stream, views[stream])
                    views = await self._look(link.wire)
            link.found(views)
            opened = True
        except TimeoutError as exc:
            raise BrokerUnavailable(f"JetStream did not answer within {within:g} s.", broker=NAME) from exc
        except ApiError as exc:
            if exc.code in _PASSING:
                raise BrokerUnavailable(f"JetStream is not ready: {exc}.", broker=NAME) from exc
            raise ConfigurationError(f"JetStream does not keep this log: {exc}.") from exc
        finally:
            if not opened:
                await link.aclose()
        return link

    async def _connect(self, wire: Wire, within: float) -> None:
        try:
            options = self._options | login_files(self._config.parameters)
        except ConfigurationError as exc:  # the files may be half written just now
            raise BrokerUnavailable(str(exc), broker=NAME) from exc
        server = self._servers.following()
        if server.name is not None:
            options.setdefault("tls_hostname", server.name)
        await wire.open(server.url, options, within)
        if self._gossip:
            self._servers.learn(wire.others, server)

    async def _look(self, wire: Wire) -> list[View]:
        """Each stream as it is; made where there is none."""
        if self._settings.streams < 64:  # noqa: PLR2004 - one more would be a stream that this node does not read
            await self._no_more_than_ours(wire)
        return [await self._view(wire, stream) for stream in range(self._settings.streams)]

    async def _view(self, wire: Wire, stream: int) -> View:
        name = stream_name(self._config.prefix, stream)
        try:
            info = await wire.ask(f"STREAM.INFO.{name}")
        except ApiError as exc:
            if exc.code != _NO_STREAM:
                raise
            info = await self._make(wire, stream)
        self._check(stream, info["config"])
        state, epoch = info["state"], str(info["created"])
        last = int(state["last_seq"])
        now = seconds_of(info["ts"]) if "ts" in info else time.time()
        return View(Place(epoch, 0), Place(epoch, last), int(state["first_seq"]) or 1, now)

    async def _make(self, wire: Wire, stream: int) -> dict[str, Any]:
        name, settings = stream_name(self._config.prefix, stream), self._settings
        config = {
            "name": name,
            "description": self._description,
            "subjects": [f"{self._config.prefix}.log.{stream}.>"],
            "retention": "limits",
            "discard": "old",
            "max_age": int(settings.retention * 1e9),
            "max_bytes": settings.stream_bytes,
            "max_consumers": -1,
            "max_msgs": -1,
            "storage": self._storage,
            "num_replicas": self._replicas,
            "duplicate_window": int(min(_REPEATS, settings.retention) * 1e9),
        }
        try:
            return await wire.ask(f"STREAM.CREATE.{name}", config)
        except ApiError as exc:
            if exc.code != _IN_USE:
                raise
            return await wire.ask(f"STREAM.INFO.{name}")  # somebody else was first, with settings of their own

    @property
    def _description(self) -> str:
        return f"The log of roomcast under {self._config.prefix}, streams={self._settings.streams}"

    async def _no_more_than_ours(self, wire: Wire) -> None:
        name = stream_name(self._config.prefix, self._settings.streams)
        try:
            info = await wire.ask(f"STREAM.INFO.{name}")
        except ApiError as exc:
            if exc.code != _NO_STREAM:
                raise
        else:
            self._check(self._settings.streams, info["config"])

    def _check(self, stream: int, config: Mapping[str, Any]) -> None:
        streams = str(config.get("description", "")).rpartition("streams=")[2]
        theirs = self._settings.written | {"retention": f"{int(config['max_age']) / 1e9:g}s"}
        if streams.isdigit():
            theirs["streams"] = streams
            if int(config["max_bytes"]) != self._settings.max_bytes // int(streams):
                theirs["max_bytes"] = str(int(config["max_bytes"]) * int(streams))
        name = stream_name(self._config.prefix, stream)
        self._settings.differs(f"The stream {name} in JetStream", theirs, remedy=f"nats stream rm {name}")
        if f"{self._config.prefix}.log.{stream}.>" not in config.get("subjects", ()):
            raise ConfigurationError(f"The stream {name} in JetStream is not one of roomcast: choose another prefix.")

    async def _renew(self, wire: Wire, stream: int, view: View) -> None:
        """Delete a stream that lost its end, unless somebody else has done it meanwhile."""
        if (await self._view(wire, stream)).end.epoch == view.end.epoch:
            await wire.ask(f"STREAM.DELETE.{stream_name(self._config.prefix, stream)}")

    async def delete(self) -> None:
        """Delete the streams, those of a log with other settings too."""
        wire = Wire(self._config, _no_entry, _no_word, _no_loss)
        try:
            await self._connect(wire, self._config.connect_timeout)
            for stream in range(64):
                await wire.ask(f"STREAM.DELETE.{stream_name(self._config.prefix, stream)}")
        except ApiError as exc:
            if exc.code != _NO_STREAM:
                raise BrokerError(f"JetStream does not delete the log: {exc}.", broker=NAME) from exc
        finally:
            await wire.aclose()


class JetStreamBroker(LogBroker):
    """A log in JetStream, on disk unless told otherwise; an append resolves once JetStream has it."""

    parameters: ClassVar[frozenset[str]] = PARAMETERS | NatsBroker.parameters | _OWN

    def __init__(self, config: BrokerConfig) -> None:
        super().__init__(config, JetStreamDriver(config, log_settings(config.parameters)))


def _replicas(parameters: Mapping[str, str]) -> int:
    text = parameters.get("replicas", "1")
    if text not in {"1", "3", "5"}:
        raise ConfigurationError("replicas is 1, 3 or 5: how many servers of a NATS cluster keep each stream.")
    return int(text)


def _storage(parameters: Mapping[str, str]) -> str:
    text = parameters.get("storage", "file")
    if text not in {"file", "memory"}:
        raise ConfigurationError("storage is file or memory: where JetStream keeps the streams.")
    return text


def _no_entry(_consumer: str, _number: int, _sequence: int, _subject: str, _payload: bytes) -> None:
    """Where nothing is read."""


def _no_word(_request: str, _status: str, _description: str) -> None:
    """Where nothing is asked for."""


def _no_loss(_reason: Exception) -> None:
    """Whoever waits for an answer is told."""
