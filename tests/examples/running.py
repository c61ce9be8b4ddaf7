"""Examples as a user starts them: one server process for each port, joined by a broker, and clients of each."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.adapter.servers import Client
from tests.demo.running import Program
from tests.services import free_port

EXAMPLES = Path(__file__).parents[2] / "examples"

_UVICORN = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "--timeout-graceful-shutdown", "2"]


class Example:
    """An example that runs.

    Attributes:
        urls: where its processes serve.
        processes: those.
    """

    def __init__(self, urls: Sequence[str], processes: Sequence[Program]) -> None:
        self.urls = urls
        self.processes = processes
        self._clients: list[Client] = []

    async def client(self, process: int, *namespaces: str, auth: Any = None) -> Client:
        """A connected client of one of the processes, in "/" unless other namespaces are named."""
        client = Client(namespaces or ("/",))
        self._clients.append(client)
        await client.socket.connect(
            self.urls[process], transports=["websocket"], namespaces=list(namespaces or ("/",)), auth=auth
        )
        return client

    async def aclose(self) -> None:
        """Disconnect the clients."""
        await asyncio.gather(*(client.aclose() for client in self._clients))


@asynccontextmanager
async def example(name: str, broker: str, *, processes: int = 2, **environ: str) -> AsyncGenerator[Example]:
    """`examples/<name>.py` under uvicorn, so many processes of it.

    Args:
        name: of the file; its ASGI application is `app`.
        broker: its URL.
        processes: how many.
        environ: what the example looks for in its environment besides.
    """
    async with AsyncExitStack() as stack:
        variables = _environ(broker) | environ
        programs = [Program([*_UVICORN, "--port", "0", f"{name}:app"], variables) for _ in range(processes)]
        await _start(stack, programs)
        running = await asyncio.gather(*(program.says(r"Uvicorn running on (http://\S+)") for program in programs))
        yield await _opened(stack, [match.group(1) for match in running], programs)


@asynccontextmanager
async def example_on_aiohttp(name: str, broker: str, *, processes: int = 2) -> AsyncGenerator[Example]:
    """`examples/<name>.py` as a program of its own, which takes a port as its argument."""
    async with AsyncExitStack() as stack:
        ports = [free_port() for _ in range(processes)]
        programs = [
            Program([sys.executable, "-u", str(EXAMPLES / f"{name}.py"), str(port)], _environ(broker)) for port in ports
        ]
        await _start(stack, programs)
        await asyncio.gather(*(program.says(r"Running on http://") for program in programs))
        yield await _opened(stack, [f"http://127.0.0.1:{port}" for port in ports], programs)


async def _start(stack: AsyncExitStack, programs: Sequence[Program]) -> None:
    await asyncio.gather(*(stack.enter_async_context(program) for program in programs))

    def stop() -> None:
        for program in programs:  # all of them at once: an embedded server descends from one and outlives it for others
            if program.process.returncode is None:
                program.process.terminate()

    stack.callback(stop)


async def _opened(stack: AsyncExitStack, urls: Sequence[str], programs: Sequence[Program]) -> Example:
    opened = Example(urls, programs)
    stack.push_async_callback(opened.aclose)
    return opened


def _environ(broker: str) -> dict[str, str]:
    return {"ROOMCAST_URL": broker}


def embedded(directory: Path) -> str:
    """A broker that the first process starts, for processes that meet in a directory of the test's own."""
    return f"embedded://examples?dir={directory}"


def apart(url: str) -> str:
    """A shared broker, under a prefix of the test's own."""
    return f"{url}{'&' if '?' in url else '?'}prefix=t{uuid4().hex[:12]}"
