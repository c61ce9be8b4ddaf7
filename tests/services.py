"""Brokers for tests: the shared ones that tests may use, and disposable ones that fault tests may break."""

import asyncio
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, NoReturn, Self
from urllib.parse import urlsplit

import pytest

from tests.waiting import until

AMQP_HEADER = b"AMQP\x00\x00\x09\x01"


def required() -> bool:
    """Whether a broker that cannot be had fails the run: in CI, and in `make test`."""
    return os.environ.get("CI") == "true" or os.environ.get("ROOMCAST_TEST_REQUIRE") == "1"


def unavailable(what: str, reason: str) -> NoReturn:
    """Fail where brokers are required; elsewhere skip, saying what and why."""
    message = f"{what} is not available: {reason}"
    if required():
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


_PORTS = 300  # for each process
_next_port = itertools.count()


def free_port() -> int:
    """A loopback port that nothing listens on, and that no other process of a run is given soon.

    Those that the kernel gives out by itself may be taken by any connection before a server is up that was told them.
    """
    first = 20_000 + os.getpid() % 40 * _PORTS
    for _ in range(_PORTS):
        port = first + next(_next_port) % _PORTS
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"None of the ports from {first} to {first + _PORTS - 1} is free.")


def speaks(host: str, port: int, hello: bytes, answer: Sequence[bytes], *, within: float = 2.0) -> bool:
    """Whether the port answers `hello` with one of the beginnings in `answer`."""
    try:
        with socket.create_connection((host, port), timeout=within) as sock:
            sock.sendall(hello)
            got = sock.recv(64)
    except OSError:
        return False
    return got.startswith(tuple(answer))


def said(port: int, what: bytes) -> bool:
    """Whether it stands in what the server on a loopback port says first."""
    with socket.create_connection(("127.0.0.1", port), timeout=2.0) as sock:
        return what in sock.recv(4096)


def halted(pid: int) -> bool:
    """Whether every thread of a process is stopped; where there is no /proc, whatever the signal has done by now."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(state in "Tt" for state in states)


class Server:
    """A broker that a test started, on a free loopback port, in its own temporary directory.

    `async with RedisServer() as server:` starts it and leaves nothing behind.

    Attributes:
        port: the port, the same for the whole life of the object.
        starts: how many times the server was started.
    """

    name: ClassVar[str]
    scheme: ClassVar[str]
    binary: ClassVar[str]
    package: ClassVar[str]
    hello: ClassVar[bytes]
    answer: ClassVar[Sequence[bytes]]
    patience: ClassVar[float] = 10.0

    def __init__(self, *config: str, home: Path | None = None) -> None:
        self.config = config
        self.port = free_port()
        self.starts = 0
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the server itself."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def directory(self) -> Path:
        """Where the server lives: a temporary directory of its own, unless it was given a home."""
        if self._home is not None:
            self._home.mkdir(parents=True, exist_ok=True)
            return self._home
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix=f"roomcast-{self.scheme}-")
        return Path(self._directory.name)

    @classmethod
    def find(cls) -> str | None:
        """The path of the server's binary."""
        return shutil.which(cls.binary)

    def argv(self, binary: str) -> Sequence[str]:
        raise NotImplementedError

    def environ(self) -> Mapping[str, str]:
        return os.environ

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.remove)

    async def start(self) -> None:
        """Start the server (again) on its port, and return once it speaks its protocol."""
        if self.find() is None:
            unavailable(self.name, f"no {self.binary} on this machine (Debian: apt-get install {self.package})")
        await asyncio.to_thread(self.launch)

    async def kill(self) -> None:
        """End the server at once (SIGKILL) and return once it is gone."""
        await asyncio.to_thread(self.end)

    def stop(self) -> None:
        """Halt the server (SIGSTOP), all its threads: its connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        deadline = time.monotonic() + self.patience
        while not halted(self.pid):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not stop")
            time.sleep(0.005)

    def cont(self) -> None:
        """Let a halted server go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def launch(self) -> None:
        """Start the process and wait, without a loop, until it speaks its protocol."""
        if self.running:
            return
        binary = self.find()
        if binary is None:
            raise FileNotFoundError(self.binary)
        log = self.directory / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self.argv(binary),
                cwd=self.directory,
                env=dict(self.environ()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.starts += 1
        (self.directory / "server.pid").write_text(str(self._process.pid))
        deadline = time.monotonic() + self.patience
        while not speaks("127.0.0.1", self.port, self.hello, self.answer):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-2000:]
                self.end()
                raise RuntimeError(f"{self.name} did not come up on port {self.port}; it said:\n{said}")
            time.sleep(0.02)

    def end(self) -> None:
        """Kill the process that was started here, if it still runs, and reap it."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(10)
        self._process = None

    def leave(self) -> None:
        """Forget the process: it goes on, and somebody else ends it by its `server.pid`."""
        if self._process is not None:
            self._process.returncode = 0  # or subprocess warns that it still runs
            self._process = None

    def remove(self) -> None:
        """Kill the server and delete its directory."""
        self.end()
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None


class RedisServer(Server):
    """A redis-server without persistence; `config` as on its command line: `"--maxmemory", "10mb"`."""

    name = "Redis"
    scheme = "redis"
    binary = "redis-server"
    package = "redis-server"
    hello = b"PING\r\n"
    answer = (b"+PONG", b"-NOAUTH")

    def argv(self, binary: str) -> Sequence[str]:
        own = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]
        return [binary, *own, "--dir", str(self.directory), *self.config]

    async def command(self, *words: str) -> str:
        """What the server answers to one command, such as `"CLIENT", "KILL", "TYPE", "pubsub"`, unparsed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            encoded = [word.encode() for word in words]
            parts = [b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded]
            writer.write(b"*%d\r\n" % len(parts) + b"".join(parts))
            async with asyncio.timeout(5):
                line = await reader.readline()
                if line.startswith(b"$") and line != b"$-1\r\n":
                    line = (await reader.readexactly(int(line[1:]) + 2))[:-2]
            return line.decode().strip()
        finally:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)


