"""Faults: what is lost, and who is told, when a broker, a link or a node fails under a stream of events.

Run: python -m bench run faults [--case fault=kill] [--only roomcast-redis node-redis]

Every case has two nodes and two clients of its own (`bench.faults.case`), on a broker that was started here and that
nobody else uses meanwhile. All settings are the libraries' own; Redis writes everything to its log at once
(`appendonly yes`, `appendfsync always`), so that it keeps its data.
"""

import asyncio
import os
import shutil
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path

from tests.services import Server

from bench.contestants import Contestant, lacking
from bench.faults.case import Fault, Stage, new_server, run
from bench.machine import broker_version
from bench.plan import Part, Plan
from bench.processes import ProcessFailed
from bench.report import Case, Result

EVERYONE = (
    "roomcast-redis", "roomcast-nats", "roomcast-amqp",
    "roomcast-redis-streams", "roomcast-nats-jetstream", "roomcast-amqp-streams",
    "python-socketio-redis", "python-socketio-amqp", "node-redis", "node-redis-streams",
)  # fmt: skip

DOWN = 1.0
"""Seconds between the end of a broker, or a node, and its new start."""
STOPPED = 5.0
"""Seconds for which what is stopped is stopped."""
BURST = 3000.0
"""Events a second in a burst."""
AT_ONCE = 2
"""Cases that run at the same time."""


async def _kill(stage: Stage) -> None:
    await stage.server.kill()
    await _back(stage)


async def _wipe(stage: Stage) -> None:
    await stage.server.kill()
    await asyncio.to_thread(_empty, stage.server.directory)
    await _back(stage)


async def _back(stage: Stage) -> None:
    await asyncio.sleep(DOWN)
    await stage.server.start()
    stage.over = time.monotonic()


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


async def _reset(stage: Stage) -> None:
    assert await stage.proxy.reset()
    stage.over = time.monotonic()


async def _stall(stage: Stage) -> None:
    await asyncio.to_thread(stage.server.stop)
    await asyncio.sleep(STOPPED)
    stage.server.cont()
    stage.over = time.monotonic()


async def _pause(stage: Stage) -> None:
    os.kill(stage.b.pid, signal.SIGSTOP)
    await asyncio.sleep(STOPPED)
    os.kill(stage.b.pid, signal.SIGCONT)
    stage.over = time.monotonic()


async def _crash(stage: Stage) -> None:
    await stage.a.kill()
    await asyncio.sleep(DOWN)
    await stage.begin("a")
    stage.over = time.monotonic()
    await stage.stream()


FAULTS = {
    "kill": Fault("The broker is killed (SIGKILL) and started again with its data", _kill),
    "reset": Fault("Every connection to the broker is reset", _reset, proxied=True),
    "stall": Fault("The broker stands still (SIGSTOP) for 5 s", _stall),
    "pause": Fault("The receiving node stands still (SIGSTOP) for 5 s", _pause),
    "burst": Fault(
        f"The same, while {BURST:,.0f} events a second are emitted",
        _pause,
        tuple(name for name in EVERYONE if not name.startswith("python")),  # which cannot emit so many
        rate=BURST,
    ),
    "crash": Fault("The emitting node is killed (SIGKILL), and started again", _crash),
    "wipe": Fault(
        "The broker is killed, and comes back without its data",
        _wipe,
        tuple(name for name in EVERYONE if "stream" in name or "amqp" in name),
    ),
}


async def measure(plan: Plan, result: Result) -> None:
    """Every fault, and in it every contestant whom it concerns; cases mostly wait, so some run at the same time."""
    contestants = plan.contestants(EVERYONE, result, _missing)
    turns = asyncio.Semaphore(AT_ONCE)
    idle: dict[str, list[Server]] = {one.broker: [] for one in contestants}

    async def one(case: Case, contestant: Contestant) -> None:
        servers = idle[contestant.broker]
        try:
            if not servers:
                servers.append(await stack.enter_async_context(new_server(contestant.broker)))
            server = servers.pop()
            result.versions |= broker_version(contestant.broker, server.url)
            figures = await run(contestant, FAULTS[str(case["fault"])], server)
            servers.append(server)
        except ProcessFailed as exc:
            print(f"  FAILED {contestant.name}, {case['fault']}: {exc}", flush=True)
            result.skipped[f"{contestant.name}, {case['fault']}"] = str(exc).partition("\n")[0]
        else:
            result.add(case, contestant.name, figures)
        finally:
            turns.release()

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for case in plan.cases([{"fault": name} for name in FAULTS]):
            only = FAULTS[str(case["fault"])].only or EVERYONE
            for contestant in plan.turns(case, [one for one in contestants if one.name in only]):
                await turns.acquire()
                group.create_task(one(case, contestant))
    faults = list(FAULTS)
    result.rows.sort(key=lambda row: (faults.index(str(row.case["fault"])), EVERYONE.index(row.contestant)))


def _missing(contestant: Contestant) -> str | None:
    server = new_server(contestant.broker)
    return lacking(contestant) or (None if server.find() else f"no {server.binary} on this machine")


PART = Part("faults", "what is lost, and who is told, when a broker, a link or a node fails", measure)
