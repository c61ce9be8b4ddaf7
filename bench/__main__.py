"""The command of the suite: `python -m bench list|run|goals|page|check`.

python -m bench list                      the parts, and what they measure
python -m bench run [PART ...]            measure, and write build/bench/PART.json as each part ends
python -m bench run --resume              go on with a run that was interrupted: leave out what is there already
python -m bench goals                     each goal, what was measured, met or missed
python -m bench page                      write docs/explanation/performance.md and its plots, and the tables of
                                          docs/explanation/failure-model.md, each if there are results for it
python -m bench run --quick               the short form, into build/bench/quick
python -m bench check                     fail unless the short form shows the ratios that CI insists on
"""

import argparse
import asyncio
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from bench.faults.page import fill
from bench.goals import GOALS, GUARDS, Goal, judge, short
from bench.page import page
from bench.plan import APART, PARTS, QUICK_PARTS, Plan, add_options, part, planned, run, table
from bench.plots import draw
from bench.report import RESULTS, load_all

QUICK_RESULTS = RESULTS / "quick"
PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "performance.md"
FAULTS_PAGE = PAGE.with_name("failure-model.md")


def main() -> int:
    """Do what the arguments say; 1 if a check failed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run", help="measure")
    running.add_argument("parts", nargs="*", help="all if none is named")
    running.add_argument("--resume", action="store_true", help="leave out parts whose results are there already")
    add_options(running)
    doing: dict[str, Callable[[], int]] = {
        "list": list_parts,
        "goals": lambda: say(GOALS, RESULTS),
        "check": check,
        "page": write_page,
    }
    for verb in doing:
        verbs.add_parser(verb)
    options = parser.parse_args()
    if options.verb != "run":
        return doing[options.verb]()
    plan = planned(options)
    names = options.parts or (QUICK_PARTS if plan.quick else [name for name in present() if name not in APART])
    run_parts(names, plan, resume=options.resume)
    return 0


def present() -> list[str]:
    """The parts whose modules are there."""
    return [name for name in PARTS if find_spec(f"bench.{name}") is not None]


def list_parts() -> int:
    """Print the parts."""
    for name in present():
        print(f"{name:16} {part(name).about}")
    return 0


def run_parts(names: Sequence[str], plan: Plan, *, resume: bool) -> None:
    """Run parts one after the other, and write each one's results as it ends."""
    directory = QUICK_RESULTS if plan.quick else RESULTS
    began = time.monotonic()
    for name in names:
        if resume and (directory / f"{name}.json").exists():
            print(f"{name}: there already", flush=True)
            continue
        print(f"{name} ...", flush=True)
        result = asyncio.run(run(part(name), plan, shlex.join(["python", "-m", "bench", "run", name, *plan.arguments])))
        result.save(directory)
        print(table(result), flush=True)
        print(f"{name}: {result.seconds:.0f} s, {time.monotonic() - began:.0f} s in all\n", flush=True)


def say(goals: Sequence[Goal], directory: Path) -> int:
    """Print each goal, what was measured, and whether it is met; 1 if one is missed."""
    results = load_all(directory)
    outcomes = [judge(goal, results) for goal in goals]
    for outcome in outcomes:
        times = "" if outcome.goal.than is None else " times"
        value = "" if outcome.value is None else f"{short(outcome.value)}{times}, "
        word = {True: "met", False: "MISSED", None: "not measured"}[outcome.met]
        print(f"{word:12} {outcome.goal.about}: {value}{outcome.goal.bound}")
    print(f"{sum(one.met is True for one in outcomes)} met, {sum(one.met is False for one in outcomes)} missed")
    return int(any(outcome.met is False for outcome in outcomes))


def check() -> int:
    """Hold the short form to its bounds; what was skipped is named, and what should be there and is not fails."""
    results = load_all(QUICK_RESULTS)
    if missing := [name for name in QUICK_PARTS if name not in results]:
        print(f"No results of {missing[0]}: python -m bench run --quick makes them.")
        return 1
    skipped = {name: why for result in results.values() for name, why in result.skipped.items()}
    for name, why in skipped.items():
        print(f"SKIPPED      {name}: {why}")
    wanted = [goal for goal in GUARDS if not {one.contestant for one in (goal.ours, goal.than) if one} & set(skipped)]
    if unmeasured := [goal for goal in wanted if judge(goal, results).met is None]:
        print(f"Not measured: {unmeasured[0].about}.")
        return 1
    return say(wanted, QUICK_RESULTS)


def write_page() -> int:
    """Write the pages that there are results for, and the results beside them."""
    results = load_all(RESULTS)
    if (faults := results.pop("faults", None)) is not None:
        faults.save(FAULTS_PAGE.with_suffix(""))
        FAULTS_PAGE.write_text(fill(FAULTS_PAGE.read_text(), faults))
        print(FAULTS_PAGE)
    if not results:
        return 0
    directory = PAGE.with_suffix("")
    for path in draw(results, directory):
        print(path)
    for name in results:
        shutil.copy(RESULTS / f"{name}.json", directory / f"{name}.json")
    PAGE.write_text(page(results))
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
