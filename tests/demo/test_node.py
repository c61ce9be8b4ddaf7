"""One node of the demo, and a check that must see when nodes are not joined."""

import asyncio
import socket
from typing import Any

import pytest
import socketio

from roomcast.demo import DemoError
from roomcast.demo.balancer import Balancer
from roomcast.demo.check import check
from roomcast.demo.launch import Cluster
from roomcast.demo.node import listen
from tests.demo.running import demo, shown


async def test_connections_of_a_node_do_not_wait_to_send() -> None:
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def look(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = listen()
    async with await asyncio.start_server(look, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert await accepted
        writer.close()
        await writer.wait_closed()


async def test_what_a_client_sends_is_looked_at() -> None:
    async with demo("--port", "0", "--nodes", "1") as program:
        address, _ = await shown(program)
        client: Any = socketio.AsyncClient(reconnection=False)
        said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        client.on("said", said.put_nowait)
        await client.connect(address, transports=["websocket"])
        try:
            messages: list[Any] = [7, [], {}, "", {"text": None}, {"text": "  "}, {"text": ["a"], "room": {}}]
            for message in messages:
                assert await client.call("say", message, timeout=5) is False
            rooms: list[Any] = [7, {}, "", "   ", ["a"]]
            for room in rooms:
                assert await client.call("join", room, timeout=5) is False
                assert await client.call("leave", room, timeout=5) is True
            assert await client.call("join", "r" * 100) is True
            assert await client.call("say", {"text": "t" * 2000, "room": "r" * 200, "name": 7}) is True
            heard = await asyncio.wait_for(said.get(), 5)
            assert heard["text"] == "t" * 1000
            assert heard["room"] == "r" * 40
            assert heard["name"] == ""
            assert said.empty()
        finally:
            await client.disconnect()
        program.process.terminate()
        assert await program.ended() == 0
        assert "Traceback" not in program.output


async def test_the_check_sees_nodes_that_are_not_joined() -> None:
    lines: list[str] = []
    async with Cluster(2, "memory://", lines.append) as cluster:
        balancer = Balancer(cluster.ports)
        port = await balancer.start("127.0.0.1", 0)
        try:
            with pytest.raises(DemoError, match=r"A message from node 1 did not reach node 2\."):
                await check(f"http://127.0.0.1:{port}", [1, 2], lines.append)
        finally:
            await balancer.aclose()
    assert [line.partition("  ")[0] for line in lines] == ["node 1 -> node 1"]
