"""One connection to any of several servers: each is tried once, all within one deadline.

1. The first attempt that succeeds ends it. When none does, the error of the last one says why.
2. Each attempt may take its share of the time that is left, so that a server that is silent leaves time for the others;
   `LEAST` when nothing is left.
3. What is not `BrokerUnavailable` ends it at once: another server would say the same.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from roomcast.core.errors import BrokerUnavailable

_logger = logging.getLogger(__name__)

LEAST = 0.05
"""Seconds that any attempt may take."""

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
