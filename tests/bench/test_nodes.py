"""The programs that are measured do what they are asked, each contestant's in its own runtime."""

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest
from bench.contestants import CONTESTANTS, Contestant, missing, named
from bench.pair import nodes, stream
from bench.plan import Plan
from bench.processes import ProcessFailed, start_node
from bench.report import Result

from tests.services import unavailable

ONE_OF_EACH = [CONTESTANTS[n] for n in ("roomcast-nats", "python-socketio-amqp", "node-redis", "node-redis-streams")]
WHOLE = [CONTESTANTS[name] for name in ("roomcast-redis", "python-socketio-redis", "node-redis-sharded")]


def available(contestant: Contestant) -> None:
    why = missing(contestant)
    if why is None:
        return
    if contestant.runtime == "node":  # `make bench-peers` installs what it needs; the suite does without
        pytest.skip(f"{contestant.name}: {why}")
    unavailable(contestant.name, why)


@pytest.mark.parametrize("contestant", ONE_OF_EACH, ids=lambda one: one.name)
async def test_what_one_node_emits_is_counted_at_the_other(contestant: Contestant) -> None:
    available(contestant)
    async with nodes(contestant) as (sender, receiver):
        await receiver.ask("clients", count=3, room="room")
        await receiver.ask("rooms", count=6, prefix="own-")
        everyone: dict[str, Any] = {"size": 10, "target": {"room": "room"}}
        sent, (counted,) = await stream(sender, [receiver], events=20, deliveries=60, **everyone)
        assert sent["cpu"] > 0
        assert counted["cpu"] > 0
        assert counted["ended"] > sent["began"]
        each: dict[str, Any] = {"size": 10, "target": {"prefix": "own-", "count": 6}, "in_flight": 4}
        await stream(sender, [receiver], events=24, deliveries=24, **each)
        await receiver.ask("watch", stamp=True)
        waiting = asyncio.ensure_future(receiver.ask("arrivals", packets=4, within=20))
        paced = await sender.ask("emit", events=4, per_second=100, **everyone)
        arrived = await waiting
        took = [there - here for here, there in zip(paced["stamps"], arrived["stamps"], strict=True)]
        assert all(seconds > 0 for seconds in took)


@pytest.mark.parametrize("contestant", WHOLE, ids=lambda one: one.name)
async def test_a_node_measures_what_it_is_asked_alone(contestant: Contestant) -> None:
    available(contestant)
    async with nodes(contestant, (1,)) as (node,):
        await node.ask("clients", count=2, room="lobby")
        cost = await node.ask("disconnect", times=3, shared="lobby", own="own-")
        assert len(cost["rooms"]) == len(cost["all"]) == 3
        assert min(cost["rooms"]) > 0
        assert (await node.ask("memory_of_memberships", rooms=200, members=5))["bytes"] > 20
        assert (await node.ask("memory_of_clients", count=100))["bytes"] > 500
        churned = await node.ask("churn", times=70, prefix="new-", fresh=False)
        assert churned["join"]["wall"] > 0
        assert churned["leave"]["cpu"] > 0
        await node.ask("forget")
        assert (await node.ask("usage"))["resident"] > 1_000_000


async def test_several_nodes_in_one_process_hear_one_another() -> None:
    async with await start_node(CONTESTANTS["roomcast-memory"], "several", servers=3) as process:
        await process.ask("clients", count=2, room="room")
        await process.ask("watch", stamp=False)
        await process.ask("emit", events=5, size=1, target={"room": "room"})
        counted = await process.ask("count", deliveries=30, within=20)
        assert counted["got"] == 30


async def test_what_fails_in_a_process_is_told_to_who_asks() -> None:
    async with await start_node(CONTESTANTS["roomcast-memory"], "failing") as process:
        with pytest.raises(ProcessFailed, match="'emit' failed"):
            await process.ask("emit", events="many")
        assert (await process.ask("usage"))["cpu"] > 0


def test_a_plan_leaves_out_and_names_who_cannot_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", Mock(return_value=None))
    missing.cache_clear()
    result = Result("part")
    try:
        names = ["roomcast-memory", "node-memory"]
        assert [one.name for one in Plan().contestants(names, result)] == ["roomcast-memory"]
    finally:
        missing.cache_clear()
    assert result.skipped == {"node-memory": "no node on this machine"}


def test_an_unknown_contestant_is_refused_by_name() -> None:
    with pytest.raises(SystemExit, match="no contestant 'roomcast-kafka'"):
        named(["roomcast-redis", "roomcast-kafka"])


def test_a_plan_has_the_cases_and_events_it_is_asked_for() -> None:
    plan = Plan(scale=0.5, where={"members": "100"})
    assert plan.cases([{"members": 1}, {"members": 100}, {"rooms": 5}]) == [{"members": 100}, {"rooms": 5}]
    assert plan.events(CONTESTANTS["roomcast-redis"], 4000, 2000, 1000) == 2000
    assert plan.events(CONTESTANTS["python-socketio-amqp"], 4000, 2000, 1000) == 125
    assert plan.arguments == ["--scale", "0.5", "--case", "members=100"]
