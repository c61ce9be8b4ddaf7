"""What it costs to join and to leave a room.

Run: python -m bench.joins [--case others=0] [--only roomcast-redis python-socketio-redis]

One client joins 2000 rooms, 64 at a time, and leaves them again; CPU of the node, and time, per room. With `others` 0
nobody else of the node is in them: a node that subscribes to rooms subscribes and unsubscribes. roomcast's
`enter_room` returns once the broker hears for the node; python-socketio subscribes to no room; Node's `join` does not
wait, and is counted until Redis has heard of the last room. roomcast unsubscribes later; that CPU is in the leave's.
"""

from bench.contestants import Contestant
from bench.pair import nodes
from bench.plan import Part, Plan, alone
from bench.report import Result

TIMES = 2000


async def once(contestant: Contestant, others: int) -> dict[str, float]:
    """One round: figures by name."""
    async with nodes(contestant, (1,)) as (node,):
        cost = await node.ask("churn", times=TIMES, prefix="room-", fresh=not others)
    return {
        "join_cpu_us": cost["join"]["cpu"],
        "leave_cpu_us": cost["leave"]["cpu"],
        "join_us": cost["join"]["wall"],
        "leave_us": cost["leave"]["wall"],
    }


async def measure(plan: Plan, result: Result) -> None:
    """Every contestant, in rooms that others are in and in rooms that are new to the node."""
    everyone = (
        "roomcast-redis", "roomcast-nats", "roomcast-amqp", "python-socketio-redis", "node-redis", "node-redis-sharded",
    )  # fmt: skip
    contestants = plan.contestants(everyone, result)
    for case in plan.cases([{"others": 1}, {"others": 0}]):
        for contestant in plan.turns(case, contestants, 3):
            result.add(case, contestant.name, await once(contestant, int(case["others"])))


PART = Part("joins", "joining and leaving a room", measure)

if __name__ == "__main__":
    alone(PART)
