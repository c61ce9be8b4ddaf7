"""Several workers of one application on one machine, joined by `embedded://`, as a developer starts them."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any

import socketio

from tests.demo.running import Program
from tests.services import free_port
from tests.waiting import until

EXAMPLES = Path(__file__).parents[2] / "examples"
GROUP = "workers"


def chat(port: int, directory: Path, *, workers: int) -> Program:
    """`examples/chat.py` on uvicorn, its group in a directory of the test's own."""
    argv = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "--log-level", "warning", "chat:app"]
    options = ["--port", str(port), "--workers", str(workers), "--timeout-graceful-shutdown", "2"]
    return Program([*argv, *options], {"ROOMCAST_URL": f"embedded://{GROUP}?dir={directory}"})


def state(directory: Path) -> Mapping[str, Any]:
    """What the group knows of its server."""
    found: dict[str, Any] = json.loads((directory / GROUP / "state").read_text())
    return found


class Talker:
    """A client that joined the room.

    Attributes:
        worker: the process that serves it.
        heard: what others said.
    """

    def __init__(self) -> None:
        self.io: Any = socketio.AsyncClient(reconnection=False)
        self.worker = 0
        self.heard: list[str] = []
        self.io.on("said", self.heard.append)

    async def connect(self, port: int) -> None:
        await self.io.connect(f"http://127.0.0.1:{port}", transports=["websocket"])
        self.worker = await self.io.call("join", "lobby", timeout=10)

    async def say(self, text: str) -> None:
        await self.io.emit("say", ("lobby", text))


@contextlib.asynccontextmanager
async def talkers(*ports: int, enough: Callable[[list[Talker]], bool]) -> AsyncGenerator[list[Talker]]:
    """One client on each port in turn, until they are spread widely enough."""
    people: list[Talker] = []
    try:
        while not enough(people):
            assert len(people) < 100, "all clients are on one worker"
            person = Talker()
            people.append(person)
            await person.connect(ports[(len(people) - 1) % len(ports)])
        yield people
    finally:
        await asyncio.gather(*(person.io.disconnect() for person in people), return_exceptions=True)


async def listening(port: int, program: Program) -> None:
    """Wait until the application accepts connections."""

    async def accepted() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    async with asyncio.timeout(20):
        while not await accepted():
            assert program.process.returncode is None, program.output
            await asyncio.sleep(0.02)


async def talk(people: list[Talker], word: str) -> None:
    """Everyone says a word, and everyone else hears it, once."""
    for number, speaker in enumerate(people):
        text = f"{word} {number}"
        await speaker.say(text)
        others = [person for person in people if person is not speaker]
        await until(_all_heard(text, others), what=text)
    for person in people:
        assert len(person.heard) == len(set(person.heard))


def _all_heard(text: str, people: list[Talker]) -> Callable[[], bool]:
    return lambda: all(text in person.heard for person in people)


async def talk_again(people: list[Talker], word: str) -> None:
    """After a break of the link: someone repeats a word until everyone hears; then nothing may be missing."""
    speaker, *others = people
    async with asyncio.timeout(20):
        attempt = 0
        while not all(any(said.startswith(f"{word}?") for said in person.heard) for person in others):
            await speaker.say(f"{word}? {attempt}")
            attempt += 1
            await asyncio.sleep(0.1)
    await talk(people, word)


async def nothing_left(directory: Path, *programs: Program) -> None:
    """Wait until no process of the programs, the server's included, and no file is left."""
    for program in programs:
        await program.nothing_left()
    assert os.listdir(directory) == []  # noqa: PTH208 - one look, after everything has ended


def one_of_each(count: int) -> Callable[[list[Talker]], bool]:
    return lambda people: len({person.worker for person in people}) >= count


async def test_workers_share_a_server_and_leave_nothing_behind(tmp_path: Path) -> None:
    port = free_port()
    async with chat(port, tmp_path, workers=3) as program:
        await listening(port, program)
        async with talkers(port, enough=one_of_each(2)) as people:
            await talk(people, "hello")
            server = state(tmp_path)["server"]
            assert {server, state(tmp_path)["guardian"], *(person.worker for person in people)} < set(program.left())
        program.process.terminate()
        await program.ended()
        await nothing_left(tmp_path, program)


async def test_a_server_that_is_killed_is_replaced(tmp_path: Path) -> None:
    port = free_port()
    async with chat(port, tmp_path, workers=3) as program:
        await listening(port, program)
        async with talkers(port, enough=one_of_each(2)) as people:
            await talk(people, "before")
            for victim in ("server", "guardian"):
                killed = state(tmp_path)[victim]
                os.kill(killed, signal.SIGKILL)
                await talk_again(people, f"without that {victim}")
                assert state(tmp_path)[victim] != killed
        program.process.terminate()
        await program.ended()
        await nothing_left(tmp_path, program)


async def test_the_server_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    first_port, *ports = free_port(), free_port(), free_port()
    async with chat(first_port, tmp_path, workers=1) as first:
        await listening(first_port, first)
        async with chat(ports[0], tmp_path, workers=1) as second, chat(ports[1], tmp_path, workers=1) as third:
            await asyncio.gather(listening(ports[0], second), listening(ports[1], third))
            before = state(tmp_path)
            assert before["server"] in first.left()  # it descends from the first
            async with talkers(*ports, enough=one_of_each(2)) as people:
                await talk(people, "before")
                first.process.kill()
                await first.process.wait()
                await talk(people, "after")  # without any break
            assert state(tmp_path) == before
            second.process.terminate()
            third.process.terminate()
            await second.ended()
            await third.ended()
            await nothing_left(tmp_path, first, second, third)
