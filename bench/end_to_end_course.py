"""Two nodes of a contestant and the clients of both, up and connected, for end-to-end measurements to run on."""

import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from bench.contestants import NODE, Contestant
from bench.plan import new_channel
from bench.processes import Process, ProcessFailed

MOST = 8000
"""Clients of one load process: a process may usually open not many more files."""

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Settings:
    """What every contestant is given alike.

    Attributes:
        clients: websocket clients, half of them on each node.
        size: characters of a payload.
        seconds: length of a burst.
        in_flight: events in a burst that may not have been received yet.
        deliveries: deliveries a second when paced.
        paced_seconds: how long that is kept up.
        arrival: seconds over which the clients connect at an even rate; 0: as fast as they can. Over a period of
            pings (25 s in Engine.IO), pings are as even as those of clients that come and go.
        events: how many events a run may have in all.
    """

    clients: int = 1000
    size: int = 200
    seconds: float = 1.0
    in_flight: int = 16
    deliveries: float = 5000
    paced_seconds: float = 3.0
    arrival: float = 0.0
    events: int = 40_000


@dataclass(frozen=True, slots=True)
class Entrant:
    """A contestant with what it runs on.

    Attributes:
        contestant: who.
        ws: uvicorn's websocket implementation; none of Node's business.
        tree: another working tree of this project to take `roomcast` from.
        gc: thresholds for Python's cyclic garbage collector; none: as they are.
    """

    contestant: Contestant
    ws: str = "auto"
    tree: str = ""
    gc: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """What results call it."""
        return self.contestant.name + (f"@{self.tree}" if self.tree else "") + (" (gc rare)" if self.gc else "")

    async def start(self, channel: str, size: int) -> Process:
        """One node of it; it serves nobody yet."""
        if self.contestant.runtime == "node":
            argv = ["node", str(NODE / "serve.mjs"), self.contestant.variant, self.contestant.url]
        else:
            argv = [sys.executable, "-m", "bench.end_to_end_node", self.contestant.name]
        argv += [channel, str(size)]
        if self.contestant.runtime == "python":
            argv += [self.ws, *map(str, self.gc)]
        return await Process.start(
            argv, name=self.name, environ={"PYTHONPATH": f"{self.tree}/typings:."} if self.tree else {}
        )


