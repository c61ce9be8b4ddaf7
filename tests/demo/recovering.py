"""A node that restores clients, as a process of its own: `uvicorn tests.demo.recovering:app`, with ROOMCAST_URL."""

from typing import Any

import socketio

import roomcast

adapter = roomcast.Adapter(recovery=roomcast.Recovery(window=60.0, patience=1.0), heartbeat=0.5, peer_timeout=1.0)
sio: Any = socketio.AsyncServer(async_mode="asgi", client_manager=adapter)
app = socketio.ASGIApp(sio, on_startup=adapter.start, on_shutdown=adapter.aclose)


async def connect(sid: str, environ: dict[str, Any], auth: dict[str, str]) -> None:
    """A client is in the room it asks for when it comes for the first time; tells it how it came, and with what."""
    if not environ["roomcast.recovered"]:
        await sio.save_session(sid, {"name": auth["name"], "visits": 0})
        await sio.enter_room(sid, auth["room"])
    async with sio.session(sid) as session:
        session["visits"] += 1
    await sio.emit("came", (environ["roomcast.recovered"], session), to=sid)


sio.on("connect", connect)
