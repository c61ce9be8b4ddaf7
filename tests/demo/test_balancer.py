"""The demo's one address: which node a connection goes to."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from roomcast.demo.balancer import Balancer


@contextlib.asynccontextmanager
async def balanced(nodes: int, *, down: tuple[int, ...] = ()) -> AsyncGenerator[int]:
    """The port of a balancer before servers that answer with their number and the head they were sent."""
    async with contextlib.AsyncExitStack() as stack:
        ports: dict[int, int | None] = {}
        for number in range(1, nodes + 1):

            async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int = number) -> None:
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n%d\n" % number + head)
                await writer.drain()
                writer.close()

            server = await stack.enter_async_context(await asyncio.start_server(answer, "127.0.0.1", 0))
            ports[number] = None if number in down else server.sockets[0].getsockname()[1]
        balancer = Balancer(ports)
        port = await balancer.start("127.0.0.1", 0)
        try:
            yield port
        finally:
            await balancer.aclose()


async def get(port: int, target: str, *headers: str) -> str:
    """The whole answer to a request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join([f"GET {target} HTTP/1.1", "Host: test", *headers, "", ""]).encode())
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.decode()


async def node(port: int, target: str) -> int:
    return int((await get(port, target)).split("\r\n\r\n", 1)[1].split("\n")[0])


async def test_new_clients_take_turns_and_the_page_does_not_count() -> None:
    async with balanced(3) as port:
        turns: list[int] = []
        for _ in range(4):
            turns.append(await node(port, "/socket.io/?EIO=4&transport=websocket"))
            await node(port, "/")
            await node(port, "/socket.io.min.js")
        assert turns == [1, 2, 3, 1]


async def test_a_node_can_be_asked_for() -> None:
    async with balanced(3) as port:
        assert [await node(port, f"/socket.io/?EIO=4&node={wanted}") for wanted in (2, 2, 3)] == [2, 2, 3]


async def test_long_polling_stays_on_the_node_that_gave_the_id() -> None:
    async with balanced(3) as port:
        assert [await node(port, "/socket.io/?EIO=4&node=1&sid=3.abc-_") for _ in range(3)] == [3, 3, 3]


@pytest.mark.parametrize("target", ["/?node=4", "/?node=0", "/?node=%C2%B2", "/socket.io/?sid=abc", "/?node=1.5"])
async def test_a_node_that_is_not_there_is_refused(target: str) -> None:
    async with balanced(3) as port:
        answer = await get(port, target)
        assert answer.startswith("HTTP/1.1 404 Not Found\r\n")
        assert answer.endswith("There is no such node; there are nodes 1 to 3.\n")


async def test_a_node_that_is_down_is_passed_over_or_named() -> None:
    async with balanced(3, down=(2,)) as port:
        assert [await node(port, "/socket.io/?EIO=4") for _ in range(3)] == [1, 3, 1]
        assert (await get(port, "/?node=2")).startswith("HTTP/1.1 503 Service Unavailable\r\n")
    async with balanced(1, down=(1,)) as port:
        assert (await get(port, "/")).startswith("HTTP/1.1 503 Service Unavailable\r\n")


async def test_a_connection_carries_one_request_unless_it_becomes_a_websocket() -> None:
    async with balanced(1) as port:
        plain = await get(port, "/", "Connection: keep-alive", "Keep-Alive: timeout=5", "X-Other: 1")
        assert plain.endswith("GET / HTTP/1.1\r\nHost: test\r\nX-Other: 1\r\nConnection: close\r\n\r\n")
        upgrade = await get(port, "/", "Connection: Upgrade", "Upgrade: websocket")
        assert upgrade.endswith("GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")


@pytest.mark.parametrize("sent", [b"", b"GET", b"\r\n\r\n", b"\0" * 70_000, b"GET /?node=\xff HTTP/1.1\r\n\r\n"])
async def test_what_is_no_request_ends_without_harm(sent: bytes) -> None:
    async with balanced(1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(5):
                await reader.read()
        writer.close()
        assert await node(port, "/") == 1
