"""The server of a simulated cluster at the level of memory, and what can go wrong with it and with the ways to it.

`Servers` is what a world knows of its server. Two kinds are here: publish/subscribe, and a log. With the real client
libraries in between: `client_servers`.
"""

import random
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from roomcast.core.broker import Delivery, Subject
from roomcast.core.errors import WireError
from roomcast.core.messages import Emit, decode_message
from tests.brokers.cluster import MakeBroker
from tests.cluster.faulty import FaultyBroker, Hub
from tests.cluster.model import read_envelope
from tests.simulation.history import Dropped, Event, Forgot, Handed
from tests.simulation.log_server import LogServer
from tests.simulation.loop import WORLD, SeededLoop, context_of
from tests.simulation.parties import SimProcess

# pyright: reportPrivateUsage=false

NodeFault = Callable[[SimProcess, random.Random], float]
"""Strikes one node; gives the seconds that it lasts."""
ServerFault = Callable[[random.Random], tuple[str, float]]
"""Strikes the server; gives what the history calls it, and the seconds that it lasts."""

LONG = (0.003, 0.05, 0.4, 1.0, 2.5, 4.5)
"""Seconds that a fault may last."""


class Around(Protocol):
    """What a server is told of the world that it serves."""

    loop: SeededLoop
    nodes: list[SimProcess]

    @property
    def running(self) -> list[SimProcess]: ...

    def name(self, one: str) -> str: ...

    def note(self, event: Event) -> int: ...

    def way(self) -> float: ...


class Servers(Protocol):
    """A server, and the ways of the nodes to it.

    Attributes:
        url: for the nodes.
        hub: of publish/subscribe in memory, where there is one.
        makers: of brokers, by the scheme of a URL; besides those that are installed.
        settings: that nodes need here.
        node_faults, server_faults: what can go wrong, by name.
    """

    url: str
    hub: Hub
    makers: Mapping[str, MakeBroker]
    settings: dict[str, Any]
    node_faults: Mapping[str, NodeFault]
    server_faults: Mapping[str, ServerFault]

    def watch(self, node: SimProcess) -> None:
        """Note what the broker of a new node gives to it."""
        ...

    def kill(self, node: SimProcess, draw: random.Random) -> None:
        """The process of a node is gone."""
        ...

    def settle(self) -> None:
        """Everything works again."""
        ...

    def is_still(self, node: SimProcess) -> bool:
        """Nothing is on its way to or from a node."""
        ...

    def outage(self, node: SimProcess) -> object | None:
        """What stays the same while the link of a node is down; None when it is up, or nothing is lost without it."""
        ...

    def buffered(self, node: SimProcess) -> int:
        """Deliveries that wait in the broker of a node."""
        ...

    def publish(self, subject: Subject, payload: bytes) -> None:
        """A stranger publishes something."""
        ...


def note_handed(around: Around, node: SimProcess, delivery: Delivery) -> None:
    """A broker gives a delivery to its node."""
    if delivery.subject not in node.broker.asked:
        return  # nobody has been told yet that the subject is heard
    envelope = read_envelope(delivery.payload)
    if envelope is None or not envelope.epoch or (origin := around.name(envelope.origin)) == envelope.origin:
        return
    subject = "inbox" if ".inbox." in delivery.subject else delivery.subject
    first, last = envelope.first, envelope.first + len(envelope.messages) - 1
    around.note(Handed(node.name, subject, origin, envelope.epoch, first, last, envelope.place))


def note_forgotten(around: Around, node: SimProcess, subjects: Collection[Subject]) -> None:
    """A node gives up subjects."""
    for subject in subjects:
        around.note(Forgot(node.name, subject))


