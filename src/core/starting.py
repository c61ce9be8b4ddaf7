"""Starting a node in the background, for an application that does not do it: with the first client, until it works.

1. While the broker is away it is tried again, with growing pauses. What no retry will mend ends it, and is logged.
2. Whoever waits, waits for `connect_timeout` at most.
"""

import asyncio
import logging

from roomcast.core.errors import BrokerUnavailable, RoomcastError
from roomcast.core.node import Node

logger = logging.getLogger("roomcast")

_PAUSE, _LONGEST = 0.1, 2.0  # seconds between attempts: the first one, and at most


class Starting:
    """The start of one adapter's node.

    Attributes:
        error: why it will not start (rule 1).
    """

    def __init__(self) -> None:
        self.error: RoomcastError | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def under_way(self) -> bool:
        """Whether it has begun and not ended."""
        return self._task is not None and not self._task.done()

    def begin(self, node: Node) -> None:
        """Start a node in the background; once is enough."""
        if self._task is None and not node.running:
            self._task = asyncio.ensure_future(self._run(node))

    async def wait(self, node: Node) -> None:
        """Return once the start has ended, or has taken too long (rule 2)."""
        if self._task is not None and not self._task.done():
            await asyncio.wait({self._task}, timeout=node.settings.connect_timeout)

    async def cancel(self) -> None:
        """Give up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, node: Node) -> None:
        pause = _PAUSE
        while True:
            try:
                await node.start()
            except BrokerUnavailable as exc:
                logger.warning("roomcast: not started, trying again: %s", exc)
            except RoomcastError as exc:
                logger.exception("roomcast: not started, and trying again would not help")
                self.error = exc
                return
            else:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST)
