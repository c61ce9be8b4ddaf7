"""A server that nodes reach with the real client libraries, over simulated TCP; and what can go wrong with both.

The nodes have the brokers of production, `redis://` and `nats://`; only the network is simulated, and the server at its
other end a model.
"""

import asyncio
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from roomcast.brokers.nats import NatsBroker
from roomcast.brokers.redis import RedisBroker
from roomcast.core.broker import Broker, BrokerConfig, Delivery, Gap, Guarantees, Log, Subject
from tests.brokers.cluster import MakeBroker
from tests.cluster.faulty import Hub
from tests.simulation.loop import WORLD, context_of
from tests.simulation.nats_server import NatsModel
from tests.simulation.network import Bar, End, Link, Listener, Network
from tests.simulation.parties import SimProcess
from tests.simulation.redis_server import RedisModel
from tests.simulation.servers import LONG, Around, NodeFault, ServerFault, note_forgotten, note_handed

# pyright: reportPrivateUsage=false

SERVER = "server"
"""The process of the server, and its host."""
_LIMIT = 20_000
"""Bytes that wait for a client that does not read, before the server gives it up."""


class _Model(Protocol):
    def accept(self) -> asyncio.Protocol: ...

    def inject(self, subject: bytes, payload: bytes, /) -> None: ...


KINDS: dict[str, tuple[int, Callable[[BrokerConfig], Any], Callable[[random.Random, int], _Model]]] = {
    "redis": (6379, RedisBroker, lambda _draw, limit: RedisModel(limit=limit)),
    "nats": (4222, NatsBroker, lambda draw, limit: NatsModel(limit=limit, draw=draw)),
}
"""The port of each kind of server, the broker, and what makes a server that lets so many bytes wait for a client."""


class Observed:
    """A broker, `inner`, and what passes between it and its node: see `Telling`."""

    log: Log | None = None

    def __init__(self, inner: Broker) -> None:
        self.inner = inner
        self.asked: set[Subject] = set()
        self.handed: Callable[[Delivery], None] = lambda _delivery: None
        self.forgotten: Callable[[Collection[Subject]], None] = lambda _subjects: None

    @property
    def guarantees(self) -> Guarantees:
        return self.inner.guarantees

    async def start(self) -> None:
        await self.inner.start()

    async def aclose(self) -> None:
        await self.inner.aclose()

    def publish(self, subject: Subject, payload: bytes, /) -> Any:
        return self.inner.publish(subject, payload)

    async def subscribe(self, subjects: Collection[Subject], /) -> None:
        try:
            await self.inner.subscribe(subjects)
        finally:
            self.asked.update(subjects)

    async def unsubscribe(self, subjects: Collection[Subject], /) -> None:
        self.forgotten(subjects)
        self.asked.difference_update(subjects)
        await self.inner.unsubscribe(subjects)

    async def receive(self) -> Sequence[Delivery | Gap]:
        events = await self.inner.receive()
        for event in events:
            if isinstance(event, Delivery):
                self.handed(event)
        return events


