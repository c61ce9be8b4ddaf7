"""One active tab for each user, on whatever process: `uvicorn --app-dir examples --workers 3 one_active_tab:app`.

Clients connect with `auth: {user: "ann"}`. A new tab takes over: the old one gets "taken over" and is disconnected.
With `auth: {user: "ann", polite: true}` a tab takes over nobody: it is refused while another one is active.
There is no login here: put yours into the connect handler.
Run it on a broker of yours with ROOMCAST_URL=redis://localhost:6379 (or nats://, amqp://) in the environment.
"""

import os
from typing import Any

import socketio

import roomcast

adapter = roomcast.Adapter(os.environ.get("ROOMCAST_URL", "embedded://"))
sio: Any = socketio.AsyncServer(async_mode="asgi", client_manager=adapter)
app = socketio.ASGIApp(sio, on_startup=adapter.start, on_shutdown=adapter.aclose)


@sio.event
async def connect(sid: str, _environ: dict[str, Any], auth: dict[str, Any]) -> None:
    """A tab claims its user's one place."""
    policy = "refuse" if auth.get("polite") else "evict_oldest"
    if not await adapter.claim(sid, f"user:{auth['user']}", limit=1, policy=policy):
        raise socketio.exceptions.ConnectionRefusedError("another tab is active")


@adapter.on("evicted")
async def evicted(sid: str, _key: str) -> None:
    """The last words to a tab of this process that was taken over."""
    await sio.emit("taken over", to=sid)
