"""The broker over a Redis Cluster's sharded publish/subscribe: `redis+cluster://`, `rediss+cluster://` (TLS).

A subject is a channel, verbatim, and lives on the server that owns the channel's slot; so rooms are spread over the
servers. Order is FIFO per publishing node within a subject only: two subjects take two ways. Everything else is as over
one Redis, but for the link, which is `redis_shards.Shards` and mends itself. Needs Redis 7.
"""

from dataclasses import replace
from typing import ClassVar

from roomcast.brokers.redis import Carrier, Listener, RedisBroker, Way
from roomcast.brokers.redis_servers import TLS_PARAMETERS, servers, shape_of
from roomcast.brokers.redis_shards import Shards
from roomcast.core.broker import BrokerConfig
from roomcast.core.errors import BrokerUnavailable, ConfigurationError


class RedisClusterBroker(RedisBroker):
    """Redis publish/subscribe over all servers of a cluster."""

    parameters: ClassVar[frozenset[str]] = TLS_PARAMETERS | {"address_map"}

    def __init__(self, config: BrokerConfig) -> None:
        super().__init__(config)
        self.guarantees = replace(self.guarantees, order="subject")

    @staticmethod
    def _way_of(config: BrokerConfig) -> Way:
        return _AllOfIt(config)


class _AllOfIt:
    """The way to all servers of a cluster."""

    def __init__(self, config: BrokerConfig) -> None:
        self._config = config
        self._servers = servers(config, port=6379)
        if self._servers.path:
            raise ConfigurationError(f"A Redis Cluster has one database, and its URL no path. {shape_of('+cluster')}")
        self.address = ", ".join(map(str, self._servers.hosts))

    async def open(self, listener: Listener) -> Carrier:
        """A link to every server that owns slots."""
        shards = Shards(self._config, self._servers, listener)
        try:
            await shards.start()
        except BaseException:
            shards.end(_given_up, _given_up)
            await shards.aclose()
            raise
        return shards


def _given_up() -> BrokerUnavailable:
    return BrokerUnavailable("The attempt to connect was given up.", broker="redis")
