"""Simulate clusters from seeds: `python -m tests.simulation --seeds 1000`, or one with its trace: `--seed 7`."""

import argparse
import itertools
import multiprocessing
import sys
import time
from collections.abc import Sequence
from typing import cast

from tests.simulation.plan import KINDS, Plan, WorldKind, plan
from tests.simulation.simulate import Result, command, shrink, simulate


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed alone and print all that happened")
    parser.add_argument("--only", help="of that seed, only these steps: 3,5,8")
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to run (100)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--world", choices=KINDS, help="only clusters of this kind; else the seed says")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of steps, after each of which all is quiet (2)")
    parser.add_argument("--steps", type=int, default=40, help="steps in a round (40)")
    parser.add_argument("--processes", type=int, default=1, help="how many seeds at the same time (1)")
    return parser.parse_args(words)


def _plan(seed: int, arguments: argparse.Namespace) -> Plan:
    world = cast("WorldKind | None", arguments.world)
    return plan(seed, world=world, steps=arguments.steps, rounds=arguments.rounds)


def _run(job: tuple[int, argparse.Namespace]) -> tuple[int, list[str], int]:
    seed, arguments = job
    result = simulate(_plan(seed, arguments))
    return seed, result.findings, result.turns


def _replay(arguments: argparse.Namespace) -> int:
    chosen = _plan(arguments.seed, arguments)
    if arguments.only is not None:
        chosen = chosen.only([int(number) for number in arguments.only.split(",") if number])
    result = simulate(chosen)
    for line in result.history.lines():
        print(line)
    return _report(result)


def _report(result: Result) -> int:
    steps = [step for steps in result.plan.rounds for step in steps]
    print(f"seed {result.plan.seed}, {result.plan.world}, {result.plan.nodes} nodes, {len(steps)} steps,", end=" ")
    print(f"{result.turns} callbacks, history {result.history.digest()}")
    print("\n".join(result.findings) or "every promise is kept")
    return 1 if result.findings else 0


def _run_many(arguments: argparse.Namespace) -> int:
    began, turns, failed = time.monotonic(), 0, list[int]()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    jobs = zip(seeds, itertools.repeat(arguments), strict=False)
    with multiprocessing.Pool(arguments.processes) as pool:
        for seed, findings, ran in pool.imap(_run, jobs, chunksize=4):
            turns += ran
            if findings:
                failed.append(seed)
                _tell(seed, findings, arguments)
    took = time.monotonic() - began
    print(f"{len(seeds)} seeds, {turns} callbacks, {took:.0f} s: {len(failed)} failed {failed or ''}".rstrip())
    return 1 if failed else 0


def _tell(seed: int, findings: list[str], arguments: argparse.Namespace) -> None:
    whole = _plan(seed, arguments)
    short = shrink(simulate(whole))
    print(f"seed {seed}: {findings[0]}" + (f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""))
    print(f"    {command(short.plan, whole=whole)}", flush=True)


def main(words: Sequence[str]) -> int:
    arguments = _arguments(words)
    return _run_many(arguments) if arguments.seed is None else _replay(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
