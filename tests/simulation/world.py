"""A simulated cluster: nodes with the code that runs in production, clients cut off at Engine.IO, and a faulty server.

It knows how nodes and clients come, go and die, what each of them sees, and when all is quiet; it writes the history.
What an application does to it is in `deeds`, what fate does in `faults`.
"""

import asyncio
import json
import random
from collections.abc import Coroutine
from typing import Any, cast

import roomcast
from roomcast.core.broker import Gap
from roomcast.core.membership import NodeInfo
from roomcast.core.rooms import Client
from tests.cluster.clock import Stuck
from tests.cluster.faulty import installed
from tests.cluster.harness import Arguments, SimNode
from tests.cluster.model import bounds
from tests.simulation.client_servers import ClientServers
from tests.simulation.history import (
    Away,
    Back,
    Called,
    ClientGone,
    ClientLeaving,
    ClientUp,
    Deaf,
    Ended,
    Event,
    Got,
    History,
    Met,
    NodeDown,
    NodeStopping,
    NodeUp,
    Outcome,
    Quiet,
    Seen,
    Size,
    Told,
    Watched,
)
from tests.simulation.loop import WORLD, SeededLoop, context_of, process
from tests.simulation.parties import BURST, SETTINGS, SETTLE, Member, SimProcess
from tests.simulation.plan import Plan
from tests.simulation.servers import HubServers, LogServers, Servers

# pyright: reportPrivateUsage=false


