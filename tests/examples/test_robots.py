"""The robots of the examples: an operator commands them wherever they are, and is told who is silent."""

import asyncio
from typing import Any

import pytest

from tests.adapter.servers import Client
from tests.examples.running import Example, apart, example


async def test_an_operator_commands_one_robot_and_a_fleet(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOT_PATIENCE", "0.5")
    async with example("robots", apart(redis_url)) as robots:
        operator = await robots.client(0, "/operators")
        first, second = await robot(robots, 0, "r1"), await robot(robots, 1, "r2")
        first.answers["command"] = obey
        second.answers["command"] = obey
        assert await ask(operator, "count", "north") == 2

        assert await ask(operator, "command", {"robot": "r2"}, "dock") == {
            "done": {"r2": "dock: done"},
            "silent": [],
        }
        assert await operator.hear("answered") == [("answered", "r2", "dock: done")]

        silent = await robot(robots, 1, "r3")
        silent.socket.on("command", never, namespace="/robots")
        answer = await ask(operator, "command", {"fleet": "north"}, "stop")
        assert answer == {"done": {"r1": "stop: done", "r2": "stop: done"}, "silent": ["r3"]}
        assert {shown[1] for shown in [await operator.only("answered"), await operator.only("answered")]} == {
            "r1",
            "r2",
        }


async def test_a_fleet_is_listed_with_what_its_robots_told(redis_url: str) -> None:
    async with example("robots", apart(redis_url)) as robots:
        operator = await robots.client(0, "/operators")
        first, second = await robot(robots, 0, "r1"), await robot(robots, 1, "r2")
        await first.socket.call("battery", 80, namespace="/robots", timeout=10)
        await second.socket.call("battery", 7, namespace="/robots", timeout=10)
        assert await ask(operator, "fleet", "north") == [
            {"name": "r1", "battery": 80, "process": first.sid[:6]},
            {"name": "r2", "battery": 7, "process": second.sid[:6]},
        ]
        assert await ask(operator, "fleet", "south") == []


async def robot(robots: Example, process: int, name: str) -> Client:
    return await robots.client(process, "/robots", auth={"name": name, "fleet": "north"})


async def ask(operator: Client, event: str, *args: Any) -> Any:
    return await operator.socket.call(event, args, namespace="/operators", timeout=10)


def obey(order: str) -> str:
    return f"{order}: done"


async def never(_order: str) -> None:
    await asyncio.Event().wait()
