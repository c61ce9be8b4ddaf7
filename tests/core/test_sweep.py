"""The look at all connections: `src/core/sweep.py`."""

import asyncio
import logging
import time
from typing import Any, cast

import engineio
import pytest
import socketio
from engineio.async_socket import AsyncSocket

import roomcast
from roomcast.core import sweep


class Engine:
    """An engine.io server with connections that have no transport."""

    def __init__(self, ping_timeout: float = 20.0) -> None:
        self.eio: Any = cast("Any", engineio).AsyncServer(async_mode="asgi", ping_timeout=ping_timeout)
        self.gone: list[tuple[str, str]] = []
        self.eio.on("disconnect", self._disconnected)

    def connect(self, sid: str, pinged: float | None = None) -> Any:
        """A connection that was pinged so many seconds ago and has not answered; None: it has."""
        connection: Any = AsyncSocket(self.eio, sid)
        connection.connected = True
        connection.last_ping = None if pinged is None else time.time() - pinged
        self.eio.sockets[sid] = connection
        return connection

    async def _disconnected(self, sid: str, reason: str) -> None:
        self.gone.append((sid, reason))


async def test_rule_1_who_has_not_answered_in_time_is_closed_and_nobody_else() -> None:
    engine = Engine(20.0)
    for sid, pinged in {"answered": None, "in time": 19.0, "late": 21.0}.items():
        engine.connect(sid, pinged)
    await sweep.sweep(engine.eio)
    assert engine.gone == [("late", "ping timeout")]
    assert [connection.closed for connection in engine.eio.sockets.values()] == [False, False, True]


async def test_rule_2_what_is_closed_is_forgotten_and_what_is_closing_left_alone() -> None:
    engine = Engine()
    engine.connect("closed").closed = True
    engine.connect("closing", 1000).closing = True
    await sweep.sweep(engine.eio)
    assert list(engine.eio.sockets) == ["closing"]
    assert engine.gone == []


async def test_rule_3_one_that_fails_is_logged_and_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    engine.connect("broken", 21).check_ping_timeout = None
    engine.connect("late", 21)
    with caplog.at_level(logging.ERROR, "engineio.server"):
        await sweep.sweep(engine.eio)
    assert engine.gone == [("late", "ping timeout")]
    assert [record.message for record in caplog.records] == ["service task exception"]


async def test_rule_3_the_loop_runs_between_slices() -> None:
    engine = Engine()
    for number in range(5 * 500):
        engine.connect(str(number))
    sweeping = asyncio.ensure_future(sweep.sweep(engine.eio))
    turns = 0
    while not sweeping.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 5


async def test_rule_4_engine_io_starts_it_with_an_adapter_and_ends_it() -> None:
    adapter = roomcast.Adapter("memory://sweep")
    sio: Any = cast("Any", socketio).AsyncServer(async_mode="asgi", client_manager=adapter, ping_timeout=0.08)
    gone = asyncio.Event()

    def disconnected(_sid: str, _reason: str) -> None:
        gone.set()

    sio.eio.handlers["disconnect"] = disconnected
    late: Any = AsyncSocket(sio.eio, "late")
    late.last_ping = time.time() - 1
    sio.eio.sockets["late"] = late
    sio.eio.service_task_handle = sio.eio.start_background_task(sio.eio._service_task)
    await gone.wait()
    await sio.shutdown()
    assert sio.eio.service_task_handle is None
    assert sio.eio._service_task.func is sweep.watch


async def test_another_engine_io_keeps_its_own_watch() -> None:
    class Newer:
        async def _watch(self) -> None: ...

    newer = Newer()
    sweep.install(newer)
    assert vars(newer) == {}
