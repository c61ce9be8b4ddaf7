"""What is known of a Redis Cluster: who owns which slot, and whom to ask.

1. A server that is linked is asked first, one after the other in random order; with none of them, all that are known at
   once, and the first usable answer counts.
2. Servers learn of a change one after the other. So a claim to a slot is believed only if its epoch is higher than that
   of the last one that was believed; all claims are, while there are no links.
"""

import asyncio
import random
from collections.abc import Iterable, Sequence

from roomcast.brokers.redis_cluster_link import ShardLink
from roomcast.brokers.redis_link import pack
from roomcast.brokers.redis_servers import Address, Servers, ask
from roomcast.brokers.redis_slots import SLOTS, Claim, Moved, claims
from roomcast.core.broker import BrokerConfig
from roomcast.core.errors import BrokerUnavailable, ConfigurationError

_PATIENCE = 0.3
"""Seconds to wait for one server before another one is asked as well."""
_QUESTIONS = ((b"CLUSTER", b"SLOTS"), (b"CLUSTER", b"NODES"))


class Survey:
    """The map of one cluster.

    Attributes:
        owners: of each slot, as far as it is known.
    """

    def __init__(self, config: BrokerConfig, servers: Servers) -> None:
        self.owners: Sequence[Address | None] = [None] * SLOTS
        self._config = config
        self._servers = servers
        self._nodes: list[bytes | None] = [None] * SLOTS
        self._epochs = [-1] * SLOTS
        self._addresses: dict[bytes, Address] = {}
        self._last: list[Claim] = []

    async def refresh(self, links: Sequence[ShardLink], *, urgent: bool) -> bool:
        """Ask who owns what; whether anything has changed.

        Args:
            links: to servers that can be asked.
            urgent: others are asked when none of these answers; else those links are to be judged by their own watch.

        Raises:
            BrokerUnavailable: nobody says anything usable.
            ConfigurationError: this is no cluster, or it refuses this user.
        """
        before = self.owners
        for link in random.sample(links, len(links)):
            if await self._ask_link(link):
                return self.owners != before
        if urgent or not links:
            known = dict.fromkeys((*self._servers.hosts, *filter(None, self.owners)))
            await self._ask_any(known, believing=not links)
        return self.owners != before

    def redirect(self, said: Moved) -> bool:
        """Take a server's word that a slot is not its own any more; whether that is news."""
        node = next((node for node, address in self._addresses.items() if address == said.owner), None)
        if node is None or node == self._nodes[said.slot]:
            return False
        self._nodes[said.slot] = node  # its epoch comes with the next claim; that of the old owner is not higher now
        self._last = []
        self._locate()
        return True

    def _locate(self) -> None:
        self.owners = [None if node is None else self._addresses.get(node) for node in self._nodes]

    async def _ask_link(self, link: ShardLink) -> bool:
        answers = [link.ask(*question) for question in _QUESTIONS]
        done, late = await asyncio.wait(answers, timeout=_PATIENCE)
        for answer in late:
            answer.cancel()
        errors = [answer.exception() for answer in done]
        if late or any(errors):
            return False
        slots, nodes = (answer.result() for answer in answers)
        return self._learn(link.address, slots, nodes, believing=False)

    async def _ask_any(self, addresses: Iterable[Address], *, believing: bool) -> None:
        asking = [asyncio.create_task(self._ask(address)) for address in addresses]
        errors: list[BaseException] = []
        try:
            for answered in asyncio.as_completed(asking):
                try:
                    address, slots, nodes = await answered
                except (BrokerUnavailable, ConfigurationError) as exc:
                    errors.append(exc)
                else:
                    if self._learn(address, slots, nodes, believing=believing):
                        return
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        for error in errors:
            if isinstance(error, ConfigurationError):
                raise error
        cause = errors[0] if errors else None
        hosts = ", ".join(map(str, self._servers.hosts))
        text = (
            f"No server of the Redis Cluster at {hosts} says who owns what: {cause or 'their answers cannot be read.'}"
        )
        raise BrokerUnavailable(text, broker="redis") from cause

    async def _ask(self, address: Address) -> tuple[Address, object, object]:
        within = self._config.connect_timeout
        name = f"{self._config.prefix}:{self._config.node}:asks"
        (connection,) = await self._servers.access.to(address).dial([name], within=within)
        try:
            async with asyncio.timeout(within):
                slots, nodes = [await ask(connection, pack(*question)) for question in _QUESTIONS]
                return address, slots, nodes
        except Exception as exc:
            if "cluster support disabled" in str(exc):
                text = f"Redis at {address} is no server of a Redis Cluster: use redis:// for a single server."
                raise ConfigurationError(text) from exc
            text = f"Redis at {address} does not tell of its cluster: {exc}"
            raise BrokerUnavailable(text, broker="redis") from exc
        finally:
            await connection.disconnect(nowait=True)

    def _learn(self, address: Address, slots: object, nodes: object, *, believing: bool) -> bool:
        """Take a server's word, as far as it is to be believed (rule 2); False when it says nothing usable."""
        told = claims(slots, nodes, address)
        if told is None:
            return False
        if believing:
            self._nodes[:], self._epochs[:] = [None] * SLOTS, [-1] * SLOTS
        elif told == self._last:
            return True
        for claim in told:
            self._addresses[claim.node] = claim.address
            for slot in range(claim.first, claim.last + 1):
                if claim.epoch > self._epochs[slot]:
                    self._nodes[slot], self._epochs[slot] = claim.node, claim.epoch
        self._last = told
        self._locate()
        return True
