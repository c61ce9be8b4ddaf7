"""Cursors of people who read one document: `uvicorn --app-dir examples --workers 3 cursors:app`.

A position is worth nothing once the next one is there, so it is volatile: whoever is slow gets the newer ones only.
Clients connect with `auth: {name: "Ada"}`, then

    people = await socket.emitWithAck("open", "plan")       // [{sid, name}, ...], oneself included
    socket.emit("move", 0.25, 0.75)                         // "moved" with sid, x and y at everyone else's
    socket.on("came", ({sid, name}) => ...); socket.on("went", (sid) => ...)

Run it on a broker of yours with ROOMCAST_URL=redis://localhost:6379 (or nats://, amqp://) in the environment.
"""

import os
from typing import Any

import socketio

import roomcast

adapter = roomcast.Adapter(os.environ.get("ROOMCAST_URL", "embedded://"))
sio: Any = socketio.AsyncServer(async_mode="asgi", client_manager=adapter)
app = socketio.ASGIApp(sio, on_startup=adapter.start, on_shutdown=adapter.aclose)


def readers(document: str) -> str:
    """The room of those who have a document open."""
    return f"document:{document}"


@sio.event
async def connect(sid: str, _environ: dict[str, Any], auth: Any) -> None:
    """Nobody is here without a name."""
    name = auth.get("name") if isinstance(auth, dict) else None
    if not isinstance(name, str) or not name:
        raise socketio.exceptions.ConnectionRefusedError("Say who you are: auth = {name: ...}")
    await sio.save_session(sid, {"name": name[:40], "document": None})


@sio.on("open")
async def open_document(sid: str, document: str) -> list[dict[str, str]]:
    """Open a document, and close the one before; answers who reads it."""
    await close_document(sid)
    async with sio.session(sid) as session:
        session["document"] = document
    await sio.enter_room(sid, readers(document))
    # from here on nobody is missed: who comes now is told to us, and we are told to who is there
    await adapter.to(readers(document)).except_(sid).emit("came", {"sid": sid, "name": session["name"]})
    people = await adapter.to(readers(document)).fetch_sockets()
    return [{"sid": person.sid, "name": person.data["name"]} for person in people]


@sio.event
async def move(sid: str, x: float, y: float) -> None:
    """Show the others where one's cursor is."""
    document = (await sio.get_session(sid))["document"]
    if document is not None:
        await adapter.to(readers(document)).except_(sid).volatile.emit("moved", sid, x, y)


@sio.event
async def disconnect(sid: str, _reason: str) -> None:
    """Take the cursor of someone who is gone from everyone's page."""
    await close_document(sid)


async def close_document(sid: str) -> None:
    """Tell the others that one reads no more."""
    async with sio.session(sid) as session:
        document, session["document"] = session["document"], None
    if document is not None:
        await sio.leave_room(sid, readers(document))
        await adapter.to(readers(document)).emit("went", sid)
