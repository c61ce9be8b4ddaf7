"""Frames on real sockets of real servers: the same bytes by both ways, and the right way by itself.

What arrives is captured behind the handshake, byte by byte.
"""

import asyncio
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from unittest import mock

import aiohttp
import pytest
from engineio.async_socket import AsyncSocket
from fastapi import FastAPI
from starlette.applications import Starlette

from roomcast import Adapter
from roomcast.core.client_queue import ClientQueue
from roomcast.core.writers import Writer, writer_of
from tests.adapter.servers import Node
from tests.loops import ON_BOTH_LOOPS
from tests.services import unavailable
from tests.waiting import until
from tests.write_path.raw_client import RawClient

# pyright: reportPrivateUsage=false

# uvicorn and websockets deprecate the first implementation, which older versions have as their default
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*websockets.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:remove second argument of ws_handler:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `websockets` implementation is deprecated"),
]

SERVERS = ["websockets-sansio", "websockets", "wsproto", "aiohttp"]


@asynccontextmanager
async def serving(
    server: str, *, uvicorn_options: dict[str, Any] | None = None, sio: dict[str, Any] | None = None, **settings: Any
) -> AsyncGenerator[Node]:
    node = Node(
        Adapter("memory://", **settings),
        web="aiohttp" if server == "aiohttp" else "uvicorn",
        uvicorn_options=(uvicorn_options or {}) | ({} if server == "aiohttp" else {"ws": server}),
        **(sio or {}),
    )

    async def ask(_sid: str, number: int) -> str:
        await node.sio.emit("asked", number)
        return f"answer {number}"

    node.sio.on("ask", ask)
    await node.start()
    try:
        yield node
    finally:
        for client in _dialled:
            client.abort()
        _dialled.clear()
        await node.stop()


_dialled: list[RawClient] = []


async def dial(node: Node, *, sid: str = "", **options: Any) -> RawClient:
    """A raw client of a node, dropped with it."""
    client = RawClient(node.port, **options)
    _dialled.append(client)
    return await client.open(sid)


def queue_of(node: Node) -> ClientQueue:
    (socket,) = node.sio.eio.sockets.values()
    return cast("ClientQueue", socket.queue)


async def everything(node: Node, client: RawClient) -> None:
    """A schedule of all that a client can be sent, up to and with `end`."""
    sid = await client.connect()
    await node.sio.enter_room(sid, "room")
    await node.sio.emit("first", {"text": "größer", "n": 1})
    for number in range(40):
        await node.sio.emit("small", number, room="room")
        if number % 5 == 0:
            await node.sio.emit("binary", {"a": bytes(range(256)) * number, "b": [b"", b"\x82"]}, to=sid)
        if number % 7 == 0:
            client.send(f'42{number}["ask",{number}]')
            await client.until(b"answer")
        if number % 11 == 0:
            await asyncio.sleep(0)
    await node.sio.emit("large", "x" * 70_000)
    await node.sio.emit("medium", "y" * 200)
    await node.sio.emit("end")
    await client.until(b'"end"')


def no_writer(_ws: object) -> None:
    return None


async def captured(server: str, *, direct: bool, deflate: bool = False) -> tuple[bytes, dict[str, Any]]:
    """What a client of this server got through one of the ways, without sids, and the node's counters."""
    with mock.patch("roomcast.core.fanout.writer_of", writer_of if direct else no_writer):
        async with serving(server) as node:
            client = await dial(node, deflate=deflate)
            await everything(node, client)
            text = re.sub(rb'"sid":"[^"]*"', b'"sid":""', bytes(client.wire))
            return text, node.adapter.stats()


@ON_BOTH_LOOPS
@pytest.mark.parametrize("server", SERVERS)
async def test_both_ways_put_the_same_bytes_on_the_socket(server: str) -> None:
    direct, counters = await captured(server, direct=True)
    queued, others = await captured(server, direct=False)
    assert direct == queued
    assert counters["sent_direct"] > 60 > counters["sent_queued"]
    assert others["sent_direct"] == 0
    assert others["sent_queued"] == counters["sent_queued"] + counters["sent_direct"]


@pytest.mark.parametrize("server", SERVERS)
async def test_on_a_compressed_connection_small_packets_are_direct_and_large_ones_compressed(server: str) -> None:
    async with serving(server) as node:
        client = await dial(node, deflate=True)
        assert client.compression
        await client.connect()
        expected: list[str] = []
        for number in range(60):  # the window of the compressor must survive what goes past it
            text = f"{number} " + "repetitive " * (200 if number % 3 == 0 else 3)
            expected.append(text)
            await node.sio.emit("e", text)
            if number % 4 == 0:
                await asyncio.sleep(0)
        await node.sio.emit("end")
        got = await client.until(b'"end"')
        assert [message.data.decode() for message in got] == [f'42["e","{text}"]' for text in expected]
        assert [message.compressed for message in got if len(message.data) > 1024] == [True] * 20
        assert not all(message.compressed for message in got)
        stats = node.adapter.stats()
        assert stats["sent_direct"]
        assert stats["sent_queued"] >= 20


