"""Several nodes in one event loop, each an `Adapter` in a real `socketio.AsyncServer`, clients cut off at Engine.IO.

A client is a real Engine.IO socket without a transport: what it says goes in where a transport would put it, what it
would get is read from its queue. Everything between is the code that runs in production.
"""

import asyncio
import functools
import itertools
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from types import TracebackType
from typing import Any, ParamSpec, cast

import socketio
from engineio import packet as eio_packet
from engineio.async_socket import AsyncSocket
from socketio import packet as sio_packet

import roomcast
from roomcast.core.broker import Gap
from roomcast.core.client_queue import ClientQueue, Keeper
from roomcast.core.frames import Frame
from roomcast.core.node import Node
from tests.cluster.clock import timeline
from tests.cluster.faulty import FaultyBroker, Hub, installed

Arguments = tuple[Any, ...]
P = ParamSpec("P")


class _Queue(ClientQueue):
    """A socket's queue whose reader is as fast as the client says."""

    def __init__(self, keeper: Keeper, client: "SimClient") -> None:
        super().__init__(keeper)
        self.quick = False  # each event is offered
        self._client = client

    def put_nowait(self, item: Any) -> None:
        super().put_nowait(item)
        if not self._client.slow:
            self._client.read()

    def offer(self, frame: Frame) -> bool:
        accepted = super().offer(frame)
        if not self._client.slow:
            self._client.read()
        return accepted


class SimClient:
    """A Socket.IO client of one node.

    Attributes:
        sid: its sid; empty until it is connected.
        events: what it got, (event, *arguments), in order.
        acks_wanted: ids of the events that want an acknowledgement, in order.
        slow: reads nothing by itself; `read` does.
        on_event: called with the event and its arguments as they are read.
        on_connect: called with what the server answered as it admitted it.
    """

    _numbers = itertools.count(1)

    def __init__(self, node: "SimNode", namespace: str) -> None:
        self.node = node
        self.namespace = namespace
        self.sid = ""
        self.events: list[Arguments] = []
        self.acks_wanted: list[int] = []
        self.slow = False
        self.disconnected = False
        self.on_event: Callable[[Arguments], None] = lambda _event: None
        self.on_connect: Callable[[dict[str, Any]], None] = lambda _answer: None
        self.eio_sid = f"eio{next(self._numbers)}"
        self.socket: Any = AsyncSocket(node.server.eio, self.eio_sid)
        self.socket.queue = _Queue(cast("Any", node.adapter)._fanout, self)
        self.socket.last_ping = None  # nobody pings a client without a transport
        self.socket.connected = True
        self._binary: Any = None

    async def connect(self, auth: str = "") -> None:
        eio = self.node.server.eio
        eio.sockets[self.eio_sid] = self.socket
        await eio._trigger_event("connect", self.eio_sid, {}, run_async=False)
        await self.say(("0" if self.namespace == "/" else f"0{self.namespace},") + auth)

    async def say(self, text: str) -> None:
        """A packet from the client."""
        await self.socket.receive(eio_packet.Packet(eio_packet.MESSAGE, text))

    async def ack(self, number: int, json: str = "[]") -> None:
        head = "3" if self.namespace == "/" else f"3{self.namespace},"
        await self.say(f"{head}{number}{json}")

    async def leave(self) -> None:
        """The connection ends."""
        await self.socket.receive(eio_packet.Packet(eio_packet.CLOSE))
        self.node.server.eio.sockets.pop(self.eio_sid, None)

    def read(self) -> None:
        """Take in what waits in the queue."""
        queue = self.socket.queue
        while not queue.empty():
            item = queue.get_nowait()
            queue.task_done()
            if item is not None and item.packet_type == eio_packet.MESSAGE:
                self._take(item.data)

    def _take(self, data: str | bytes) -> None:
        if self._binary is None:
            packet: Any = sio_packet.Packet(encoded_packet=data)
            if packet.attachment_count:
                self._binary = packet
                return
        elif self._binary.add_attachment(data):
            packet, self._binary = self._binary, None
        else:
            return
        if packet.packet_type == sio_packet.CONNECT:
            self.sid = packet.data["sid"]
            self.on_connect(packet.data)
        elif packet.packet_type == sio_packet.DISCONNECT:
            self.disconnected = True
        elif packet.packet_type in (sio_packet.EVENT, sio_packet.BINARY_EVENT):
            assert (packet.namespace or "/") == self.namespace, "an event of another namespace"
            event = tuple(packet.data)
            self.events.append(event)
            if packet.id is not None:
                self.acks_wanted.append(packet.id)
            self.on_event(event)


