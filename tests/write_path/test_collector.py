"""The garbage collector waits for an event to very many clients, and for nothing else."""

import asyncio
import gc
from collections.abc import Generator

import pytest

from roomcast.core import collector, fanout
from roomcast.core.collector import Hold
from tests.write_path.test_lag import crowd
from tests.write_path.wire import turns

# pyright: reportPrivateUsage=false


@pytest.fixture(autouse=True)
def _as_it_was() -> Generator[None]:
    assert gc.isenabled()
    yield
    gc.enable()


def test_no_pass_begins_while_a_hold_exists() -> None:
    hold = Hold()
    assert not gc.isenabled()
    del hold
    assert gc.isenabled()


def test_a_collector_that_is_switched_off_stays_off() -> None:
    gc.disable()
    hold = Hold()
    del hold
    assert not gc.isenabled()


def test_it_is_over_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Hold().over
    monkeypatch.setattr(collector, "LIMIT", 0.0)
    assert Hold().over


async def test_an_event_for_many_holds_it_back_until_all_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "_MANY", 4)
    members = await crowd(8, direct=True)
    node = members[0].fanout
    clients = [member.client for member in members]
    node.send(clients[:4], ("few",))
    assert gc.isenabled()
    node.send(clients, ("many",))
    assert not gc.isenabled()
    for _ in range(50):
        if gc.isenabled():
            break
        assert not all(b"many" in member.wire.out for member in members) or not node._due
        await turns(1)
    assert gc.isenabled()
    assert all(b"many" in member.wire.out for member in members)
    for member in members:
        await member.end()


async def test_one_fan_out_after_the_other_lets_it_run_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "_MANY", 4)
    monkeypatch.setattr(collector, "LIMIT", 0.0)
    members = await crowd(8, direct=True)
    enabled = 0
    for number in range(20):
        members[0].fanout.send([member.client for member in members], (f"event {number}",))
        await turns(1)
        enabled += gc.isenabled()
    assert enabled > 5
    for member in members:
        await member.end()


def test_a_loop_that_is_closed_in_the_middle_leaves_it_switched_on() -> None:
    loop = asyncio.new_event_loop()
    loop.call_soon(id, Hold())
    assert not gc.isenabled()
    loop.close()
    assert gc.isenabled()
