"""Several Redis servers that belong together, for tests: sentinels with their master, and a Redis Cluster."""

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, ClassVar, Self, cast

from roomcast.brokers.redis_slots import SLOTS, slot_of
from tests.proxy import TcpProxy
from tests.services import GROUPS, Group, RedisServer, Server, free_port

_PATIENCE = 30.0
"""Seconds that servers may take to find each other on a busy machine."""


def ask(port: int, *words: str) -> Any:
    """A loopback Redis server's answer: text, a number, None, or a list of those. An error is raised."""
    parts = [word.encode() for word in words]
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock, sock.makefile("rb") as file:
        sock.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))

        def reply() -> Any:
            line = file.readline()
            kind, rest = line[:1], line[1:].strip().decode()
            if kind == b"-":
                raise RuntimeError(f"{' '.join(words)}: {rest}")
            if kind == b"+":
                return rest
            if kind == b":":
                return int(rest)
            if kind == b"$":
                return None if rest == "-1" else file.read(int(rest) + 2)[:-2].decode(errors="replace")
            if kind == b"*":
                return None if rest == "-1" else [reply() for _ in range(int(rest))]
            raise RuntimeError(f"{' '.join(words)}: unexpected {line!r}")

        return reply()


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Return once the condition holds, without a loop; an error of the server counts as not yet."""
    deadline = time.monotonic() + _PATIENCE
    said: object = None
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (OSError, RuntimeError) as exc:
            said = exc
        time.sleep(0.02)
    raise RuntimeError(f"Not within {_PATIENCE:g} s: {what} ({said})")


def _follows(replica: RedisServer) -> bool:
    role = ask(replica.port, "ROLE")
    return bool(role[0] == "slave" and role[3] == "connected")


class SentinelServer(RedisServer):
    """A sentinel; `config` are lines of its configuration file."""

    name = "Redis Sentinel"
    scheme = "redis+sentinel"

    def argv(self, binary: str) -> Sequence[str]:
        file = self.directory / "sentinel.conf"
        if not file.exists():  # a sentinel that comes back goes on with what it has written there
            file.write_text("\n".join(("bind 127.0.0.1", f"port {self.port}", *self.config)) + "\n")
        return [binary, str(file), "--sentinel"]


def _run_id(sentinel: SentinelServer) -> str:
    return f"{sentinel.port:040x}"


class RedisGroup(Group):
    """Redis servers that are started, and stopped, together."""

    scheme: ClassVar[str]
    binary = RedisServer.binary

    def __init__(self) -> None:
        self.servers: list[RedisServer] = []

    def _start(self, servers: Sequence[RedisServer]) -> None:
        with ThreadPoolExecutor(len(servers)) as pool:
            list(pool.map(Server.launch, servers))

    def remove(self) -> None:
        for server in self.servers:
            server.remove()

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self.launch)
        except BaseException:
            await asyncio.to_thread(self.remove)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.remove)


class SentinelGroup(RedisGroup):
    """Three sentinels, and a service "main" of one master and some replicas, which may be none.

    Attributes:
        sentinels: the sentinels.
        members: the master and the replicas, as they were at the start.
    """

    scheme = "redis+sentinel"
    name = "Redis Sentinel"

    def __init__(
        self,
        *,
        replicas: int = 0,
        down_after: float = 60.0,
        config: Sequence[str] = (),
        sentinel_config: Sequence[str] = (),
    ) -> None:
        super().__init__()
        config = ("--repl-diskless-sync-delay", "0", *config)
        master = RedisServer(*config)
        followers = [RedisServer("--replicaof", f"127.0.0.1 {master.port}", *config) for _ in range(replicas)]
        self.members = [master, *followers]
        self.sentinels = [SentinelServer() for _ in range(3)]
        for sentinel in self.sentinels:  # they know one another from the start, which they would find out in seconds
            sentinel.config = (
                f"sentinel myid {_run_id(sentinel)}",
                f"sentinel monitor main 127.0.0.1 {master.port} 2",
                f"sentinel down-after-milliseconds main {int(down_after * 1000)}",
                "sentinel failover-timeout main 3000",
                *(f"sentinel known-replica main 127.0.0.1 {follower.port}" for follower in followers),
                *(
                    f"sentinel known-sentinel main 127.0.0.1 {other.port} {_run_id(other)}"
                    for other in self.sentinels
                    if other is not sentinel
                ),
                *sentinel_config,
            )
        self.servers = [*self.members, *self.sentinels]

    @property
    def url(self) -> str:
        return f"{self.scheme}://{','.join(f'127.0.0.1:{sentinel.port}' for sentinel in self.sentinels)}/main"

    def launch(self) -> None:
        self._start(self.members)  # first: a sentinel looks for replicas when it starts, and then every 10 s
        wait_for(lambda: all(map(_follows, self.members[1:])), "the replicas follow their master")
        self._start(self.sentinels)
        if len(self.members) > 1:
            wait_for(self._know_all, "the sentinels are connected to one another and the replicas")

    def _know_all(self) -> bool:
        for sentinel in self.sentinels:
            facts = ask(sentinel.port, "SENTINEL", "MASTER", "main")
            known = dict(zip(facts[::2], facts[1::2], strict=True))
            if "disconnected" in known["flags"] or int(known["num-slaves"]) != len(self.members) - 1:
                return False
            others = [*ask(sentinel.port, "SENTINEL", "SENTINELS", "main")]
            others += ask(sentinel.port, "SENTINEL", "REPLICAS", "main")
            if any("disconnected" in other[other.index("flags") + 1] for other in others):
                return False
        return True

    @property
    def master(self) -> RedisServer:
        """Whom the first sentinel calls the master."""
        _, port = ask(self.sentinels[0].port, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
        return next(member for member in self.members if member.port == int(port))


class ClusterServer(RedisServer):
    """A server of a Redis Cluster."""

    def __init__(self, *config: str) -> None:
        self.bus = free_port()
        own = ("--cluster-enabled", "yes", "--cluster-port", str(self.bus), "--cluster-config-file", "nodes.conf")
        super().__init__(*own, *config)


class ClusterGroup(RedisGroup):
    """A Redis Cluster of three masters, which may have a replica each.

    Attributes:
        masters: the masters, as they were at the start, with a third of the slots each.
        replicas: the replicas; the one of `masters[n]` is `replicas[n]`.
    """

    scheme = "redis+cluster"
    name = "Redis Cluster"

    def __init__(self, *, replicas: bool = False, config: Sequence[str] = ()) -> None:
        super().__init__()
        config = ("--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0", *config)
        self.masters = [ClusterServer(*config) for _ in range(3)]
        self.replicas = [ClusterServer(*config) for _ in range(3 if replicas else 0)]
        self.servers = [*self.masters, *self.replicas]

    @property
    def url(self) -> str:
        return f"{self.scheme}://{','.join(f'127.0.0.1:{master.port}' for master in self.masters)}"

    def launch(self) -> None:
        self._start(self.servers)
        first = self.masters[0]
        for number, master in enumerate(self.masters):
            ask(master.port, "CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
            start, end = (SLOTS * n // len(self.masters) for n in (number, number + 1))
            ask(master.port, "CLUSTER", "ADDSLOTSRANGE", str(start), str(end - 1))
        for server in self.servers[1:]:
            config = server.config
            port = config[config.index("--tls-port") + 1] if "--tls-port" in config else str(server.port)
            ask(first.port, "CLUSTER", "MEET", "127.0.0.1", port, str(cast("ClusterServer", server).bus))
        wait_for(lambda: all(map(self._knows_all, self.servers)), "the servers know one another and all slots")
        for replica, master in zip(self.replicas, self.masters, strict=False):
            ask(replica.port, "CLUSTER", "REPLICATE", self.id_of(master))
        if self.replicas:
            wait_for(lambda: all(map(_follows, self.replicas)), "the replicas follow their masters")
            wait_for(lambda: all(map(self._is_ok, self.servers)), "the cluster is well everywhere")

    def _knows_all(self, server: RedisServer) -> bool:
        facts = str(ask(server.port, "CLUSTER", "INFO"))
        known = str(ask(server.port, "CLUSTER", "NODES"))
        return (
            f"cluster_slots_assigned:{SLOTS}\r" in facts
            and f"cluster_known_nodes:{len(self.servers)}\r" in facts
            and "handshake" not in known
        )

    def _is_ok(self, server: RedisServer) -> bool:
        return "cluster_state:ok" in ask(server.port, "CLUSTER", "INFO") and all(
            str(ask(server.port, "CLUSTER", "NODES")).count(f"slave {self.id_of(master)}") == 1
            for master in self.masters
        )

    @staticmethod
    def id_of(server: RedisServer) -> str:
        """The server's id in the cluster."""
        return str(ask(server.port, "CLUSTER", "MYID"))

    def master_of(self, subject: str) -> ClusterServer:
        """Whose slot a subject was in at the start."""
        return self.masters[slot_of(subject.encode()) * len(self.masters) // SLOTS]

    def move(self, slot: int, source: ClusterServer, target: ClusterServer) -> None:
        """Let another master own a slot that holds no keys, and all masters know it."""
        new = self.id_of(target)
        ask(target.port, "CLUSTER", "SETSLOT", str(slot), "IMPORTING", self.id_of(source))
        ask(source.port, "CLUSTER", "SETSLOT", str(slot), "MIGRATING", new)
        for server in (target, source, *(other for other in self.masters if other not in (source, target))):
            ask(server.port, "CLUSTER", "SETSLOT", str(slot), "NODE", new)


GROUPS["redis+sentinel"] = SentinelGroup
GROUPS["redis+cluster"] = ClusterGroup


def proxy_before(url: str) -> "TcpProxy | Proxies":
    """What stands between a broker and its linked nodes: before the one server, or before all that carry messages."""
    scheme, _, rest = url.partition("://")
    if scheme not in GROUPS:
        return TcpProxy(url)
    hosts = [host.partition(":") for host in rest.partition("/")[0].split(",")]
    ports = [int(port) for _, _, port in hosts]
    if scheme == "redis+sentinel":
        _, master = ask(ports[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
        ports = [int(master)]
    return Proxies(url, ports)


class Proxies:
    """One `TcpProxy` before each of several servers, with the same verbs for all of them; a `cluster.Link`.

    Attributes:
        each: the proxies, by the port of their server.
    """

    def __init__(self, url: str, ports: Sequence[int]) -> None:
        self._url = url
        self.each = {port: TcpProxy(f"redis://127.0.0.1:{port}") for port in ports}

    @property
    def url(self) -> str:
        """The URL, with a map from the servers' addresses to those of the proxies."""
        pairs = (f"127.0.0.1:{port}=127.0.0.1:{proxy.port}" for port, proxy in self.each.items())
        return f"{self._url}?address_map={','.join(pairs)}"

    @property
    def connections(self) -> int:
        """How many connections were accepted by the proxy that accepted most."""
        return max(proxy.connections for proxy in self.each.values())

    @property
    def bytes_down(self) -> int:
        """How many bytes of replies were carried by the proxy that carried most."""
        return max(proxy.bytes_down for proxy in self.each.values())

    @property
    def open(self) -> int:
        return sum(proxy.open for proxy in self.each.values())

    @property
    def delay(self) -> float:
        return max(proxy.delay for proxy in self.each.values())

    @delay.setter
    def delay(self, seconds: float) -> None:
        for proxy in self.each.values():
            proxy.delay = seconds

    @property
    def hang_up(self) -> bool:
        return any(proxy.hang_up for proxy in self.each.values())

    @hang_up.setter
    def hang_up(self, value: bool) -> None:
        for proxy in self.each.values():
            proxy.hang_up = value

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for proxy in self.each.values():
            await proxy.__aexit__(kind, error, trace)

    async def cut(self) -> int:
        return sum(await asyncio.gather(*(proxy.cut() for proxy in self.each.values())))

    async def reset(self) -> int:
        return sum(await asyncio.gather(*(proxy.reset() for proxy in self.each.values())))

    async def accept(self) -> None:
        for proxy in self.each.values():
            await proxy.accept()

    def stall(self) -> None:
        for proxy in self.each.values():
            proxy.stall()

    def drop_replies(self) -> None:
        for proxy in self.each.values():
            proxy.drop_replies()

    def resume(self) -> None:
        for proxy in self.each.values():
            proxy.resume()

    def refuse(self) -> None:
        for proxy in self.each.values():
            proxy.refuse()