class NatsServer(Server):
    """A nats-server; `config` as on its command line: `"--auth", "token"`. The bundled one is preferred."""

    name = "NATS"
    scheme = "nats"
    binary = "nats-server"
    package = "nats-server"
    hello = b""
    answer = (b"INFO ",)

    @classmethod
    def find(cls) -> str | None:
        return shutil.which(cls.binary, path=str(Path(sys.executable).parent)) or shutil.which(cls.binary)

    def argv(self, binary: str) -> Sequence[str]:
        return [binary, "--addr", "127.0.0.1", "--port", str(self.port), *self.config]


class JetStreamServer(NatsServer):
    """A nats-server with JetStream, which keeps its data as long as the object lives."""

    def argv(self, binary: str) -> Sequence[str]:
        return [*super().argv(binary), "--jetstream", "--store_dir", str(self.directory / "jetstream")]


class RabbitServer(Server):
    """A RabbitMQ node of its own name; `config` are lines of rabbitmq.conf. Takes some seconds to start.

    The script is told that it runs under systemd, because then it becomes the Erlang machine (`exec`) instead
    of its parent: the pid is the one to kill. epmd, which all Erlang nodes of a machine share, is left alone; a node
    may be given the port of another one.
    """

    name = "RabbitMQ"
    scheme = "amqp"
    binary = "rabbitmq-server"
    package = "rabbitmq-server"
    hello = AMQP_HEADER
    answer = (b"\x01\x00\x00",)  # a method frame on channel 0: connection.start
    patience = 40.0
    # Debian's /usr/sbin/rabbitmq-server changes the user and drops the environment; these do not.
    _scripts: ClassVar[Sequence[str]] = ("/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin", "/usr/local/sbin")

    def __init__(self, *config: str, home: Path | None = None, epmd_port: int | None = None) -> None:
        super().__init__(*config, home=home)
        self.dist_port = free_port()
        self.epmd_port = epmd_port
        self.node = f"roomcast{self.port}@localhost"

    @classmethod
    def find(cls) -> str | None:
        return shutil.which(cls.binary, path=os.pathsep.join(cls._scripts)) or shutil.which(cls.binary)

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def argv(self, binary: str) -> Sequence[str]:
        return [binary]

    def environ(self) -> Mapping[str, str]:
        home = self.directory
        (home / "rabbitmq.conf").write_text("\n".join(self.config) + "\n")
        (home / "enabled_plugins").write_text("[].\n")
        (home / "env.conf").touch()
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")},
            "HOME": str(home),  # holds this node's own .erlang.cookie
            "RUNNING_UNDER_SYSTEMD": "1",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            "RABBITMQ_BASE": str(home),
            "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "RABBITMQ_CONF_ENV_FILE": str(home / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            **({"ERL_EPMD_PORT": str(self.epmd_port)} if self.epmd_port else {}),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}",
        }

    async def ctl(self, *words: str) -> str:
        """What rabbitmqctl answers for this node, such as `"list_queues"`."""
        script = Path(self.find() or "rabbitmq-server").with_name("rabbitmqctl")
        deadline = time.monotonic() + self.patience
        while True:
            done = await asyncio.to_thread(
                subprocess.run,
                [str(script), "--quiet", "--node", self.node, *words],
                env=dict(self.environ()),
                capture_output=True,
                text=True,
                timeout=40,
                check=False,
            )
            if done.returncode == 0:
                return done.stdout
            # its port answers a moment before the application calls itself started
            if "requires the 'rabbit' app" not in done.stdout + done.stderr or time.monotonic() > deadline:
                raise RuntimeError(f"rabbitmqctl {' '.join(words)}: {done.stdout}{done.stderr}")


