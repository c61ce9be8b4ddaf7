import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.proxy import TcpProxy
from tests.waiting import until


@pytest.fixture
async def echo() -> AsyncIterator[str]:
    """The URL of a server that answers each line with itself."""
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        try:
            while line := await reader.readline():
                writer.write(line)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writers.discard(writer)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"redis://user:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}/7?x=1"
    server.close()
    for writer in tuple(writers):
        writer.transport.abort()
    await asyncio.sleep(0)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def of(cls, proxy: TcpProxy) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port))

    async def ask(self, line: bytes) -> bytes:
        self.writer.write(line)
        async with asyncio.timeout(5):
            return await self.reader.readline()

    async def close(self) -> None:
        self.writer.close()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)


async def until_closed(proxy: TcpProxy) -> None:
    await until(lambda: proxy.open == 0, what="the proxy closes its connections")


async def test_url_keeps_everything_but_host_and_port(echo: str) -> None:
    async with TcpProxy(echo) as proxy:
        assert proxy.url == f"redis://user:secret@127.0.0.1:{proxy.port}/7?x=1"


async def test_forwards_and_counts(echo: str) -> None:
    async with TcpProxy(echo) as proxy:
        client = await Client.of(proxy)
        assert await client.ask(b"one\n") == b"one\n"
        assert (proxy.connections, proxy.open, proxy.bytes_up, proxy.bytes_down) == (1, 1, 4, 4)
        await client.close()
        await until_closed(proxy)


async def test_cut_closes_every_connection_and_new_ones_work(echo: str) -> None:
    async with TcpProxy(echo) as proxy:
        first, second = await Client.of(proxy), await Client.of(proxy)
        assert await first.ask(b"1\n") == b"1\n"
        assert await second.ask(b"2\n") == b"2\n"
        assert await proxy.cut() == 2
        assert await first.reader.read() == b""
        assert proxy.open == 0
        third = await Client.of(proxy)
        assert await third.ask(b"3\n") == b"3\n"
        for client in (first, second, third):
            await client.close()


async def test_reset_is_seen_as_a_reset(echo: str) -> None:
    async with TcpProxy(echo) as proxy:
        client = await Client.of(proxy)
        assert await client.ask(b"1\n") == b"1\n"
        assert await proxy.reset() == 1
        with pytest.raises(ConnectionResetError):
            await client.reader.read()
        await client.close()


async def test_stall_holds_both_ways_and_resume_loses_nothing(echo: str) -> None:
    async with TcpProxy(echo) as proxy:
        client = await Client.of(proxy)
        assert await client.ask(b"1\n") == b"1\n"
        proxy.stall()
        client.writer.write(b"2\n")
        late = await Client.of(proxy)  # accepted, into the same hole
        await until(lambda: proxy.bytes_held >= 2)
        assert (proxy.bytes_up, proxy.bytes_down, proxy.open) == (2, 2, 2)
        proxy.resume()
        assert await client.ask(b"3\n") == b"2\n"
        assert await client.reader.readline() == b"3\n"
        assert await late.ask(b"4\n") == b"4\n"
        await client.close()
        await late.close()


async def test_a_close_by_the_client_is_seen_during_a_stall(echo: str) -> None:
    async with TcpProxy(echo) as proxy:
        client = await Client.of(proxy)
        assert await client.ask(b"1\n") == b"1\n"
        proxy.stall()
        await client.close()
        await until_closed(proxy)


async def test_what_a_client_sent_before_it_closed_is_forwarded(echo: str) -> None:
    async with TcpProxy(echo, delay=0.02) as proxy:
        client = await Client.of(proxy)
        client.writer.write(b"x" * 100_000 + b"\n")
        await client.close()
        await until_closed(proxy)
        assert proxy.bytes_up == 100_001


async def test_drop_replies_lets_requests_through(echo: str) -> None:
    async with TcpProxy(echo) as proxy:
        client = await Client.of(proxy)
        proxy.drop_replies()
        client.writer.write(b"lost\n")
        await until(lambda: proxy.bytes_dropped >= 5)
        proxy.resume()
        assert await client.ask(b"seen\n") == b"seen\n"
        assert proxy.bytes_up == 10
        await client.close()


async def test_refuse_closes_the_port_and_accept_opens_the_same_one(echo: str) -> None:
    async with TcpProxy(echo) as proxy:
        port = proxy.port
        client = await Client.of(proxy)
        assert await client.ask(b"1\n") == b"1\n"
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await Client.of(proxy)
        assert await client.ask(b"2\n") == b"2\n"  # connections that exist go on
        await proxy.accept()
        again = await Client.of(proxy)
        assert proxy.port == port
        assert await again.ask(b"3\n") == b"3\n"
        await client.close()
        await again.close()


async def test_hang_up_closes_and_counts_new_connections(echo: str) -> None:
    async with TcpProxy(echo) as proxy:
        proxy.hang_up = True
        client = await Client.of(proxy)
        assert await client.reader.read() == b""
        assert (proxy.connections, proxy.open) == (1, 0)
        await client.close()


async def test_point_sends_new_connections_elsewhere_and_leaves_the_others(echo: str) -> None:
    async with TcpProxy(echo) as behind, TcpProxy(echo) as proxy:
        client = await Client.of(proxy)
        assert await client.ask(b"1\n") == b"1\n"
        proxy.point(behind.url)
        late = await Client.of(proxy)
        assert await late.ask(b"2\n") == b"2\n"
        assert await client.ask(b"3\n") == b"3\n"
        assert (behind.connections, behind.bytes_up) == (1, 2)
        await client.close()
        await late.close()


async def test_delay_is_spent_each_way(echo: str) -> None:
    async with TcpProxy(echo, delay=0.05) as proxy:
        client = await Client.of(proxy)
        started = asyncio.get_running_loop().time()
        assert await client.ask(b"1\n") == b"1\n"
        assert asyncio.get_running_loop().time() - started >= 0.1
        await client.close()


async def test_a_client_of_an_absent_server_sees_a_close() -> None:
    async with TcpProxy("nats://127.0.0.1:1") as proxy:
        client = await Client.of(proxy)
        assert await client.reader.read() == b""
        await client.close()


async def test_leaves_no_task_and_no_connection(echo: str) -> None:
    before = asyncio.all_tasks()
    async with TcpProxy(echo) as proxy:
        client = await Client.of(proxy)
        assert await client.ask(b"1\n") == b"1\n"
        proxy.stall()
    assert proxy.open == 0
    assert await client.reader.read() == b""
    await client.close()
    leaked = {task for task in asyncio.all_tasks() - before if "serve" not in str(task)}
    assert not leaked
