"""A node whose clients have no transport, to be asked line by line (`bench.processes`).

Run by the suite: python -m bench.node_process NAME CHANNEL SERVERS

What is emitted to a client waits in the queue of its Engine.IO socket, which nobody reads; the count takes it out.
So what is measured is the path from `emit` to each client's queue, with the real broker between. bench/node/node.mjs
is the same in Node.js, verb by verb. Times are seconds of the monotonic clock, which the processes of a machine share.
"""

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import socketio
from engineio.async_socket import AsyncSocket

from bench.contestants import CONTESTANTS, client_manager, join, leave
from bench.measure import cpu

logger = logging.getLogger("bench")

BURST = 200
"""Events between two turns of the loop, as a busy handler would."""
UNREAD = {"client_queue": 1_000_000, "client_queue_bytes": 1 << 40}
"""No bound for slow clients where nobody reads: the other libraries have none, and the count empties the queues."""
IN_FLIGHT = 64
"""Joins and leaves at the same time."""
SHARE = 4
"""The same for one of many emits in flight."""


class Stamps:
    """When each packet for one client was put into its queue, since this was made."""

    def __init__(self, queue: Any) -> None:
        self.times: list[float] = []
        self._awaited = 0
        self._complete = asyncio.Event()
        kind = type(queue)
        inlet = "_append" if hasattr(kind, "_append") else "_put"  # where all comes in: roomcast's queue, or asyncio's
        take_in = getattr(kind, inlet)

        def stamp(queue: Any, item: Any) -> None:
            self._note()
            take_in(queue, item)

        queue.__class__ = type("Stamped", (kind,), {"__slots__": (), inlet: stamp})
        queue.quick = False  # so that the fan-out puts nothing past the inlet

    def _note(self) -> None:
        self.times.append(time.monotonic())
        if len(self.times) == self._awaited:
            self._complete.set()

    async def arrived(self, packets: int) -> None:
        """Return once so many packets have come."""
        self._awaited = packets
        if len(self.times) < packets:
            await self._complete.wait()


class Server:
    """One server of this process, and its clients."""

    def __init__(self, sio: socketio.AsyncServer) -> None:
        self.sio = sio
        self.sockets: list[AsyncSocket] = []
        self.probe: AsyncSocket | None = None
        self._connected = 0

    async def connect(self, room: str | None = None) -> tuple[str, AsyncSocket]:
        """One more client, in a room unless that is None; it counts once it is in `sockets`."""
        eio_sid = f"client{self._connected}".ljust(20, "x")
        self._connected += 1
        socket = AsyncSocket(self.sio.eio, eio_sid)
        socket.connected = socket.upgraded = True
        self.sio.eio.sockets[eio_sid] = socket
        await self.sio._handle_eio_connect(eio_sid, {})
        await self.sio._handle_eio_message(eio_sid, "0")
        sid: str = self.sio.manager.sid_from_eio_sid(eio_sid, "/")
        if room is not None:
            await self.sio.enter_room(sid, room)
        drain(socket)
        return sid, socket


def drain(socket: AsyncSocket) -> int:
    """Empty a client's queue, as cheaply as it goes; how many packets were in it."""
    queue = socket.queue
    count: int = queue.qsize()
    if count and isinstance(queue, asyncio.Queue):
        queue._queue.clear()  # type: ignore[attr-defined]
    elif count:
        queue.items.clear()  # roomcast's own
        queue.size = 0
    return count


