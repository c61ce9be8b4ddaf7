"""Attempts to connect: to each of several servers once, and the pauses between attempts in a row.

`each_once`:

1. The first attempt that succeeds ends it. When none does, the error of the last one says why.
2. Each attempt may take its share of the time that is left, so that a server that is silent leaves time for the others;
   `LEAST` when nothing is left.
3. What is not `BrokerUnavailable` ends it at once: another server would say the same.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from roomcast.core.errors import BrokerUnavailable

_logger = logging.getLogger(__name__)

LEAST = 0.05
"""Seconds that any attempt may take."""

SETTLED = 1.0
"""Seconds a link must have lived for the next one to be tried at once."""
FIRST_PAUSE = 0.02
"""Seconds before the second attempt in a row."""


class Pauses:
    """The pauses before attempts in a row: none, then longer each time up to a bound, with jitter."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._pause = 0.0

    async def wait(self) -> None:
        """Let the next pause pass."""
        pause, self._pause = self._pause, min(max(2 * self._pause, FIRST_PAUSE), self._longest)
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - only jitter

    def forget(self) -> None:
        """The next attempt is the first one of a row."""
        self._pause = 0.0


T = TypeVar("T")


async def each_once(servers: int, within: float, attempt: Callable[[float], Awaitable[T]]) -> T:
    """What one attempt gives.

    Args:
        servers: how many there are.
        within: seconds for all attempts.
        attempt: tries the next server, for so many seconds.

    Raises:
        BrokerUnavailable: no server can be reached.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    for left in range(servers, 1, -1):
        try:
            return await attempt(max(LEAST, (deadline - loop.time()) / left))
        except BrokerUnavailable as exc:
            _logger.debug("Trying the next server: %s", exc)
    return await attempt(max(LEAST, deadline - loop.time()))


def cancelling() -> bool:
    """Whether somebody has cancelled this task, whatever has become of that; a client library may keep it to itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
