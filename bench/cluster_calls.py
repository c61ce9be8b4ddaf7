"""What the cluster API costs: one node asks, the clients sit on another.

Run: python -m bench.cluster_calls [--url redis://127.0.0.1:6379] [--clients 10000] [--rounds 3]

Two processes, one server each; Engine.IO sockets without a transport, whose clients acknowledge at once. Wall-clock
milliseconds of each call, median with spread, and what the two processes grew by.
"""

import argparse
import asyncio
import multiprocessing
import resource
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

import socketio
from engineio.async_socket import AsyncSocket

import roomcast

ANSWERING = 1000
"""Clients that acknowledge."""


async def serve(url: str, channel: str) -> tuple[socketio.AsyncServer, roomcast.Adapter]:
    """A server on the broker, without a transport."""
    adapter = roomcast.Adapter(url, prefix=channel)
    sio = socketio.AsyncServer(async_mode="asgi", client_manager=adapter, monitor_clients=False)
    await adapter.start()
    return sio, adapter


async def member(sio: socketio.AsyncServer, eio_sid: str) -> AsyncSocket:
    """A client whose transport nobody reads, in the room."""
    socket = AsyncSocket(sio.eio, eio_sid)
    socket.connected = socket.upgraded = True
    sio.eio.sockets[eio_sid] = socket
    await sio._handle_eio_connect(eio_sid, {})
    await sio._handle_eio_message(eio_sid, "0")
    await sio.enter_room(sio.manager.sid_from_eio_sid(eio_sid, "/"), "room")
    return socket


def run(target: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Entry point of a process."""
    asyncio.run(target(*args))  # type: ignore[arg-type]


class Answering(asyncio.Queue[Any]):
    """The queue of a client that acknowledges what wants it at once."""

    def __init__(self, sio: Any, eio_sid: str) -> None:
        super().__init__()
        self._sio = sio
        self._eio_sid = eio_sid

    def put_nowait(self, item: Any) -> None:
        """Take a packet; answer an event that carries an id."""
        text = str(item.data)
        number = text[1 : text.find("[")]
        if text.startswith("2") and number.isdigit():
            answer = self._sio._handle_eio_message(self._eio_sid, f"3{number}[1]")
            self._sio.start_background_task(lambda: answer)


async def hold(pipe: Connection, url: str, channel: str, clients: int) -> None:
    """Node B: has the clients, a thousand of them in a room of their own."""
    sio, adapter = await serve(url, channel)
    for number in range(clients):
        socket = await member(sio, f"client{number}")
        socket.queue = Answering(sio, f"client{number}")
        sid = sio.manager.sid_from_eio_sid(f"client{number}", "/")
        await sio.save_session(sid, {"user": f"user-{number}", "n": number})
        if number < ANSWERING:
            await sio.enter_room(sid, "answering")
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    await asyncio.to_thread(pipe.recv)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    await adapter.aclose()


def calls(adapter: roomcast.Adapter, clients: int) -> dict[str, Callable[[], Awaitable[Any]]]:
    """What is measured, and each checks that it has done it."""

    async def fetch() -> None:
        assert len(await adapter.to("room").fetch_sockets()) == clients

    async def iterate() -> None:
        assert len([None async for _ in adapter.to("room").iter_sockets()]) == clients

    async def count() -> None:
        assert await adapter.count("room") == clients

    async def rooms() -> None:
        assert await adapter.all_rooms() == {"room": clients, "answering": min(ANSWERING, clients)}

    async def join() -> None:
        assert await adapter.to("room").sockets_join("other") == clients
        assert await adapter.to("room").sockets_leave("other") == clients

    async def acks() -> None:
        assert len(await adapter.to("answering").emit_with_ack("question")) == min(ANSWERING, clients)

    return {
        "count": count,
        "fetch_sockets": fetch,
        "iter_sockets": iterate,
        "all_rooms": rooms,
        "sockets_join and sockets_leave": join,
        f"emit_with_ack to {min(ANSWERING, clients)}": acks,
    }


async def ask(url: str, channel: str, clients: int, rounds: int) -> None:
    """Node A: asks."""
    _sio, adapter = await serve(url, channel)
    while await adapter.server_count() < 2:  # noqa: PLR2004 - polled from outside, as any user would
        await asyncio.sleep(0.01)
    for name, call in calls(adapter, clients).items():
        times: list[float] = []
        for _ in range(rounds):
            began = time.perf_counter()
            await call()
            times.append((time.perf_counter() - began) * 1e3)
        print(f"{name:32} {statistics.median(times):9.1f} ms ({min(times):.1f} to {max(times):.1f})")
    await adapter.aclose()


def main() -> None:
    """Hold the clients in another process, ask in this one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="redis://127.0.0.1:6379")
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    channel = f"bench-{uuid.uuid4().hex[:8]}"
    here, there = multiprocessing.get_context("spawn").Pipe()
    holder = multiprocessing.get_context("spawn").Process(
        target=run, args=(hold, there, options.url, channel, options.clients)
    )
    holder.start()
    before = here.recv()
    asyncio.run(ask(options.url, channel, options.clients, options.rounds))
    here.send("done")
    after = here.recv()
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"memory: the holder {before / 1024:.0f}, then {after / 1024:.0f} MiB at most; the asker {own / 1024:.0f}")
    holder.join(30)


if __name__ == "__main__":
    main()
