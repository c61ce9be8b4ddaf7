"""The official JavaScript client on roomcast nodes: what it says is in `tests/js`."""

import asyncio
import contextlib
import fcntl
import secrets
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import socketio
from aiohttp import web

import roomcast
from tests.demo.running import Program, demo, shown
from tests.services import unavailable

pytestmark = pytest.mark.browser

JS = Path(__file__).parents[1] / "js"
TRANSPORTS = ["websocket", "polling", "polling,websocket"]


@pytest.fixture
async def node_js() -> str:
    """The path of Node.js, with the packages of `tests/js` installed."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        unavailable("Node.js", "no node and npm on this machine (Debian: apt-get install nodejs npm)")
    with (JS / "package.json").open() as lock:  # test processes that run in parallel install it once
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        if not (JS / "node_modules" / ".package-lock.json").is_file():
            async with Program([npm, "ci", "--prefix", str(JS), "--no-audit", "--no-fund"]) as install:
                if await install.ended(within=50):
                    unavailable("The JavaScript client", f"npm ci failed:\n{install.output}")
    return node


def application(adapter: roomcast.Adapter) -> web.Application:
    """Events in two namespaces: `join`, `say`, `ask`, `kick` and `flood`."""
    sio: Any = socketio.AsyncServer(async_mode="aiohttp", client_manager=adapter)
    for namespace in ("/", "/chat"):

        async def join(sid: str, room: str, namespace: str = namespace) -> bool:
            await sio.enter_room(sid, room, namespace=namespace)
            return True

        async def say(_sid: str, room: str, *said: object, namespace: str = namespace) -> None:
            await sio.emit("said", said, room=room, namespace=namespace)

        async def ask(_sid: str, to: str, question: object, namespace: str = namespace) -> object:
            return list(await sio.call("question", question, to=to, namespace=namespace, timeout=5))

        async def kick(_sid: str, to: str, namespace: str = namespace) -> bool:
            await sio.disconnect(to, namespace=namespace)
            return True

        async def flood(_sid: str, room: str, name: str, count: int, namespace: str = namespace) -> bool:
            for number in range(count):
                data = number.to_bytes(4, "big") + bytes(number) if number % 2 else None
                await sio.emit("flooded", (name, number, data), room=room, namespace=namespace)
            return True

        for handler in (join, say, ask, kick, flood):
            sio.on(handler.__name__, handler, namespace=namespace)
    app = web.Application()
    sio.attach(app)

    async def joined(_app: web.Application) -> AsyncGenerator[None]:
        async with adapter:
            yield

    app.cleanup_ctx.append(joined)
    return app


@contextlib.asynccontextmanager
async def two_nodes(url: str) -> AsyncGenerator[list[str]]:
    """The addresses of two nodes on a broker."""
    prefix = f"test-{secrets.token_hex(4)}"
    runners = [web.AppRunner(application(roomcast.Adapter(url, prefix=prefix)), shutdown_timeout=1) for _ in range(2)]
    try:
        for runner in runners:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield [f"http://127.0.0.1:{runner.addresses[0][1]}" for runner in runners]
    finally:
        await asyncio.gather(*(runner.cleanup() for runner in runners))


@pytest.mark.parametrize("transports", TRANSPORTS)
async def test_two_clients_on_two_nodes(node_js: str, transports: str, nats_url: str) -> None:
    async with (
        two_nodes(nats_url) as addresses,
        Program([node_js, str(JS / "client.mjs"), *addresses, transports]) as client,
    ):
        assert await client.ended() == 0, client.output
        assert client.output.splitlines() == [
            "ok events both ways",
            "ok several arguments",
            "ok binary",
            "ok ack across nodes",
            "ok namespaces",
            "ok order of text and binary under load",
            "ok disconnect across nodes",
            f"ok transport {transports.rpartition(',')[2]}",
        ]


@pytest.mark.parametrize("transports", TRANSPORTS)
async def test_two_clients_through_the_one_address_of_the_demo(node_js: str, transports: str) -> None:
    async with demo("--port", "0", "--nodes", "2") as program:
        address, _ = await shown(program)
        async with Program([node_js, str(JS / "demo.mjs"), address, transports]) as client:
            assert await client.ended() == 0, client.output
            assert client.output == "ok demo\n"
