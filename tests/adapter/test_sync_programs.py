"""A `SyncEmitter` in programs that fork, that end and that are interrupted: `tests/adapter/lone_emitter.py`."""

import asyncio
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from roomcast import Adapter
from tests.adapter.conftest import OUTSIDE
from tests.adapter.servers import Client, Cluster
from tests.adapter.test_sync_emitter import clients_in, heard, silent
from tests.demo.running import Program
from tests.waiting import until


@pytest.fixture(params=OUTSIDE)
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def program(scenario: str, cluster: Cluster) -> Program:
    """`tests/adapter/lone_emitter.py` as a user would start it."""
    script = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-m", "tests.adapter.lone_emitter"]
    return Program([*script, scenario, cluster.url, cluster.prefix])


async def run(scenario: str, cluster: Cluster) -> list[str]:
    """What a program says that ends by itself, and well."""
    async with program(scenario, cluster) as running:
        try:
            code = await running.ended(within=40)
        except TimeoutError:
            raise AssertionError(f"It does not end, and says:\n{running.output}") from None
        assert (code, "Traceback" in running.output) == (0, False), running.output
        return running.output.splitlines()


async def numbers(cluster: Cluster, client: Client) -> list[object]:
    """What a client got of a program that has ended: a node that hears the end has heard it all."""
    async with Adapter(cluster.url, prefix=cluster.prefix) as adapter:
        await adapter.namespace("/").emit("end")
        return await heard(client)


async def test_the_end_of_the_interpreter_flushes(cluster: Cluster) -> None:
    [client, _] = await clients_in(cluster, "red")
    assert await run("exit_unconfirmed", cluster) == []
    assert await numbers(cluster, client) == list(range(500))


async def test_the_end_of_the_interpreter_beside_a_thread_that_emits_loses_nothing_confirmed(on_redis: Cluster) -> None:
    [client, _] = await clients_in(on_redis, "red")
    async with program("exit_beside_a_thread_that_emits", on_redis) as running:
        assert await running.ended() == 0, running.output
        confirmed = [line for line in running.output.splitlines() if line.startswith("emitted ")]
    got = await numbers(on_redis, client)
    assert len(confirmed) > 20
    assert got[: len(confirmed)] == list(range(len(confirmed)))


async def test_the_end_of_the_interpreter_does_not_wait_for_answers(on_redis: Cluster) -> None:
    clients = await clients_in(on_redis, "red")
    heard_it = [asyncio.Event() for _ in clients]
    for client, event in zip(clients, heard_it, strict=True):
        client.socket.on("silence", partial(silent, event))
    async with program("exit_beside_a_question", on_redis) as running:
        assert await running.ended(within=20) == 0, running.output


async def test_an_interrupted_call_is_cancelled_and_the_emitter_goes_on(on_redis: Cluster) -> None:
    clients = await clients_in(on_redis, "red")
    heard_it = [asyncio.Event() for _ in clients]
    for client, event in zip(clients, heard_it, strict=True):
        client.socket.on("silence", partial(silent, event))
    async with program("interrupted", on_redis) as running:
        await running.says("ready 2")
        for event in heard_it:
            await event.wait()
        running.process.send_signal(signal.SIGINT)
        assert await running.ended(within=20) == 0, running.output
        assert running.output.splitlines()[1:] == ["interrupted", "counted 1 2", "waiting 0"]


async def test_one_that_was_made_before_a_fork_is_used_by_both_processes(on_redis: Cluster) -> None:
    [client, _] = await clients_in(on_redis, "red")
    assert await run("fork_before_use", on_redis) == ["counted 1 2", "child ended 0", "counted 2 2"]
    assert await numbers(on_redis, client) == [1, 2]


async def test_one_that_was_used_before_a_fork_is_used_by_both_processes(cluster: Cluster) -> None:
    [client, _] = await clients_in(cluster, "red")
    assert await run("fork_after_use", cluster) == [
        "counted 0 2",
        *("counted 1 2", "child knows 2 0", "child ended 0"),
        *("counted 2 2", "child knows 2 0", "child ended 0"),
        "counted 3 2",
        "parent 0 True",
    ]
    assert await numbers(cluster, client) == [0, 1, 2, 3]


async def test_an_iterator_stays_with_the_process_that_began_it(on_redis: Cluster) -> None:
    node = await on_redis.node()
    client = await node.client()
    await node.sio.enter_room(client.sid, "red")
    first, told, *rest = await run("fork_with_an_iterator", on_redis)
    assert first == "first red"
    assert "before a fork" in told
    assert rest == ["child ended 0", "rest 0", "counted 1 1"]


async def test_a_fork_beside_threads_that_call_does_not_hang(cluster: Cluster) -> None:
    [client, _] = await clients_in(cluster, "red")
    ended, counted, parent = await run("fork_beside_threads_that_emit", cluster)
    assert ended == "children ended 0 0 0 0"
    assert (counted, parent) == ("counted 0 2", "parent 0")
    got = await numbers(cluster, client)
    assert got.count(-1) == 4
    assert len(set(got) - {-1}) == len(got) - 4 - 1, "each once; and the last 0 again"


async def test_a_pool_of_workers_as_celery_forks_them(cluster: Cluster) -> None:
    [client, _] = await clients_in(cluster, "red")
    assert await run("pool", cluster) == ["counted 0 2", "counts 2", "counted 31 2"]
    assert sorted(map(str, await numbers(cluster, client))) == sorted(map(str, range(32)))


async def test_a_closed_one_stays_closed_in_a_child(on_redis: Cluster) -> None:
    closed, told, ended = await run("closed", on_redis)
    assert closed == "closed True 1"
    assert "closed" in told
    assert ended == "child ended 0"


@pytest.mark.parametrize("scheme", ["embedded"])
async def test_a_program_alone_on_an_embedded_broker_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    assert await run("exit_unconfirmed", cluster) == []
    await until(lambda: not list(tmp_path.iterdir()), what="the server and its files to be gone")
