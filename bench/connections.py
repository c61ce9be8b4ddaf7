"""Many connections: websocket clients on two nodes of one machine, all in one room, and an event to all of them.

Run: python -m bench.connections [--clients 20000] [--only roomcast-redis python-socketio-redis] [--rounds 3]

Each round starts two nodes, connects the clients (half of them on each node, 100 of them on the way at a time), and
emits one event of 200 bytes at node A, ten times. It tells

- bytes of memory that both nodes grew by for each connection, and clients connected in a second, and
  the server CPU for each, with the upkeep meanwhile of those that were there before;
- the milliseconds from `emit` until the last client has the event, and how late the event loop of the slower node was
  meanwhile, measured every 5 ms in the server process: the worst of all, and the 99th percentile.

Python's garbage collector, as it is set by itself, looks again and again through the objects of all connections; so the
Python contestants also take part with `gc.set_threshold(5_000, 5, 1_000)`, as "(gc rare)". See
docs/how-to/many-connections.md.

The time is the median of the ten, the lag that of all ten together. The load runs on the same machine, in one process
for each 8,000 clients, and takes its part of the processors.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack

from bench.end_to_end_course import Course, Entrant, Settings
from bench.measure import interleave
from bench.plan import Part, Plan, add_options, planned, run, table
from bench.report import Result

EVERYONE = ("roomcast-redis", "python-socketio-redis", "node-redis")
QUICK = ("roomcast-redis", "python-socketio-redis")
CLIENTS = 20_000
QUICK_CLIENTS = 1000
GC_RARE = (5_000, 5, 1_000)
BROADCASTS = 10
ROUNDS = 1
"""At most: a round of 20,000 clients takes a minute for each contestant, and has ten broadcasts in it."""


async def measure(plan: Plan, result: Result) -> None:
    """Everyone, with the clients of the plan."""
    await measure_with(plan, result, QUICK_CLIENTS if plan.quick else CLIENTS)


async def measure_with(plan: Plan, result: Result, clients: int, trees: Sequence[str] = ()) -> None:
    """So many clients of everyone, in turn: one contestant is up at a time."""
    contestants = plan.contestants(QUICK if plan.quick else EVERYONE, result)
    entrants = [Entrant(contestant) for contestant in contestants]
    entrants += [Entrant(one, gc=GC_RARE) for one in contestants if one.runtime == "python" and not plan.quick]
    entrants += [Entrant(one, tree=tree) for one in contestants for tree in trees if one.library == "roomcast"]
    for case in plan.cases([{"clients": clients}]):
        for _, entrant in interleave(entrants, min(plan.rounds, ROUNDS)):
            result.add(case, entrant.name, await once(entrant, clients))


async def once(entrant: Entrant, clients: int) -> dict[str, float]:
    """One round of one contestant."""
    async with AsyncExitStack() as stack:
        course = Course(entrant, Settings(clients=clients, events=1000))
        await course.start(stack)
        await course.broadcasts(2)  # subscriptions take effect, buffers grow
        return {
            "bytes_per_connection": course.growth / clients,
            "connections_per_second": clients / course.connecting,
            "server_us_per_connection": course.connecting_cpu / clients * 1e6,
            **await course.broadcasts(BROADCASTS),
        }


PART = Part("connections", "20,000 websocket clients on two nodes: memory, connecting, an event to all", measure)


def main() -> None:
    """Run this part alone, with another number of clients, and print what it measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--tree", nargs="*", default=[], help="other working trees, to compare their roomcast")
    options = parser.parse_args()

    async def alone(plan: Plan, result: Result) -> None:
        await measure_with(plan, result, options.clients, options.tree)

    print(table(asyncio.run(run(Part(PART.name, PART.about, alone), planned(options), " ".join(sys.argv)))))


if __name__ == "__main__":
    main()
