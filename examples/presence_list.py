"""Who of one's friends is online, on every process: `uvicorn --app-dir examples --workers 3 presence_list:app`.

A user is online while any of their tabs, on any process, is in the room of that user. Clients connect with
`auth: {user: "ada"}`, then

    socket.emit("friends", ["bob", "eve"])                  // whom to show; a second list replaces the first one
    socket.on("friend", ({user, tabs}) => ...)              // once for each friend, and whenever that changes

There is no login here: put yours into the connect handler.
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

watching: dict[str, list[asyncio.Task[None]]] = {}
"""What each client of this process is shown: one task for each friend."""


@sio.event
async def connect(sid: str, _environ: dict[str, Any], auth: Any) -> None:
    """A tab of a user is in the room of that user."""
    user = auth.get("user") if isinstance(auth, dict) else None
    if not isinstance(user, str) or not user:
        raise socketio.exceptions.ConnectionRefusedError("Say who you are: auth = {user: ...}")
    await sio.enter_room(sid, f"user:{user}")
    watching[sid] = []


@sio.event
async def friends(sid: str, users: list[str]) -> None:
    """Show these users, and no longer those of the list before."""
    stop_showing(sid)
    if sid in watching:  # it may have gone meanwhile
        watching[sid] = [asyncio.create_task(show(sid, user)) for user in users[:100]]


async def show(sid: str, user: str) -> None:
    """Tell a client how many tabs a friend has open, now and whenever that changes."""
    while True:
        try:
            async with adapter.presence(f"user:{user}") as watch:
                await sio.emit("friend", {"user": user, "tabs": len(watch.present)}, to=sid)
                async for _change in watch:
                    await sio.emit("friend", {"user": user, "tabs": len(watch.present)}, to=sid)
        except roomcast.RequestTimeout:
            continue  # a process did not answer: it is heard again soon, or lost
        except roomcast.BrokerClosed:
            return  # this process stops


@sio.event
async def disconnect(sid: str, _reason: str) -> None:
    """A tab is closed; its room is left by itself."""
    stop_showing(sid)
    watching.pop(sid, None)


def stop_showing(sid: str) -> None:
    """Watch nobody for this client any more."""
    for task in watching.get(sid, ()):
        task.cancel()
