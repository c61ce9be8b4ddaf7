"""Simulated clusters keep every promise, and a seed always gives the same history; longer with `make simulate`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.__main__ import main
from tests.simulation.history import Back, Fault
from tests.simulation.mutants import MUTANTS
from tests.simulation.plan import KINDS, plan
from tests.simulation.simulate import Result, command, shrink, simulate

ROOT = Path(__file__).parents[2]
SEEDS = 2 * len(KINDS)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_promise_is_kept(seed: int) -> None:
    result = simulate(plan(seed))
    assert not result.findings, f"{result.findings[0]}; to see it: {command(result.plan, whole=result.plan)}"


def test_what_is_simulated_happens() -> None:
    """A run without faults, calls or receivers would prove nothing."""
    results: dict[str, Result] = {kind: simulate(plan(1, world=kind)) for kind in KINDS}
    recovered = [results["recovery"], *(simulate(plan(seed, world="recovery")) for seed in (2, 3))]
    assert sum(isinstance(event, Back) for result in recovered for event in result.history.events) > 3
    for result in results.values():
        events = [type(event).__name__ for event in result.history.events]
        assert events.count("Got") > 100
        assert events.count("Called") > 100
        assert events.count("Quiet") == 3
    assert sum(isinstance(event, Fault) for result in results.values() for event in result.history.events) > 20


def test_a_seed_gives_one_history_whatever_the_hashes_of_the_process() -> None:
    """Two processes, whose sets are in different orders."""
    code = (
        "from tests.simulation.plan import plan\nfrom tests.simulation.simulate import simulate\n"
        "kinds = ('pubsub', 'total', 'recovery', 'redis', 'nats')\n"
        "print(*(simulate(plan(3, world=kind)).history.digest() for kind in kinds))"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hashes, "PYTHONPATH": f"{ROOT}/typings:{ROOT}"},
            capture_output=True,
            text=True,
            check=True,
            timeout=50,
        ).stdout
        for hashes in ("1", "2")
    }
    assert len(digests) == 1
    assert len(set(digests.pop().split())) == 5


def test_a_failing_seed_is_told_with_the_command_that_replays_it(capsys: pytest.CaptureFixture[str]) -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "each_room_is_served_apart")
    with mutant.planted():
        result = simulate(plan(0))
        assert "P3" in result.promises
        short = shrink(result, seconds=2.0)
        assert short.promises & result.promises
        assert len(short.plan.steps) < len(result.plan.steps) / 2
        words = command(short.plan, whole=result.plan).split()
        assert words[:3] == [".venv/bin/python", "-m", "tests.simulation"]
        assert main(words[3:]) == 1
    replayed = capsys.readouterr().out
    assert "P3:" in replayed
    assert f"history {short.history.digest()}" in replayed
    assert main(["--first", "1", "--seeds", "1"]) == 0
    assert "1 seeds" in capsys.readouterr().out


def test_a_plan_can_be_shortened_and_keeps_its_numbers() -> None:
    whole = plan(7)
    assert sorted(whole.steps) == list(range(len(whole.steps)))
    some = [number for number in whole.steps if number % 3]
    assert whole.only(some).steps == some
