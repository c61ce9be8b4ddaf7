"""What is to happen in a simulation: drawn from the seed, a list of steps that can be shortened.

A step says when and what kind; all else it draws from a generator of its own when its time has come, so a step means
much the same when others are left out.
"""

import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, get_args

WorldKind = Literal["pubsub", "partitions", "log", "total", "recovery", "redis", "nats"]
"""Publish/subscribe, with rooms on subjects of their own or on few; a log; a log with one order for all; the same with
clients that come back; and publish/subscribe with the brokers and client libraries of production."""

KINDS: tuple[WorldKind, ...] = get_args(WorldKind)
ROUND = 6.0  # seconds in which the steps of a round lie
_MOMENTS = 6  # of a round, around which most steps fall, so that they meet

DEEDS = {
    "emit": 30,
    "burst": 6,
    "ask": 4,
    "connect": 8,
    "disconnect": 4,
    "enter": 10,
    "meet": 6,
    "enter_elsewhere": 4,
    "leave": 6,
    "leave_elsewhere": 2,
    "close": 2,
    "claim": 8,
    "release": 3,
    "watch": 3,
    "survey": 3,
    "cancel": 8,
    "garbage": 2,
    "start": 2,
    "stop": 1,
    "drop": 6,
}
FAULTS = {
    "cut": 6,
    "crash": 2,
    "stall": 3,
    "freeze": 3,
    "delay": 4,
    "overflow": 2,
    "lose": 3,
    "repeat": 3,
    "trim": 1,
    "kill": 1,
}


CLIENT_FAULTS = {
    "cut": 7,
    "crash": 2,
    "halt": 2,
    "stall": 5,
    "freeze": 4,
    "delay": 4,
    "hang_up": 3,
    "kill": 1,
}
"""With client libraries; together they weigh as much."""


@dataclass(frozen=True, slots=True)
class Step:
    number: int
    at: float
    kind: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A simulation to run.

    Attributes:
        seed: from which everything is drawn.
        world: of what kind.
        nodes: how many there are at first.
        rounds: the steps of each.
    """

    seed: int
    world: WorldKind
    nodes: int
    rounds: tuple[tuple[Step, ...], ...]

    @property
    def steps(self) -> list[int]:
        return [step.number for steps in self.rounds for step in steps]

    def only(self, numbers: Collection[int]) -> "Plan":
        """The same with these steps alone."""
        kept = frozenset(numbers)
        return replace(
            self, rounds=tuple(tuple(step for step in steps if step.number in kept) for steps in self.rounds)
        )


def plan(seed: int, *, world: WorldKind | None = None, steps: int = 40, rounds: int = 2) -> Plan:
    """The plan of a seed; one in five is without faults.

    Args:
        seed: any number.
        world: of this kind; None: the seed says.
        steps: in a round.
        rounds: how many.
    """
    draw = random.Random(f"{seed} plan")
    kind = world or KINDS[seed % len(KINDS)]
    faults = CLIENT_FAULTS if kind in ("redis", "nats") else FAULTS
    weights = DEEDS | ({} if draw.random() < 0.2 else faults)
    made: list[tuple[Step, ...]] = []
    nodes = draw.randint(2, 4)
    number = 0
    for _ in range(rounds):
        moments = [draw.uniform(0.0, ROUND) for _ in range(_MOMENTS)]
        one: list[Step] = []
        for step in draw.choices(list(weights), list(weights.values()), k=steps):
            near = draw.random() < 0.8
            at = draw.choice(moments) + draw.expovariate(500.0) if near else draw.uniform(0.0, ROUND)
            one.append(Step(number, round(at, 6), step))
            number += 1
        made.append(tuple(sorted(one, key=lambda step: step.at)))
    return Plan(seed, kind, nodes, tuple(made))
