"""`roomcast demo` as a person meets it: what it says, what it returns, and what it leaves behind."""

import os
import re
import signal
import socket
import time

import pytest

from tests.demo.running import demo, shown
from tests.services import SharedBrokers, free_port
from tests.waiting import until


@pytest.mark.parametrize(("scheme", "nodes"), [("embedded", 3), ("redis", 2), ("nats", 2), ("amqp", 2)])
async def test_the_check_tells_every_pair_of_nodes(scheme: str, nodes: int, shared_brokers: SharedBrokers) -> None:
    url = "embedded://" if scheme == "embedded" else shared_brokers.url(scheme)
    began = time.monotonic()
    async with demo("--check", "--nodes", str(nodes), "--broker", url) as program:
        code = await program.ended()
        assert code == 0, program.output
        assert time.monotonic() - began < 30
        lines = re.findall(r"^node (\d) -> node (\d)  ok  [\d.]+ ms$", program.output, re.MULTILINE)
        every = [(str(one), str(other)) for one in range(1, nodes + 1) for other in range(1, nodes + 1)]
        assert lines == every
        for kind in ("room", "broadcast", "ack"):
            assert re.search(rf"^{kind} +ok ", program.output, re.MULTILINE), program.output
        assert "Traceback" not in program.output
        await program.nothing_left()


@pytest.mark.parametrize("scheme", ["redis", "nats", "amqp"])
async def test_a_broker_that_cannot_be_reached_is_told_in_a_sentence(scheme: str) -> None:
    async with demo("--check", "--broker", f"{scheme}://person:hunter2@127.0.0.1:{free_port()}") as program:
        assert await program.ended() == 1
        assert re.fullmatch(r"roomcast: [^\n]+\.\n", program.output), program.output
        assert "127.0.0.1" in program.output
        assert " cannot be " in program.output
        assert "hunter2" not in program.output
        await program.nothing_left()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--broker", "memory://"), r"memory:// does not leave its process"),
        (("--broker", "carrier-pigeon://"), r"No broker serves carrier-pigeon://"),
        (("--broker", "redis://127.0.0.1/?colour=red"), r"Unknown parameter 'colour'"),
    ],
)
async def test_a_broker_that_cannot_work_is_told_before_anything_starts(
    arguments: tuple[str, ...], sentence: str
) -> None:
    async with demo("--port", "0", *arguments) as program:
        assert await program.ended() == 1
        assert re.match(f"roomcast: {sentence}", program.output), program.output
        assert "Traceback" not in program.output


async def test_a_port_that_is_taken_is_told_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with demo("--port", str(port)) as program:
            assert await program.ended() == 1
            assert program.output.startswith(f"roomcast: Port {port} of 127.0.0.1 is taken: "), program.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_everything(number: signal.Signals) -> None:
    async with demo("--port", "0", "--nodes", "2") as program:
        _, pids = await shown(program)
        assert set(pids) == {1, 2}
        assert {program.process.pid, *pids.values()} < set(program.left())
        program.process.send_signal(number)
        assert await program.ended() == 0, program.output
        assert "Traceback" not in program.output
        await program.nothing_left()


async def test_a_signal_while_it_starts_stops_everything() -> None:
    async with demo("--port", "0", "--nodes", "2") as program:
        await until(lambda: len(program.left()) > 1, what="a node was started")
        program.process.terminate()
        assert await program.ended() == 0, program.output
        assert "Traceback" not in program.output
        await program.nothing_left()


async def test_nodes_do_not_outlive_a_supervisor_that_was_killed() -> None:
    async with demo("--port", "0", "--nodes", "2") as program:
        await shown(program)
        program.process.kill()
        await program.nothing_left()


async def test_a_node_that_dies_is_reported_and_started_again() -> None:
    async with demo("--port", "0", "--nodes", "2") as program:
        _, pids = await shown(program)
        os.kill(pids[2], signal.SIGKILL)
        await program.says("Node 2 was killed by signal 9; starting it again")
        await program.says(r"Node 2 is back, pid \d+")
        program.process.terminate()
        assert await program.ended() == 0


async def test_a_node_that_does_not_stay_up_ends_the_demo() -> None:
    async with demo("--port", "0", "--nodes", "2") as program:
        _, pids = await shown(program)
        pid = pids[1]
        for death in range(3):
            os.kill(pid, signal.SIGKILL)
            if death < 2:
                back = await program.says(rf"(?s)(?:Node 1 is back.*){{{death}}}Node 1 is back, pid (\d+)")
                pid = int(back.group(1))
        assert await program.ended() == 1
        assert "roomcast: Node 1 was killed by signal 9 and does not stay up." in program.output
        await program.nothing_left()