class Course:
    """Two nodes and the load; entered by `start`.

    Attributes:
        settings: what it was made with.
        connecting: seconds it took to connect the clients.
        connecting_cpu: seconds of CPU that both nodes together used meanwhile.
        growth: bytes that both nodes together grew by meanwhile.
    """

    def __init__(self, entrant: Entrant, settings: Settings) -> None:
        self.entrant = entrant
        self.settings = settings
        self.connecting = 0.0
        self.connecting_cpu = 0.0
        self.growth = 0.0
        self.nodes: Sequence[Process] = ()
        self._loads: Sequence[Process] = ()
        self._credit = 0
        self._emitted = 0

    async def start(self, stack: AsyncExitStack) -> None:
        """Start the processes, which end with the stack, and connect the clients."""
        settings, channel = self.settings, new_channel()
        shares = _shares(settings.clients, -(-settings.clients // MOST))
        argv = [sys.executable, "-m", "bench.load", str(settings.events), str(settings.size)]
        self._loads = [await Process.start(argv, name="load") for _ in shares]
        self.nodes = [await self.entrant.start(channel, settings.size) for _ in range(2)]
        for process in (*self._loads, *self.nodes):
            await stack.enter_async_context(process)
        started = [await node.ask("start", patience=180) for node in self.nodes]
        self._credit = started[0]["credit"]
        before = await self._usage()
        connected = await asyncio.gather(
            *(
                load.ask(
                    "connect",
                    addresses=[
                        ("127.0.0.1", place["port"], count)
                        for place, count in zip(started, _shares(share, len(started)), strict=True)
                    ],
                    concurrency=100 // len(shares),
                    over=settings.arrival,
                    timeout=240,
                    patience=250,
                )
                for load, share in zip(self._loads, shares, strict=True)
            )
        )
        self.connecting = max(float(one["seconds"]) for one in connected)
        after = await self._usage()
        self.growth, self.connecting_cpu = (after[name] - before[name] for name in ("resident", "cpu"))
        await asyncio.sleep(1)  # some contestants have no way to wait for their subscriptions

    async def burst(self, seconds: float | None = None, limit: int | None = None) -> Figures:
        """Emit as fast as the bound allows; lost, duplicated and reordered are those of all runs so far.

        Raises:
            ProcessFailed: a client has lost its connection, or got what nobody sent.
        """
        settings = self.settings
        seconds, limit = seconds or settings.seconds, limit or settings.events
        await self._loads[0].ask("run", credit=self._credit, every=max(1, settings.in_flight // 8), timed=False)
        before = await self._usage()
        sent = await self.nodes[0].ask(
            "burst", first=self._emitted, seconds=seconds, window=settings.in_flight, limit=limit
        )
        self._emitted += sent["events"]
        (seen,) = await self._settle()
        deliveries = sent["events"] * settings.clients
        return {"deliveries_per_second": deliveries / (seen["ended"] - sent["began"])} | await self._costs(
            before, seen, deliveries
        )

    async def paced(self) -> Figures:
        """Emit at a rate."""
        settings = self.settings
        rate = settings.deliveries / settings.clients
        count = max(1, round(rate * settings.paced_seconds))
        await self._loads[0].ask("run", credit=self._credit, every=0, timed=True)
        before = await self._usage()
        first = self._emitted
        times = (await self.nodes[0].ask("paced", first=first, count=count, rate=rate))["times"]
        self._emitted += count
        (seen,) = await self._settle(first=first, times=times)
        latencies = {f"{name}_ms": float(seen[name] or 0) * 1e3 for name in ("p50", "p99")}
        return latencies | await self._costs(before, seen, count * settings.clients)

    async def idle(self, seconds: float) -> Figures:
        """Emit nothing: what connections cost by themselves, pings for the most part."""
        before = await self._usage()
        began = time.monotonic()
        await asyncio.sleep(seconds)
        after = await self._usage()
        used = (after["cpu"] - before["cpu"]) / (time.monotonic() - began)
        return {"server_us_per_client_second": used / self.settings.clients * 1e6}

    async def broadcasts(self, count: int) -> Figures:
        """Emit events to everyone, each when the last client has the one before.

        Returns:
            The median time until the last client has an event, and how late the event loop of the slower node was over
            all of them: the worst, and the 99th percentile.

        Raises:
            ProcessFailed: as `burst`.
        """
        await asyncio.gather(*(load.ask("run", credit=self._credit, every=0, timed=True) for load in self._loads))
        await asyncio.gather(*(node.ask("lag", on=True) for node in self.nodes))
        before = await self._usage()
        last: list[float] = []
        seen: list[dict[str, Any]] = []
        for _ in range(count):
            first = self._emitted
            times = (await self.nodes[0].ask("paced", first=first, count=1, rate=1))["times"]
            self._emitted += 1
            seen = await self._settle(first=first, times=times)
            last.append(max(float(one["last"] or 0) for one in seen))
        lags = await asyncio.gather(*(node.ask("lag", on=False) for node in self.nodes))
        after = await self._usage()
        return {
            "last_ms": statistics.median(last) * 1e3,
            "lag_max_ms": max(float(lag["max"]) for lag in lags) * 1e3,
            "lag_p99_ms": max(float(lag["p99"]) for lag in lags) * 1e3,
            "server_us_per_delivery": (after["cpu"] - before["cpu"]) / (count * self.settings.clients) * 1e6,
            **_wrong(seen),
        }

    async def _costs(self, before: Figures, seen: dict[str, Any], deliveries: int) -> Figures:
        after = await self._usage()
        return {
            "server_us_per_delivery": (after["cpu"] - before["cpu"]) / deliveries * 1e6,
            "load_us_per_delivery": float(seen["cpu"]) / deliveries * 1e6,
            **_wrong([seen]),
        }

    async def _settle(self, **times: Any) -> list[dict[str, Any]]:
        seen = await asyncio.gather(
            *(load.ask("settle", until=self._emitted, timeout=30, **times) for load in self._loads)
        )
        if failed := [why for one in seen for why in one["failed"]]:
            raise ProcessFailed(f"{self.entrant.name}: clients failed: {failed}\n{self.nodes[0].said()}")
        return seen

    async def _usage(self) -> Figures:
        both = await asyncio.gather(*(node.ask("usage") for node in self.nodes))
        return {name: sum(float(one[name]) for one in both) for name in ("cpu", "resident")}


def _wrong(seen: Sequence[dict[str, Any]]) -> Figures:
    return {name: sum(float(one[name]) for one in seen) for name in ("lost", "duplicated", "reordered")}


def _shares(whole: int, parts: int) -> list[int]:
    """A whole number in almost equal parts."""
    return [whole // parts + (number < whole % parts) for number in range(parts)]
