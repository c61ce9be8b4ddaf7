"""A seeded event loop on virtual time that runs several processes at once.

The nodes of a simulated cluster share one event loop, but each of them stands for a process with a loop of its own. So
what is free in reality is drawn from the seed here, and nothing else is:

1. Callbacks of one process run in the order in which they were scheduled, as asyncio promises and libraries rely on.
2. Between processes there is no order: before each callback the seed chooses whose turn it is.
3. A process may stand still (`freeze`) for a while, as one does that collects garbage or got SIGSTOP, or for ever, as
   one that was killed. Meanwhile what it scheduled waits, timers included.
4. Time passes with each callback, and whenever the core looks at a clock, by amounts that the seed chooses; when nobody
   can run, it jumps to the next timer. When there is none, the simulation is `Stuck`.
5. Faults happen between two callbacks (`after_turns`): there is no await at which they cannot.

Whose process a callback is says the context it was scheduled in (`process`): tasks and timers inherit it.
"""

import asyncio
import base64
import contextvars
import heapq
import logging
import math
import random
import secrets
import time
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest import mock

from tests.cluster.clock import EPOCH, Stuck, modules_that_use
from tests.simulation.network import Network

Run = Callable[[Coroutine[Any, Any, Any]], Any]

WORLD = "world"
process: contextvars.ContextVar[str] = contextvars.ContextVar("process", default=WORLD)

_TURN = 40e-6  # seconds that a callback takes, at most, but for the pauses
_LOOK = 2e-6  # seconds that pass at most between two looks at a clock
_PAUSES = 4000  # callbacks of which one is followed by a pause of its process
_LONGEST_PAUSE = 0.1
_SLOW_LOOKS = 400  # looks of which one comes late: slices of work end by the clock
_CLOCKS = ("nats.aio.client",)
_SECRETS = ("roomcast.brokers.nats_link",)
_JITTER = ("roomcast.brokers.attempts",)
"""Modules outside the core that look at clocks, and draw."""
_LOUD = ("roomcast", "nats")


def context_of(name: str) -> contextvars.Context:
    """A context whose tasks and timers belong to a process."""
    context = contextvars.copy_context()
    context.run(process.set, name)
    return context


