"""The broker over Redis with Sentinel: `redis+sentinel://`, `rediss+sentinel://` (TLS).

Everything is as over one Redis, except which server that is:

1. The sentinels say it, all asked at once. Once more than half of those in the URL have answered the same, that
   counts; else the answer with the highest configuration epoch of all that can be had, and of those the commonest.
2. A server is used only if it calls itself a master (ROLE), on each of the two connections, when they are made.
3. A link is lost once its server is no master any more, or once more than half of the sentinels have answered and
   another server is the one; both are asked every heartbeat. So nothing is published to a demoted master for longer
   than that, and usually not at all, because Sentinel closes the connections to a master that it demotes.
"""

import asyncio
from contextlib import suppress
from typing import ClassVar, NoReturn, cast

from roomcast.brokers.redis import Carrier, Listener, RedisBroker, Way, names_of
from roomcast.brokers.redis_link import Link, pack
from roomcast.brokers.redis_servers import TLS_PARAMETERS, Address, Check, Endpoint, ask, servers, shape_of
from roomcast.core.broker import BrokerConfig
from roomcast.core.errors import BrokerError, BrokerUnavailable, ConfigurationError, RoomcastError

try:
    from redis.exceptions import ResponseError
except ImportError as missing:
    raise ConfigurationError('redis+sentinel:// needs the Redis client: pip install "roomcast[redis]"') from missing

_CREDENTIALS = frozenset({"sentinel_username", "sentinel_password"})
_PATIENCE = 0.3
"""Seconds for those sentinels that have not answered when another one has, short of more than half."""
_SEGMENTS = 2
"""The most that the path of a URL has: service and database."""


class RedisSentinelBroker(RedisBroker):
    """Redis publish/subscribe at the server that the sentinels call the master of a service."""

    parameters: ClassVar[frozenset[str]] = TLS_PARAMETERS | _CREDENTIALS | {"db", "address_map"}

    @staticmethod
    def _way_of(config: BrokerConfig) -> Way:
        return Sentinels(config)


def _fault_of(role: object) -> str:
    return "" if _words(role)[:1] == [b"master"] else "it is no master now"


_MASTER = Check(pack(b"ROLE"), _fault_of)


class _Unknown(Exception):
    """A sentinel that does not know the service."""


class Sentinels:
    """The way to the master of a service.

    Attributes:
        address: of the master, as far as it is known.
    """

    def __init__(self, config: BrokerConfig) -> None:
        found = servers(config, port=26379, own=_CREDENTIALS)
        if not 1 <= len(found.path) <= _SEGMENTS:
            raise ConfigurationError(shape_of("+sentinel"))
        self._service = found.path[0]
        self._access = found.access
        mine = found.parameters
        access = found.access.as_user(mine.get("sentinel_username"), mine.get("sentinel_password"))
        self._sentinels = [access.to(address) for address in found.hosts]
        self._name = f"{config.prefix}:{config.node}:asks"
        self._config = config
        self._master: Address | None = None

    @property
    def address(self) -> str:
        """Where it leads to, for people to read."""
        return f"{self._service} ({self._master or 'not found yet'})"

    async def open(self, listener: Listener) -> Carrier:
        """A link to the master (rules 1 and 2) that knows when it is to be left (rule 3)."""
        loop, config = asyncio.get_running_loop(), self._config
        until = loop.time() + config.connect_timeout
        self._master, _ = await self._find(config.connect_timeout)
        left = max(until - loop.time(), 0.001)
        hears, tells = await self._access.to(self._master, _MASTER).dial(names_of(config), within=left)
        link = Link(hears, tells, heartbeat=config.heartbeat, deliver=listener.deliver, lost=listener.lost)
        link.accompany(self._follow(link), "roomcast-redis-follow")
        return link

    async def _follow(self, link: Link) -> None:
        """Rule 3."""
        with suppress(BrokerError):  # the link is lost, and somebody knows
            while not link.over.is_set():
                await asyncio.sleep(self._config.heartbeat)
                if fault := _fault_of(await link.ask(b"ROLE")) or await self._fault_of_master():
                    link.lose(ConnectionError(f"Redis at {self._master} is not to be used: {fault}"))

    async def _fault_of_master(self) -> str:
        try:
            master, sure = await self._find(self._config.heartbeat)
        except RoomcastError:  # nobody to ask: what there is stays
            return ""
        return f"the sentinels call {master} the master" if sure and master != self._master else ""

    async def _find(self, within: float) -> tuple[Address, bool]:
        """The master, and whether more than half of the sentinels were heard (rule 1)."""
        asking = [asyncio.create_task(self._ask(sentinel, within)) for sentinel in self._sentinels]
        answers: list[tuple[int, Address]] = []
        errors: list[BaseException] = []
        waiting = set(asking)
        try:
            while waiting and not (2 * len(answers) > len(asking) and len(set(answers)) == 1):
                done, waiting = await asyncio.wait(
                    waiting, timeout=_PATIENCE if answers else None, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for task in done:
                    if (error := task.exception()) is None:
                        answers.append(task.result())
                    else:
                        errors.append(error)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        if not answers:
            self._found_none(errors)
        _, master = max(answers, key=lambda answer: (answer[0], answers.count(answer)))
        return master, 2 * len(answers) > len(asking)

    async def _ask(self, sentinel: Endpoint, within: float) -> tuple[int, Address]:
        """One sentinel's word: the epoch of its configuration, and the master."""
        (connection,) = await sentinel.dial([self._name], within=within)
        service = self._service.encode()
        try:
            async with asyncio.timeout(within):
                address = await ask(connection, pack(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service))
                if address is None:
                    raise _Unknown
                facts = await ask(connection, pack(b"SENTINEL", b"MASTER", service))
        finally:
            await connection.disconnect(nowait=True)
        return _epoch(facts), _address(address)

    def _found_none(self, errors: list[BaseException]) -> NoReturn:
        """Raise what all that went wrong amounts to; a cause that no retry mends comes first."""
        hosts = ", ".join(sentinel.address for sentinel in self._sentinels)
        for error in errors:
            if isinstance(error, ConfigurationError):
                raise error
            if isinstance(error, ResponseError):
                raise ConfigurationError(f"A sentinel of {hosts} refuses this user: {error}") from error
        for error in errors:
            if isinstance(error, _Unknown):
                raise ConfigurationError(
                    f"The sentinels at {hosts} know no service {self._service!r}: {shape_of('+sentinel')}"
                ) from error
        text = f"None of the sentinels at {hosts} can be reached"
        cause = errors[0] if errors else None
        raise BrokerUnavailable(f"{text}: {cause}" if cause else f"{text}.", broker="redis") from cause


def _words(answer: object) -> list[bytes]:
    """The words of a reply that is a list of words."""
    return (
        [word for word in cast("list[object]", answer) if isinstance(word, bytes)] if isinstance(answer, list) else []
    )


def _address(answer: object) -> Address:
    words = _words(answer)
    if len(words) != 2 or not words[1].isdigit():  # noqa: PLR2004 - host and port
        raise ConnectionError("it gives no address")
    return Address(words[0].decode(), int(words[1]))


def _epoch(facts: object) -> int:
    words = _words(facts)
    return int(dict(zip(words[::2], words[1::2], strict=False)).get(b"config-epoch", b"0"))
