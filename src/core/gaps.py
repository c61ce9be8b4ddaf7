"""What a node does about a gap: it counts it, logs it, and tells every hook of the application."""

import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from roomcast.core.broker import Gap
from roomcast.core.stats import Stats

logger = logging.getLogger("roomcast")

GapHook = Callable[[Gap], Awaitable[None] | None]

_QUIET = 1.0  # seconds between two log lines about gaps of one reason


class _Node(Protocol):
    id: str
    stats: Stats

    def fault(self, what: str, error: BaseException) -> None: ...

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> object: ...


class Gaps:
    """The gaps of one node.

    Attributes:
        hooks: the application's.
    """

    def __init__(self, node: _Node) -> None:
        self.hooks: list[GapHook] = []
        self._node = node
        self._logged: dict[str, float] = {}

    def tell(self, gap: Gap) -> None:
        """Something was, or may have been, lost."""
        self._node.stats.gaps += 1
        self._log(gap)
        for hook in self.hooks:
            try:
                result = hook(gap)
            except Exception as exc:  # noqa: BLE001 - an application's hook must not end the loop
                self._node.fault("an on_gap hook failed", exc)
            else:
                if inspect.isawaitable(result):
                    self._node.spawn(_await(result))

    def _log(self, gap: Gap) -> None:
        """Once a second for each reason: a lossy link must not flood the log. Hooks and counters hear every one."""
        now = time.monotonic()
        if now - self._logged.get(gap.reason, -_QUIET) < _QUIET:
            return
        self._logged[gap.reason] = now
        amount = f"at most {gap.missed} entries" if gap.reason == "trimmed" else f"{gap.missed} messages"
        logger.warning(
            "roomcast: gap on node %s: %s%s%s%s",
            self._node.id,
            gap.reason,
            f", {amount}" if gap.missed is not None else "",
            f", from node {gap.origin}" if gap.origin else "",
            f", on {gap.subject}" if gap.subject else "",
        )


async def _await(result: Awaitable[None]) -> None:
    await result
