"""Clusters of brokers for tests: shared ones that tests may use, and disposable ones that fault tests may break."""

import asyncio
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from tests.services import NatsServer, RabbitServer, Server, free_port, unavailable

VARIABLE = "ROOMCAST_TEST_CLUSTERS"


class ServerCluster:
    """Several servers that form one broker, in one directory.

    Attributes:
        servers: the servers; each can be killed and started again.
    """

    name: ClassVar[str]
    kind: ClassVar[type[Server]]
    size: ClassVar[int]

    def __init__(self, home: Path | None = None) -> None:
        self.home = home or Path(tempfile.mkdtemp(prefix="roomcast-cluster-"))
        self.servers: Sequence[Server] = ()

    @property
    def url(self) -> str:
        """One URL that names all servers."""
        scheme, _, first = self.servers[0].url.partition("://")
        login, at, _ = first.rpartition("@")
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        return f"{scheme}://{login}{at}{hosts}"

    @property
    def urls(self) -> list[str]:
        """One URL for each server."""
        return [server.url for server in self.servers]

    def launch(self) -> None:
        """Start the servers, and return once they are one cluster."""
        raise NotImplementedError

    def remove(self) -> None:
        """Kill the servers and delete their directory."""
        for server in self.servers:
            server.end()
        shutil.rmtree(self.home, ignore_errors=True)

    def leave(self) -> None:
        """Forget the processes: somebody else ends them by their `server.pid`."""
        for server in self.servers:
            server.leave()

    async def __aenter__(self) -> Self:
        if self.kind.find() is None:
            unavailable(self.name, f"no {self.kind.binary} on this machine")
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


class NatsCluster(ServerCluster):
    """Three NATS servers."""

    name = "a NATS cluster"
    kind = NatsServer
    size = 3

    def __init__(self, home: Path | None = None) -> None:
        super().__init__(home)
        ports = [free_port() for _ in range(self.size)]
        routes = ",".join(f"nats://127.0.0.1:{port}" for port in ports)
        self.servers = [
            NatsServer(*clustered(port, routes), home=self.home / f"{number}") for number, port in enumerate(ports)
        ]

    def launch(self) -> None:
        for server in self.servers:
            server.launch()
        wait(lambda: all(members(server) == self.size for server in self.servers), "NATS servers know one another")


def clustered(port: int, routes: str) -> tuple[str, ...]:
    """The arguments of a NATS server whose cluster port is this, and that looks for others there."""
    own = f"nats://127.0.0.1:{port}"
    return ("--cluster", own, "--cluster_name", "roomcast", *(("--routes", routes) if routes else ()))


def members(server: Server) -> int:
    """How many servers a NATS server counts in its cluster, itself included."""
    info = greeting(server.port)
    return len(set(info.get("connect_urls", ())))


def greeting(port: int) -> dict[str, Any]:
    """What a NATS server says of itself; nothing when it does not listen."""
    with suppress(OSError, ValueError), socket.create_connection(("127.0.0.1", port), timeout=2) as sock:
        answer: dict[str, Any] = json.loads(sock.makefile("rb").readline().removeprefix(b"INFO "))
        return answer
    return {}


class RabbitMember(RabbitServer):
    """A RabbitMQ node of a cluster, which it joins as it starts; so it may take longer."""

    patience = 100.0


