"""A small end-to-end measurement on a real broker: `bench/end_to_end_course.py` and what it starts."""

from contextlib import AsyncExitStack

import pytest
from bench.contestants import CONTESTANTS, URLS
from bench.end_to_end_course import Course, Entrant, Settings


@pytest.mark.parametrize("name", ["roomcast-redis", "python-socketio-redis"])
async def test_every_event_reaches_every_client_in_every_mode(
    name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URLS["redis"][0], redis_url)
    settings = Settings(clients=7, deliveries=700, paced_seconds=0.1, events=100)
    async with AsyncExitStack() as stack:
        course = Course(Entrant(CONTESTANTS[name]), settings)
        await course.start(stack)
        burst = await course.burst(5.0, 30)
        paced = await course.paced()
        broadcasts = await course.broadcasts(2)
    for figures in (burst, paced, broadcasts):
        assert (figures["lost"], figures["duplicated"], figures["reordered"]) == (0, 0, 0)
        assert figures["server_us_per_delivery"] > 0
    assert 0 < paced["p50_ms"] <= paced["p99_ms"]
    assert broadcasts["last_ms"] > 0
    assert broadcasts["lag_p99_ms"] <= broadcasts["lag_max_ms"]
