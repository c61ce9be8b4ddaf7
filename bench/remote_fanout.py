"""Remote fan-out beside python-socketio's Redis manager: node A emits, the members sit on node B.

Run: python -m bench.remote_fanout [--url redis://127.0.0.1:6379] [--members 1 100 1000] [--rounds 5]

Two processes per contestant, one server each; Engine.IO sockets without a transport, so that what is measured is
the path from `emit` to each client's queue. Contestants take turns (A B A B ...) in one run; medians with spread.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import socketio
from engineio.async_socket import AsyncSocket

import roomcast

BYTES = 200
BURST = 200  # events between two turns of the loop, as a busy handler would


@dataclass(frozen=True, slots=True)
class Figures:
    """One round of one contestant; times in microseconds of CPU."""

    events_per_second: float
    sender_per_event: float
    receiver_per_delivery: float


def manager(kind: str, url: str, channel: str) -> Any:
    """The client manager of a contestant."""
    if kind == "roomcast":
        return roomcast.Adapter(url, prefix=channel)
    return socketio.AsyncRedisManager(url, channel=channel)


async def serve(kind: str, url: str, channel: str) -> tuple[socketio.AsyncServer, Any]:
    """A server on the broker, without a transport."""
    adapter = manager(kind, url, channel)
    sio = socketio.AsyncServer(async_mode="asgi", client_manager=adapter, monitor_clients=False)
    if kind == "roomcast":
        await adapter.start()
    else:
        sio.manager_initialized = True
        adapter.initialize()
    return sio, adapter


async def member(sio: socketio.AsyncServer, eio_sid: str) -> AsyncSocket:
    """A client whose transport nobody reads."""
    socket = AsyncSocket(sio.eio, eio_sid)
    socket.connected = socket.upgraded = True
    sio.eio.sockets[eio_sid] = socket
    await sio._handle_eio_connect(eio_sid, {})
    await sio._handle_eio_message(eio_sid, "0")
    sid = sio.manager.sid_from_eio_sid(eio_sid, "/")
    await sio.enter_room(sid, "room")
    return socket


def cpu() -> float:
    """Seconds of CPU this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def receive(pipe: Connection, kind: str, url: str, channel: str, members: int, events: int) -> None:
    """Node B: hold the members, count what arrives in the last one's queue."""
    sio, adapter = await serve(kind, url, channel)
    sockets = [await member(sio, f"client{number}") for number in range(members)]
    for socket in sockets:
        drain(socket)
    await warm(kind)
    pipe.send("ready")
    got = 0
    used = 0.0
    deadline = time.monotonic() + 120
    while got < events and time.monotonic() < deadline:
        await asyncio.sleep(0.002)
        got += drain(sockets[-1])
        for socket in sockets[:-1]:
            drain(socket)
        if not used and got:
            used = cpu()
    pipe.send((time.time(), got, cpu() - used))
    await close(adapter, kind)


def drain(socket: AsyncSocket) -> int:
    """Empty a client's queue; how many packets were in it."""
    count = 0
    while not socket.queue.empty():
        socket.queue.get_nowait()
        count += 1
    return count


async def warm(kind: str) -> None:
    """Let the subscription take effect: python-socketio has no way to wait for it."""
    if kind != "roomcast":
        await asyncio.sleep(0.5)


async def close(adapter: Any, kind: str) -> None:
    """Leave the broker."""
    if kind == "roomcast":
        await adapter.aclose()
    else:
        adapter.thread.cancel()
        await asyncio.gather(adapter.thread, return_exceptions=True)


async def send(pipe: Connection, kind: str, url: str, channel: str, events: int) -> None:
    """Node A: emit, awaiting each, and say when it began and what it cost."""
    sio, adapter = await serve(kind, url, channel)
    await warm(kind)
    pipe.send("ready")
    await asyncio.to_thread(pipe.recv)
    payload = "x" * BYTES
    used, began = cpu(), time.time()
    for number in range(events):
        await sio.emit("event", payload, room="room")
        if number % BURST == 0:
            await asyncio.sleep(0)
    while kind == "roomcast" and adapter.health().backlog:  # noqa: ASYNC110 - polled from outside, as any user would
        await asyncio.sleep(0.001)
    pipe.send((began, cpu() - used))
    await asyncio.to_thread(pipe.recv)
    await close(adapter, kind)


def run(target: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Entry point of a process."""
    asyncio.run(target(*args))  # type: ignore[arg-type]


def measure(kind: str, url: str, members: int, events: int) -> Figures:
    """One round of one contestant."""
    context = multiprocessing.get_context("spawn")
    channel = f"bench-{uuid.uuid4().hex[:8]}"
    b_here, b_there = context.Pipe()
    a_here, a_there = context.Pipe()
    receiver = context.Process(target=run, args=(receive, b_there, kind, url, channel, members, events))
    sender = context.Process(target=run, args=(send, a_there, kind, url, channel, events))
    receiver.start()
    sender.start()
    b_here.recv()
    a_here.recv()
    a_here.send("go")
    began, sender_cpu = a_here.recv()
    ended, got, receiver_cpu = b_here.recv()
    a_here.send("done")
    sender.join(30)
    receiver.join(30)
    if got != events:
        raise SystemExit(f"{kind}: {got} of {events} events arrived")
    return Figures(events / (ended - began), sender_cpu / events * 1e6, receiver_cpu / (events * members) * 1e6)


def main() -> None:
    """Take turns, print medians and spread, and the ratio to python-socketio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="redis://127.0.0.1:6379")
    parser.add_argument("--members", type=int, nargs="*", default=[1, 100, 1000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    for members in options.members:
        rounds: dict[str, list[Figures]] = {"roomcast": [], "python-socketio": []}
        for _ in range(options.rounds):
            for kind, done in rounds.items():
                events = {1: 20_000, 100: 10_000}.get(members, 2_000) // (1 if kind == "roomcast" else 4)
                done.append(measure(kind, options.url, members, events))
        result[str(members)] = {kind: [asdict(figures) for figures in done] for kind, done in rounds.items()}
        if not options.json:
            report(members, rounds)
    if options.json:
        print(json.dumps(result, indent=1))


def report(members: int, rounds: dict[str, list[Figures]]) -> None:
    """One table row per contestant, and the ratio."""
    medians: dict[str, float] = {}
    for kind, done in rounds.items():
        rates = sorted(figures.events_per_second for figures in done)
        medians[kind] = statistics.median(rates)
        print(
            f"{members:5} members  {kind:16} {medians[kind]:10,.0f} events/s ({rates[0]:,.0f} to {rates[-1]:,.0f})"
            f"  sender {statistics.median(f.sender_per_event for f in done):7.1f} us/event"
            f"  receiver {statistics.median(f.receiver_per_delivery for f in done):6.2f} us/delivery"
        )
    print(f"{members:5} members  ratio {medians['roomcast'] / medians['python-socketio']:.1f}")


if __name__ == "__main__":
    main()
