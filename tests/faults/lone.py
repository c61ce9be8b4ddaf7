"""A node in a process of its own, which a test may stop, and its one client."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.adapter.servers import Client, Cluster
from tests.waiting import until


class LoneNode:
    """A node in a process of its own, and its one client."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.client = Client(("/",))

    async def line(self) -> bytes:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            return await self.process.stdout.readline()

    async def connect(self) -> None:
        port = int(await self.line())
        await self.client.socket.connect(f"http://127.0.0.1:{port}", transports=["websocket"])

    async def stop(self) -> None:
        """Halt it (SIGSTOP), and return once it stands."""
        self.process.send_signal(signal.SIGSTOP)
        await until(self.stopped)

    def go_on(self) -> None:
        """Let it go on (SIGCONT)."""
        self.process.send_signal(signal.SIGCONT)

    async def stats(self) -> dict[str, Any]:
        """Its counters, now."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        answer: dict[str, Any] = json.loads(await self.line())
        return answer

    def stopped(self) -> bool:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    async def end(self) -> None:
        """Let it go on, ask it to end, and kill it if it does not."""
        assert self.process.stdin is not None
        await self.client.aclose()
        try:
            self.go_on()
            self.process.stdin.close()
            async with asyncio.timeout(10):
                assert await self.process.wait() == 0
        finally:
            if self.process.returncode is None:
                self.process.kill()
                await self.process.wait()


@asynccontextmanager
async def lone_node(cluster: Cluster, *, heartbeat: float) -> AsyncGenerator[LoneNode]:
    """A lone node of a cluster, and its client, in the room "red"."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.adapter.lone_node", cluster.url, cluster.prefix, str(heartbeat)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(("typings", "."))},
        cwd=Path(__file__).parents[2],
    )
    node = LoneNode(process)
    try:
        await node.connect()
        yield node
    finally:
        await node.end()