class World:
    """The cluster of one plan."""

    def __init__(self, plan: Plan, loop: SeededLoop) -> None:
        self.plan = plan
        self.loop = loop
        self.on_log = plan.world in ("log", "total", "recovery")
        self.recovering = plan.world == "recovery"
        self.history = History(total=plan.world in ("total", "recovery"), log=self.on_log, recovery=self.recovering)
        self.nodes: list[SimProcess] = []
        self.clients: list[Member] = []
        self.calls: dict[int, tuple[SimProcess, asyncio.Task[Any]]] = {}
        self.garbage = 0
        self.closed = False
        self._names: dict[str, str] = {}
        self._number = self._named = 0
        self._latency = random.Random(f"{plan.seed} latency")
        self.servers = _make_servers(self)
        loop.set_exception_handler(self._unhandled)

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something failed where nobody sees it."""
        self.note(Seen("world", (), (), (), (f"{context['message']}: {context.get('exception')!r}",)))

    @property
    def settings(self) -> dict[str, Any]:
        """Of the nodes."""
        own: dict[str, Any] = {"order": "total"} if self.plan.world == "total" else {}
        if self.recovering:
            own["recovery"] = roomcast.Recovery(window=30.0, patience=1.0, offer=_offer)
        return SETTINGS | self.servers.settings | own

    def way(self) -> float:
        """Seconds from a node to the server, or back: now and then much longer."""
        return 0.0002 + self._latency.expovariate(1000.0) + (0.05 if self._latency.random() < 0.01 else 0.0)

    def note(self, event: Event) -> int:
        return -1 if self.closed else self.history.add(event, self.loop.now)

    def name(self, one: str) -> str:
        """The name of a node or a client in the history."""
        return self._names.get(one, one)

    def call(self, at: SimProcess, op: str, within: float, **details: Any) -> int:
        """Note that an application calls."""
        self._number += 1
        self.note(Called(self._number, at.name, op, within, **details))
        return self._number

    def ended(self, call: int, outcome: Outcome, error: BaseException | None = None, value: object = None) -> None:
        self.note(Ended(call, outcome, "" if error is None else type(error).__name__, value))

    def spawn(self, at: SimProcess, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something in a process."""
        return self.loop.create_task(coroutine, context=at.context)

    @property
    def running(self) -> list[SimProcess]:
        return [node for node in self.nodes if node.alive and not node.stopping]

    @property
    def members(self) -> list[Member]:
        """The clients that are there."""
        return [client for client in self.clients if client.here and client.at.alive]

    # Nodes

    async def start_node(self) -> None:
        """A node that joins the cluster."""
        name = f"n{len(self.nodes)}"
        context = context_of(name)
        self.loop.skews[name] = self._latency.uniform(-0.02, 0.02)
        settings = self.settings | {"name": name}
        node = SimProcess(name, context.run(SimNode, self.servers.hub, self.servers.url, settings), context)
        self._names[node.sim.id] = name
        self.nodes.append(node)
        self._listen(node)
        node.stopping = True
        call = self.call(node, "start", 6.0)
        try:
            await self.spawn(node, node.adapter.start())
        except Exception as exc:  # noqa: BLE001 - noted: a checker judges
            node.alive = False
            self.ended(call, "failed", exc)
            return
        node.stopping = False
        self.note(NodeUp(name))
        self.ended(call, "returned")

    async def stop_node(self, node: SimProcess) -> None:
        """A node that closes as it should."""
        node.stopping = True
        self.note(NodeStopping(node.name))
        call = self.call(node, "stop", 6.0)
        try:
            await self.spawn(node, node.adapter.aclose())
        except Exception as exc:  # noqa: BLE001 - noted: a checker judges
            self.ended(call, "failed", exc)
        else:
            self.ended(call, "returned")
        self.note(NodeDown(node.name, "closed"))
        node.alive = False
        self._lose_clients(node)

    def kill_node(self, node: SimProcess, draw: random.Random) -> None:
        """A process that is gone between two callbacks, without a word."""
        node.alive = False
        self.note(NodeStopping(node.name))
        self.loop.freeze(node.name)
        self.servers.kill(node, draw)
        self.note(NodeDown(node.name, "killed"))
        self._lose_clients(node)

    def _lose_clients(self, node: SimProcess) -> None:
        for client in tuple(self.clients):
            if client.at is node and not client.gone and not client.lost:
                if self.recovering:
                    self.lose(client)
                else:
                    self.gone(client)

    def _listen(self, node: SimProcess) -> None:
        sim, name = node.sim, node.name

        def gap(gap: Gap) -> None:
            subject = "inbox" if gap.subject and ".inbox." in gap.subject else gap.subject or ""
            self.note(Told(name, gap.reason, subject, self.name(gap.origin or ""), gap.missed))

        sim.on_gap = gap
        adapter: Any = sim.adapter

        @sim.adapter.on("node_joined")
        def joined(info: NodeInfo) -> None:
            self.note(Met(name, self.name(info.id), "joined"))

        @sim.adapter.on("node_left")
        def left(info: NodeInfo, why: str) -> None:
            self.note(Met(name, self.name(info.id), "left", why))

        parting, went = adapter._parting, adapter._went

        def on_parting(client: Client) -> None:
            if client.sid in self._names and self._is_here(client.sid, node):
                self.note(ClientLeaving(self.name(client.sid)))
            parting(client)

        def on_went(client: Client) -> None:
            went(client)
            self._went(client.sid, node)

        adapter._parting, adapter._went = on_parting, on_went
        self.servers.watch(node)

    # Clients

    async def connect(self, node: SimProcess, namespace: str) -> Member:
        """A client comes."""
        client = self._make(node, namespace)
        client.on_connect = lambda answer: self._is_new(client, answer)
        self.clients.append(client)
        await client.connect()
        if not client.answered:
            client.gone = True
            raise ConnectionError("the client was not admitted")
        return client

    def _make(self, node: SimProcess, namespace: str) -> Member:
        client = Member("", node, namespace)
        client.on_event = lambda event: self._got(client, event)
        return client

    def _is_new(self, client: Member, answer: dict[str, Any]) -> None:
        client.answered = True
        client.name = f"c{self._named}"
        client.pid = answer.get("pid", "")
        client.place = None
        self._named += 1
        self._names[client.sid] = client.name
        self.note(ClientUp(client.name, client.at.name, client.namespace))
        self._catch_up(client)

    def _catch_up(self, client: Member) -> None:
        early, client.early = client.early, []
        for event in early:
            self._got(client, event)

    def lose(self, client: Member) -> None:
        """A client's connection is lost, or its attempt to come back; it comes back somewhere, soon."""
        if client.answered:
            self.note(Away(client.name))
        client.lost = True
        self.loop.call_later(0.01 + self._latency.expovariate(2.0), self._come_back, client, context=context_of(WORLD))

    def _come_back(self, old: Member) -> None:
        if not self.running or self.closed:
            old.gone = True
            return
        node = self._latency.choice(self.running)
        new = self._make(node, old.namespace)
        new.name, new.sid, new.pid, new.place = old.name, old.sid, old.pid, old.place
        self.clients[self.clients.index(old)] = new
        self.spawn(node, self._return(old, new))

    async def _return(self, old: Member, new: Member) -> None:
        def answered(answer: dict[str, Any]) -> None:
            if new.sid == old.sid:
                new.answered, new.pid = True, answer["pid"]
                self.note(Back(new.name, new.at.name))
                self._catch_up(new)
            else:
                self._is_new(new, answer)

        new.on_connect = answered
        named = {"pid": old.pid, "offset": old.place}
        await new.connect(json.dumps({key: text for key, text in named.items() if text}))
        if not new.answered and not new.lost:
            self.lose(new)

    def _is_here(self, sid: str, node: SimProcess) -> bool:
        return any(client.sid == sid and client.at is node and client.here for client in self.clients)

    def gone(self, client: Member) -> None:
        client.gone = True
        self.note(ClientLeaving(client.name))
        self.note(ClientGone(client.name))

    def _went(self, sid: str, node: SimProcess) -> None:
        for client in self.clients:
            if client.sid == sid and client.at is node and client.here:
                self.gone(client)

    def _got(self, client: Member, event: Arguments) -> None:
        if client.gone or client.lost:
            return
        if not client.answered:
            client.early.append(event)
            return
        if self.recovering and isinstance(event[-1], str):
            client.place = event[-1]
        if event[0] == "e":
            self.note(Got(client.name, int(event[1])))
        if client.acks_wanted:
            number, delay = client.acks_wanted.pop(), self._latency.expovariate(20.0)
            if self._latency.random() < 0.9:
                self.loop.call_later(delay, self._answer, client, number, context=client.at.context)

    def _answer(self, client: Member, number: int) -> None:
        if not client.gone:
            self.spawn(client.at, client.ack(number, f'["{client.name}"]'))

    # Quiet

    async def settle(self) -> None:
        """Everything works again, and all that was under way arrives."""
        for node in self.nodes:
            if node.alive:
                self.loop.thaw(node.name)
        self.servers.settle()
        await asyncio.sleep(SETTLE)
        await self.still()

    async def still(self) -> None:
        """Nothing is on its way."""
        for _ in range(500):  # a heartbeat may just be on its way
            if all(self._still(node) for node in self.running):
                break
            await asyncio.sleep(0.003)

    def _still(self, node: SimProcess) -> bool:
        return not bounds(node.sim)["backlog"] and self.servers.is_still(node)

    def look(self) -> None:
        """Note what each node is like now that all is quiet."""
        self.note(Quiet())
        for node in self.running:
            self.note(self._seen(node))
            for namespace, room, copy in node.watches:
                self.note(Watched(node.name, namespace, room, tuple(sorted(map(self.name, copy)))))

    def _seen(self, node: SimProcess) -> Seen:
        core, broken = node.sim.core, list[str]()
        stats = node.adapter.stats()
        if stats["faults"]:
            broken.append(f"{stats['faults']} faults")
        if not node.adapter.health():
            broken.append(node.adapter.health().reason)
        broken += [f"{name}: {size} are left" for name, size in bounds(node.sim).items() if size and name in _EMPTY]
        members = [client for client in self.clients if client.at is node and client.here]
        rooms = [
            (client.name, tuple(sorted(map(str, map(self._room, node.server.rooms(client.sid, client.namespace))))))
            for client in members
        ]
        held: list[Any] = node.adapter._claims._tickets.held()
        holds = sorted((self.name(ticket.sid), ticket.key) for ticket in held)
        peers = tuple(sorted(map(self.name, core.peers.ids)))
        return Seen(node.name, peers, tuple(rooms), tuple(holds), tuple(broken))

    def _room(self, room: str) -> str:
        return f"@{self.name(room)}" if room in self._names else room

    def measure(self) -> None:
        """Note what nodes hold of what is bounded."""
        for node in self.running:
            sizes = bounds(node.sim)
            backlog = cast("int", sizes["backlog"])
            if backlog:
                self.note(Size(node.name, "outbox", backlog, 2 * SETTINGS["outbox_messages"] + BURST))
            if (outage := self.servers.outage(node)) is not None:
                self.loop.call_later(0.1, self._look_at_health, node, outage, 1, context=node.context)
            if events := self.servers.buffered(node):
                self.note(Size(node.name, "buffer", events, self.settings["buffer"]))

    def _look_at_health(self, node: SimProcess, outage: object, again: int) -> None:
        """Whether a node says that its link is down, when it has been down for a while in which the process ran."""
        if node in self.running and self.servers.outage(node) == outage:
            if again:
                self.loop.call_later(0.1, self._look_at_health, node, outage, again - 1, context=node.context)
            else:
                self.note(Deaf(node.name, told=not node.adapter.health()))


