"""The link of a node to one server of a Redis Cluster: sharded publish/subscribe over two connections.

1. A command that the server refuses because a slot is not its own was not carried out. A publish that is refused so is
   handed on, its future unsettled, so that it can be sent to the owner (`Publish`).
2. SSUBSCRIBE names channels of one slot, and ends in one confirmation per channel or in one error.
3. A server that loses a slot says SUNSUBSCRIBE to those who hear channels of it, by itself. That cannot be told from
   the confirmation of an own SUNSUBSCRIBE, which fails then besides. So confirmations of SUNSUBSCRIBE are not counted:
   a PING behind the command ends it, whatever it was answered.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Self

from roomcast.brokers.chunks import chunks
from roomcast.brokers.redis_link import (
    CHANNELS,
    Connection,
    Line,
    Link,
    caused,
    channels_refused,
    pack,
    publish_refused,
)
from roomcast.brokers.redis_servers import Address
from roomcast.brokers.redis_slots import Moved, moved, slot_of
from roomcast.core.errors import BrokerUnavailable, ConfigurationError, RoomcastError

try:
    from redis.exceptions import ClusterDownError, MovedError, ResponseError, TryAgainError
except ImportError as missing:
    raise ConfigurationError('redis+cluster:// needs the Redis client: pip install "roomcast[redis]"') from missing

_NOT_NOW = ("CLUSTERDOWN ", "TRYAGAIN ", "LOADING ", "MASTERDOWN ")
_PING = pack(b"PING")


class Publish(asyncio.Future[None]):
    """One SPUBLISH that is not confirmed yet.

    Attributes:
        slot: of its channel.
        command: packed.
        hops: how many servers have refused it because the slot was not theirs.
    """

    slot = 0
    command = b""
    hops = 0

    @classmethod
    def of(cls, slot: int, channel: bytes, payload: bytes) -> Self:
        """What is to be sent to the owner of a slot."""
        publish = cls(loop=asyncio.get_running_loop())
        publish.slot = slot
        publish.command = b"*3\r\n$8\r\nSPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            len(channel),
            channel,
            len(payload),
            payload,
        )
        return publish


class Elsewhere(RoomcastError):
    """A channel was refused because another server owns its slot (`moved`); for this broker's own use."""

    def __init__(self, said: Moved) -> None:
        super().__init__(f"Another server owns slot {said.slot}.")
        self.moved = said


class _Leaving(asyncio.Future[None]):
    """The end of a SUNSUBSCRIBE (rule 3)."""


def _said(exc: ResponseError) -> str:
    """An error as the server worded it; the client's class stands for the first word, which it cuts off."""
    return f"MOVED {exc}" if isinstance(exc, MovedError) and not str(exc).startswith("MOVED ") else str(exc)


def _not_now(exc: ResponseError) -> bool:
    return isinstance(exc, ClusterDownError | TryAgainError) or str(exc).startswith(_NOT_NOW)


class _Hears(Line):
    message = b"smessage"
    withdrawn: Callable[[bytes], None]

    def _pushed(self, parts: list[bytes]) -> bool:
        if parts[0] != b"sunsubscribe":
            return False
        self.withdrawn(parts[1])
        return True

    def _refuse(self, exc: ResponseError) -> None:
        if not (self._inflight and isinstance(self._inflight[0], _Leaving)):
            super()._refuse(exc)


class _Tells(Line):
    turned_away: Callable[[Publish, ResponseError], bool]

    def _spurn(self, future: asyncio.Future[Any], exc: ResponseError) -> None:
        if not (isinstance(future, Publish) and self.turned_away(future, exc)):
            super()._spurn(future, exc)


