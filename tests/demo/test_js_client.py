"""The official JavaScript client on roomcast nodes: what it says is in `tests/js`."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import socketio
from aiohttp import web

import roomcast
from tests.demo.running import JS, Program, demo, shown

pytestmark = pytest.mark.browser

TRANSPORTS = ["websocket", "polling", "polling,websocket"]


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