class SimNode:
    """One process: its adapter, its server, its link.

    Attributes:
        gaps: what `on_gap` told, in order.
        on_gap: called with each of them.
    """

    def __init__(self, hub: Hub, url: str, settings: dict[str, Any]) -> None:
        self.hub = hub
        self.adapter = roomcast.Adapter(url, **settings)
        self.server: Any = socketio.AsyncServer(
            async_mode="asgi", client_manager=self.adapter, namespaces="*", monitor_clients=False
        )
        self.clients: list[SimClient] = []
        self.gaps: list[Gap] = []
        self.on_gap: Callable[[Gap], None] = lambda _gap: None
        self.adapter.on_gap(self._on_gap)

    @property
    def core(self) -> Node:
        return self.adapter._node  # pyright: ignore[reportPrivateUsage]

    @property
    def broker(self) -> FaultyBroker:
        return cast("FaultyBroker", self.core._broker)  # pyright: ignore[reportPrivateUsage]

    @property
    def id(self) -> str:
        return self.adapter.host_id

    def _on_gap(self, gap: Gap) -> None:
        self.gaps.append(gap)
        self.on_gap(gap)

    async def client(self, *rooms: str | int, namespace: str = "/") -> SimClient:
        """A new client, in these rooms."""
        client = SimClient(self, namespace)
        await client.connect()
        assert client.sid, "the client was not admitted"
        self.clients.append(client)
        for room in rooms:
            await self.server.enter_room(client.sid, room, namespace=namespace)
        return client

    def told(self, reason: str) -> list[Gap]:
        return [gap for gap in self.gaps if gap.reason == reason]


class Cluster:
    """Nodes on one hub. Leaving it closes them and checks that no task is left."""

    def __init__(self, *, url: str = "faulty://hub", **settings: Any) -> None:
        self.hub = Hub()
        self.nodes: list[SimNode] = []
        self._url = url
        self._settings = settings
        self._stack = ExitStack()
        self._before: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> "Cluster":
        self._stack.enter_context(installed(self.hub))
        self._before = asyncio.all_tasks()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for node in self.nodes:
                node.broker.behave()
            for node in self.nodes:
                await node.adapter.aclose()
            if kind is None:
                left = asyncio.all_tasks() - self._before - {cast("asyncio.Task[Any]", asyncio.current_task())}
                assert not left, f"tasks are left: {left}"
        finally:
            self._stack.close()

    def make(self, url: str | None = None, **settings: Any) -> SimNode:
        """A node that is not started."""
        node = SimNode(self.hub, url or self._url, self._settings | settings)
        self.nodes.append(node)
        return node

    async def node(self, url: str | None = None, **settings: Any) -> SimNode:
        """A node that has joined, and that the others know."""
        node = self.make(url, **settings)
        await node.adapter.start()
        await asyncio.sleep(0.05)
        return node

    def lose_links(self, *nodes: SimNode) -> None:
        for node in nodes or self.nodes:
            node.broker.lose_link()

    def restore_links(self, *nodes: SimNode) -> None:
        for node in nodes or self.nodes:
            node.broker.restore_link()


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test on virtual time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with timeline() as line:
            line.run(test(*args, **kwargs))

    return run


def hold_up(seconds: float) -> None:
    """Let this much virtual time pass at once, as when something blocks the loop; what became due is due together."""
    loop: Any = asyncio.get_running_loop()
    loop._jumping.now += seconds


def numbers(client: SimClient) -> list[int]:
    """What the events "n" that a client got carried, in order."""
    return [event[1] for event in client.events if event[0] == "n"]