SERVERS: Mapping[str, type[Server]] = {"redis": RedisServer, "nats": JetStreamServer, "amqp": RabbitServer}
_VARIABLES = {
    "redis": "ROOMCAST_TEST_REDIS_URL",
    "nats": "ROOMCAST_TEST_NATS_URL",
    "amqp": "ROOMCAST_TEST_RABBITMQ_URL",
}
_USUAL = {
    "redis": "redis://127.0.0.1:6379",
    "nats": "nats://127.0.0.1:4222",
    "amqp": "amqp://guest:guest@127.0.0.1:5672/",
}


class Group:
    """Several servers that belong together and are started together."""

    name: ClassVar[str]
    binary: ClassVar[str]

    @property
    def url(self) -> str:
        raise NotImplementedError

    @classmethod
    def find(cls) -> str | None:
        """The path of the servers' binary."""
        return shutil.which(cls.binary)

    def launch(self) -> None:
        """Start the servers, and return once they make one deployment; without a loop."""
        raise NotImplementedError

    def remove(self) -> None:
        """Stop exactly what was started here."""
        raise NotImplementedError


GROUPS: dict[str, type[Group]] = {}
"""By scheme; whoever defines one adds it."""


def name_of(scheme: str) -> str:
    """What serves a scheme, for people to read."""
    return SERVERS[scheme].name if scheme in SERVERS else GROUPS[scheme].name


class SharedBrokers:
    """One broker per scheme for the whole run, found or started when first asked for.

    A URL in the environment is believed; else what speaks the protocol on the usual loopback port is used;
    else an installed binary is started on a free port. Tests use a random prefix and never break these.
    Several servers that belong together (`GROUPS`) are always started, by each process that asks for them.
    """

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        self._started: list[Server | Group] = []

    def url(self, scheme: str) -> str:
        """The URL of the shared broker; a skip, or a failure where brokers are required, if there is none."""
        if scheme not in self.found:
            url, self.sources[scheme] = self._find(scheme)
            if url is None:
                unavailable(name_of(scheme), self.sources[scheme])
            self.found[scheme] = url
        return self.found[scheme]

    def log_url(self, scheme: str) -> str:
        """The URL of the log that the shared broker of a scheme such as `nats+jetstream` keeps."""
        if scheme not in self.found:
            url = self.url(scheme.partition("+")[0])
            port = urlsplit(url).port or 0
            if scheme == "nats+jetstream" and not said(port, b'"jetstream":true'):
                started, self.sources[scheme] = self._start(JetStreamServer)
                url = started or unavailable("JetStream", self.sources[scheme])
            self.found[scheme] = f"{scheme}://{url.partition('://')[2]}"
        return self.found[scheme]

    def share(self) -> None:
        """Find or start every broker now, for the processes that this one starts."""
        for scheme, variable in _VARIABLES.items():
            url, self.sources[scheme] = self._find(scheme)
            if url is not None:
                self.found[scheme] = os.environ[variable] = url

    def close(self) -> None:
        """Stop exactly what was started here."""
        for server in self._started:
            server.remove()
        self._started.clear()

    def _find(self, scheme: str) -> tuple[str | None, str]:
        if scheme in GROUPS:
            return self._start(GROUPS[scheme])
        server_class, variable = SERVERS[scheme], _VARIABLES[scheme]
        if url := os.environ.get(variable):
            return url, f"from {variable}"
        usual = urlsplit(_USUAL[scheme])
        if speaks("127.0.0.1", usual.port or 0, server_class.hello, server_class.answer):
            return _USUAL[scheme], f"listening on port {usual.port}"
        if server_class.find() is None:
            return (
                None,
                f"{variable} is not set, nothing on port {usual.port}, no {server_class.binary} installed",
            )
        return self._start(server_class)

    def _start(self, server_class: type[Server] | type[Group]) -> tuple[str | None, str]:
        if server_class.find() is None:
            return None, f"no {server_class.binary} installed"
        server = server_class()
        self._started.append(server)
        try:
            server.launch()
        except RuntimeError as exc:
            return None, str(exc)
        return server.url, f"started at {server.url}"


async def until_closed(port: int) -> None:
    """Return once nothing listens on the loopback port any more."""

    def closed() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) != 0

    await until(closed, what=f"port {port} is closed")