def _make_servers(world: World) -> Servers:
    match world.plan.world:
        case "pubsub":
            return HubServers(world)
        case "partitions":
            return HubServers(world, partitions=4)
        case "redis" | "nats" as kind:
            return ClientServers(world, kind, world.plan.seed)
        case _:
            return LogServers(world)


def _offer(_environ: object, _auth: object) -> bool:
    return True


_EMPTY = ("backlog", "barriers", "surveys", "answers", "acks", "waiting")


async def run(plan: Plan, loop: SeededLoop, world: World) -> None:
    """Carry out a plan; the history is complete when this returns, and the cluster is closed."""
    from tests.simulation.deeds import DEEDS_BY_KIND, begin, last_words  # noqa: PLC0415 - they know worlds

    try:
        with installed(world.servers.hub, **world.servers.makers):
            for _ in range(plan.nodes):
                await world.start_node()
            begin(world, random.Random(f"{plan.seed} begin"))
            await asyncio.sleep(1.5)
            for steps in plan.rounds:
                began = loop.now
                for step in steps:
                    await asyncio.sleep(max(0.0, began + step.at - loop.now))
                    DEEDS_BY_KIND[step.kind](world, random.Random(f"{plan.seed} step {step.number}"))
                    world.measure()
                await world.settle()
                world.look()
            await last_words(world)
            world.closed = True
            for node in world.nodes:
                loop.thaw(node.name)
            for node in world.running:
                await world.spawn(node, node.adapter.aclose())
    except Stuck as exc:  # pragma: no cover - a checker of its own
        world.history.add(Seen("world", (), (), (), (str(exc),)), loop.now)


assert process.get() == WORLD
