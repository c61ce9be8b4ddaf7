"""Processes that a test starts and stops, and the proof that none of theirs is left."""

import asyncio
import os
import re
import secrets
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.waiting import until

JS = Path(__file__).parents[1] / "js"
"""Scripts for Node.js, and their packages."""


class Program:
    """A command in a session of its own: `async with Program([...]) as program:` stops it at the end.

    A test fails when something that it started does not end in time; then it is killed.

    Attributes:
        output: what it said so far, on both streams.
    """

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
        self.output = ""
        self._argv = argv
        self._mark = f"ROOMCAST_TEST_MARK={secrets.token_hex(8)}"
        self._environ = {**os.environ, **(environ or {}), **dict([self._mark.split("=")])}
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environ,
            start_new_session=True,
        )
        self._reading = asyncio.create_task(self._read(self._process))
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self.process.returncode is None:
            self.process.terminate()
        try:
            async with asyncio.timeout(10):
                await self.ended()
                await self.nothing_left()
        finally:
            for pid in self.left():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await self.ended()

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    def left(self) -> list[int]:
        """This process and all that descend from it, as far as they run, by a mark in their environment."""
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and self._marked(entry)]

    def _marked(self, entry: Path) -> bool:
        try:
            environ = (entry / "environ").read_bytes()
        except OSError:
            return False
        return self._mark.encode() in environ.split(b"\0")

    async def says(self, pattern: str, *, within: float = 20.0) -> re.Match[str]:
        """Wait until the output matches."""

        def found() -> re.Match[str] | None:
            return re.search(pattern, self.output)

        await until(lambda: found() or self.process.returncode is not None, within=within, what=f"{pattern} is said")
        match = found()
        assert match is not None, f"it ended with {self.process.returncode} and said:\n{self.output}"
        return match

    async def ended(self, *, within: float = 30.0) -> int:
        """Wait for the end of the process, and of its output; the exit code."""
        assert self._reading is not None
        async with asyncio.timeout(within):
            code = await self.process.wait()
            await self._reading
        return code

    async def nothing_left(self) -> None:
        """Wait until none of its processes runs."""
        await until(lambda: not self.left(), what="every process has ended")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while data := await process.stdout.read(4096):
            self.output += data.decode(errors="replace")


def demo(*arguments: str, environ: Mapping[str, str] | None = None) -> Program:
    """`roomcast demo` with arguments."""
    return Program([sys.executable, "-m", "roomcast.cli", "demo", *arguments], environ)


async def shown(program: Program) -> tuple[str, dict[int, int]]:
    """Wait until the demo is up; its address, and the pid of each node."""
    address = (await program.says(r"Open (http://\S+) in")).group(1)
    pids = {int(number): int(pid) for number, pid in re.findall(r"node (\d+)  pid (\d+)", program.output)}
    return address, pids
