"""How the cost of a delivery grows with rooms, nodes, members and payload.

Run: python -m bench.curves [--case curve=rooms] [--only roomcast-redis python-socketio-redis] [--rounds 2]

- rooms: node B has so many rooms of one member each, spread over 100 clients; A emits to them in turn.
- nodes: so many nodes in two processes, with ten members of one room each; A emits to it.
- members: the members of one room on node B.
- payload: bytes of the text in the event, to ten members on node B.
"""

from bench.contestants import Contestant
from bench.pair import nodes, stream
from bench.plan import Part, Plan, alone
from bench.remote_fanout import BYTES, events_for
from bench.remote_fanout import once as fan_out
from bench.report import Case, Result

EVERYONE = ("roomcast-redis", "roomcast-nats", "roomcast-amqp", "python-socketio-redis", "node-redis")
POINTS = {
    "rooms": (1, 100, 10_000, 100_000),
    "nodes": (1, 2, 8, 32),
    "members": (10, 100, 1000, 10_000),
    "payload": (20, 200, 2000, 20_000),
}
CLIENTS = 100
MEMBERS = 10
"""Of each node where nodes grow, and of the room where the payload does."""


async def rooms(plan: Plan, contestant: Contestant, count: int) -> dict[str, float]:
    """One round with so many rooms."""
    events = events_for(plan, contestant, 1) // 2
    async with nodes(contestant) as (sender, receiver):
        await receiver.ask("clients", count=min(count, CLIENTS))
        await receiver.ask("rooms", patience=600, count=count, prefix="room-")
        target = {"prefix": "room-", "count": count}
        sent, (counted,) = await stream(sender, [receiver], events=events, deliveries=events, size=BYTES, target=target)
    return {
        "deliveries_per_second": events / (counted["ended"] - sent["began"]),
        "sender_us_per_event": sent["cpu"] / events * 1e6,
        "receiver_us_per_delivery": counted["cpu"] / events * 1e6,
    }


async def simulated(plan: Plan, contestant: Contestant, count: int) -> dict[str, float]:
    """One round with so many nodes, besides the one that emits."""
    events = events_for(plan, contestant, MEMBERS * count)
    servers = (count,) if count == 1 else (count // 2, count - count // 2)
    async with nodes(contestant, (1, *servers)) as (sender, *receivers):
        for receiver in receivers:
            await receiver.ask("clients", count=MEMBERS, room="room")
        each = events * MEMBERS * count // len(receivers)
        sent, counted = await stream(
            sender, receivers, events=events, deliveries=each, size=BYTES, target={"room": "room"}
        )
    deliveries = each * len(receivers)
    return {
        "deliveries_per_second": deliveries / (max(one["ended"] for one in counted) - sent["began"]),
        "sender_us_per_event": sent["cpu"] / events * 1e6,
        "receiver_us_per_delivery": sum(one["cpu"] for one in counted) / deliveries * 1e6,
    }


async def once(plan: Plan, contestant: Contestant, case: Case) -> dict[str, float]:
    """One round of one point."""
    point = int(case["point"])
    match case["curve"]:
        case "rooms":
            return await rooms(plan, contestant, point)
        case "nodes":
            return await simulated(plan, contestant, point)
        case "members":
            return await fan_out(contestant, point, events_for(plan, contestant, point))
        case _:
            events = max(50, events_for(plan, contestant, MEMBERS) // 2 * 1000 // (1000 + point))
            return await fan_out(contestant, MEMBERS, events, point)


async def measure(plan: Plan, result: Result) -> None:
    """Every contestant at every point; two rounds, because it is the shape that counts."""
    contestants = plan.contestants(EVERYONE, result)
    points: list[Case] = [{"curve": curve, "point": point} for curve, of in POINTS.items() for point in of]
    for case in plan.cases(points):
        for contestant in plan.turns(case, contestants, 2):
            result.add(case, contestant.name, await once(plan, contestant, case))


PART = Part("curves", "the cost of a delivery as rooms, nodes, members and payload grow", measure)

if __name__ == "__main__":
    alone(PART)
