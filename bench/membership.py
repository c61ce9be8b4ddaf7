"""What membership costs: memory per membership, and a disconnect while many rooms exist, beside python-socketio.

Run: python -m bench.membership [--rooms 100000]

One process, no broker, no clients' transports; memory by tracemalloc, time by the process's own CPU clock.
"""

import argparse
import asyncio
import statistics
import time
import tracemalloc
from typing import Any
from unittest import mock

import socketio
from socketio.async_manager import AsyncManager

import roomcast


def manager(kind: str) -> Any:
    """A client manager with a server that never sends."""
    made = roomcast.Adapter() if kind == "roomcast" else AsyncManager()
    server = mock.Mock(spec=socketio.AsyncServer)
    server.packet_class = socketio.packet.Packet
    server.eio = socketio.AsyncServer(async_mode="asgi").eio
    made.set_server(server)
    return made


async def connect(made: Any, number: int) -> str:
    """One more client."""
    sid = await made.pre_connect(f"client-{number:08}", "/")
    return str(sid)


async def memory(kind: str, rooms: int, members: int) -> float:
    """Bytes per membership with `rooms` rooms of `members` members each, the clients themselves not counted."""
    made = manager(kind)
    sids = [await connect(made, number) for number in range(members)]
    names = [f"room-{number:08}" for number in range(rooms)]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for name in names:
        for sid in sids:
            await made.enter_room(sid, "/", name)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / (rooms * members)


async def disconnect(kind: str, rooms: int) -> float:
    """Median microseconds to disconnect a client that is in two rooms, while `rooms` rooms exist."""
    made = manager(kind)
    for number in range(rooms // 100):
        sid = await connect(made, number)
        for room in range(100):
            await made.enter_room(sid, "/", f"room-{number}-{room}")
    times: list[float] = []
    for number in range(30):
        sid = await connect(made, 1_000_000 + number)
        await made.enter_room(sid, "/", "lobby")
        await made.enter_room(sid, "/", f"room-0-{number}")
        began = time.process_time_ns()
        await made.disconnect(sid, "/", ignore_queue=True)
        times.append((time.process_time_ns() - began) / 1000)
    return statistics.median(times)


async def main() -> None:
    """Print one row per figure, both contestants beside one another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=100_000)
    options = parser.parse_args()
    for members, rooms in ((1000, 100), (10, 5000), (1, 50_000)):
        row = [await memory(kind, rooms, members) for kind in ("roomcast", "python-socketio")]
        print(f"bytes per membership, rooms of {members:4}: roomcast {row[0]:6.0f}, python-socketio {row[1]:6.0f}")
    for rooms in (100, 10_000, options.rooms):
        row = [await disconnect(kind, rooms) for kind in ("roomcast", "python-socketio")]
        print(f"us to disconnect, {rooms:7} rooms exist: roomcast {row[0]:8.1f}, python-socketio {row[1]:8.1f}")


if __name__ == "__main__":
    asyncio.run(main())
