"""Two nodes of a contestant in a process each, that hear each other: A emits, B holds the clients."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from bench.contestants import Contestant
from bench.plan import new_channel
from bench.processes import Process, ProcessFailed, start_node

_PATIENCE = 200  # probes of 50 ms


@asynccontextmanager
async def nodes(contestant: Contestant, servers: Sequence[int] = (1, 1)) -> AsyncIterator[list[Process]]:
    """Processes with so many nodes each; what the first one emits reaches all of them when this is entered."""
    channel = new_channel()
    async with AsyncExitStack() as stack:
        started = await asyncio.gather(*(start_node(contestant, channel, count) for count in servers))
        for process in started:
            await stack.enter_async_context(process)
        await asyncio.gather(*(process.ask("probe", room="probe") for process in started[1:]))
        for _ in range(_PATIENCE):
            await started[0].ask("emit", events=1, size=1, target={"room": "probe"})
            answers = await asyncio.gather(*(process.ask("probed", within=0.05) for process in started[1:]))
            if not any(answer["deaf"] for answer in answers):
                break
        else:
            raise ProcessFailed(f"{contestant.name}: the nodes do not hear one another")
        yield started


async def stream(
    sender: Process, receivers: Sequence[Process], *, events: int, deliveries: int, within: float = 300, **emit: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Emit at one node and count at the others; `deliveries` are those at each of them.

    Raises:
        ProcessFailed: not everything arrived.
    """
    await asyncio.gather(*(process.ask("watch", stamp=False) for process in receivers))
    counting = [
        asyncio.ensure_future(process.ask("count", patience=within + 20, deliveries=deliveries, within=within))
        for process in receivers
    ]
    sent = await sender.ask("emit", patience=within + 20, events=events, **emit)
    counted = [await one for one in counting]
    for process, answer in zip(receivers, counted, strict=True):
        if answer["got"] != deliveries:
            raise ProcessFailed(f"{process.name}: {answer['got']} of {deliveries} deliveries")
    return sent, counted
