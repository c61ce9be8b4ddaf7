"""One server process of an end-to-end measurement: uvicorn, python-socketio, and a client manager.

Run by the measurements, not by hand: it takes commands on stdin (see `load_process`):

- `usage`: CPU seconds used so far, and resident bytes.
- `burst`: emit for `seconds`, from event `first` on, with at most `window` events more than `credit` has told; answers
  how many, when it began, and that the node has handed over what it took.
- `paced`: emit `count` events at `rate` a second; answers when each one was emitted (the monotonic clock).
- `credit`: no answer; so many `events` have arrived everywhere.
- `lag`: with `on`, begin to measure how late the event loop is, every 5 ms; without, answer what was seen.
- `profile`: with `on`, begin to profile; without, write to the file `path`.

Every client enters the one room when it connects.
"""

import argparse
import asyncio
import cProfile
import json
import os
import signal
import socket
import sys
import time
from typing import Any, cast

import socketio
import uvicorn

import roomcast
from bench.load import quantile
from bench.load_process import cpu, resident
from bench.load_wire import EVENT, payload

ROOM = "everyone"
_PROBE = 0.005


def manager(kind: str, url: str, channel: str) -> Any:
    """The client manager of a contestant: roomcast's adapter, or python-socketio's own for the broker of the URL."""
    if kind == "roomcast":
        return roomcast.Adapter(url, prefix=channel)
    if url.startswith("amqp"):
        return socketio.AsyncAioPikaManager(url, channel=channel)
    return socketio.AsyncRedisManager(url, channel=channel)


class Node:
    """A server and its emitter."""

    def __init__(self, kind: str, url: str, channel: str, ws: str, size: int) -> None:
        self._adapter = manager(kind, url, channel)
        self._sio = cast("Any", socketio).AsyncServer(async_mode="asgi", client_manager=self._adapter)
        self._sio.on("connect", self._enter)
        self._roomcast = kind == "roomcast"
        self._size = size
        self._credit = 0
        self._credited = asyncio.Event()
        self._lags: list[float] = []
        self._probe: asyncio.Task[None] | None = None
        self._profile: cProfile.Profile | None = None
        hooks = {"on_startup": self._adapter.start, "on_shutdown": self._adapter.aclose} if self._roomcast else {}
        self._config = uvicorn.Config(
            cast("Any", socketio).ASGIApp(self._sio, **hooks),
            ws=cast("Any", ws),
            lifespan="on",
            log_level="warning",
            backlog=4096,
        )

    async def serve(self) -> None:
        """Serve clients and obey commands until stdin ends."""
        sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._config.load()
        server = uvicorn.Server(self._config)
        server.lifespan = self._config.lifespan_class(self._config)
        await server.startup(sockets=[sock])
        if not self._roomcast:  # it listens to its broker from the first client on; there is no way to wait for it
            self._sio.manager_initialized = True
            self._sio.manager.initialize()
        ticking = asyncio.create_task(self._tick(server))
        answer({"port": sock.getsockname()[1], "pid": os.getpid()})
        commands = asyncio.StreamReader(limit=1 << 24)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        running: set[asyncio.Task[None]] = set()
        while line := await commands.readline():
            command = json.loads(line)
            task = asyncio.create_task(self._obey(getattr(self, "_do_" + command.pop("do")), command))
            running.add(task)
            task.add_done_callback(running.discard)
        ticking.cancel()
        if self._roomcast:
            await self._adapter.aclose()
        sys.stdout.flush()
        os._exit(0)  # the clients belong to a process that ends too

    @staticmethod
    async def _tick(server: uvicorn.Server) -> None:
        """What `uvicorn.Server.main_loop` does, apart from heeding signals: the date header, ten times a second."""
        counter = 0
        while True:
            await server.on_tick(counter)
            counter = (counter + 1) % 864_000
            await asyncio.sleep(0.1)

    async def _obey(self, do: Any, command: dict[str, Any]) -> None:
        try:
            found = await do(**command)
        except Exception as error:  # noqa: BLE001 - said where it is heard
            found = {"error": f"{type(error).__name__}: {error}"}
        if found is not None:
            answer(found)

    async def _enter(self, sid: str, *_: object) -> None:
        await self._sio.enter_room(sid, ROOM)

    async def _emit(self, number: int) -> None:
        await self._sio.emit(EVENT, payload(number, self._size), room=ROOM)

    async def _do_usage(self) -> dict[str, Any]:
        return {"cpu": cpu(), "resident": resident()}

    async def _do_credit(self, events: int) -> None:
        self._credit = events
        self._credited.set()

    async def _do_burst(self, first: int, seconds: float, window: int, limit: int) -> dict[str, Any]:
        began = time.monotonic()
        number = first
        self._credit = max(self._credit, first)
        while number < first + limit and (left := began + seconds - time.monotonic()) > 0:
            if number - self._credit >= window:
                self._credited.clear()
                try:
                    async with asyncio.timeout(left):
                        await self._credited.wait()
                except TimeoutError:
                    break
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
            self._probe.cancel()
            self._probe = None
        lags = sorted(self._lags)
        self._lags = []
        if on:
            self._probe = asyncio.create_task(self._measure_lag())
        return {"p50": quantile(lags, 0.5), "p99": quantile(lags, 0.99), "max": quantile(lags, 1.0)}

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


def answer(message: dict[str, Any]) -> None:
    """Write one answer."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Entry point of the process; it lives for ten minutes at most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("roomcast", "python-socketio"), required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--channel", required=True)
    parser.add_argument("--ws", default="auto", help="uvicorn's websocket implementation")
    parser.add_argument("--size", type=int, default=200)
    options = parser.parse_args()
    signal.alarm(600)

    async def serve() -> None:
        await Node(options.kind, options.url, options.channel, options.ws, options.size).serve()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
