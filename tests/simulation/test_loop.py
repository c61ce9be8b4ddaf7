"""The rules of the seeded loop, as its docstring says them."""

import asyncio
from typing import Any, cast

import pytest

from roomcast.core import publisher
from tests.cluster.clock import Stuck
from tests.simulation.loop import SeededLoop, context_of, process, seeded

# pyright: reportPrivateUsage=false


async def _run_both(loop: SeededLoop, ran: list[str]) -> None:
    contexts = {name: context_of(name) for name in ("one", "two")}
    for number in range(20):
        for name, context in contexts.items():
            loop.call_soon(ran.append, f"{name} {number}", context=context)
    await asyncio.sleep(1)


def _interleaving(seed: int) -> list[str]:
    ran: list[str] = []
    with seeded(seed) as (loop, run):
        run(_run_both(loop, ran))
    return ran


def test_rule_1_callbacks_of_one_process_run_in_the_order_in_which_they_were_scheduled() -> None:
    ran = _interleaving(1)
    for name in ("one", "two"):
        assert [entry for entry in ran if entry.startswith(name)] == [f"{name} {number}" for number in range(20)]


def test_rule_2_between_processes_the_seed_chooses() -> None:
    assert _interleaving(1) == _interleaving(1)
    assert len({tuple(_interleaving(seed)) for seed in range(5)}) == 5


def test_rule_3_a_process_that_is_frozen_waits_with_its_timers() -> None:
    ran: list[tuple[str, float]] = []

    def note(name: str, begin: float) -> None:
        ran.append((name, round(asyncio.get_running_loop().time() - begin)))

    async def main(loop: SeededLoop) -> None:
        begin = loop.time()
        for name in ("one", "two"):
            loop.call_later(1, note, name, begin, context=context_of(name))
        loop.freeze("one", 5)
        await asyncio.sleep(10)

    with seeded(1) as (loop, run):
        run(main(loop))
    assert ran == [("two", 1), ("one", 5)]


def test_rule_4_looking_at_a_clock_takes_time_and_waiting_takes_none() -> None:
    async def main(loop: SeededLoop) -> None:
        before, time = loop.time(), cast("Any", publisher).time
        assert time.monotonic() > before
        await asyncio.sleep(3600)
        assert 3600 <= loop.time() - before < 3601

    with seeded(1) as (loop, run):
        run(main(loop))


def test_rule_4_without_a_timer_it_is_stuck() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with seeded(1) as (_, run), pytest.raises(Stuck):
        run(main())


def test_rule_5_faults_happen_between_two_callbacks() -> None:
    seen: list[int] = []

    async def count() -> None:
        for number in range(10):
            seen.append(number)
            await asyncio.sleep(0)

    async def main(loop: SeededLoop) -> int:
        loop.after_turns("one", 4, lambda: seen.append(-1))
        await loop.create_task(count(), context=context_of("one"))
        return seen.index(-1)

    with seeded(1) as (loop, run):
        assert run(main(loop)) == 4


def test_tasks_belong_to_the_process_that_began_them() -> None:
    async def name() -> str:
        return await asyncio.ensure_future(_inner())

    async def _inner() -> str:
        await asyncio.sleep(0.1)
        return process.get()

    async def main(loop: SeededLoop) -> None:
        assert await loop.create_task(name(), context=context_of("one")) == "one"
        assert await name() == "world"

    with seeded(1) as (loop, run):
        run(main(loop))
