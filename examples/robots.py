"""Commands to robots, one or a fleet: `uvicorn --app-dir examples --workers 3 robots:app`.

Robots connect to "/robots" with `auth: {name: "r1", fleet: "north"}`, answer the event "command" through its
acknowledgement, and tell their charge with the event "battery". Operators connect to "/operators" and send

    emitWithAck("command", {fleet: "north"}, "dock")        // or {robot: "r1"}
    emitWithAck("fleet", "north")                           // [{name, battery, process}, ...]
    emitWithAck("count", "north")                           // 7

A command answers with what each robot said and who was silent; until then the event "answered" shows each answer as
it comes. There is no login here: put yours into the connect handlers.
Run it on a broker of yours with ROOMCAST_URL=redis://localhost:6379 (or nats://, amqp://) in the environment.
"""

import os
from typing import Any

import socketio

import roomcast

PATIENCE = float(os.environ.get("ROBOT_PATIENCE", "2"))
"""Seconds that a robot has to answer a command."""

adapter = roomcast.Adapter(os.environ.get("ROOMCAST_URL", "embedded://"))
sio: Any = socketio.AsyncServer(async_mode="asgi", client_manager=adapter)
app = socketio.ASGIApp(sio, on_startup=adapter.start, on_shutdown=adapter.aclose)

robots = adapter.namespace("/robots").timeout(PATIENCE)


@sio.on("connect", namespace="/robots")
async def robot_connects(sid: str, _environ: dict[str, Any], auth: dict[str, str]) -> None:
    """A robot has a name, and is one of a fleet."""
    name, fleet = auth["name"], auth["fleet"]
    await sio.save_session(sid, {"name": name, "battery": None}, namespace="/robots")
    await sio.enter_room(sid, f"robot:{name}", namespace="/robots")
    await sio.enter_room(sid, f"fleet:{fleet}", namespace="/robots")


@sio.on("battery", namespace="/robots")
async def battery(sid: str, percent: int) -> None:
    """A robot tells its charge; `fetch_sockets` shows it to whoever asks, on any process."""
    async with sio.session(sid, namespace="/robots") as session:
        session["battery"] = percent


@sio.on("command", namespace="/operators")
async def command(sid: str, target: dict[str, str], order: str) -> dict[str, Any]:
    """Send a command to a robot or a fleet, show each answer as it comes, and answer with all of them."""
    [(kind, name)] = target.items()
    addressed = robots.to(f"{kind}:{name}")
    names = {robot.sid: robot.data["name"] for robot in await addressed.fetch_sockets()}
    done: dict[str, Any] = {}
    silent: list[str] = []
    try:
        async for answer in addressed.acks("command", order):
            robot = names.get(answer.sid, answer.sid)  # one that came in the meantime has no name yet
            done[robot] = answer.value
            await sio.emit("answered", (robot, answer.value), to=sid, namespace="/operators")
    except roomcast.AckTimeout as exc:
        silent = sorted(names.get(missing, missing) for missing in exc.missing)
    return {"done": done, "silent": silent}


@sio.on("fleet", namespace="/operators")
async def fleet(_sid: str, name: str) -> list[dict[str, Any]]:
    """The robots of a fleet, with what they last told, and the process that serves each."""
    found = await robots.to(f"fleet:{name}").fetch_sockets()
    shown = [{"name": robot.data["name"], "battery": robot.data["battery"], "process": robot.node} for robot in found]
    return sorted(shown, key=lambda robot: str(robot["name"]))


@sio.on("count", namespace="/operators")
async def count(_sid: str, name: str) -> int:
    """How many robots of a fleet are connected."""
    return await robots.to(f"fleet:{name}").count()
