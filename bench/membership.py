"""Memory: bytes per membership of a room, and per client without a transport.

Run: python -m bench.membership [--case members=1] [--only roomcast-redis python-socketio-redis]

Bytes of the heap: what tracemalloc counts in Python, what V8 counts, and holds outside, in Node.js, each after a full
collection. The nodes are on their broker, so what a room's subscription takes is in it. Members 0 is the clients
themselves, in no room but their own; a client with a websocket takes more (see `bench.connections`).
"""

from bench.contestants import Contestant
from bench.pair import nodes
from bench.plan import Part, Plan, alone
from bench.report import Result

EVERYONE = (
    "roomcast-redis", "roomcast-nats", "roomcast-amqp", "roomcast-memory", "python-socketio-redis",
    "python-socketio-memory", "node-redis", "node-redis-sharded", "node-memory",
)  # fmt: skip
ROOMS = {1000: 50, 10: 1500, 1: 10_000}
CLIENTS = 2000


async def once(contestant: Contestant, members: int, rooms: int) -> dict[str, float]:
    """One round: bytes per membership, or per client."""
    async with nodes(contestant, (1,)) as (node,):
        if not members:
            await node.ask("clients", count=10)
            return {"bytes": (await node.ask("memory_of_clients", count=CLIENTS))["bytes"]}
        return {"bytes": (await node.ask("memory_of_memberships", rooms=rooms, members=members))["bytes"]}


async def measure(plan: Plan, result: Result) -> None:
    """Every contestant with rooms of 1000, 10 and 1 members; once, because the bytes hardly vary."""
    quick = ("roomcast-redis", "python-socketio-redis")
    contestants = plan.contestants(quick if plan.quick else EVERYONE, result)
    for case in plan.cases([{"members": members} for members in ((10, 1) if plan.quick else (1000, 10, 1, 0))]):
        members = int(case["members"])
        rooms = ROOMS.get(members, 0) // (4 if plan.quick else 1)
        for contestant in plan.turns(case, contestants, 1):
            result.add(case, contestant.name, await once(contestant, members, rooms))


PART = Part("membership", "memory per membership and per client", measure)

if __name__ == "__main__":
    alone(PART)
