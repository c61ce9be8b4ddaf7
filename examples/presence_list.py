"""Who is online in a room, as it changes: `uvicorn --app-dir examples --workers 3 presence_list:app`.

Clients connect with `auth: {name: "Ann"}` and emit "enter" with a room; the answer is the list of those who are there,
{sid: name}, on whatever processes they are. From then on they get "arrived" (room, sid, name) and "departed"
(room, sid). A process watches each room that has clients of its own, once for all of them.
Run it on a broker of yours with ROOMCAST_URL=redis://localhost:6379 (or nats://, amqp://) in the environment.
"""

import asyncio
import os
from typing import Any

import socketio

import roomcast

adapter = roomcast.Adapter(os.environ.get("ROOMCAST_URL", "embedded://"))
sio: Any = socketio.AsyncServer(async_mode="asgi", client_manager=adapter)
app = socketio.ASGIApp(sio, on_startup=adapter.start, on_shutdown=adapter.aclose)

watching: dict[str, asyncio.Task[None]] = {}


@sio.event
async def connect(sid: str, _environ: dict[str, Any], auth: dict[str, str]) -> None:
    """Keep a client's name where every process can fetch it."""
    await sio.save_session(sid, {"name": auth["name"]})


@sio.event
async def enter(sid: str, room: str) -> dict[str, str]:
    """Put a client into a room; answers who is there."""
    await sio.enter_room(sid, room)
    if room not in watching:
        watching[room] = asyncio.create_task(watch(room))
    return {socket.sid: socket.data["name"] for socket in await adapter.to(room).fetch_sockets()}


async def watch(room: str) -> None:
    """Tell the room's clients of this process who comes and goes, for as long as there are any."""
    here = adapter.local.to(room)
    try:
        async with adapter.presence(room) as presence:
            async for change in presence:
                if change.kind == "joined":
                    for socket in await adapter.to(change.sid).fetch_sockets():  # none when it has gone already
                        await here.except_(change.sid).emit("arrived", room, change.sid, socket.data["name"])
                else:
                    await here.emit("departed", room, change.sid)
                if not await here.count():
                    return
    finally:
        del watching[room]