class ShardLink(Link):
    """The two lines to one server.

    Args:
        address: as the cluster announces it.
        hears, tells, heartbeat, lost: see `Link`.
        deliver: is called with the channel and the payload of everything heard on a channel that is to be heard here.
        turned_away: is called with a publish that the server refused because another one owns its slot (rule 1).
        withdrawn: is called with a channel to be heard here that the server has ceased to carry (rule 3).

    Attributes:
        channels: what is to be heard here, confirmed or not yet.
    """

    def __init__(
        self,
        address: Address,
        hears: Connection,
        tells: Connection,
        *,
        heartbeat: float,
        deliver: Callable[[bytes, bytes], None],
        lost: Callable[["ShardLink", Exception], None],
        turned_away: Callable[["ShardLink", Publish, Moved], None],
        withdrawn: Callable[["ShardLink", bytes], None],
    ) -> None:
        self.address = address
        self.channels: set[bytes] = set()
        self._deliver = deliver
        self._turned_away = turned_away
        self._withdrawn = withdrawn
        self._leaving: dict[bytes, int] = {}
        super().__init__(
            hears, tells, heartbeat=heartbeat, deliver=self._arrive, lost=lambda _, cause: lost(self, cause)
        )

    def send(self, publish: Publish) -> None:
        """Queue one SPUBLISH."""
        self._tells.send(publish.command, future=publish)

    def settled(self) -> asyncio.Future[None]:
        """Resolves once every publish up to now has its reply."""
        return self._tells.send(_PING)

    def alive(self) -> list[asyncio.Future[None]]:
        """One future per connection; each resolves when the server answers, and fails with the link."""
        return [self._hears.send(_PING), self._tells.send(_PING)]

    async def listen(self, channels: Collection[bytes]) -> dict[bytes, BaseException]:
        """Hear these channels; returns once each is confirmed, or refused: why, for those (rule 2)."""
        self.channels.update(channels)
        commands = [some for slot in _by_slot(channels).values() for some in chunks(slot, CHANNELS)]
        confirmed = (self._hears.send(pack(b"SSUBSCRIBE", *some), len(some)) for some in commands)
        ends = await asyncio.gather(*confirmed, return_exceptions=True)
        failed = {
            channel: end
            for some, end in zip(commands, ends, strict=True)
            if isinstance(end, BaseException)
            for channel in some
        }
        self.channels.difference_update(failed)
        return failed

    async def unsubscribe(self, channels: Collection[bytes]) -> None:
        """Hear these channels no more; returns once the server has heard of it (rule 3)."""
        self.channels.difference_update(channels)
        loop = asyncio.get_running_loop()
        ends: list[asyncio.Future[None]] = []
        for slot in _by_slot(channels).values():
            for some in chunks(slot, CHANNELS):
                end = _Leaving(loop=loop)
                ends.append(end)
                for channel in some:
                    self._leaving[channel] = self._leaving.get(channel, 0) + 1
                end.add_done_callback(partial(self._left, some))
                self._hears.send(pack(b"SUNSUBSCRIBE", *some) + _PING, future=end)
        await asyncio.gather(*ends)

    def _left(self, channels: Iterable[bytes], _: object) -> None:
        for channel in channels:
            self._leaving[channel] -= 1
            if not self._leaving[channel]:
                del self._leaving[channel]

    def _arrive(self, channel: bytes, payload: bytes) -> None:
        if channel in self.channels:
            self._deliver(channel, payload)

    def _hearing(self, connection: Connection, deliver: Callable[[bytes, bytes], None]) -> Line:
        line = _Hears(connection, deliver, self._channels_refused, self.lose)
        line.withdrawn = self._withdraw
        return line

    def _telling(self, connection: Connection, deliver: Callable[[bytes, bytes], None]) -> Line:
        line = _Tells(connection, deliver, _publish_refused, self.lose)
        line.turned_away = self._turn_away
        return line

    def _withdraw(self, channel: bytes) -> None:
        if channel in self.channels and channel not in self._leaving:
            self.channels.discard(channel)
            self._withdrawn(self, channel)

    def _turn_away(self, publish: Publish, exc: ResponseError) -> bool:
        if (said := moved(_said(exc), self.address)) is None:
            return False
        if not publish.done():  # else it was cancelled, and need not be sent again
            self._turned_away(self, publish, said)
        return True

    def _channels_refused(self, exc: ResponseError) -> Exception:
        if (said := moved(_said(exc), self.address)) is not None:
            return Elsewhere(said)
        if _not_now(exc):
            return caused(BrokerUnavailable, f"The Redis Cluster cannot take the subscription now: {exc}", exc)
        return channels_refused(exc)


def _publish_refused(exc: ResponseError) -> Exception:
    if _not_now(exc):
        return caused(BrokerUnavailable, f"The Redis Cluster cannot take the message now: {exc}", exc)
    return publish_refused(exc)


def _by_slot(channels: Iterable[bytes]) -> Mapping[int, list[bytes]]:
    slots: dict[int, list[bytes]] = {}
    for channel in channels:
        slots.setdefault(slot_of(channel), []).append(channel)
    return slots
