"""Clients that come back while the broker is away."""

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import pytest

from roomcast.brokers import memory_log
from roomcast.brokers.memory_log import memory_logs
from roomcast.core.errors import BrokerUnavailable
from tests.adapter.homes import Home, emit, events, free
from tests.adapter.servers import Node
from tests.waiting import until

# pyright: reportPrivateUsage=false

SHORT = 0.2  # patience, and request_timeout: so long clients wait for the log, when there is one


class Outage:
    """Makes the broker of a home go away, and come back with everything."""

    def __init__(self) -> None:
        self.on = False

    async def begin(self, home: Home, *nodes: Node) -> None:
        """Go away; returns when the nodes know."""
        self.on = True
        memory_logs()[home.cluster.url.removeprefix("memory+log://")].delete()
        await until(lambda: not any(node.inside.health().connected for node in nodes), what="the loss to be noticed")


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Outage]:
    """The broker can go away."""
    outage, driver = Outage(), cast("Any", memory_log._MemoryDriver)
    dial = driver.dial

    async def may_fail(self: Any, *args: Any) -> Any:
        if outage.on:
            raise BrokerUnavailable("There is nobody.", broker="memory+log")
        return await dial(self, *args)

    monkeypatch.setattr(driver, "dial", may_fail)
    yield outage
    outage.on = False


async def pair(home: Home) -> list[Node]:
    return [await home.node(patience=SHORT, settings={"request_timeout": SHORT}) for _ in range(2)]


async def held(node: Node) -> None:
    """Return once somebody waits for the link longer than for the log."""
    await until(lambda: bool(node.inside._node.linked._waiters), what="somebody to wait for the link")


async def test_who_comes_back_while_the_broker_is_away_is_answered_when_it_is_there_again(
    home: Home, outage: Outage
) -> None:
    one, two = await pair(home)
    client = await home.client(one)
    await outage.begin(home, one, two)
    await client.drop()
    sent = asyncio.ensure_future(emit(one, [1, 2], to="red"))
    await client.ask(two)
    await held(two)
    await home.client(two, room="blue")
    outage.on = False
    await client.answered()
    await sent
    assert client.recovered
    assert await home.end(two, client) == [events([1, 2])]
    assert home.environs == [False, False, True], "who is new was let in meanwhile"


async def test_nobody_waits_for_the_broker_for_ever(
    home: Home, outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roomcast.core.recovery._OUTAGE", 0.1)
    one, two = await pair(home)
    client = await home.client(one)
    await outage.begin(home, one, two)
    await client.drop()
    await client.connect(two)
    assert not client.recovered


async def test_nobody_waits_for_the_broker_when_the_window_is_over(home: Home, outage: Outage) -> None:
    one, two = await pair(home)
    client = await home.client(one)
    await client.drop()
    await until(lambda: free(two) == 1, what="the session to be free")
    await outage.begin(home, one, two)
    object.__setattr__(two.inside._recoveries.settings, "window", 0.01)
    await client.connect(two)
    assert not client.recovered