class HubServers:
    """Publish/subscribe: every node has a `FaultyBroker`."""

    def __init__(self, around: Around, *, partitions: int = 0) -> None:
        self.url = f"faulty://hub?partitions={partitions}" if partitions else "faulty://hub"
        self.makers: Mapping[str, MakeBroker] = {}
        self.settings: dict[str, Any] = {}
        faults = (self.cut, self.stall, self.delay, self.overflow, self.lose, self.repeat)
        self.node_faults: Mapping[str, NodeFault] = {fault.__name__: fault for fault in faults}
        self.server_faults: Mapping[str, ServerFault] = {"crash": self.crash}
        self.hub = Hub()
        self.hub.context = context_of(WORLD)
        self.hub.latency = around.way
        self.hub.dropped = self._dropped
        self._around = around

    def watch(self, node: SimProcess) -> None:
        broker = _faulty(node)
        broker.handed = lambda delivery: note_handed(self._around, node, delivery)
        broker.forgotten = lambda subjects: note_forgotten(self._around, node, subjects)

    def cut(self, node: SimProcess, draw: random.Random) -> float:
        """A link breaks, and comes back."""
        seconds = draw.choice(LONG)
        _faulty(node).lose_link(reach=draw.randint(0, 3), partial=draw.randint(0, 3))
        self._around.loop.call_later(seconds, _restore, node, context=node.context)  # it is the process that connects
        return seconds

    def stall(self, node: SimProcess, draw: random.Random) -> float:
        """Nothing comes through, and the link seems fine."""
        seconds = draw.choice(LONG)
        _faulty(node).stall()
        self._around.loop.call_later(seconds, lambda: _faulty(node).stall(stalled=False))
        return seconds

    def delay(self, node: SimProcess, draw: random.Random) -> float:
        """Some deliveries take longer."""
        seconds = draw.choice((0.003, 0.02, 0.3, 1.0))
        _faulty(node).delay(seconds, draw.randint(1, 3))
        return seconds

    def overflow(self, node: SimProcess, draw: random.Random) -> float:
        """The buffer of a node is full."""
        _faulty(node).overflow(draw.randint(1, 3))
        return 0.0

    def lose(self, node: SimProcess, draw: random.Random) -> float:
        """Deliveries vanish in silence."""
        _faulty(node).lose(draw.randint(1, 2))
        return 0.0

    def repeat(self, node: SimProcess, draw: random.Random) -> float:
        """Deliveries come twice."""
        _faulty(node).repeat(draw.randint(1, 2))
        return 0.0

    def kill(self, node: SimProcess, draw: random.Random) -> None:
        _faulty(node).lose_link(reach=draw.randint(0, 3))

    def crash(self, draw: random.Random) -> tuple[str, float]:
        """The server goes away, and comes back."""
        seconds = until = draw.choice(LONG)
        nodes = list(self._around.running)
        draw.shuffle(nodes)
        for node in nodes:
            _faulty(node).lose_link(reach=draw.randint(0, 2))
            until += draw.choice((0.0, 0.0015, 0.2))
            self._around.loop.call_later(until, _restore, node, context=node.context)
        return "crash", seconds

    def settle(self) -> None:
        for node in self._around.nodes:
            if node.alive:
                _faulty(node).behave()
                self._around.loop.call_soon(_faulty(node).restore_link, context=node.context)

    def is_still(self, node: SimProcess) -> bool:
        return _faulty(node).quiet

    def outage(self, node: SimProcess) -> object | None:
        broker = _faulty(node)
        return None if broker.linked else broker._connection

    def buffered(self, node: SimProcess) -> int:
        return sum(isinstance(event, Delivery) for event in _faulty(node)._events)

    def publish(self, subject: Subject, payload: bytes) -> None:
        self.hub.route(None, subject, payload)

    def _dropped(self, broker: FaultyBroker, delivery: Delivery) -> None:
        envelope = read_envelope(delivery.payload)
        node = next(node for node in self._around.nodes if node.broker is broker)
        calls: list[int] = []
        for raw in envelope.messages if envelope is not None else ():
            try:
                message = decode_message(raw)
            except WireError:
                continue
            if isinstance(message, Emit):
                calls.append(_number_in(message.packet.text))
        self._around.note(Dropped(node.name, tuple(calls)))


def _faulty(node: SimProcess) -> FaultyBroker:
    assert isinstance(node.broker, FaultyBroker)
    return node.broker


def _restore(node: SimProcess) -> None:
    if node.alive:
        _faulty(node).restore_link()


def _number_in(text: str) -> int:
    """The number of the call in the text of a packet."""
    digits = text[text.index("[") :].split(",", 2)[1]
    return int(digits.rstrip("]"))


class LogServers:
    """A log: every node has a `LogBroker` with a driver of its own."""

    def __init__(self, around: Around) -> None:
        self.url = "simlog://"
        self.hub = Hub()
        self.logs = LogServer(latency=around.way)
        self.logs.context = context_of(WORLD)
        self.makers: Mapping[str, MakeBroker] = {"simlog": self.logs.make()}
        self.settings: dict[str, Any] = {"outbox_age": 10.0}
        self.node_faults: Mapping[str, NodeFault] = {"cut": self.cut, "stall": self.stall}
        self.server_faults: Mapping[str, ServerFault] = {"crash": self.crash, "trim": self.trim}
        self._around = around

    def watch(self, node: SimProcess) -> None:
        """What a log hands on is not noted."""

    def cut(self, node: SimProcess, draw: random.Random) -> float:
        """A link breaks, and comes back."""
        seconds = draw.choice(LONG)
        self.logs.refused.add(node.sim.id)
        self.logs.cut(node.sim.id, reach=draw.randint(0, 3))
        self._around.loop.call_later(seconds, self._let_in, node)
        return seconds

    def stall(self, node: SimProcess, draw: random.Random) -> float:
        """Nothing comes through, and the link seems fine."""
        seconds = draw.choice(LONG)
        self.logs.stall(node.sim.id)
        self._around.loop.call_later(seconds, lambda: self.logs.stall(node.sim.id, stalled=False))
        return seconds

    def kill(self, node: SimProcess, draw: random.Random) -> None:
        self.logs.refused.add(node.sim.id)
        self.logs.cut(node.sim.id, reach=draw.randint(0, 3))

    def crash(self, draw: random.Random) -> tuple[str, float]:
        """The server goes away, and comes back; it has lost nothing then, its last entries, or everything."""
        seconds = draw.choice(LONG)
        tail = draw.choice((0, 0, 0, 3, None))
        self.logs.crash(tail=tail)
        self._around.loop.call_later(seconds, self.logs.restart)
        return "crash" if tail == 0 else "forget", seconds

    def trim(self, draw: random.Random) -> tuple[str, float]:
        """Retention is over for the oldest entries."""
        self.logs.trim(draw.randint(1, 50))
        return "trim", 0.0

    def settle(self) -> None:
        self.logs.restart()
        self.logs.refused.clear()
        for node in self._around.nodes:
            if not node.alive:
                self.logs.refused.add(node.sim.id)
            else:
                self.logs.stall(node.sim.id, stalled=False)

    def is_still(self, node: SimProcess) -> bool:
        del node
        return True

    def outage(self, node: SimProcess) -> object | None:
        del node
        return None  # it reads on where it was

    def buffered(self, node: SimProcess) -> int:
        del node
        return 0  # a log is read no faster than its entries are taken

    def publish(self, subject: Subject, payload: bytes) -> None:
        """Strangers do not write into logs."""

    def _let_in(self, node: SimProcess) -> None:
        if node.alive:
            self.logs.refused.discard(node.sim.id)