class Node:
    """The servers of this process, and what can be asked of it: its public methods."""

    def __init__(self, name: str, channel: str, servers: int) -> None:
        self._contestant = CONTESTANTS[name]
        self._channel = channel
        self._count = servers
        self._servers: list[Server] = []
        self._watched = 0.0
        self._stamps: Stamps | None = None

    async def start(self) -> dict[str, Any]:
        """Connect every server to the broker."""
        for _ in range(self._count):
            manager = client_manager(self._contestant, self._channel, **UNREAD)
            # not monitored: nobody pings these clients
            sio = socketio.AsyncServer(async_mode="asgi", client_manager=manager, monitor_clients=False)
            await join(self._contestant, sio)
            self._servers.append(Server(sio))
        return {}

    async def stop(self) -> None:
        """Leave the broker."""
        for server in self._servers:
            await leave(self._contestant, server.sio, self._channel)

    async def clients(self, count: int, room: str | None = None) -> dict[str, Any]:
        """`count` more clients at each server, in a room."""
        for server in self._servers:
            server.sockets += [(await server.connect(room))[1] for _ in range(count)]
        return {}

    async def rooms(self, count: int, prefix: str) -> dict[str, Any]:
        """`count` rooms, each joined by one client, in turn."""
        for server in self._servers:
            sids = [server.sio.manager.sid_from_eio_sid(socket.sid, "/") for socket in server.sockets]
            for first in range(0, count, 1000):
                joins = (
                    server.sio.enter_room(sids[number % len(sids)], f"{prefix}{number}")
                    for number in range(first, min(first + 1000, count))
                )
                await asyncio.gather(*joins)
        return {}

    async def probe(self, room: str) -> dict[str, Any]:
        """One client of each server that does not count, for `probed`."""
        for server in self._servers:
            _, server.probe = await server.connect(room)
        return {}

    async def probed(self, within: float) -> dict[str, Any]:
        """How many servers have heard nothing for their probe yet, after a moment."""
        deadline = time.monotonic() + within
        while (deaf := self._deaf()) and time.monotonic() < deadline:
            await asyncio.sleep(0.002)
        return {"deaf": deaf}

    def _deaf(self) -> int:
        return sum(server.probe is None or server.probe.queue.empty() for server in self._servers)

    async def usage(self) -> dict[str, Any]:
        """CPU and memory of this process."""
        return {"cpu": cpu(), "time": time.monotonic(), "resident": resident()}

    async def forget(self) -> dict[str, Any]:
        """Empty all queues."""
        return {"packets": self._drain()}

    def _drain(self) -> int:
        return sum(drain(socket) for server in self._servers for socket in server.sockets)

    async def emit(
        self,
        events: int,
        size: int,
        target: Mapping[str, Any],
        in_flight: int = 1,
        per_second: float = 0,
    ) -> dict[str, Any]:
        """Emit, and return once the broker has all of it: when it began and ended, its CPU, when each event began."""
        sio, payload = self._servers[0].sio, "x" * size
        if "count" in target:
            rooms = [f"{target['prefix']}{number}" for number in range(target["count"])]
        else:
            rooms = [target["room"]]
        stamps: list[float] = []
        used, began = cpu(), time.monotonic()
        if per_second:
            for number in range(events):
                await asyncio.sleep(max(0, began + number / per_second - time.monotonic()))
                stamps.append(time.monotonic())
                await sio.emit("event", payload, room=rooms[number % len(rooms)])
        elif in_flight == 1:
            await self._emit_each(sio, payload, rooms, range(events), BURST)
        else:
            shares = (range(first, events, in_flight) for first in range(in_flight))
            await asyncio.gather(*(self._emit_each(sio, payload, rooms, share, SHARE) for share in shares))
        while self._contestant.library == "roomcast" and sio.manager.health().backlog:
            await asyncio.sleep(0.001)
        return {"began": began, "ended": time.monotonic(), "cpu": cpu() - used, "stamps": stamps}

    @staticmethod
    async def _emit_each(sio: socketio.AsyncServer, payload: str, rooms: list[str], numbers: range, share: int) -> None:
        for turn, number in enumerate(numbers, 1):
            await sio.emit("event", payload, room=rooms[number % len(rooms)])
            if turn % share == 0:
                await asyncio.sleep(0)

    async def watch(self, stamp: bool) -> dict[str, Any]:
        """Begin to count CPU, and, with `stamp`, to note when each packet to the last client is put into its queue."""
        if stamp:
            self._stamps = Stamps(self._servers[0].sockets[-1].queue)
        self._watched = cpu()
        return {}

    async def count(self, deliveries: int, within: float) -> dict[str, Any]:
        """Wait for so many packets to all clients together; when that was, the CPU since `watch`, how many came."""
        got, deadline = 0, time.monotonic() + within
        while got < deliveries and time.monotonic() < deadline:
            await asyncio.sleep(0.002)
            got += self._drain()
        return {"ended": time.monotonic(), "cpu": cpu() - self._watched, "got": got}

    async def arrivals(self, packets: int, within: float) -> dict[str, Any]:
        """Wait, without looking, for packets to the last client of the first server since `watch`; when each came."""
        assert self._stamps is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._stamps.arrived(packets)
        times = self._stamps.times
        return {"ended": time.monotonic(), "cpu": cpu() - self._watched, "got": len(times), "stamps": times}

    async def disconnect(self, times: int, shared: str, own: str) -> dict[str, Any]:
        """Microseconds to forget a client that is in two rooms, and to disconnect one in all, each several times."""
        server = self._servers[0]
        rooms: list[float] = []
        whole: list[float] = []
        for number in range(2 * times):
            sid, socket = await server.connect(shared)
            await server.sio.enter_room(sid, f"{own}{number}")
            began = time.perf_counter_ns()
            if number % 2:
                await server.sio._handle_eio_disconnect(socket.sid, server.sio.reason.TRANSPORT_CLOSE)
                whole.append((time.perf_counter_ns() - began) / 1000)
            else:
                await server.sio.manager.disconnect(sid, "/", ignore_queue=True)
                rooms.append((time.perf_counter_ns() - began) / 1000)
            server.sio.eio.sockets.pop(socket.sid, None)
            await asyncio.sleep(0)
        return {"rooms": rooms, "all": whole}

    async def memory_of_memberships(self, rooms: int, members: int) -> dict[str, Any]:
        """Bytes per membership of so many rooms with so many members each; the clients themselves do not count."""
        sio = self._servers[0].sio
        sids = [(await self._servers[0].connect())[0] for _ in range(members)]
        names = [f"room-{number:08}" for number in range(rooms)]
        joins = ((sid, name) for name in names for sid in sids)
        await asyncio.gather(*(asyncio.sleep(0) for _ in range(IN_FLIGHT)))  # what asyncio keeps for that many
        before = self._heap()
        while some := list(itertools.islice(joins, IN_FLIGHT)):
            await asyncio.gather(*(sio.enter_room(sid, name) for sid, name in some))
        del some
        return {"bytes": (self._heap() - before) / (rooms * members)}

    async def memory_of_clients(self, count: int) -> dict[str, Any]:
        """Bytes per connected client without a transport."""
        before = self._heap()
        await self.clients(count)
        return {"bytes": (self._heap() - before) / count}

    @staticmethod
    def _heap() -> int:
        if not tracemalloc.is_tracing():
            tracemalloc.start()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    async def churn(self, times: int, prefix: str, fresh: bool) -> dict[str, Any]:
        """One client joins `times` rooms, 64 at a time, then leaves them: microseconds of CPU and of time each.

        Rooms that are `fresh` have nobody else on this node: joining one makes the node subscribe.
        """
        server = self._servers[0]
        sid, _ = await server.connect()
        names = [f"{prefix}{number}" for number in range(times)]
        if not fresh:
            holder, _ = await server.connect()
            for name in names:
                await server.sio.enter_room(holder, name)
        costs: dict[str, Any] = {}
        for verb, method in (("join", server.sio.enter_room), ("leave", server.sio.leave_room)):
            used, began = cpu(), time.monotonic()
            for first in range(0, times, IN_FLIGHT):
                await asyncio.gather(*(method(sid, name) for name in names[first : first + IN_FLIGHT]))
            wall = time.monotonic() - began
            if verb == "leave" and fresh and self._contestant.library == "roomcast":
                await asyncio.sleep(3)  # a second longer than it lingers
            costs[verb] = {"cpu": (cpu() - used) / times * 1e6, "wall": wall / times * 1e6}
        return costs


def resident() -> int:
    """Bytes of this process that are in memory now; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


async def main(name: str, channel: str, servers: int) -> None:
    """Answer line by line until there are no more."""
    logging.basicConfig(level=logging.WARNING)
    node = Node(name, channel, servers)
    while line := await asyncio.to_thread(sys.stdin.readline):
        question: dict[str, Any] = json.loads(line)
        verb: Callable[..., Awaitable[dict[str, Any]]] = getattr(node, question.pop("do"))
        try:
            answer = await verb(**question)
        except Exception as exc:
            logger.exception("failed")
            answer = {"error": repr(exc)}
        print(json.dumps(answer), flush=True)
    await node.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