class SeededLoop(asyncio.BaseEventLoop):
    """The loop; everything that it decides is decided by its seed."""

    def __init__(self, seed: object) -> None:
        super().__init__()
        self.now = 1000.0
        self.turns = 0
        self.skews: dict[str, float] = {}
        self.network: Network | None = None
        self._seeded = random.Random(f"{seed} loop")
        self._queues: dict[str, deque[Any]] = {}
        self._frozen: dict[str, float] = {}
        self._awaited: list[tuple[list[int], str, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def look(self) -> None:
        """Somebody looks at a clock (rule 4)."""
        self.now += self._seeded.random() * _LOOK
        if not self._seeded.randrange(_SLOW_LOOKS):
            self.now += self._seeded.random() * 0.01

    def freeze(self, name: str, seconds: float = math.inf) -> None:
        """Let a process stand still (rule 3)."""
        self._frozen[name] = max(self._frozen.get(name, 0.0), self.now + seconds)

    def thaw(self, name: str) -> None:
        """Let a process go on."""
        self._frozen.pop(name, None)

    def after_turns(self, name: str, turns: int, fault: Callable[[], None]) -> None:
        """Call something once a process has run so many callbacks more, or after 5 ms (rule 5)."""
        entry = ([turns], name, fault)
        self._awaited.append(entry)

        def at_last() -> None:
            if entry in self._awaited:
                self._awaited.remove(entry)
                fault()

        self.call_later(0.005, at_last, context=context_of(WORLD))

    async def create_connection(  # type: ignore[override]  # what is used of it
        self, protocol_factory: Callable[[], Any], host: str = "", port: int = 0, **_options: Any
    ) -> tuple[asyncio.Transport, Any]:
        """Connect a process to a server of the simulation (`network`)."""
        if self.network is None:
            raise NotImplementedError("there is no network in this simulation")
        return await self.network.connect(process.get(), contextvars.copy_context(), protocol_factory, (host, port))

    def end_network(self) -> None:
        if self.network is not None:
            self.network.end()

    # What asyncio's own loops do with sockets

    def _process_events(self, event_list: Any) -> None:
        raise NotImplementedError("there are no sockets here")

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector that would have to be woken."""

    def _run_once(self) -> None:
        inside = cast("Any", self)
        ready: deque[Any] = inside._ready
        while ready:
            self._enqueue(ready.popleft())
        timers: list[Any] = inside._scheduled
        while timers and (timers[0]._cancelled or timers[0]._when <= self.now):
            timer = heapq.heappop(timers)
            timer._scheduled = False
            self._enqueue(timer)
        runnable = [name for name, queue in self._queues.items() if queue and self._frozen.get(name, 0.0) <= self.now]
        if not runnable:
            self._jump(timers)
            return
        name = runnable[0] if len(runnable) == 1 else self._seeded.choice(runnable)
        handle = self._queues[name].popleft()
        if handle._cancelled:
            return
        self.turns += 1
        self.now += self._seeded.random() * _TURN
        if name != WORLD and not self._seeded.randrange(_PAUSES):
            self.freeze(name, self._seeded.random() * _LONGEST_PAUSE)
        handle._run()
        if self._awaited:
            self._count(name)

    def _enqueue(self, handle: Any) -> None:
        if not handle._cancelled:
            name = handle._context.get(process, WORLD)
            queue = self._queues.get(name)
            if queue is None:
                queue = self._queues[name] = deque()
            queue.append(handle)

    def _jump(self, timers: list[Any]) -> None:
        moments = [until for name, until in self._frozen.items() if self._queues.get(name)]
        if timers:
            moments.append(timers[0]._when)
        moment = min(moments, default=math.inf)
        if moment == math.inf:
            raise Stuck("every task waits, and no timer is set")
        self.now = max(self.now, moment)

    def _count(self, name: str) -> None:
        for entry in tuple(self._awaited):
            left, of, fault = entry
            if of == name:
                left[0] -= 1
                if left[0] <= 0:
                    self._awaited.remove(entry)
                    fault()


class _Clock:
    """Stands in for the module `time`: looking at it takes time, and each process has a wall clock of its own."""

    def __init__(self, loop: SeededLoop) -> None:
        self._loop = loop

    def monotonic(self) -> float:
        self._loop.look()
        return self._loop.now

    perf_counter = monotonic

    def time(self) -> float:
        return EPOCH + self.monotonic() + self._loop.skews.get(process.get(), 0.0)

    def time_ns(self) -> int:
        return round(self.time() * 1e9)


@contextmanager
def _silent(logger: logging.Logger) -> Generator[None]:
    """Thousands of warnings, all of them deserved."""
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def seeded(seed: object) -> Generator[tuple[SeededLoop, Run]]:
    """A loop, and what runs a coroutine on it; clocks, ids and jitter of the core come from the seed meanwhile."""
    loop = SeededLoop(seed)
    drawn = random.Random(f"{seed} ids")
    jitter = random.Random(f"{seed} jitter")

    def token_urlsafe(size: int) -> str:
        return base64.urlsafe_b64encode(drawn.randbytes(size)).rstrip(b"=").decode()

    def token_hex(size: int) -> str:
        return drawn.randbytes(size).hex()

    fake = types.SimpleNamespace(choice=drawn.choice, token_urlsafe=token_urlsafe, token_hex=token_hex)
    with ExitStack() as stack:
        for name in (*modules_that_use(time), *_CLOCKS):
            stack.enter_context(mock.patch(f"{name}.time", _Clock(loop)))
        for name in (*modules_that_use(secrets), *_SECRETS):
            stack.enter_context(mock.patch(f"{name}.secrets", fake))
        for name in _JITTER:
            stack.enter_context(mock.patch(f"{name}.random", jitter))
        for name in _LOUD:
            stack.enter_context(_silent(logging.getLogger(name)))
        stack.callback(loop.end_network)
        runner = stack.enter_context(asyncio.Runner(loop_factory=lambda: loop))
        yield loop, runner.run
