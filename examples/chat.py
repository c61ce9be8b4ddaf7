"""A chat on several processes: `uvicorn --app-dir examples --workers 3 chat:app`, with no broker to install.

Run it on a broker of yours with ROOMCAST_URL=redis://localhost:6379 (or nats://, amqp://) in the environment.
Clients connect with `transports: ["websocket"]`, because a load balancer of processes knows no sticky sessions.
"""

import os
from typing import Any

import socketio

import roomcast

adapter = roomcast.Adapter(os.environ.get("ROOMCAST_URL", "embedded://"))
sio: Any = socketio.AsyncServer(async_mode="asgi", client_manager=adapter)
app = socketio.ASGIApp(sio, on_startup=adapter.start, on_shutdown=adapter.aclose)


@sio.event
async def join(sid: str, room: str) -> int:
    """Put a client into a room; answers which process it is on."""
    await sio.enter_room(sid, room)
    return os.getpid()


@sio.event
async def say(sid: str, room: str, text: str) -> None:
    """Tell a room something, on whatever processes its members are."""
    await sio.emit("said", text, room=room, skip_sid=sid)
