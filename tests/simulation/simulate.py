"""Runs a plan and judges it; makes a failing plan shorter; says how to see it again."""

import shlex
import time
from dataclasses import dataclass

from tests.simulation.checkers import check
from tests.simulation.history import History
from tests.simulation.loop import seeded
from tests.simulation.plan import Plan, plan
from tests.simulation.world import World, run

_DEFAULT = plan(0)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a plan.

    Attributes:
        findings: what is wrong, each with the promise at its head; nothing is when there are none.
        turns: callbacks that ran.
    """

    plan: Plan
    history: History
    findings: list[str]
    turns: int

    @property
    def promises(self) -> set[str]:
        """The promises that are broken."""
        return {finding.split(":")[0] for finding in self.findings}


def simulate(plan: Plan) -> Result:
    """Run a plan on a loop of its own."""
    with seeded(plan.seed) as (loop, carry_out):
        world = World(plan, loop)
        try:
            carry_out(run(plan, loop, world))
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is a finding
            return Result(plan, world.history, [f"RUN: {exc!r}"], loop.turns)
    return Result(plan, world.history, check(world.history), loop.turns)


def shrink(result: Result, seconds: float = 20.0) -> Result:
    """The shortest plan found in so many seconds in which one of the same promises is broken."""
    until = time.monotonic() + seconds
    promises, size = result.promises, len(result.plan.steps)
    while size > 1 and time.monotonic() < until:
        size = max(1, size // 2)
        at = 0
        while at < len(result.plan.steps) and time.monotonic() < until:
            steps = result.plan.steps
            shorter = simulate(result.plan.only([*steps[:at], *steps[at + size :]]))
            if shorter.promises & promises:
                result = shorter
                size = min(size, max(1, len(result.plan.steps) // 2))
            else:
                at += size
    return result


def command(plan: Plan, *, whole: Plan) -> str:
    """What replays a plan that was made from a whole one."""
    words = [".venv/bin/python", "-m", "tests.simulation", "--seed", str(plan.seed), "--world", plan.world]
    rounds, steps = len(whole.rounds), len(whole.steps) // max(1, len(whole.rounds))
    if (rounds, steps) != (len(_DEFAULT.rounds), len(_DEFAULT.steps) // len(_DEFAULT.rounds)):
        words += ["--rounds", str(rounds), "--steps", str(steps)]
    if plan.steps != whole.steps:
        words += ["--only", ",".join(map(str, plan.steps))]
    return shlex.join(words)
