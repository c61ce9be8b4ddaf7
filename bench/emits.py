"""Emits into rooms that have no members anywhere, with 64 of them in flight: what a publisher costs alone.

Run: python -m bench.emits [--only roomcast-redis python-socketio-redis] [--rounds 3]

CPU of the emitting process per emit, and emits per second until the broker has all of them. "In flight" is: 64 tasks,
each awaiting its `emit`, in Python; 64 commands to Redis that wait for their answer in Node.js, whose `emit` cannot be
awaited. roomcast's `emit` returns once the event is accepted; the contestant with "confirm" awaits the broker as well.
"""

from bench.contestants import Contestant
from bench.pair import nodes
from bench.plan import Part, Plan, alone
from bench.remote_fanout import BYTES, EVERYONE
from bench.report import Result

IN_FLIGHT = 64
ROOMS = 1000


async def once(contestant: Contestant, events: int) -> dict[str, float]:
    """One round: figures by name."""
    target = {"prefix": "nobody-", "count": ROOMS}
    async with nodes(contestant, (1,)) as (sender,):
        await sender.ask("emit", events=events // 20, size=BYTES, target=target, in_flight=IN_FLIGHT)  # warm
        sent = await sender.ask("emit", events=events, size=BYTES, target=target, in_flight=IN_FLIGHT)
    return {
        "us_per_emit": sent["cpu"] / events * 1e6,
        "emits_per_second": events / (sent["ended"] - sent["began"]),
    }


async def measure(plan: Plan, result: Result) -> None:
    """Every contestant."""
    quick = ("roomcast-redis", "roomcast-redis-confirm", "python-socketio-redis")
    contestants = plan.contestants(quick if plan.quick else ("roomcast-redis-confirm", *EVERYONE), result)
    for case in plan.cases([{"in_flight": IN_FLIGHT}]):
        for contestant in plan.turns(case, contestants):
            events = plan.events(contestant, 40_000, 20_000, 4000)
            result.add(case, contestant.name, await once(contestant, events))


PART = Part("emits", "emits into rooms without members, 64 in flight", measure)

if __name__ == "__main__":
    alone(PART)
