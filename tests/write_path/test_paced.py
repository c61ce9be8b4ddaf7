"""Who reads from a log waits for clients that fall behind, in the bounds of `pace` (rule 5 of the fan-out)."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.core import pace
from roomcast.core.client_queue import Bounds
from tests.core.effort import effort
from tests.write_path.wire import Connection, framed, turns

# pyright: reportPrivateUsage=false

BOUNDS = Bounds(packets=10, size=3000)


@asynccontextmanager
async def connected(bounds: Bounds = BOUNDS, *, direct: bool = True) -> AsyncGenerator[Connection]:
    connection = Connection(bounds, direct=direct)
    connection.fanout.paced = True
    await connection.start()
    await turns(5)
    connection.wire.out.clear()
    connection.wire.stall()
    yield connection
    if not connection.socket.closed:
        connection.wire.drain()
        await connection.end()


async def read(connection: Connection, texts: list[str]) -> None:
    """What the receive loop of a node does, as far as clients are concerned."""
    for text in texts:
        connection.emit((text,))
        if connection.fanout.fell_behind:
            await asyncio.sleep(0)
            await connection.fanout.serve()


async def drip(connection: Connection) -> None:
    """A client that reads, slowly."""
    while True:
        await asyncio.sleep(0.001)
        connection.wire.drain()
        await turns(1)
        connection.wire.stall()


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "queue"])
def test_a_client_that_reads_is_not_cut_for_a_backlog(*, direct: bool) -> None:
    """However large the packets are, as long as two find room."""

    @given(
        st.sampled_from([150, BOUNDS.size // 2]).flatmap(
            lambda most: st.lists(st.integers(most // 2, most), min_size=40, max_size=60)
        )
    )
    @effort(10)
    def holds(sizes: list[int]) -> None:
        async def run() -> None:
            async with connected(direct=direct) as connection:
                connection.fanout.away()
                texts = [f"{number:03}".ljust(size) for number, size in enumerate(sizes)]
                dripping = asyncio.create_task(drip(connection))
                try:
                    await read(connection, texts)
                finally:
                    dripping.cancel()
                await connection.settle()
                assert not connection.stats.clients_cut
                assert bytes(connection.wire.out) == b"".join(framed("4" + text) for text in texts)
                assert not connection.wire.wrong

        asyncio.run(run())

    holds()


@pytest.mark.parametrize("away", [True, False])
async def test_a_client_that_does_not_read_is_cut_all_the_same(monkeypatch: pytest.MonkeyPatch, *, away: bool) -> None:
    monkeypatch.setattr(pace, "STILL", 0.1)
    async with connected() as connection:
        if away:
            connection.fanout.away()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await read(connection, ["x" * 400] * 40)
        took = loop.time() - began
        assert connection.stats.clients_cut == 1
        assert not await connection.fanout.serve(), "nobody is left to wait for"
        assert (took >= 0.1) == away
        assert took < 2.0


async def test_a_client_that_goes_is_not_waited_for() -> None:
    async with connected() as connection:
        connection.fanout.away()
        for _ in range(2):  # what the transport takes, and then what it does not
            for _ in range(9):
                connection.emit(("x" * 300,))
            await turns(5)
        serving = asyncio.ensure_future(connection.fanout.serve())
        await asyncio.sleep(0.02)
        assert not serving.done()
        connection.wire.abort()
        await asyncio.wait_for(serving, 0.5)
        assert not connection.fanout._late
