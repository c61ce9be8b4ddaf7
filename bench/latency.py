"""From `emit` on node A until the packet waits for its transport on node B, at 200 events per second.

Run: python -m bench.latency [--only roomcast-redis python-socketio-redis] [--rounds 3]

Each event is stamped before `emit` is called and as the packet is put into its client's queue; both processes read
the same clock. The first half second does not count.
"""

import asyncio

from bench.contestants import Contestant
from bench.measure import percentile
from bench.pair import nodes
from bench.plan import Part, Plan, alone
from bench.processes import ProcessFailed
from bench.remote_fanout import BYTES, EVERYONE
from bench.report import Result

PER_SECOND = 200
WARM = PER_SECOND // 2


async def once(contestant: Contestant, events: int) -> dict[str, float]:
    """One round: figures by name."""
    packets = WARM + events
    async with nodes(contestant) as (sender, receiver):
        await receiver.ask("clients", count=1, room="room")
        await receiver.ask("watch", stamp=True)
        waiting = asyncio.ensure_future(receiver.ask("arrivals", packets=packets, within=60))
        sent = await sender.ask("emit", events=packets, size=BYTES, target={"room": "room"}, per_second=PER_SECOND)
        arrived = await waiting
    if arrived["got"] != packets:
        raise ProcessFailed(f"{contestant.name}: {arrived['got']} of {packets} packets arrived")
    pairs = list(zip(sent["stamps"], arrived["stamps"], strict=True))[WARM:]
    took = [(there - here) * 1e6 for here, there in pairs]
    return {
        "p50_us": percentile(took, 0.5),
        "p99_us": percentile(took, 0.99),
        "sender_us_per_event": sent["cpu"] / packets * 1e6,
        "receiver_us_per_event": arrived["cpu"] / packets * 1e6,
    }


async def measure(plan: Plan, result: Result) -> None:
    """Every contestant."""
    quick = ("roomcast-redis", "python-socketio-redis")
    contestants = plan.contestants(quick if plan.quick else EVERYONE, result)
    for case in plan.cases([{"per_second": PER_SECOND}]):
        for contestant in plan.turns(case, contestants, 3):
            result.add(case, contestant.name, await once(contestant, 200 if plan.quick else 500))


PART = Part("latency", "from emit to a packet that waits on another node, at 200 events per second", measure)

if __name__ == "__main__":
    alone(PART)