async def test_compression_of_everything_is_a_setting() -> None:
    async with serving("websockets-sansio", compress_from=0) as node:
        client = await dial(node, deflate=True)
        await client.connect()
        for number in range(20):
            await node.sio.emit("e", number)
        await node.sio.emit("end")
        assert all(message.compressed for message in await client.until(b'"end"'))
        assert node.adapter.stats()["sent_direct"] == 0


@ON_BOTH_LOOPS
@pytest.mark.parametrize("server", SERVERS)
async def test_polling_and_the_upgrade_keep_to_the_queue_and_then_become_direct(server: str) -> None:
    async with serving(server) as node, aiohttp.ClientSession() as http:
        url = f"{node.url}/socket.io/?EIO=4&transport=polling"
        opened = await (await http.get(url)).text()
        sid = opened.partition('"sid":"')[2].partition('"')[0]
        await http.post(f"{url}&sid={sid}", data="40")
        heard = await (await http.get(f"{url}&sid={sid}")).text()
        number = 0
        for _ in range(3):
            await node.sio.emit("e", number)
            number += 1
            heard += "\x1e" + await (await http.get(f"{url}&sid={sid}")).text()
        assert node.adapter.stats()["sent_direct"] == 0
        polling = asyncio.ensure_future(http.get(f"{url}&sid={sid}"))
        await until(lambda: bool(queue_of(node)._getters), what="the poll to wait")
        client = await dial(node, sid=sid)
        client.send("2probe")
        assert (await client.message()).data == b"3probe"
        for _ in range(3):
            await node.sio.emit("e", number)
            number += 1
        heard += "\x1e" + await (await polling).text()
        client.send("5")
        for _ in range(20):
            await node.sio.emit("e", number)
            number += 1
            await asyncio.sleep(0)
        await until(lambda: queue_of(node).direct, what="the connection to be proven")
        for _ in range(20):
            await node.sio.emit("e", number)
            number += 1
        await node.sio.emit("end")
        heard += "\x1e" + "\x1e".join(message.data.decode() for message in await client.until(b'"end"'))
        assert re.findall(r'42\["e",(\d+)\]', heard) == [str(n) for n in range(number)]
        assert node.adapter.stats()["sent_direct"] >= 20


async def test_pings_keep_a_connection_alive_that_is_written_to_directly() -> None:
    """The writer waits at most ping_interval + ping_timeout for a packet, and closes the connection then."""
    async with serving("websockets-sansio", sio={"ping_interval": 0.2, "ping_timeout": 0.3}) as node:
        client = await dial(node)
        await client.connect()

        async def emit() -> None:
            for number in range(150):
                await node.sio.emit("e", number)
                await asyncio.sleep(0.01)
            await node.sio.emit("end")

        emitting = asyncio.ensure_future(emit())
        got = await client.until(b'"end"')
        await emitting
        assert [message.data for message in got] == [b'42["e",%d]' % number for number in range(150)]
        assert len(client.signals) > 3


@ON_BOTH_LOOPS
async def test_over_tls(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        unavailable("TLS", "no openssl on this machine (Debian: apt-get install openssl)")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)  # noqa: ASYNC221 - once
    options = {"ssl_keyfile": str(key), "ssl_certfile": str(certificate)}
    async with serving("websockets-sansio", uvicorn_options=options) as node:
        client = await dial(node, tls=ssl.create_default_context(cafile=certificate))
        await everything(node, client)
        assert node.adapter.stats()["sent_direct"] > 60


@ON_BOTH_LOOPS
async def test_a_client_that_reads_slowly_gets_everything_in_order() -> None:
    async with serving("websockets-sansio", client_queue_bytes=64 * 2**20) as node:
        client = await dial(node)
        await client.connect()
        queue = queue_of(node)
        for number in range(300):  # it reads nothing meanwhile: the kernel's buffers and the transport's fill up
            await node.sio.emit("e", f"{number} " + "x" * 50_000)
            await asyncio.sleep(0)
        assert not queue.empty() or queue.taken
        await node.sio.emit("end")
        got = await client.until(b'"end"')
        assert [int(message.data[8:].split(b" ")[0]) for message in got] == list(range(300))
        stats = node.adapter.stats()
        assert stats["sent_direct"]
        assert stats["sent_queued"]
        await until(lambda: queue.direct, what="the direct way to come back")


@ON_BOTH_LOOPS
@pytest.mark.parametrize("server", SERVERS)
async def test_a_stalled_client_is_cut_and_leaves_nothing(server: str) -> None:
    async with serving(server, client_queue=20) as node:
        client = await dial(node)
        await client.connect()
        for number in range(2000):
            await node.sio.emit("e", f"{number} " + "x" * 50_000)
            await asyncio.sleep(0)
            if node.adapter.stats()["clients_cut"]:
                break
        assert node.adapter.stats()["clients_cut"] == 1
        await until(lambda: not node.inside.rooms.get("/", {}), what="the client to be forgotten")
        with pytest.raises(ConnectionError):
            await client.until(b"nothing like this")


