"""How hard Hypothesis tries in this folder: `ROOMCAST_HYPOTHESIS_PROFILE` is "ci", "desk" or "nightly".

| profile   | examples        | random                                                |
|-----------|-----------------|-------------------------------------------------------|
| `ci`      | as written      | no: one run is like the other; the default where CI is set |
| `desk`    | as written      | yes; the default elsewhere                            |
| `nightly` | twenty times    | yes                                                   |
"""

import inspect
import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

PROFILE = os.environ.get("ROOMCAST_HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "desk")
_TIMES = {"ci": 1, "desk": 1, "nightly": 20}[PROFILE]


def effort(examples: int = 100, *, steps: int = 40) -> settings:
    """The settings of a property that is worth so many examples; without a deadline, for the machine is shared."""
    return settings(
        max_examples=examples * _TIMES,
        stateful_step_count=steps,
        deadline=None,
        derandomize=PROFILE == "ci",
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


def run(machine: type[RuleBasedStateMachine], examples: int = 60, *, steps: int = 40) -> None:
    """Run a state machine."""
    run_state_machine_as_test(machine, settings=effort(examples, steps=steps))


def focused(machine: type[RuleBasedStateMachine], rules: str) -> type[RuleBasedStateMachine]:
    """A machine without the rules that have nothing to do with a bug, so that it is found soon; nightly with all.

    Args:
        machine: the machine.
        rules: names of those that stay; empty for all of them.
    """
    if not rules or PROFILE == "nightly":
        return machine
    names = {name for name, member in inspect.getmembers(machine) if hasattr(member, "hypothesis_stateful_rule")}
    assert names >= set(rules.split()), "a rule was renamed"
    dropped = {name: _no_rule(getattr(machine, name)) for name in names - set(rules.split())}
    return type("Focused", (machine,), dropped)


def _no_rule(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which others may call, and which is no rule."""

    def call(*args: Any, **named: Any) -> Any:
        return function(*args, **named)

    return call


def hunt(machine: type[RuleBasedStateMachine], rules: str = "") -> None:
    """Run a state machine that ought to fail: always in the same way, and without looking for the shortest one."""
    run_state_machine_as_test(
        focused(machine, rules),
        settings=settings(
            max_examples=1500,  # it ends at the first failure; how soon that comes depends on what else is imported
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
