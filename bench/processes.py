"""Processes that are measured, and asked: one line of JSON each way over their standard input and output.

A program that takes part reads `{"do": "emit", ...}` lines and answers each with one line, an object; an object with
"error" is a failure. It ends when its input ends. What it writes to standard error is kept for error messages.
"""

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.contestants import NODE, Contestant

ROOT = Path(__file__).parent.parent
_LINE = 64 * 1024 * 1024  # bytes of one answer


class ProcessFailed(Exception):
    """A process that is measured said that it failed, went away, or did not answer in time."""


class Process:
    """One process to ask; use with `async with`, or call `end`."""

    def __init__(self, name: str, child: asyncio.subprocess.Process) -> None:
        self.name = name
        self._child = child
        self._said = bytearray()
        self._listening = asyncio.ensure_future(self._listen())

    @classmethod
    async def start(cls, argv: Sequence[str], *, name: str = "", environ: Mapping[str, str] | None = None) -> Self:
        """Start a program from the root of the repository; it has answered nothing yet."""
        child = await asyncio.create_subprocess_exec(
            *argv,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "typings"), str(ROOT))), **(environ or {})},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE,
        )
        return cls(name or Path(argv[0]).name, child)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    async def ask(self, do: str, *, patience: float = 120, **arguments: Any) -> dict[str, Any]:
        """Ask for one thing, and return its answer; one question at a time.

        Raises:
            ProcessFailed: it failed, is gone, or did not answer within `patience` seconds.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            await self._child.stdin.drain()
            async with asyncio.timeout(patience):
                line = await self._child.stdout.readline()
        except (TimeoutError, ConnectionError) as exc:
            raise ProcessFailed(f"{self.name}: no answer to {do!r}: {exc!r}\n{self.said()}") from exc
        if not line:
            raise ProcessFailed(f"{self.name} ended at {do!r}:\n{self.said()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ProcessFailed(f"{self.name}: {do!r} failed: {answer['error']}\n{self.said()}")
        return answer

    def said(self) -> str:
        """The last of what it wrote to standard error."""
        return self._said.decode(errors="replace")[-4000:]

    async def end(self) -> None:
        """Close its input, wait until it is gone, and kill it if it does not go."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            async with asyncio.timeout(15):
                await self._child.wait()
        except TimeoutError:
            self._child.kill()
            await self._child.wait()
        await self._listening

    async def kill(self) -> None:
        """End it at once (SIGKILL), and return once it is gone."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        if self._child.returncode is None:
            self._child.kill()
        await self._child.wait()
        await self._listening

    async def _listen(self) -> None:
        assert self._child.stderr is not None
        while part := await self._child.stderr.read(65536):
            self._said += part
            del self._said[:-65536]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.end()


def node_argv(contestant: Contestant, channel: str, servers: int = 1) -> list[str]:
    """The command of a node whose clients have no transport (`bench.node_process`, `bench/node/node.mjs`)."""
    arguments = [contestant.name, channel, str(servers)]
    if contestant.runtime == "node":
        program = [str(NODE / "node.mjs"), contestant.variant, contestant.url]
        return ["node", "--expose-gc", *program, *arguments[1:]]
    return [sys.executable, "-m", "bench.node_process", *arguments]


async def start_node(contestant: Contestant, channel: str, servers: int = 1, role: str = "node") -> Process:
    """A node of a contestant, connected to its broker and heard there."""
    node = await Process.start(node_argv(contestant, channel, servers), name=f"{contestant.name} ({role})")
    try:
        await node.ask("start", patience=60)
    except BaseException:
        await node.end()
        raise
    return node
