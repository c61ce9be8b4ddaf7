"""One node of the demo: an ordinary python-socketio chat whose client manager is a roomcast adapter.

    python -m roomcast.demo.node NUMBER < pipe

Only the public faces of python-socketio and roomcast are used. The process says on its standard output, in one
line of JSON, on which port it listens or why it cannot, and it ends when its standard input does: so it never
outlives the supervisor, however that one died. The broker's URL comes in the environment variable ROOMCAST_URL,
because arguments are seen by everyone on the machine.
"""

import asyncio
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import socketio
import uvicorn
from socketio.exceptions import TimeoutError as ClientTimeoutError

import roomcast

STATIC = Path(__file__).with_name("static")
_PERIOD = 1.0
"""Seconds between two announcements of a node's clients."""
_ROOM, _NAME, _TEXT = 40, 30, 1000
"""Longest room, name and text, in characters."""


class DemoNode:
    """The application of one node.

    Events from a client: `join` and `leave` a room, `say` something to a room or to everyone, `wave` at one client.
    Events to a client: `welcome`, `said`, `waved` (which it answers), and `count` from every node.
    """

    def __init__(self, number: int, adapter: roomcast.Adapter) -> None:
        self.number = number
        self._adapter = adapter
        self._clients: set[str] = set()
        self._announcing: asyncio.Task[None] | None = None
        self.sio: Any = socketio.AsyncServer(async_mode="asgi", client_manager=adapter)
        random_id = self.sio.eio.generate_id
        # the balancer finds the node of a long-polling request by this
        self.sio.eio.generate_id = lambda: f"{number}.{random_id()}"
        for event in (self.connect, self.disconnect, self.join, self.leave, self.say, self.wave):
            self.sio.on(event.__name__, event)

    async def start(self) -> None:
        """Join the other nodes."""
        await self._adapter.start()
        self._announcing = asyncio.create_task(self._announce_for_ever())

    async def aclose(self) -> None:
        """Leave the other nodes."""
        if self._announcing is not None:
            self._announcing.cancel()
        await self._adapter.aclose()

    async def connect(self, sid: str, _environ: dict[str, Any]) -> None:
        """Tell a client where it is, and everyone that it is there."""
        self._clients.add(sid)
        await self.sio.emit("welcome", {"node": self.number}, to=sid)
        await self.announce()

    async def disconnect(self, sid: str, _reason: str) -> None:
        """Tell everyone that a client is gone."""
        self._clients.discard(sid)
        await self.announce()

    async def join(self, sid: str, room: object) -> bool:
        """Put a client into a room; true once it hears the room."""
        if not (name := _text(room, _ROOM)):
            return False
        await self.sio.enter_room(sid, _room(name))
        return True

    async def leave(self, sid: str, room: object) -> bool:
        """Take a client out of a room."""
        await self.sio.leave_room(sid, _room(_text(room, _ROOM)))
        return True

    async def say(self, sid: str, message: object) -> bool:
        """Send a message to the members of a room, on whatever node they are; without a room, to everyone."""
        fields = cast("dict[str, object]", message) if isinstance(message, dict) else {}
        text, room = _text(fields.get("text"), _TEXT), _text(fields.get("room"), _ROOM)
        if not text:
            return False
        name = _text(fields.get("name"), _NAME)
        said = {"room": room or None, "text": text, "name": name, "node": self.number, "sid": sid}
        await self.sio.emit("said", said, room=_room(room) if room else None)
        return True

    async def wave(self, sid: str, to: object) -> object:
        """Ask one client, on whatever node it is, and return what it answers; None when it does not."""
        with suppress(ClientTimeoutError):
            return await self.sio.call("waved", {"node": self.number, "sid": sid}, to=_text(to, 40), timeout=5)
        return None

    async def announce(self) -> None:
        """Tell everyone how many clients this node has."""
        count = {"node": self.number, "clients": len(self._clients), "healthy": bool(self._adapter.health())}
        with suppress(roomcast.BrokerError):  # the next announcement says it all
            await self.sio.emit("count", count)

    async def _announce_for_ever(self) -> None:
        while True:
            await self.announce()
            await asyncio.sleep(_PERIOD)

    def asgi(self, start: Callable[[], Awaitable[None]]) -> Any:
        """The ASGI application: Socket.IO, and the page with what it loads; `start` is awaited first."""
        files = {"/" if path.name == "index.html" else f"/{path.name}": path for path in STATIC.iterdir()}
        kinds = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript"}
        static = {
            url: {"filename": str(path), "content_type": kinds.get(path.suffix, "image/svg+xml")}
            for url, path in files.items()
        }
        return socketio.ASGIApp(self.sio, static_files=static, on_startup=start, on_shutdown=self.aclose)


def _text(value: object, longest: int) -> str:
    return value.strip()[:longest] if isinstance(value, str) else ""


def _room(name: str) -> str:
    """Names given by people are kept apart from the rooms that clients have for themselves."""
    return f"room {name}"


def _tell(**fact: object) -> None:
    print(json.dumps(fact), flush=True)  # noqa: T201 - the supervisor reads it


def listen() -> socket.socket:
    """A listening socket on a free loopback port.

    It names its protocol, because asyncio turns Nagle's algorithm off only for connections whose listener does;
    with it, a second small message to a client waits 40 ms for the acknowledgement of the first.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener


def main() -> int:
    """Serve until the standard input ends, or a signal says so."""
    number = int(sys.argv[1])
    logging.basicConfig(format=f"node {number}: %(message)s", level=logging.WARNING)
    # told below to the demo, which says it once for all nodes
    logging.getLogger("roomcast").addFilter(lambda record: not str(record.msg).startswith("roomcast: not started"))
    try:
        node = DemoNode(number, roomcast.Adapter(os.environ["ROOMCAST_URL"], prefix=os.environ["ROOMCAST_DEMO_PREFIX"]))
    except roomcast.RoomcastError as exc:
        _tell(error=str(exc))
        return 1
    listener = listen()

    async def start() -> None:
        try:
            await node.start()
        except roomcast.RoomcastError as exc:
            _tell(error=str(exc))
            raise
        _tell(port=listener.getsockname()[1])

    config = uvicorn.Config(node.asgi(start), log_level="critical", access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)

    def stop_at_end_of_input() -> None:
        while os.read(0, 1024):
            pass
        server.should_exit = True

    threading.Thread(target=stop_at_end_of_input, daemon=True).start()
    server.run(sockets=[listener])
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
