"""Attempts to connect: to each of several servers once, and again for ever when a link is lost.

`each_once`:

1. The first attempt that succeeds ends it. When none does, the error of the last one says why.
2. Each attempt may take its share of the time that is left, so that a server that is silent leaves time for the others;
   `LEAST` when nothing is left.
3. What is not `BrokerUnavailable` ends it at once: another server would say the same.

`keep`:

4. A link that is over is waited for until nothing of it is left, then replaced.
5. The first attempt is made at once, unless the link was lost within `SETTLED`: a server that cuts this node each time
   it connects is not to be connected to in a tight loop. Then come attempts with pauses that grow.
6. It never gives up, and says why it cannot connect once for each reason. Cancelled, it drops the link, even when the
   attempt took the cancellation for an error of the connection, as a client library may.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from roomcast.core.errors import BrokerError, BrokerUnavailable, ConfigurationError

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


class Kept(Protocol):
    """A link that is replaced when it is over."""

    @property
    def over(self) -> asyncio.Event:
        """Set once it is lost or ended."""
        ...

    async def aclose(self) -> None:
        """Wait until nothing of an ended link is left."""
        ...


T = TypeVar("T")
L = TypeVar("L", bound=Kept)


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


async def keep(
    link: L,
    connect: Callable[[], Awaitable[L]],
    drop: Callable[[L], Awaitable[None]],
    restored: Callable[[], None],
    *,
    longest: float,
) -> None:
    """Replace a link whenever it is lost, until this is cancelled.

    Args:
        link: the first one.
        connect: makes another one, or raises `BrokerError` or `ConfigurationError`.
        drop: ends a link on purpose.
        restored: called when there is another one.
        longest: seconds between two attempts, at most.
    """
    loop = asyncio.get_running_loop()
    pauses, said = Pauses(longest), ""
    since = loop.time()
    try:
        while True:
            await link.over.wait()
            await link.aclose()
            if loop.time() - since > SETTLED:
                pauses.forget()
            while True:
                await pauses.wait()
                try:
                    link = await connect()
                except (BrokerError, ConfigurationError) as exc:
                    if cancelling():
                        return
                    if said != (said := str(exc)):
                        _logger.warning("Trying to restore the link: %s", said)
                else:
                    break
            if cancelling():
                return
            restored()
            since, said = loop.time(), ""
    finally:
        await drop(link)


def cancelling() -> bool:
    """Whether somebody has cancelled this task, whatever has become of that; a client library may keep it to itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
