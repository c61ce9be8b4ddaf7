"""One server process of an end-to-end measurement: uvicorn, python-socketio, and a client manager.

    python -m bench.end_to_end_node CONTESTANT CHANNEL SIZE WS [GC_THRESHOLDS]

Run by the measurements, not by hand: it is asked line by line (see `processes`):

- `start`: serve; answers the port for clients, and the UDP port for credit.
- `usage`: CPU seconds used so far, and resident bytes.
- `burst`: emit for `seconds` and `limit` events at most, from event `first` on, with no more than `window` events
  beyond what credit says has been received; answers how many, and when it began.
- `paced`: emit `count` events at `rate` a second; answers when each one was emitted (the monotonic clock).
- `lag`: with `on`, begin to measure how late the event loop is, every 5 ms; without, answer what was seen, in seconds.
- `profile`: with `on`, begin to profile; without, write to the file `path`.

Every client enters the one room when it connects.
"""

import argparse
import asyncio
import cProfile
import gc
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, cast

import socketio
import uvicorn

from bench.contestants import CONTESTANTS, Contestant, client_manager, join, leave
from bench.load_wire import EVENT, payload
from bench.measure import cpu, percentile

ROOM = "everyone"
_PROBE = 0.005
_LIFETIME = 900


class Node:
    """A server and its emitter."""

    def __init__(self, contestant: Contestant, channel: str, size: int, ws: str) -> None:
        self._contestant = contestant
        self._channel = channel
        self._size = size
        self._ws = ws
        manager = client_manager(contestant, channel)
        self._sio = cast("Any", socketio).AsyncServer(async_mode="asgi", client_manager=manager)
        self._sio.on("connect", self._enter)
        self._credit = Credit()
        self._lags: list[float] = []
        self._probe: asyncio.Task[None] | None = None
        self._profile: cProfile.Profile | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Answer until stdin ends."""
        commands = asyncio.StreamReader(limit=1 << 24)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        while line := await commands.readline():
            command = json.loads(line)
            try:
                found = await getattr(self, "_do_" + command.pop("do"))(**command)
            except Exception as error:  # noqa: BLE001 - said where it is heard
                found = {"error": f"{type(error).__name__}: {error}"}
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()
        await leave(self._contestant, self._sio, self._channel)
        os._exit(0)  # the clients belong to a process that ends too

    async def _do_start(self) -> dict[str, Any]:
        sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
        app = cast("Any", socketio).ASGIApp(self._sio)
        config = uvicorn.Config(app, ws=cast("Any", self._ws), lifespan="off", log_level="warning", backlog=4096)
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[sock])
        await join(self._contestant, self._sio)
        self._ticking = asyncio.create_task(_tick(server))
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self._credit, local_addr=("127.0.0.1", 0)
        )
        return {"port": sock.getsockname()[1], "credit": transport.get_extra_info("sockname")[1]}

    async def _enter(self, sid: str, *_: object) -> None:
        await self._sio.enter_room(sid, ROOM)

    async def _emit(self, number: int) -> None:
        await self._sio.emit(EVENT, payload(number, self._size), room=ROOM)

    async def _do_usage(self) -> dict[str, Any]:
        return {"cpu": cpu(), "resident": resident()}

    async def _do_burst(self, first: int, seconds: float, window: int, limit: int) -> dict[str, Any]:
        began = time.monotonic()
        number = first
        while number < first + limit and (left := began + seconds - time.monotonic()) > 0:
            if number - max(first, self._credit.events) >= window:
                await self._credit.more(left)
                continue
            await self._emit(number)
            number += 1
            await asyncio.sleep(0)  # every emit of an application comes from a handler of its own
        return {"began": began, "events": number - first}

    async def _do_paced(self, first: int, count: int, rate: float) -> dict[str, Any]:
        began = time.monotonic()
        times: list[float] = []
        for number in range(count):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            times.append(time.monotonic())
            await self._emit(first + number)
        return {"times": times}

    async def _do_lag(self, *, on: bool) -> dict[str, Any]:
        if self._probe is not None:
            await asyncio.sleep(2 * _PROBE)  # there is one look at least
            self._probe.cancel()
            self._probe = None
        lags, self._lags = self._lags, []
        if on:
            self._probe = asyncio.create_task(self._measure_lag())
        return {"p99": percentile(lags, 0.99), "max": max(lags)} if lags else {}

    async def _measure_lag(self) -> None:
        due = time.monotonic() + _PROBE
        while True:
            await asyncio.sleep(due - time.monotonic())
            now = time.monotonic()
            self._lags.append(now - due)
            due = now + _PROBE

    async def _do_profile(self, *, on: bool, path: str = "") -> dict[str, Any]:
        if on:
            self._profile = cProfile.Profile()
            self._profile.enable()
        elif self._profile is not None:
            self._profile.disable()
            self._profile.dump_stats(path)
        return {}


class Credit(asyncio.DatagramProtocol):
    """How many events have been received, as the load tells in datagrams.

    Attributes:
        events: their number.
    """

    def __init__(self) -> None:
        self.events = 0
        self._told = asyncio.Event()

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002
        """Take what the load says."""
        self.events = int(data)
        self._told.set()

    async def more(self, seconds: float) -> None:
        """Return when it has grown, or after so many seconds."""
        self._told.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._told.wait()
        except TimeoutError:
            return


async def _tick(server: uvicorn.Server) -> None:
    """What `uvicorn.Server.main_loop` does, apart from heeding signals: the date header, ten times a second."""
    counter = 0
    while True:
        await server.on_tick(counter)
        counter = (counter + 1) % 864_000
        await asyncio.sleep(0.1)


def resident() -> int:
    """Bytes of memory this process has resident."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("channel")
    parser.add_argument("size", type=int)
    parser.add_argument("ws", help="uvicorn's websocket implementation")
    parser.add_argument("gc", nargs="*", type=int, help="thresholds of the cyclic garbage collector")
    options = parser.parse_args()
    signal.alarm(_LIFETIME)
    if options.gc:
        gc.set_threshold(*options.gc)

    async def serve() -> None:
        await Node(CONTESTANTS[options.contestant], options.channel, options.size, options.ws).serve()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
