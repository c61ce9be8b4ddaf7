"""The tabs of the examples: of all tabs of a user, on whatever processes, one is active."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import socketio

from tests.adapter.servers import PATIENCE, Client
from tests.examples.running import Example, apart, example

REFUSED: type[Exception] = cast("Any", socketio).exceptions.ConnectionError


@pytest.fixture
async def tabs(redis_url: str) -> AsyncIterator[Example]:
    async with example("one_active_tab", apart(redis_url)) as tabs:
        yield tabs


async def test_a_new_tab_takes_over_on_whatever_process(tabs: Example) -> None:
    first = await tabs.client(0, auth={"user": "ann"})
    other = await tabs.client(0, auth={"user": "bob"})
    second = await tabs.client(1, auth={"user": "ann"})
    assert await first.hear("taken over") == [("taken over",)]
    await gone(first)
    third = await tabs.client(0, auth={"user": "ann"})
    await second.hear("taken over")
    await gone(second)
    assert third.socket.connected
    assert other.socket.connected


async def test_a_polite_tab_is_refused_until_the_other_one_is_gone(tabs: Example) -> None:
    first = await tabs.client(0, auth={"user": "ann"})
    with pytest.raises(REFUSED):
        await tabs.client(1, auth={"user": "ann", "polite": True})
    assert first.socket.connected
    await first.aclose()
    await gone(first)
    async with asyncio.timeout(PATIENCE):
        while True:  # the server notices in its own time
            try:
                tab = await tabs.client(1, auth={"user": "ann", "polite": True})
            except REFUSED:
                continue
            break
    assert tab.socket.connected


async def gone(client: Client) -> None:
    async with asyncio.timeout(PATIENCE):
        await client.gone.wait()
