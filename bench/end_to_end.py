"""End to end: real websocket clients on two server processes, all in one room; one of the processes emits.

Run: python -m bench.end_to_end [--only roomcast-redis python-socketio-redis node-redis] [--case mode=burst]
     [--rounds 3] [--clients 1000] [--tree ../another-worktree]

Four processes for each contestant: two nodes, the load with all the clients (half of them on each node), and this one,
which steers. Node A emits 200-byte events to the room: in a burst as fast as it can, with 16 events under way at most;
paced at 5,000 deliveries a second; and idle, with pings alone, which are in the cost of paced deliveries, too. Clients
connect over 25 seconds, a period of these pings, so that each turn has its share of them. Settings of all servers are
those they have by themselves.

Server CPU is that of both nodes, by resource usage, from before the first emit until after the last arrival; load and
broker are not in it. Every client checks the bytes of every event against what must come next: lost, duplicated and
reordered events are counted, and must be 0. Latency is from the call of `emit` to the read in the load, on the clock
that all processes share. All contestants are up and connected throughout, so that their turns are close together.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack

from bench.end_to_end_course import Course, Entrant, Figures, Settings
from bench.measure import interleave
from bench.plan import Part, Plan, add_options, planned, run, table
from bench.report import Result

EVERYONE = (
    "roomcast-redis", "roomcast-nats", "roomcast-amqp", "python-socketio-redis",
    "node-redis", "node-redis-sharded", "node-redis-streams",
)  # fmt: skip
QUICK = ("roomcast-redis", "roomcast-nats", "roomcast-amqp", "python-socketio-redis")
OTHER_WS = ("websockets", "wsproto")
"""The websocket implementations that uvicorn does not choose by itself where `websockets` is installed."""

ARRIVAL = 25.0
"""Seconds over which clients connect: one period of Engine.IO's pings."""

WARM = 20
"""Events before anything is measured: subscriptions take effect, buffers grow, code is compiled."""

MODES = ("burst", "paced", "idle")


async def measure(plan: Plan, result: Result) -> None:
    """Everyone, and with the other websocket implementations those who are compared first."""
    settings = Settings(seconds=0.7, paced_seconds=2.0) if plan.quick else Settings(arrival=ARRIVAL)
    await measure_with(plan, result, settings)
    if not plan.quick:
        for ws in OTHER_WS:
            await measure_with(plan, result, settings, ws=ws, names=("roomcast-redis", "python-socketio-redis"))


async def measure_with(
    plan: Plan,
    result: Result,
    settings: Settings,
    *,
    ws: str = "auto",
    names: Sequence[str] = EVERYONE,
    trees: Sequence[str] = (),
) -> None:
    """Turns of bursts, then turns of paced emits, in each round.

    Args:
        plan: rounds, and who may take part in what.
        result: what it is added to.
        settings: the same for all.
        ws: uvicorn's websocket implementation; named in the case when it is not the usual one.
        names: contestants.
        trees: working trees whose roomcast takes part beside this one's.
    """
    contestants = plan.contestants(QUICK if plan.quick else names, result)
    entrants = [Entrant(contestant, ws) for contestant in contestants]
    entrants += [Entrant(one, ws, tree) for one in contestants for tree in trees if one.library == "roomcast"]
    modes = {mode if ws == "auto" else f"{mode} on {ws}": mode for mode in MODES}
    cases = plan.cases([{"mode": named} for named in modes])
    if not cases or not entrants:
        return
    async with AsyncExitStack() as stack:
        courses = [Course(entrant, settings) for entrant in entrants]
        await asyncio.gather(*(course.start(stack) for course in courses))
        for course in courses:
            await course.burst(10.0, WARM)
        for case in cases:
            for _, course in interleave(courses, plan.rounds):
                result.add(case, course.entrant.name, await once(course, modes[str(case["mode"])]))


async def once(course: Course, mode: str) -> Figures:
    """One round of one contestant in one mode."""
    if mode == "burst":
        return await course.burst()
    if mode == "paced":
        return await course.paced()
    return await course.idle(course.settings.paced_seconds)


PART = Part("end_to_end", "real websocket clients on two nodes: deliveries, server CPU and latency", measure)


def main() -> None:
    """Run this part alone, with settings of one's own, and print what it measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    usual = Settings()
    parser.add_argument("--clients", type=int, default=usual.clients)
    parser.add_argument("--size", type=int, default=usual.size)
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="length of a burst")
    parser.add_argument("--in-flight", type=int, default=usual.in_flight, help="events under way in a burst")
    parser.add_argument("--deliveries", type=float, default=usual.deliveries, help="a second, when paced")
    parser.add_argument("--paced-seconds", type=float, default=usual.paced_seconds)
    parser.add_argument("--arrival", type=float, default=ARRIVAL, help="seconds over which clients connect")
    parser.add_argument("--ws", default="auto", help="uvicorn's websocket implementation")
    parser.add_argument("--tree", nargs="*", default=[], help="other working trees, to compare their roomcast")
    options = parser.parse_args()
    settings = Settings(
        options.clients,
        options.size,
        options.seconds,
        options.in_flight,
        options.deliveries,
        options.paced_seconds,
        options.arrival,
    )

    async def alone(plan: Plan, result: Result) -> None:
        await measure_with(plan, result, settings, ws=options.ws, trees=options.tree)

    part = Part(PART.name, PART.about, alone)
    print(table(asyncio.run(run(part, planned(options), " ".join(sys.argv)))))


if __name__ == "__main__":
    main()
