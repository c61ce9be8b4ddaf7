"""One case: two nodes of a contestant on a broker of their own, a client on each, a stream of events, and a fault.

    A ---+             +--- B        A emits 200 numbered events a second to a room.
    near | proxy, broker |  far      One member is on A (near), one on B (far).

The stream begins when a probe has crossed, and the fault comes `BEFORE` seconds later. It goes on until events flow
again, at most `PATIENCE` seconds after the fault was over, and `AFTER` seconds more. Then emits may end, and what is
under way may arrive.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from tests.proxy import TcpProxy
from tests.services import SERVERS, RedisServer, Server

from bench.contestants import NODE, URLS, Contestant
from bench.faults.account import Journal, account
from bench.faults.client import Client
from bench.plan import new_channel
from bench.processes import Process, ProcessFailed

Figures = dict[str, float]

RATE = 200.0
SIZE = 100
BEFORE = 2.0  # RabbitMQ does not find a stream again when it is killed in the second after its making
AFTER = 1.0
PATIENCE = 14.0
ENDING = 6.0
"""Seconds that emits may take to end; a second more than roomcast's `emit_timeout`."""
QUIET = 1.5
"""Seconds in which nothing arrives, after which nothing is waited for."""


def new_server(broker: str) -> Server:
    """A broker that keeps its data where it can, on a free port."""
    if broker == "redis":
        return RedisServer("--appendonly", "yes", "--appendfsync", "always")
    return SERVERS[broker]()


class Stage:
    """The nodes and the clients on a broker; entered with `async with`.

    Attributes:
        server: the broker, which nobody else uses.
        fault: what is going to happen.
        proxy: between it and the nodes.
        over: when the fault was over, by the monotonic clock.
    """

    def __init__(self, contestant: Contestant, server: Server, fault: "Fault") -> None:
        self.contestant = contestant
        self.fault = fault
        self.server = server
        self.proxy = TcpProxy(server.url)
        self.near, self.far = Client(SIZE), Client(SIZE)
        self.over = 0.0
        self._channel = new_channel()
        self._stack = AsyncExitStack()
        self._nodes: dict[str, Process] = {}
        self._ports: dict[str, int] = {}
        self._directory = Path()

    @property
    def a(self) -> Process:
        """The node that emits."""
        return self._nodes["a"]

    @property
    def b(self) -> Process:
        """The other one."""
        return self._nodes["b"]

    async def __aenter__(self) -> Self:
        async with self._stack:
            self._directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="roomcast-faults-")))
            await self._stack.enter_async_context(self.proxy)
            self._stack.push_async_callback(self._clear)
            await asyncio.gather(self.begin("a"), self.begin("b"))
            await asyncio.gather(self.near.connect(self._ports["a"]), self.far.connect(self._ports["b"]))
            await self._until_heard()
            self._stack = self._stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _clear(self) -> None:
        await asyncio.gather(self.near.close(), self.far.close())
        for node in self._nodes.values():
            await node.kill()

    async def begin(self, role: str) -> None:
        """Start a node, in place of the one that had the role before."""
        journal = str(self._directory / role)
        url = self.proxy.url if self.fault.proxied else self.server.url
        if self.contestant.runtime == "node":
            argv = ["node", str(NODE / "serve.mjs"), self.contestant.variant, url]
        else:
            argv = [sys.executable, "-m", "bench.faults.node", self.contestant.name]
        argv += [self._channel, str(SIZE), journal]
        node = await Process.start(
            argv,
            name=f"{self.contestant.name} ({role})",
            environ={URLS[self.contestant.broker][0]: url},
        )
        self._nodes[role] = node
        self._ports[role] = int((await node.ask("start", patience=60))["port"])

    async def _until_heard(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self.far.probes:
            if time.monotonic() > deadline:
                raise ProcessFailed(f"{self.b.name}: nothing is heard\n{self.b.said()}")
            await self.a.ask("probe")
            await asyncio.sleep(0.05)

    async def stream(self) -> None:
        """Let A emit, from the number after the last one on."""
        await self.a.ask("stream", first=len(self.journal("a").calls), rate=self.fault.rate)

    def journal(self, role: str) -> Journal:
        """What a node has written so far."""
        path = self._directory / role
        return Journal().read(path.read_text().splitlines(keepends=True)) if path.exists() else Journal()

    async def settle(self) -> None:
        """Wait until events flow and some more have, end the stream, and let what is under way arrive."""
        first = len(self.journal("a").calls)
        far = self.far.arrivals
        await _until(lambda: bool(far) and far[-1].number >= first, PATIENCE)
        await asyncio.sleep(AFTER)
        with suppress(ProcessFailed):  # a node may have gone down
            await self.a.ask("end", within=ENDING, patience=ENDING + 2)
        emitted, quiet, count = len(self.journal("a").calls), time.monotonic(), len(far)
        while count < emitted and time.monotonic() - quiet < QUIET:
            await asyncio.sleep(0.05)
            if len(far) > count:
                quiet, count = time.monotonic(), len(far)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that breaks.

    Attributes:
        about: what happens, for a heading.
        inject: lets it happen to a stage under a stream, and sets `over`.
        only: names of the contestants whom it concerns; empty: all.
        proxied: it needs a proxy between the nodes and the broker.
        rate: events a second.
    """

    about: str
    inject: Callable[[Stage], Awaitable[None]]
    only: Sequence[str] = ()
    proxied: bool = False
    rate: float = RATE


async def run(contestant: Contestant, fault: Fault, server: Server) -> Figures:
    """One case on a broker that runs; its figures."""
    async with Stage(contestant, server, fault) as stage:
        await stage.stream()
        await asyncio.sleep(BEFORE)
        await fault.inject(stage)
        await stage.settle()
        return figures(stage)


def figures(stage: Stage) -> Figures:
    """What the journals and the clients say; names with a colon are of what applications were told."""
    a, b = stage.journal("a"), stage.journal("b")
    far = account(a, b, stage.far.arrivals, stage.over)
    found: Figures = {name: float(value) for name, value in asdict(far).items() if value is not None}
    if stage.near.ended is None:
        found["near_lost"] = float(account(a, Journal(), stage.near.arrivals, stage.over).lost)
    for exception in a.raised.values():
        found[f"raised:{exception}"] = found.get(f"raised:{exception}", 0.0) + 1
    for role, journal in (("a", a), ("b", b)):
        for what, times in journal.told.items():
            found[f"{role}:{what}"] = float(times)
            found[f"{role}:{what}:events"] = float(journal.events[what])
    found["clients_cut"] = float(stage.far.ended is not None)
    return found


async def _until(condition: Callable[[], bool], within: float) -> None:
    deadline = time.monotonic() + within
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
