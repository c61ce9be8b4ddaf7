"""Processes of a measurement: children that take commands on stdin and answer on stdout, one JSON object a line.

1. Every command is an object with `do`, and has one answer, an object; they are answered in order.
2. An object with `progress` comes unasked, and goes to whoever listens.
3. A child ends when its stdin ends, so that none outlives the one that started it.
"""

import asyncio
import json
import os
import resource
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

ROOT = Path(__file__).resolve().parent.parent

Answer = dict[str, Any]


class ChildFailed(Exception):
    """A child has ended, or has answered with an error."""


class Child(AbstractAsyncContextManager["Child"]):
    """One child process.

    Args:
        argv: the command line; see `python`.
        name: what it is called in errors.

    Attributes:
        hello: its first answer, given when it is ready.
        on_progress: called with every progress report (rule 2).
    """

    def __init__(self, argv: list[str], name: str) -> None:
        self.name = name
        self.hello: Answer = {}
        self.on_progress: Callable[[Answer], None] = lambda _: None
        self._argv = argv
        self._answers: asyncio.Queue[Answer | None] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        paths = [str(ROOT / "typings"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        self._process = await asyncio.create_subprocess_exec(
            *self._argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            limit=64 * 1024 * 1024,
        )
        self._reader = asyncio.create_task(self._read())
        self.hello = await self._answer(30)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        stdin = self._process.stdin
        if stdin is not None:
            stdin.close()
        try:
            async with asyncio.timeout(20):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def tell(self, do: str, **arguments: Any) -> None:
        """Send a command that has no answer."""
        if self._process.stdin is None or self._process.returncode is not None:
            raise ChildFailed(f"{self.name} has ended with {self._process.returncode}.")
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")

    async def ask(self, do: str, *, within: float = 60.0, **arguments: Any) -> Answer:
        """Send a command and wait for its answer (rule 1).

        Raises:
            ChildFailed: the child has ended, or answers with an error.
            TimeoutError: there is no answer after `within` seconds.
        """
        self.tell(do, **arguments)
        return await self._answer(within)

    async def _answer(self, timeout: float) -> Answer:
        try:
            async with asyncio.timeout(timeout):
                answer = await self._answers.get()
        except TimeoutError:
            raise TimeoutError(f"{self.name} has not answered for {timeout} s.") from None
        if answer is None:
            raise ChildFailed(f"{self.name} has ended with {await self._process.wait()}.")
        if "error" in answer:
            raise ChildFailed(f"{self.name}: {answer['error']}")
        return answer

    async def _read(self) -> None:
        stdout = self._process.stdout
        while stdout is not None and (line := await stdout.readline()):
            message = cast("Answer", json.loads(line))
            if "progress" in message:
                self.on_progress(message)
            else:
                self._answers.put_nowait(message)
        self._answers.put_nowait(None)


def python(module: str, *arguments: str) -> list[str]:
    """The command line of a child that is a module of this package."""
    return [sys.executable, "-m", module, *arguments]


def cpu() -> float:
    """Seconds of CPU this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def resident() -> int:
    """Bytes of memory this process has resident."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
