"""One look at all connections a few times in a ping timeout, in place of python-engineio's own watch over them.

engine.io goes from one connection to the next once in a ping timeout, and sleeps in between: for each one a task,
a timer and a turn of the loop, 500 times a second with 10,000 connections. What it does there is a comparison.

1. A connection that has not answered a ping within the ping timeout is closed by engine.io's own `check_ping_timeout`,
   at most an eighth of the ping timeout later than it could be.
2. A connection that is closed is forgotten.
3. The loop runs between two slices of connections, and one that fails, logged, does not hold up the others.
4. engine.io starts and stops this as it would its own: it begins with the first connection, and `shutdown` ends it.
"""

import asyncio
import inspect
import time
from functools import partial
from typing import Any

_SLICE = 500  # connections between two turns of the loop
_LOOKS = 8  # in one ping timeout


def install(eio: Any) -> None:
    """Put the sweep in the place of a server's own watch, if it has the one that is known."""
    if inspect.iscoroutinefunction(getattr(eio, "_service_task", None)) and hasattr(eio, "service_task_event"):
        eio._service_task = partial(watch, eio)  # noqa: SLF001 - there is no other way in


async def watch(eio: Any) -> None:
    """Sweep until engine.io ends it (rule 4)."""
    ended = eio.service_task_event = eio.create_event()
    while not ended.is_set():
        try:
            async with asyncio.timeout(eio.ping_timeout / _LOOKS):
                await ended.wait()
        except TimeoutError:
            await sweep(eio)


async def sweep(eio: Any) -> None:
    """Look at each connection once (rules 1 to 3)."""
    for number, socket in enumerate(tuple(eio.sockets.values()), 1):
        try:
            if socket.closed:
                eio.sockets.pop(socket.sid, None)
            elif not socket.closing and socket.last_ping and time.time() - socket.last_ping > eio.ping_timeout:
                await socket.check_ping_timeout()
        except Exception:
            eio.logger.exception("service task exception")
        if number % _SLICE == 0:
            await asyncio.sleep(0)
