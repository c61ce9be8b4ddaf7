"""The event loops that tests run on: asyncio's own, unless a test names others.

uvicorn chooses uvloop by itself where that is installed. Transports, and what waits for a socket, are uvloop's own
there, so the tests of what roomcast does with transports run on both.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping

import pytest

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}

if sys.platform == "linux":
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop

ON_UVLOOP = pytest.mark.asyncio(loop_factories=["uvloop"])
ON_BOTH_LOOPS = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


def loops_of(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What pytest-asyncio may choose from for a test; it skips, with a reason, what is named and missing."""
    named = any("loop_factories" in mark.kwargs for mark in item.iter_markers("asyncio"))
    return LOOPS if named else {"asyncio": LOOPS["asyncio"]}
