"""What a part of the suite is given, and what it is made of."""

import argparse
import asyncio
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module

from bench.contestants import Contestant, missing, named
from bench.machine import machine, versions
from bench.measure import interleave
from bench.report import Case, Result, now

ROUNDS, QUICK_ROUNDS = 3, 2


@dataclass(frozen=True, slots=True)
class Plan:
    """How a part is to be run.

    Attributes:
        rounds: rounds of each case; a part may take fewer where one is long.
        quick: the short form for CI: fewer cases and contestants, the same code.
        only: names of the contestants that may take part; all if empty.
        scale: share of the events that a round normally has; below 1 where the machine is shared with others.
        where: cases are left out unless they have these values, such as {"members": "100"}.
    """

    rounds: int = ROUNDS
    quick: bool = False
    only: tuple[str, ...] = ()
    scale: float = 1.0
    where: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def arguments(self) -> list[str]:
        """What asks for this plan on the command line."""
        words = ["--quick"] * self.quick
        if self.rounds != (QUICK_ROUNDS if self.quick else ROUNDS):
            words += ["--rounds", str(self.rounds)]
        if self.scale != 1:
            words += ["--scale", f"{self.scale:g}"]
        if self.only:
            words += ["--only", *self.only]
        if self.where:
            words += ["--case", *(f"{name}={value}" for name, value in self.where.items())]
        return words

    def events(self, contestant: Contestant, roomcast: int, node: int, python_socketio: int) -> int:
        """How many events a round of a contestant has, given what would be about half a second of each library's."""
        events = {"roomcast": roomcast, "node": node, "python-socketio": python_socketio}[contestant.library]
        if contestant.library == "python-socketio" and contestant.broker == "amqp":
            events //= 4
        return max(20, int(events * self.scale / (4 if self.quick else 1)))

    def turns(self, case: Case, contestants: Sequence[Contestant], most: int | None = None) -> Iterator[Contestant]:
        """Who is measured next, round after round, at most `most` rounds; says so on standard error."""
        rounds = self.rounds if most is None else min(self.rounds, most)
        for number, contestant in interleave(contestants, rounds):
            what = " ".join(f"{name}={value}" for name, value in case.items())
            print(f"  {what}, round {number + 1} of {rounds}: {contestant.name}", file=sys.stderr, flush=True)
            yield contestant

    def cases(self, cases: Sequence[Case]) -> list[Case]:
        """Those of the cases that were asked for."""
        return [
            case
            for case in cases
            if all(str(case[name]) == value for name, value in self.where.items() if name in case)
        ]

    def contestants(
        self, names: Sequence[str], result: Result, missing: Callable[[Contestant], str | None] = missing
    ) -> list[Contestant]:
        """Those of the contestants who take part; who cannot is noted in the result and said aloud, by name."""
        present: list[Contestant] = []
        for contestant in named([name for name in names if not self.only or name in self.only]):
            why = missing(contestant)
            if why is None:
                present.append(contestant)
            elif contestant.name not in result.skipped:
                result.skipped[contestant.name] = why
                print(f"  SKIPPED {contestant.name}: {why}", flush=True)
        return present


@dataclass(frozen=True, slots=True)
class Part:
    """One program of measurements, declared by its module as `PART`.

    Attributes:
        name: of the part and of its file of results.
        about: one sentence for `python -m bench list`.
        run: measures, and adds rows to the result.
    """

    name: str
    about: str
    run: Callable[[Plan, Result], Awaitable[None]]


PARTS = (
    "remote_fanout", "emits", "uninterested", "latency", "disconnects", "membership", "joins", "curves",
    "end_to_end", "connections", "faults",
)  # fmt: skip
"""The parts in the order in which they run; each is the module of this name in `bench`."""

APART = ("faults",)
"""Those that have a page of their own, and run only when they are named."""

QUICK_PARTS = ("remote_fanout", "emits", "uninterested", "latency", "disconnects", "membership")
"""The parts of the short form."""


def part(name: str) -> Part:
    """The part of a name.

    Raises:
        SystemExit: there is none.
    """
    if name not in PARTS:
        raise SystemExit(f"There is no part {name!r}: it is one of {', '.join(PARTS)}.")
    found: Part = import_module(f"bench.{name}").PART
    return found


def new_channel() -> str:
    """A name that no other round has used, so that nodes of two rounds never hear one another."""
    return f"bench-{uuid.uuid4().hex[:8]}"


async def run(part: Part, plan: Plan, command: str) -> Result:
    """Run a part, and complete what it leaves with what it ran on."""
    result = Result(
        part.name,
        command=command,
        quick=plan.quick,
        rounds=plan.rounds,
        scale=plan.scale,
        began=now(),
        machine=machine(),
        versions=versions(),
    )
    began = time.monotonic()
    await part.run(plan, result)
    result.seconds = round(time.monotonic() - began, 1)
    return result


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every part has."""
    parser.add_argument("--rounds", type=int, help=f"rounds of each case; {ROUNDS}, or {QUICK_ROUNDS} with --quick")
    parser.add_argument("--quick", action="store_true", help="the short form")
    parser.add_argument("--only", nargs="*", default=[], metavar="CONTESTANT", help="leave out all others")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the events that a round normally has")
    parser.add_argument("--case", nargs="*", default=[], metavar="NAME=VALUE", help="leave out other cases")


def planned(options: argparse.Namespace) -> Plan:
    """The plan that the options ask for.

    Raises:
        SystemExit: a case is not NAME=VALUE, or a contestant is unknown.
    """
    named(options.only)
    if wrong := [case for case in options.case if "=" not in case]:
        raise SystemExit(f"--case takes NAME=VALUE, such as members=100, not {wrong[0]!r}.")
    return Plan(
        options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS),
        options.quick,
        tuple(options.only),
        options.scale,
        dict(case.split("=", 1) for case in options.case),
    )


def alone(part: Part) -> None:
    """The command of one part: run it as the arguments say, and print what it measured; nothing is written."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{part.name}", description=part.about)
    add_options(parser)
    result = asyncio.run(run(part, planned(parser.parse_args()), " ".join(sys.argv)))
    print(table(result))


def table(result: Result) -> str:
    """A line per case and contestant: each figure's median, with its lowest and highest round."""
    lines: list[str] = []
    for row in result.rows:
        case = " ".join(f"{name}={value}" for name, value in row.case.items())
        figures: list[str] = []
        for figure in row.figures:
            of = row.summary(figure)
            figures.append(f"{figure} {_short(of.median)} ({_short(of.low)} to {_short(of.high)})")
        lines.append(f"{case:18} {row.contestant:24} {'  '.join(figures)}")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004 - three digits say enough
