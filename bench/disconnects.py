"""What a disconnect costs while many rooms exist on the node.

Run: python -m bench.disconnects [--case rooms=100000] [--only roomcast-redis python-socketio-redis]

The client is in two rooms, one that others are in and one of its own. `forget_us` is what the manager, or adapter,
takes to forget it; `disconnect_us` is all that the server does when the connection is lost. What follows later, such
as unsubscribing, is in `bench.joins`. Medians of 30 clients in each round, wall-clock microseconds of one process.
"""

from statistics import median

from bench.contestants import Contestant
from bench.pair import nodes
from bench.plan import Part, Plan, alone
from bench.report import Result

CLIENTS = 100
TIMES = 30


async def once(contestant: Contestant, rooms: int) -> dict[str, float]:
    """One round: figures by name."""
    async with nodes(contestant, (1,)) as (node,):
        await node.ask("clients", count=CLIENTS, room="lobby")
        await node.ask("rooms", patience=600, count=rooms, prefix="room-")
        cost = await node.ask("disconnect", times=TIMES, shared="lobby", own="own-")
    return {"forget_us": median(cost["rooms"]), "disconnect_us": median(cost["all"])}


async def measure(plan: Plan, result: Result) -> None:
    """The contestants on Redis, and roomcast on the other brokers."""
    everyone = (
        "roomcast-redis", "roomcast-nats", "roomcast-amqp", "python-socketio-redis", "node-redis", "node-redis-sharded",
    )  # fmt: skip
    quick = ("roomcast-redis", "python-socketio-redis")
    contestants = plan.contestants(quick if plan.quick else everyone, result)
    for case in plan.cases([{"rooms": rooms} for rooms in ((100, 10_000) if plan.quick else (100, 10_000, 100_000))]):
        for contestant in plan.turns(case, contestants, 3):
            result.add(case, contestant.name, await once(contestant, int(case["rooms"])))


PART = Part("disconnects", "a disconnect while many rooms exist", measure)

if __name__ == "__main__":
    alone(PART)