@ON_BOTH_LOOPS
@pytest.mark.parametrize("server", SERVERS)
async def test_a_closing_connection_gets_its_last_events_and_its_closing_handshake(server: str) -> None:
    async with serving(server) as node:
        client = await dial(node)
        sid = await client.connect()
        eio_sid = node.inside.eio_sid_from_sid(sid, "/")
        await node.sio.emit("last", 1)
        await node.sio.disconnect(sid)
        await node.sio.emit("after", 2)
        await node.sio.eio.disconnect(eio_sid)
        assert [(await client.message()).data for _ in range(3)] == [b'42["last",1]', b"41", b"1"]
        client.close()
        with pytest.raises(ConnectionError, match="closed"):
            await client.message()


# Whatever is not as expected keeps to the queue


async def hears(node: Node) -> dict[str, Any]:
    """A client hears what it should; the node's counters then."""
    client = await dial(node)
    await client.connect()
    for number in range(10):
        await node.sio.emit("e", number)
        await asyncio.sleep(0)
    await node.sio.emit("end")
    assert [m.data for m in await client.until(b'"end"')] == [b'42["e",%d]' % number for number in range(10)]
    return node.adapter.stats()


async def test_a_server_behind_a_middleware_that_wraps_send_keeps_to_the_queue() -> None:
    def wrapped(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            async def sending(message: Any) -> None:
                await send(message)

            await app(scope, receive, sending if scope["type"] == "websocket" else send)

        return middleware

    async with serving("websockets-sansio") as node:
        real = node.sio.eio.handle_request
        node.sio.eio.handle_request = wrapped(real)
        stats = await hears(node)
    assert stats["sent_direct"] == 0
    assert stats["sent_queued"] >= 10


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
async def test_an_application_that_is_mounted_in_a_framework_is_written_to_directly(framework: type[Starlette]) -> None:
    async with serving("websockets-sansio") as node:
        app = framework()
        app.mount("/", node.sio.eio.handle_request)
        node.sio.eio.handle_request = app
        stats = await hears(node)
    assert stats["sent_direct"] >= 10


async def test_an_engine_io_that_makes_its_own_queues_keeps_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    real = AsyncSocket.__init__

    def init(self: Any, *args: Any) -> None:
        real(self, *args)
        self.queue = asyncio.Queue()

    monkeypatch.setattr(AsyncSocket, "__init__", init)
    async with serving("websockets-sansio") as node:
        stats = await hears(node)
    assert stats["sent_direct"] == 0
    assert stats["sent_queued"] >= 10


async def test_an_engine_io_that_changes_what_it_sends_is_never_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer one might frame, batch or mark its packets; its first packets show it."""
    from engineio.async_drivers.asgi import WebSocket  # noqa: PLC0415

    real = cast("Any", AsyncSocket)._websocket_handler

    async def handler(self: Any, ws: Any) -> None:
        class Changing:
            def __getattr__(self, name: str) -> Any:
                return getattr(ws, name)

            async def send(self, message: Any) -> None:
                await ws.send(message + " " if isinstance(message, str) else message)

        await real(self, Changing())

    monkeypatch.setattr(AsyncSocket, "_websocket_handler", handler)
    assert WebSocket is not None
    async with serving("websockets-sansio") as node:
        client = await dial(node)
        await client.connect()
        for number in range(10):
            await node.sio.emit("e", number)
            await asyncio.sleep(0)
        await node.sio.emit("end")
        assert [m.data for m in await client.until(b'"end"')] == [b'42["e",%d] ' % number for number in range(10)]
        assert node.adapter.stats()["sent_direct"] == 0


async def test_a_transport_that_is_not_what_it_seemed_is_left_alone_without_an_error() -> None:
    def broken(_writer: Writer) -> bool:
        raise AttributeError("get_write_buffer_size")

    async with serving("websockets-sansio") as node:
        with mock.patch("roomcast.core.writers._Uvicorn.ready", broken):
            stats = await hears(node)
    assert stats["sent_direct"] == 0

    async with serving("websockets-sansio") as node:
        client = await dial(node)
        await client.connect()
        await node.sio.emit("e", 0)
        await until(lambda: queue_of(node).direct, what="the connection to be proven")
        with mock.patch("roomcast.core.writers._Uvicorn.ready", broken):
            await node.sio.emit("e", 1)
            await node.sio.emit("end")
            assert len(await client.until(b'"end"')) == 2


async def test_the_admin_ui_counts_all_bytes_that_are_sent() -> None:
    async with serving("websockets-sansio") as node:
        admin = node.sio.instrument(auth=False, mode="development")
        try:
            await hears(node)
        finally:
            await admin.shutdown()
            admin.uninstrument()
        stats = node.adapter.stats()
    assert stats["sent_direct"] == 0
