"""Minutes that people take down together, and that miss no line when a process dies or a network fails.

Run it as `uvicorn --app-dir examples --workers 3 minutes:app`, open http://localhost:8000 in some tabs, and kill the
process that a tab names: the tab comes back on another one, and says what it missed. It needs a broker with a log:
ROOMCAST_URL, or a Redis on this machine. The lines themselves are in a database, here the file that MINUTES names.

Who comes for the first time, or too late, loads all lines. Who comes back in time gets what it missed, and no more.
"""

import asyncio
import os
import sqlite3
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Any

import socketio

import roomcast

DATABASE = os.environ.get("MINUTES", "minutes.sqlite3")

adapter = roomcast.Adapter(
    os.environ.get("ROOMCAST_URL", "redis+streams://localhost"), recovery=roomcast.Recovery(window=120)
)
sio: Any = socketio.AsyncServer(async_mode="asgi", client_manager=adapter)
app = socketio.ASGIApp(
    sio,
    static_files={
        "/": str(Path(__file__).with_name("minutes.html")),
        "/socket.io.min.js": str(files("roomcast") / "demo/static/socket.io.min.js"),
    },
    on_startup=adapter.start,
    on_shutdown=adapter.aclose,
)


@sio.event
async def connect(sid: str, environ: dict[str, Any], _auth: Any) -> None:
    """Give a page the lines, unless it has them and is about to get those that it missed."""
    if not environ["roomcast.recovered"]:
        # what is added meanwhile comes as a `line`, before or after these: the page puts them together by their numbers
        await sio.emit("lines", await asyncio.to_thread(load), to=sid)
    await sio.emit("here", os.getpid(), to=sid)  # comes after all that was missed


@sio.event
async def add(_sid: str, text: str) -> None:
    """Keep a line first, then tell everyone."""
    text = str(text)[:500]
    await sio.emit("line", (await asyncio.to_thread(keep, text), text))


def load() -> list[tuple[int, str]]:
    """All lines, numbered."""
    with closing(opened()) as database:
        return database.execute("SELECT number, text FROM lines ORDER BY number").fetchall()


def keep(text: str) -> int:
    """Store a line; its number."""
    with closing(opened()) as database, database:
        return database.execute("INSERT INTO lines (text) VALUES (?)", (text,)).lastrowid or 0


def opened() -> sqlite3.Connection:
    """The database, which all processes share."""
    database = sqlite3.connect(DATABASE)
    database.execute("CREATE TABLE IF NOT EXISTS lines (number INTEGER PRIMARY KEY, text TEXT NOT NULL)")
    return database
