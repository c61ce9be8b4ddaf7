"""The demo's nodes as processes: started, watched, started again when they die, and none left behind.

A node ends when its standard input does, so closing that pipe is how it is stopped, and if this process is
killed the kernel closes it.
"""

import asyncio
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from time import monotonic
from types import TracebackType
from typing import Self

from roomcast.demo import DemoError

_START = 15.0
"""Seconds that a node may take to be ready."""
_STOP = 5.0
"""Seconds that a node may take to end before it is killed."""
_QUICK, _DEATHS = 10.0, 3
"""A node that dies this many times, each within so many seconds of its start, is given up."""


class Cluster:
    """Nodes 1 to `count`, joined by one broker: `async with Cluster(...) as cluster:`.

    Attributes:
        ports: the loopback port of each node, None while it is down.
        pids: the process of each node, as far as it is running.
    """

    def __init__(self, count: int, broker: str, say: Callable[[str], None]) -> None:
        self.ports: dict[int, int | None] = dict.fromkeys(range(1, count + 1))
        self.pids: dict[int, int] = {}
        self._say = say
        # two demos on one broker do not hear each other
        prefix = f"roomcast-demo-{secrets.token_hex(4)}"
        self._environ: Mapping[str, str] = {
            **os.environ,
            "ROOMCAST_URL": f"embedded://{prefix}" if broker == "embedded://" else broker,
            "ROOMCAST_DEMO_PREFIX": prefix,
        }
        self._ready: dict[int, asyncio.Event] = {number: asyncio.Event() for number in self.ports}
        self._keepers: list[asyncio.Task[None]] = []
        self._ending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._keepers = [asyncio.create_task(self._keep(number)) for number in self.ports]
        ready = asyncio.create_task(self._all_ready())
        try:
            await asyncio.wait({ready, *self._keepers}, return_when=asyncio.FIRST_COMPLETED)
            self._raise_failure()
        except BaseException:
            await self._stop()
            raise
        finally:
            ready.cancel()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def failed(self) -> None:
        """Wait until a node is given up, and raise a `DemoError` that says why."""
        await asyncio.wait(self._keepers, return_when=asyncio.FIRST_COMPLETED)
        self._raise_failure()

    async def _all_ready(self) -> None:
        for event in self._ready.values():
            await event.wait()

    def _raise_failure(self) -> None:
        for keeper in self._keepers:
            if keeper.done():
                keeper.result()

    async def _stop(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _keep(self, number: int) -> None:
        """Run one node for ever."""
        deaths = 0
        while True:
            began = monotonic()
            code = await self._run(number)
            deaths = deaths + 1 if monotonic() - began < _QUICK else 0
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            if deaths >= _DEATHS:
                raise DemoError(f"Node {number} {how} and does not stay up.")
            self._say(f"Node {number} {how}; starting it again.")

    async def _run(self, number: int) -> int:
        """Run one node once; its exit code."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", "roomcast.demo.node", str(number)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=self._environ,
            start_new_session=True,  # a Ctrl-C is for the supervisor, which stops the nodes in good order
        )
        self.pids[number] = process.pid
        try:
            self.ports[number] = await _port(process, number)
            if self._ready[number].is_set():
                self._say(f"Node {number} is back, pid {process.pid}.")
            self._ready[number].set()
            return await process.wait()
        finally:
            self.ports[number] = None
            del self.pids[number]
            ending = asyncio.create_task(_end(process))
            self._ending.add(ending)
            await asyncio.shield(ending)  # a stop of everything must not leave one half stopped
            self._ending.discard(ending)


async def _port(process: asyncio.subprocess.Process, number: int) -> int:
    if process.stdout is None:
        raise RuntimeError("a node is started with a pipe")
    try:
        async with asyncio.timeout(_START):
            line = await process.stdout.readline()
    except TimeoutError:
        raise DemoError(f"Node {number} was not ready within {_START:.0f} s.") from None
    fact = json.loads(line or "{}")
    if "port" not in fact:
        raise DemoError(fact.get("error") or f"Node {number} ended before it was ready.")
    port: int = fact["port"]
    return port


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask a node to end, and make it end."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(_STOP):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
