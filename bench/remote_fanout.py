"""Remote fan-out: node A emits to a room as fast as it can, the members sit on node B.

Run: python -m bench.remote_fanout [--case members=100] [--only roomcast-redis python-socketio-redis] [--rounds 3]

Events per second from the first emit until the last client's packet waits for its transport; CPU of the sender per
event, and of the receiver per delivery.
"""

from bench.contestants import Contestant
from bench.pair import nodes, stream
from bench.plan import Part, Plan, alone
from bench.report import Result

BYTES = 200
EVERYONE = (
    "roomcast-redis", "roomcast-nats", "roomcast-amqp", "python-socketio-redis", "python-socketio-amqp",
    "node-redis", "node-redis-sharded", "node-redis-streams",
)  # fmt: skip
"""All who join nodes over a broker."""


async def once(contestant: Contestant, members: int, events: int, size: int = BYTES) -> dict[str, float]:
    """One round: figures by name."""
    async with nodes(contestant) as (sender, receiver):
        await receiver.ask("clients", count=members, room="room")
        sent, (counted,) = await stream(
            sender, [receiver], events=events, deliveries=events * members, size=size, target={"room": "room"}
        )
    seconds = counted["ended"] - sent["began"]
    return {
        "events_per_second": events / seconds,
        "deliveries_per_second": events * members / seconds,
        "sender_us_per_event": sent["cpu"] / events * 1e6,
        "receiver_us_per_event": counted["cpu"] / events * 1e6,
        "receiver_us_per_delivery": counted["cpu"] / (events * members) * 1e6,
    }


def events_for(plan: Plan, contestant: Contestant, members: int) -> int:
    """How many events make a round of about half a second."""
    share = 80 / (members + 80)
    return plan.events(contestant, int(40_000 * share), int(20_000 * share), int(5000 * share))


async def measure(plan: Plan, result: Result) -> None:
    """Every contestant with 1, 100 and 1000 members."""
    quick = ("roomcast-redis", "roomcast-nats", "roomcast-amqp", "python-socketio-redis", "python-socketio-amqp")
    contestants = plan.contestants(quick if plan.quick else EVERYONE, result)
    for case in plan.cases([{"members": members} for members in ((1, 100) if plan.quick else (1, 100, 1000))]):
        members = int(case["members"])
        for contestant in plan.turns(case, contestants):
            events = events_for(plan, contestant, members)
            result.add(case, contestant.name, await once(contestant, members, events))


PART = Part("remote_fanout", "events to the members of a room on another node", measure)

if __name__ == "__main__":
    alone(PART)