class RabbitCluster(ServerCluster):
    """Two RabbitMQ nodes, with an epmd and a cookie of their own."""

    name = "a RabbitMQ cluster"
    kind = RabbitServer
    size = 2

    def __init__(self, home: Path | None = None) -> None:
        super().__init__(home)
        self._epmd_port = free_port()
        self._epmd: subprocess.Popen[bytes] | None = None
        self.servers = self.nodes = nodes = [
            RabbitMember(home=self.home / f"{number}", epmd_port=self._epmd_port) for number in range(self.size)
        ]
        for node in nodes[1:]:  # the first one starts alone
            node.config = (
                "cluster_formation.peer_discovery_backend = classic_config",
                *(f"cluster_formation.classic_config.nodes.{n} = {one.node}" for n, one in enumerate(nodes, 1)),
                "cluster_formation.discovery_retry_limit = 200",
                "cluster_formation.discovery_retry_interval = 200",
            )

    def launch(self) -> None:
        for server in self.servers:
            cookie = server.directory / ".erlang.cookie"
            cookie.write_text("ROOMCASTTESTS")
            cookie.chmod(0o400)
        (self.home / "epmd").mkdir()
        # In the foreground, so that it is ours to end; the nodes would leave one behind.
        self._epmd = subprocess.Popen(
            [find_epmd(), "-address", "127.0.0.1", "-port", str(self._epmd_port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        (self.home / "epmd" / "server.pid").write_text(str(self._epmd.pid))
        for node in self.nodes:  # one that joins while the first one still makes its tables ends with an error
            node.launch()
        first = self.nodes[0].directory / "server.log"
        ups = [f"rabbit on node {node.node} up" for node in self.nodes[1:]]
        wait(lambda: all(up in first.read_text(errors="replace") for up in ups), "RabbitMQ nodes know one another")

    def leave(self) -> None:
        super().leave()
        if self._epmd is not None:
            self._epmd.returncode = 0

    def remove(self) -> None:
        super().remove()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait(10)


def find_epmd() -> str:
    """Erlang's name service, which comes with RabbitMQ's Erlang."""
    found = shutil.which("epmd") or next((str(path) for path in Path("/usr/lib/erlang").glob("erts*/bin/epmd")), None)
    if found is None:
        raise FileNotFoundError("epmd")
    return found


def wait(condition: Callable[[], bool], what: str, *, within: float = 20.0) -> None:
    """Return once the condition holds, without a loop."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"Not within {within} s: {what}")
        time.sleep(0.02)


CLUSTERS: dict[str, type[ServerCluster]] = {"nats": NatsCluster, "amqp": RabbitCluster}


class SharedClusters:
    """Clusters for the whole run, each started once by whichever process of pytest-xdist asks first.

    `begin` starts one in the background; `urls` waits for it. The process that named their directory ends them all.
    """

    def __init__(self) -> None:
        self._owner = VARIABLE not in os.environ
        if self._owner:
            name = f"roomcast-clusters-{os.getpid()}-{secrets.token_hex(4)}"
            os.environ[VARIABLE] = str(Path(tempfile.gettempdir()) / name)
        self._directory = Path(os.environ[VARIABLE])

    def begin(self, scheme: str, use: str = "shared") -> None:
        """Start a cluster unless some process has. `use` tells clusters of one scheme apart."""
        home = self._directory / f"{scheme}-{use}"
        cluster = CLUSTERS[scheme]
        self._directory.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileExistsError):
            home.mkdir()  # by one process alone
            if cluster.kind.find() is None:
                publish(home, {"missing": f"no {cluster.kind.binary} on this machine"})
            else:
                threading.Thread(target=launch, args=(cluster, home), daemon=True).start()

    def urls(self, scheme: str, use: str = "shared") -> list[str]:
        """One URL for each server, once they all are up; a skip, or a failure where brokers are required, if not."""
        return [str(url) for url in self._state(scheme, use)["urls"]]

    def pids(self, scheme: str, use: str) -> list[int]:
        """The process of each server."""
        return [int(pid) for pid in self._state(scheme, use)["pids"]]

    def _state(self, scheme: str, use: str) -> dict[str, Any]:
        self.begin(scheme, use)
        path = self._directory / f"{scheme}-{use}" / "state.json"
        wait(path.exists, f"{CLUSTERS[scheme].name} is up", within=120.0)
        state: dict[str, Any] = json.loads(path.read_text())
        if "missing" in state:
            unavailable(CLUSTERS[scheme].name, state["missing"])
        if "failed" in state:
            raise RuntimeError(state["failed"])
        return state

    def close(self) -> None:
        """End what any process of this run has started."""
        if not self._owner:
            return
        for path in self._directory.glob("*/*/server.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)
        shutil.rmtree(self._directory, ignore_errors=True)
        os.environ.pop(VARIABLE, None)


def launch(kind: type[ServerCluster], home: Path) -> None:
    """Start a cluster and say where it is, or why it is not."""
    cluster = kind(home)
    try:
        cluster.launch()
    except (RuntimeError, OSError) as exc:
        state: dict[str, Any] = {"failed": f"{kind.name}: {exc}"}
    else:
        state = {"urls": cluster.urls, "pids": [server.pid for server in cluster.servers]}
    cluster.leave()
    publish(home, state)


def publish(home: Path, state: dict[str, Any]) -> None:
    draft = home / "state.draft"
    draft.write_text(json.dumps(state))
    draft.rename(home / "state.json")
