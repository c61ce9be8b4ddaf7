"""What a message costs a node that has no use for it: node A emits to a room whose only member is on node B.

Run: python -m bench.uninterested [--only roomcast-redis python-socketio-redis] [--rounds 3]

CPU of node C per event; it has a client of its own, in another room. C is not looked at meanwhile: the last event
goes to its client, and C's CPU is taken when that arrives.
"""

import asyncio

from bench.contestants import Contestant
from bench.pair import nodes, stream
from bench.plan import Part, Plan, alone
from bench.processes import ProcessFailed
from bench.remote_fanout import BYTES, EVERYONE
from bench.report import Result


async def once(contestant: Contestant, events: int) -> dict[str, float]:
    """One round: figures by name."""
    async with nodes(contestant, (1, 1, 1)) as (sender, busy, calm):
        await busy.ask("clients", count=1, room="busy")
        await calm.ask("clients", count=1, room="calm")
        await calm.ask("watch", stamp=True)
        waiting = asyncio.ensure_future(calm.ask("arrivals", packets=1, within=60))
        await stream(sender, [busy], events=events, deliveries=events, size=BYTES, target={"room": "busy"})
        await sender.ask("emit", events=1, size=BYTES, target={"room": "calm"})
        waited = await waiting
    if waited["got"] != 1:
        raise ProcessFailed(f"{contestant.name}: what was emitted last has not arrived")
    return {"us_per_message": waited["cpu"] / events * 1e6}


async def measure(plan: Plan, result: Result) -> None:
    """Every contestant."""
    quick = ("roomcast-redis", "python-socketio-redis")
    contestants = plan.contestants(quick if plan.quick else EVERYONE, result)
    for case in plan.cases([{"size": BYTES}]):
        for contestant in plan.turns(case, contestants):
            events = plan.events(contestant, 40_000, 20_000, 4000)
            result.add(case, contestant.name, await once(contestant, events))


PART = Part("uninterested", "what a message costs a node that has no use for it", measure)

if __name__ == "__main__":
    alone(PART)
