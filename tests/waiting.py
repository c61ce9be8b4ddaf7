"""Waiting for a condition with a deadline, for things that have no event to wait on."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], *, within: float = 10.0, what: str = "") -> float:
    """Return once the condition holds, with the seconds it took; fail with `what` at the deadline."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    while not condition():
        if loop.time() - started > within:
            raise AssertionError(f"Not within {within} s: {what or condition}")
        await asyncio.sleep(0.005)
    return loop.time() - started
