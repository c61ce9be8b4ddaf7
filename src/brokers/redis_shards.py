"""All of a Redis Cluster as one carrier: a link to each server that owns slots, and what keeps them right.

1. A channel is heard, and published on, at the owner of its slot. `subscribe` returns when the owner has confirmed.
2. The map of owners is asked for again after every loss and every refusal, and once in each heartbeat (`Survey`).
3. A loss is told once what it is: when a link breaks, all other links are asked for a sign of life, and a gap tells
   whether some of them or none are left. What is left goes on meanwhile. The end is told when every slot has an owner
   with a link and every channel is heard; after a loss of all, a part that is back a second before the rest is told,
   too. Nothing is mended before its loss is told.
4. A slot that has moved takes its channels with it, which is a loss: what is published between is not heard.
5. Publishes on one slot stay in order when it moves: those that the old owner refuses are sent to the new one, in
   order, once the old one has answered all; later ones wait for that (a round trip). When the new one is not linked,
   they all fail as not sent.
6. Who publishes at a new owner of a slot should find the other nodes there: while other links go on, a mended one is
   used only after the longest pause that a peer makes between two attempts.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from roomcast.brokers.attempts import SETTLED, Pauses
from roomcast.brokers.redis import Listener, names_of
from roomcast.brokers.redis_cluster_link import Elsewhere, Publish, ShardLink
from roomcast.brokers.redis_servers import Address, Servers
from roomcast.brokers.redis_slots import SLOTS, Moved, slot_of
from roomcast.brokers.redis_survey import Survey
from roomcast.core.broker import BrokerConfig, Gap
from roomcast.core.errors import BrokerError, BrokerUnavailable, ConfigurationError, RoomcastError

_logger = logging.getLogger(__name__)

_LONGEST_DELAY = 0.3
"""Seconds between attempts to mend, at most; the next one is made at once when all was well for `SETTLED`."""
_PATIENCE = 0.3
"""Seconds to wait for one server before another one is asked as well."""
_HOPS = 7
"""How often a command follows a slot that moves, before it fails as not sent."""
_BOUNCE = 0.005
"""Seconds before a publish follows for the second time, doubled for each time more: while a slot moves, its old owner
and its new one may each name the other."""


class _Crossing:
    """Publishes on a slot between two owners (rule 5)."""

    def __init__(self) -> None:
        self.over = asyncio.get_running_loop().create_future()
        self.turned_away: list[Publish] = []
        self.later: list[Publish] = []


class Shards:
    """The links to the owners of all slots; a `Carrier`.

    Attributes:
        over: set once it was ended; it is never lost, only mended.
    """

    def __init__(self, config: BrokerConfig, servers: Servers, listener: Listener) -> None:
        self.over = asyncio.Event()
        self._config = config
        self._servers = servers
        self._listener = listener
        self._wanted: set[bytes] = set()
        self._strays: set[bytes] = set()  # wanted, and not heard
        self._survey = Survey(config, servers)
        self._shifted = False  # a channel may be heard at a server that does not own its slot any more
        self._links: dict[Address, ShardLink] = {}
        self._route: list[ShardLink | None] = [None] * SLOTS
        self._dials: dict[Address, asyncio.Task[None]] = {}
        self._crossings: dict[int, _Crossing] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._wake = asyncio.Event()
        self._told: str | None = None  # "some" or "all" is lost, as was told
        self._judging: asyncio.Task[None] | None = None
        self._said = ""
        self._since = 0.0  # all is well
        self._first: float | None = None  # there is a link again after all were lost

    async def start(self) -> None:
        """Link to every owner, or raise `BrokerUnavailable` within `connect_timeout`."""
        within = self._config.connect_timeout
        try:
            async with asyncio.timeout(within):
                await self._refresh()
                if None in self._owners:
                    raise self._unavailable("Some slots of the Redis Cluster have no owner")
                await asyncio.gather(*(self._dial(owner) for owner in set(self._owners) if owner is not None))
        except TimeoutError as exc:
            raise self._unavailable(f"The Redis Cluster did not answer within {within:g} s") from exc
        self._spawn(self._keep())

    def publish(self, channel: bytes, payload: bytes) -> asyncio.Future[None]:
        """Queue one SPUBLISH at the owner of the channel's slot (rule 5)."""
        slot = slot_of(channel)
        publish = Publish.of(slot, channel, payload)
        if self._crossings and (crossing := self._crossings.get(slot)) is not None:
            crossing.later.append(publish)
        elif (link := self._route[slot]) is not None:
            link.send(publish)
        else:
            publish.set_exception(self._unavailable("No server that is linked owns the slot of this subject now"))
        return publish

    async def subscribe(self, channels: Collection[bytes]) -> None:
        """Hear these channels (rule 1); `BrokerUnavailable` when some cannot be heard now, and will be later."""
        self._wanted.update(channels)
        left = set(channels)
        late: set[bytes] = set()
        for _ in range(_HOPS):
            ends = await self._listen(left)
            refused = [end for end in ends.values() if isinstance(end, ConfigurationError)]
            if refused:
                await self.unsubscribe(channels)
                raise refused[0]
            if ends and self.over.is_set():
                raise next(iter(ends.values()))
            left = {channel for channel, end in ends.items() if isinstance(end, Elsewhere)}
            late.update(ends.keys() - left)
            if not left:
                break
        if missing := (left | late) & self._wanted:
            self._strays.update(missing)
            self._wound()
            raise self._unavailable(f"{len(missing)} subjects cannot be heard now")

    async def unsubscribe(self, channels: Collection[bytes]) -> None:
        """Hear these channels no more."""
        self._wanted.difference_update(channels)
        self._strays.difference_update(channels)
        asked = [
            link.unsubscribe(mine) for link in self._links.values() if (mine := link.channels.intersection(channels))
        ]
        await asyncio.gather(*asked, return_exceptions=True)  # a link that is lost meanwhile does not know them either

    async def flush(self, within: float) -> None:
        """Wait for the confirmation of everything published, for so many seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                if self._crossings:
                    await asyncio.wait([crossing.over for crossing in self._crossings.values()])
                await asyncio.gather(*(link.flush(within) for link in self._links.values()))

    def end(self, sent: Callable[[], BrokerError], unsent: Callable[[], BrokerError]) -> None:
        """Stop everything: what is published and unconfirmed fails as `sent`, the rest as `unsent`."""
        if self.over.is_set():
            return
        self.over.set()
        for task in (*self._tasks, *self._dials.values()):
            task.cancel()
        for link in tuple(self._links.values()):
            self._part(link, sent, unsent)
        for crossing in self._crossings.values():
            _fail((*crossing.turned_away, *crossing.later), unsent)
        self._crossings.clear()

    async def aclose(self) -> None:
        """Wait until nothing is left of what was ended."""
        while tasks := (*self._tasks, *self._dials.values()):
            await asyncio.gather(*tasks, return_exceptions=True)

    # The map (rule 2)

    async def _refresh(self) -> None:
        if await self._survey.refresh(tuple(self._links.values()), urgent=not self._whole):
            self._shifted = True
            self._reroute()

    def _redirect(self, said: Moved) -> None:
        """Take a server's word that a slot is not its own any more."""
        self._wake.set()
        if self._survey.redirect(said):
            self._shifted = True
            self._reroute()

    def _reroute(self) -> None:
        links = self._links
        self._route = [None if owner is None else links.get(owner) for owner in self._owners]

    @property
    def _owners(self) -> Sequence[Address | None]:
        return self._survey.owners

    # Mending

    @property
    def _whole(self) -> bool:
        return not self._strays and None not in self._route

    async def _keep(self) -> None:
        """Mend whatever breaks, for ever; look for changes that nobody told once in each heartbeat."""
        loop = asyncio.get_running_loop()
        pauses = Pauses(_LONGEST_DELAY)
        while True:
            if self._whole:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._config.heartbeat):
                        await self._wake.wait()
                if loop.time() - self._since > SETTLED:
                    pauses.forget()
            if not self._whole:
                await pauses.wait()
            self._wake.clear()
            try:
                await self._mend()
            except (BrokerError, ConfigurationError) as exc:
                self._say(exc)
            if self._told is not None and self._judging is None:
                self._tell_what_is_back()

    def _tell_what_is_back(self) -> None:
        """The other half of rule 3."""
        now = asyncio.get_running_loop().time()
        if self._whole:
            _logger.info("All of the Redis Cluster at %s is linked again.", self._address)
            self._told, self._said, self._since = None, "", now
            self._listener.tell(Gap("reconnected"))
        elif self._told == "all" and self._links:
            self._first = self._first or now
            if now - self._first > SETTLED:
                self._told = "some"
                self._listener.tell(Gap("reconnected", ongoing=True, partial=True))
        else:
            self._first = None

    async def _mend(self) -> None:
        await self._refresh()
        if self._shifted:
            self._shifted = False
            self._leave_old_owners()
        if self._judging is not None:
            await asyncio.wait([self._judging])  # rule 3
        missing = {owner for owner in self._owners if owner is not None} - self._links.keys()
        for address in missing - self._dials.keys():
            self._dials[address] = dialling = asyncio.create_task(self._dial(address), name="roomcast-redis-dial")
            dialling.add_done_callback(lambda _, address=address: self._dialled(address))  # type: ignore[misc]
        if self._dials:
            await asyncio.wait(self._dials.values(), timeout=_PATIENCE)
        if self._strays:
            self._strays.difference_update(self._strays - self._wanted)
            await self._listen(self._strays)

    def _leave_old_owners(self) -> None:
        """Part with servers that own nothing, and hear no channel where its slot is no more (rule 4)."""
        serving = set(self._owners)
        for link in tuple(self._links.values()):
            if link.address not in serving:
                self._strays.update(link.channels & self._wanted)
                self._part(link, self._gone, self._gone)
                self._wound()
                continue
            moved = {channel for channel in link.channels if self._owners[slot_of(channel)] != link.address}
            if moved:
                self._spawn(link.unsubscribe(moved))
                self._strays.update(moved & self._wanted)
                self._wound()

    async def _dial(self, address: Address) -> None:
        """Make a link, with all channels of its slots heard; only then does anybody see it."""
        mending = bool(self._links) and self._told is not None
        within, names = self._config.connect_timeout, names_of(self._config)
        hears, tells = await self._servers.access.to(address).dial(names, within=within)
        link = ShardLink(
            address,
            hears,
            tells,
            heartbeat=self._config.heartbeat,
            deliver=self._listener.deliver,
            lost=self._lost,
            turned_away=self._turned_away,
            withdrawn=self._withdrawn,
        )
        try:
            await self._restore(link)
            if mending:
                await asyncio.sleep(_LONGEST_DELAY)  # rule 6
                await self._restore(link)
        except BaseException:
            self._part(link, self._gone, self._gone)
            raise
        if link.over.is_set():
            raise self._unavailable(f"The link to {address} broke as soon as it was made")
        self._links[address] = link
        self._reroute()

    def _dialled(self, address: Address) -> None:
        dialling = self._dials.pop(address)
        self._wake.set()
        if not dialling.cancelled() and (error := dialling.exception()) is not None:
            self._say(error)

    async def _restore(self, link: ShardLink) -> None:
        tried: set[bytes] = set()
        while mine := {c for c in self._strays - tried if self._owners[slot_of(c)] == link.address}:
            tried |= mine
            await self._hear(link, mine)

    async def _listen(self, channels: Collection[bytes]) -> dict[bytes, BaseException]:
        """Hear channels where they belong; those that are not heard now, and why."""
        ends: dict[bytes, BaseException] = {}
        by_link: dict[ShardLink, list[bytes]] = {}
        for channel in channels:
            if (link := self._route[slot_of(channel)]) is None:
                ends[channel] = self._unavailable("No server that is linked owns its slot now")
            else:
                by_link.setdefault(link, []).append(channel)
        for failed in await asyncio.gather(*(self._hear(link, mine) for link, mine in by_link.items())):
            ends.update(failed)
        return ends

    async def _hear(self, link: ShardLink, channels: Collection[bytes]) -> dict[bytes, BaseException]:
        """Hear channels at one server; those that are not, and why."""
        failed = await link.listen(channels)
        for end in failed.values():
            if isinstance(end, Elsewhere):
                self._redirect(end.moved)
        heard = link.channels.intersection(channels)
        self._strays.difference_update(heard)
        if unwanted := heard - self._wanted:
            self._spawn(link.unsubscribe(unwanted))
        return failed

    # What breaks

    def _lost(self, link: ShardLink, cause: Exception) -> None:
        _logger.warning("The link to Redis at %s is lost: %s", link.address, cause)
        self._strays.update(link.channels & self._wanted)
        self._forget(link)
        self._spawn(link.aclose())
        self._wound()

    def _part(self, link: ShardLink, sent: Callable[[], BrokerError], unsent: Callable[[], BrokerError]) -> None:
        """End a link on purpose."""
        self._strays.update(link.channels & self._wanted)
        self._forget(link)
        link.end(sent, unsent)
        self._spawn(link.aclose())

    def _forget(self, link: ShardLink) -> None:
        if self._links.get(link.address) is link:
            del self._links[link.address]
            self._reroute()

    def _withdrawn(self, link: ShardLink, channel: bytes) -> None:
        """A slot has left a server."""
        if channel in self._wanted:
            _logger.info("A slot has moved away from Redis at %s.", link.address)
            self._strays.add(channel)
            self._wound()

    def _wound(self) -> None:
        """Something is not heard; find out how much, and tell it (rule 3)."""
        self._wake.set()
        if self._judging is None and not self.over.is_set():
            self._judging = self._spawn(self._judge())

    async def _judge(self) -> None:
        links: tuple[ShardLink, ...] = ()
        while links != (links := tuple(self._links.values())):
            await asyncio.gather(*(sign for link in links for sign in link.alive()), return_exceptions=True)
        extent = "some" if links else "all"
        self._judging = None
        if self._told is None or (self._told == "some" and extent == "all"):
            self._told, self._first = extent, None
            self._listener.tell(Gap("disconnected", ongoing=True, partial=extent == "some"))

    def _turned_away(self, link: ShardLink, publish: Publish, said: Moved) -> None:
        """A publish has come to a server that does not own its slot any more (rule 5)."""
        publish.hops += 1
        crossing = self._crossings.get(publish.slot)
        if crossing is None:
            crossing = self._crossings[publish.slot] = _Crossing()
            self._redirect(said)
            self._spawn(self._cross(link, publish.slot, crossing))
        crossing.turned_away.append(publish)

    async def _cross(self, link: ShardLink, slot: int, crossing: _Crossing) -> None:
        hops = max(publish.hops for publish in crossing.turned_away)
        try:
            await link.settled()
            if hops > 1:
                await asyncio.sleep(_BOUNCE * 2 ** (hops - 2))
        except BrokerError:
            target = None  # the link is lost, and some of these publishes are not known to have been refused
        else:
            target = self._route[slot]
        self._crossings.pop(slot, None)
        waiting = [publish for publish in (*crossing.turned_away, *crossing.later) if not publish.done()]
        if target is None or any(publish.hops > _HOPS for publish in waiting):
            _fail(waiting, lambda: self._unavailable("The slot of this subject is moving"))
        else:
            for publish in waiting:
                target.send(publish)
        if not crossing.over.done():
            crossing.over.set_result(None)

    # Odds and ends

    @property
    def _address(self) -> str:
        return ", ".join(map(str, self._servers.hosts))

    def _unavailable(self, why: str) -> BrokerUnavailable:
        return BrokerUnavailable(f"{why}; the Redis Cluster is that of {self._address}.", broker="redis")

    def _gone(self) -> BrokerUnavailable:
        return self._unavailable("The server owns no slots any more")

    def _say(self, error: BaseException) -> None:
        """What keeps from mending, once."""
        if self._said != str(error):
            self._said = str(error)
            level = logging.WARNING if isinstance(error, RoomcastError) else logging.ERROR
            _logger.log(level, "Trying to mend the links to the Redis Cluster: %s", error)

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine, name="roomcast-redis-shards")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, BrokerError):
            _logger.error("A task of the Redis Cluster's links failed.", exc_info=error)


def _fail(publishes: Collection[Publish], why: Callable[[], BrokerError]) -> None:
    for publish in publishes:
        if not publish.done():
            publish.set_exception(why())
