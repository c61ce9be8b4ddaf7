"""A test runs on the loops that it names, and on asyncio's own when it names none."""

import asyncio

import pytest

from tests.loops import ON_BOTH_LOOPS, ON_UVLOOP


def loop() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


async def test_a_test_runs_on_asyncio_s_own_loop() -> None:
    assert loop() == "asyncio"


@ON_UVLOOP
async def test_a_test_runs_on_uvloop() -> None:
    assert loop() == "uvloop"


@ON_BOTH_LOOPS
async def test_a_test_runs_on_both(request: pytest.FixtureRequest) -> None:
    assert loop() == request.node.callspec.id
