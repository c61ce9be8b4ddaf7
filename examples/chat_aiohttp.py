"""The same chat as an aiohttp application, one process for each port: `python examples/chat_aiohttp.py 8001`."""

import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import socketio
from aiohttp import web

import roomcast

adapter = roomcast.Adapter(os.environ.get("ROOMCAST_URL", "embedded://"))
sio: Any = socketio.AsyncServer(async_mode="aiohttp", client_manager=adapter)
app = web.Application()
sio.attach(app)


@sio.event
async def join(sid: str, room: str) -> int:
    """Put a client into a room; answers which process it is on."""
    await sio.enter_room(sid, room)
    return os.getpid()


@sio.event
async def say(sid: str, room: str, text: str) -> None:
    """Tell a room something, on whatever processes its members are."""
    await sio.emit("said", text, room=room, skip_sid=sid)


async def joined(_app: web.Application) -> AsyncIterator[None]:
    """A part of the cluster for as long as the application runs."""
    async with adapter:
        yield


app.cleanup_ctx.append(joined)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]))
