"""What somebody else may do to a log, for each broker that keeps one."""

from urllib.parse import urlsplit

from roomcast.brokers.memory_log import memory_logs
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


TAMPERS: dict[str, Tamper] = {"memory+log": MemoryTamper()}