class ClientServers:
    """One server of a kind, `redis` or `nats`, and a network.

    Attributes:
        network: between the nodes and it.
        model: of the server; a new one after each crash.
    """

    def __init__(self, around: Around, kind: str, seed: object) -> None:
        port, make, new = KINDS[kind]
        self._draw = random.Random(f"{seed} server")
        self._new = new
        self._address = SERVER, port
        self._context = context_of(SERVER)
        self._around = around
        self._bars: dict[str, int] = {}
        self._up = True
        self.url = f"{kind}://{SERVER}:{port}"
        self.hub = Hub()
        self.makers: Mapping[str, MakeBroker] = {kind: _observed(make)}
        self.settings: dict[str, Any] = {"connect_timeout": 3.0, "buffer": 20}
        node_faults = (self.cut, self.stall, self.delay, self.hang_up)
        self.node_faults: Mapping[str, NodeFault] = {fault.__name__: fault for fault in node_faults}
        self.server_faults: Mapping[str, ServerFault] = {"crash": self.crash, "halt": self.halt}
        self.network = Network(around.loop, seed, latency=around.way, context=context_of(WORLD))
        around.loop.network = self.network
        self.restart()

    def watch(self, node: SimProcess) -> None:
        node.broker.handed = lambda delivery: note_handed(self._around, node, delivery)
        node.broker.forgotten = lambda subjects: note_forgotten(self._around, node, subjects)

    def cut(self, node: SimProcess, draw: random.Random) -> float:
        """A connection of a node breaks, or all of them, and it cannot connect for a while."""
        seconds = draw.choice(LONG)
        for link in self._some(node, draw):
            link.cut()
        self._bar(node, draw.choice(("refused", "silent")), seconds)
        return seconds

    def stall(self, node: SimProcess, draw: random.Random) -> float:
        """Nothing comes through to a node, or from it, or both, and its connections seem fine; some never go on."""
        seconds = draw.choice(LONG)
        for link in self._some(node, draw):
            ends = draw.choice(((link.near,), (link.far,), (link.near, link.far)))
            if draw.random() < 0.3:
                link.dead, ends = True, (link.near, link.far)
            self._hold(link, ends, seconds)
        self._bar(node, "silent", seconds)
        return seconds

    def delay(self, node: SimProcess, draw: random.Random) -> float:
        """What one connection carries in one direction takes longer."""
        seconds = draw.choice((0.003, 0.02, 0.3))
        links = self.network.of(node.name)
        if links:
            link = draw.choice(links)
            self._hold(link, (draw.choice((link.near, link.far)),), seconds)
        return seconds

    def hang_up(self, node: SimProcess, draw: random.Random) -> float:
        """The server closes a connection."""
        for link in self._some(node, draw):
            self._around.loop.call_soon(link.far.close, context=self._context)
        return 0.0

    def kill(self, node: SimProcess, draw: random.Random) -> None:
        """Its connections are closed by its kernel, or, when the whole machine is gone, by nobody."""
        machine = draw.random() < 0.3
        for link in self.network.of(node.name):
            if machine:
                link.stall()
            else:
                link.near.die()
        self.network.bar(node.name, "silent")

    def crash(self, draw: random.Random) -> tuple[str, float]:
        """The server dies, and is started again; it knows nothing any more."""
        seconds = draw.choice(LONG)
        self._up = False
        self.network.listeners.clear()
        for link in tuple(self.network.links):
            link.far.die()
        self._around.loop.call_later(seconds, self.restart)
        return "crash", seconds

    def halt(self, draw: random.Random) -> tuple[str, float]:
        """The server stands still: connections can be made, and nothing answers."""
        seconds = draw.choice(LONG)
        self._around.loop.freeze(SERVER, seconds)
        return "halt", seconds

    def restart(self) -> None:
        """Start the server, unless it runs."""
        if self._address not in self.network.listeners:
            self.model = self._new(self._draw, _LIMIT)
            self.network.listeners[self._address] = Listener(self.model.accept, self._context)

    def settle(self) -> None:
        self._around.loop.thaw(SERVER)
        self.restart()
        for node in self._around.nodes:
            for link in self.network.of(node.name):
                link.stall(stalled=False)
                if not node.alive:
                    link.near.die()
            if node.alive:
                self._bar(node, None, 0.0)

    def is_still(self, node: SimProcess) -> bool:
        return all(link.idle for link in self.network.of(node.name)) and not self.buffered(node)

    def outage(self, node: SimProcess) -> object | None:
        return self.network.made if _inner(node)._life.link is None else None

    def buffered(self, node: SimProcess) -> int:
        return sum(isinstance(event, Delivery) for event in _inner(node)._arrivals._events)

    def publish(self, subject: Subject, payload: bytes) -> None:
        self._around.loop.call_soon(self.model.inject, subject.encode(), payload, context=self._context)

    def _some(self, node: SimProcess, draw: random.Random) -> list[Link]:
        """All connections of a node, or one."""
        links = self.network.of(node.name)
        return links if not links or draw.random() < 0.5 else [draw.choice(links)]

    def _hold(self, link: Link, ends: Sequence[End], seconds: float) -> None:
        def let_go() -> None:
            link.stall(*ends, stalled=False)

        link.stall(*ends)
        self._around.loop.call_later(seconds, let_go)

    def _bar(self, node: SimProcess, how: Bar | None, seconds: float) -> None:
        bar = self._bars[node.name] = self._bars.get(node.name, 0) + 1
        self.network.bar(node.name, how)

        def over() -> None:
            if self._bars[node.name] == bar and node.alive:
                self.network.bar(node.name, None)

        self._around.loop.call_later(seconds, over)


def _inner(node: SimProcess) -> Any:
    assert isinstance(node.broker, Observed)
    return node.broker.inner


def _observed(make: Callable[[BrokerConfig], Any]) -> MakeBroker:
    def observed(config: BrokerConfig) -> Observed:
        return Observed(make(config))

    observed.parameters = make.parameters  # type: ignore[attr-defined]  # a class would have it
    return observed
