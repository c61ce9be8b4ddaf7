"""The command of the suite: `python -m bench run|list`.

    python -m bench run [PART ...] [--quick] [--rounds N] [--only CONTESTANT ...] [--resume]
    python -m bench list

`run` writes build/bench/PART.json for each part as it ends, so that a run that was interrupted goes on with --resume.
"""

import argparse
import asyncio
import shlex
import time
from importlib.util import find_spec

from bench.plan import PARTS, Plan, add_options, part, planned, run, table
from bench.report import RESULTS, load


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run", help="measure, and write build/bench/*.json")
    running.add_argument("parts", nargs="*", help="all if none is named")
    running.add_argument("--resume", action="store_true", help="leave out parts whose results are there already")
    add_options(running)
    verbs.add_parser("list", help="the parts and what they measure")
    options = parser.parse_args()
    if options.verb == "list":
        for name in present():
            print(f"{name:16} {part(name).about}")
    else:
        run_parts(options.parts or present(), planned(options), resume=options.resume)


def present() -> list[str]:
    """The parts whose modules are there."""
    return [name for name in PARTS if find_spec(f"bench.{name}") is not None]


def run_parts(names: list[str], plan: Plan, *, resume: bool) -> None:
    """Run parts one after the other, and write each one's results as it ends."""
    began = time.monotonic()
    for name in names:
        path = RESULTS / f"{name}.json"
        if resume and path.exists() and load(path).quick == plan.quick:
            print(f"{name}: there already", flush=True)
            continue
        print(f"{name} ...", flush=True)
        words = ["python", "-m", "bench", "run", name]
        words += ["--quick"] * plan.quick + ["--rounds", str(plan.rounds)]
        words += ["--only", *plan.only] * bool(plan.only)
        result = asyncio.run(run(part(name), plan, shlex.join(words)))
        result.save()
        print(table(result), flush=True)
        print(f"{name}: {result.seconds:.0f} s, {time.monotonic() - began:.0f} s in all\n", flush=True)


if __name__ == "__main__":
    main()
