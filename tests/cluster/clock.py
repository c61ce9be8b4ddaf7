"""Virtual time: an event loop that jumps to its next timer instead of waiting for it.

Hours pass in milliseconds, every deadline is met to the microsecond, and a test that waits for something that can
never happen fails at once instead of hanging.
"""

import asyncio
import importlib
import pkgutil
import selectors
import time
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import roomcast.core

EPOCH = 1_700_000_000.0  # what the wall clock says when the virtual one starts


class Stuck(AssertionError):
    """Everything waits, and nothing will ever wake it."""


class _Jumping(selectors.SelectSelector):
    """Polls instead of waiting, and moves the clock by what it would have waited."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None:
            raise Stuck("every task waits, and no timer is set")
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


class _Clock:
    """Stands in for the module `time`, on the clock of the loop."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def monotonic(self) -> float:
        return self._loop.time()

    def perf_counter(self) -> float:
        return self._loop.time()

    def time(self) -> float:
        return EPOCH + self._loop.time()

    def time_ns(self) -> int:
        return round(self.time() * 1e9)


def modules_that_use(module: ModuleType) -> list[str]:
    """The modules of the core that know a module, such as `time`, by its own name."""
    names = [f"roomcast.core.{found.name}" for found in pkgutil.iter_modules(roomcast.core.__path__)]
    return [name for name in names if getattr(importlib.import_module(name), module.__name__, None) is module]


class Timeline:
    """One virtual loop with the core's clock on it; sync code runs coroutines on it one after the other."""

    def __init__(self) -> None:
        loop = VirtualLoop()
        self.loop = loop
        self._runner = asyncio.Runner(loop_factory=lambda: loop)
        self._patches = [mock.patch(f"{name}.time", _Clock(loop)) for name in modules_that_use(time)]
        for patch in self._patches:
            patch.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(coroutine)

    def close(self) -> None:
        try:
            self._runner.close()
        finally:
            for patch in self._patches:
                patch.stop()


@contextmanager
def timeline() -> Generator[Timeline, None, None]:
    line = Timeline()
    try:
        yield line
    finally:
        line.close()
