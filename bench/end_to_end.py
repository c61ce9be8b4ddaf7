"""End to end: real websocket clients on two server processes, all in one room; one of the processes emits.

Run: python -m bench.end_to_end [--contestants roomcast-redis python-socketio-redis node-redis] [--rounds 5]

Four processes: two nodes of a contestant, the load with all the clients (half of them on each node), and this one,
which steers. Node A emits 200-byte events to the room.

- burst: for `--seconds`, as fast as it can with `--in-flight` events under way at most.
- paced: `--paced` deliveries a second, for `--paced-seconds`.

Server CPU is that of both nodes, by resource usage, from the first emit to the last arrival; load and broker are not
in it. Every client checks the bytes of every event against what must come next: lost, duplicated and reordered events
are counted, and must be 0. Contestants take turns; medians with spread. Latency is from the call of `emit` to the read
in the load process, on the clock that all processes share.
"""

import argparse
import asyncio
import json
import statistics
import uuid
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.load_process import Child, python

NODE = Path(__file__).parent / "node"
WARM = 20
"""Events before each measurement: caches, subscriptions, and the first growth of buffers are not what is measured."""

LIMIT = 40_000
"""Events a run may have."""

URLS = {
    "redis": "redis://127.0.0.1:6379",
    "nats": "nats://127.0.0.1:4222",
    "amqp": "amqp://guest:guest@127.0.0.1:5672/",
}

CONTESTANTS = {
    "roomcast-redis": ("roomcast", "redis"),
    "roomcast-nats": ("roomcast", "nats"),
    "roomcast-amqp": ("roomcast", "amqp"),
    "python-socketio-redis": ("python-socketio", "redis"),
    "python-socketio-amqp": ("python-socketio", "amqp"),
    "node-redis": ("node-redis", "redis"),
    "node-redis-sharded": ("node-redis-sharded", "redis"),
    "node-redis-streams": ("node-redis-streams", "redis"),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What every contestant is given alike."""

    clients: int
    size: int
    seconds: float
    in_flight: int
    paced: float
    paced_seconds: float
    ws: str


@dataclass(frozen=True, slots=True)
class Burst:
    """One burst: deliveries a second, CPU in microseconds a delivery."""

    deliveries_per_second: float
    server_cpu: float
    load_cpu: float
    lost: int
    duplicated: int
    reordered: int


@dataclass(frozen=True, slots=True)
class Paced:
    """One paced run: CPU in microseconds a delivery, latency in milliseconds."""

    deliveries_per_second: float
    server_cpu: float
    load_cpu: float
    p50: float
    p99: float
    lost: int
    duplicated: int
    reordered: int


def server(contestant: str, channel: str, settings: Settings) -> list[str]:
    """The command line of one node."""
    kind, broker = CONTESTANTS[contestant]
    arguments = ["--kind", kind, "--url", URLS[broker], "--channel", channel, "--size", str(settings.size)]
    if kind.startswith("node"):
        return ["node", str(NODE / "serve.mjs"), *arguments]
    return python("bench.end_to_end_node", *arguments, "--ws", settings.ws)


class Course:
    """Two nodes of a contestant and the load, connected and warm."""

    def __init__(self, nodes: list[Child], load: Child, settings: Settings) -> None:
        self.nodes = nodes
        self.load = load
        self.settings = settings
        self._emitted = 0
        load.on_progress = lambda message: nodes[0].tell("credit", events=message["progress"])

    async def connect(self) -> dict[str, Any]:
        """Connect the clients, and let subscriptions take effect: some contestants have no way to wait for them."""
        share, more = divmod(self.settings.clients, len(self.nodes))
        addresses = [("127.0.0.1", node.hello["port"], share + (i < more)) for i, node in enumerate(self.nodes)]
        connected = await self.load.ask(
            "connect", addresses=addresses, concurrency=50, sources=4, timeout=120, within=130
        )
        await asyncio.sleep(1)
        return connected

    async def server_cpu(self) -> float:
        """Seconds of CPU that the nodes have used."""
        return sum(float(usage["cpu"]) for usage in await asyncio.gather(*(node.ask("usage") for node in self.nodes)))

    async def burst(self, seconds: float, limit: int = LIMIT) -> Burst:
        """Emit as fast as the bound allows."""
        settings = self.settings
        load_before = (await self.load.ask("run", every=max(1, settings.in_flight // 8), timed=False))["cpu"]
        before = await self.server_cpu()
        sent = await self.nodes[0].ask(
            "burst", first=self._emitted, seconds=seconds, window=settings.in_flight, limit=limit, within=seconds + 60
        )
        self._emitted += sent["events"]
        seen = await self.load.ask("settle", until=self._emitted, timeout=30)
        after = await self.server_cpu()
        deliveries = sent["events"] * settings.clients
        return Burst(
            deliveries / (seen["ended"] - sent["began"]),
            (after - before) / deliveries * 1e6,
            (seen["cpu"] - load_before) / deliveries * 1e6,
            seen["lost"],
            seen["duplicated"],
            seen["reordered"],
        )

    async def paced(self, per_second: float, seconds: float) -> Paced:
        """Emit at a rate, given in deliveries."""
        rate = per_second / self.settings.clients
        count = max(1, round(rate * seconds))
        load_before = (await self.load.ask("run", every=0, timed=True))["cpu"]
        before = await self.server_cpu()
        first = self._emitted
        times = (await self.nodes[0].ask("paced", first=first, count=count, rate=rate, within=seconds + 60))["times"]
        self._emitted += count
        seen = await self.load.ask("settle", until=self._emitted, timeout=30, first=first, times=times)
        after = await self.server_cpu()
        deliveries = count * self.settings.clients
        latencies = seen["latencies"]
        return Paced(
            deliveries / (seen["ended"] - times[0]),
            (after - before) / deliveries * 1e6,
            (seen["cpu"] - load_before) / deliveries * 1e6,
            latencies["p50"] * 1e3,
            latencies["p99"] * 1e3,
            seen["lost"],
            seen["duplicated"],
            seen["reordered"],
        )


async def course(stack: AsyncExitStack, contestant: str, settings: Settings) -> Course:
    """Start the processes of one contestant and connect the clients."""
    channel = f"bench-{uuid.uuid4().hex[:8]}"
    load = Child(python("bench.load", "--events", str(LIMIT), "--size", str(settings.size)), "load")
    nodes = [Child(server(contestant, channel, settings), f"{contestant} {name}") for name in "AB"]
    for child in (load, *nodes):
        await stack.enter_async_context(child)
    found = Course(nodes, load, settings)
    await found.connect()
    return found


async def rounds(contestants: list[str], count: int, settings: Settings) -> dict[str, list[tuple[Burst, Paced]]]:
    """All rounds, by turns; everyone is up and connected throughout, so that turns follow each other closely."""
    done: dict[str, list[tuple[Burst, Paced]]] = {name: [] for name in contestants}
    async with AsyncExitStack() as stack:
        courses = {name: await course(stack, name, settings) for name in contestants}
        for run in courses.values():
            await run.burst(5.0, WARM)
        for number in range(count):
            turn = list(courses.items())
            bursts: dict[str, Burst] = {}
            for name, run in turn if number % 2 == 0 else reversed(turn):
                bursts[name] = await run.burst(settings.seconds)
            for name, run in turn if number % 2 == 0 else reversed(turn):
                done[name].append((bursts[name], await run.paced(settings.paced, settings.paced_seconds)))
    return done


def spread(values: list[float], form: str) -> str:
    """Median and range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def report(done: dict[str, list[tuple[Burst, Paced]]]) -> None:
    """One line for each contestant and mode."""
    for name, results in done.items():
        bursts, paced = [burst for burst, _ in results], [paced for _, paced in results]
        wrong = sum(one.lost + one.duplicated + one.reordered for both in results for one in both)
        print(
            f"{name:22} burst {spread([b.deliveries_per_second for b in bursts], '9,.0f')} deliveries/s, "
            f"{spread([b.server_cpu for b in bursts], '5.2f')} us/delivery; load {bursts[0].load_cpu:.2f} us"
        )
        print(
            f"{'':22} paced {spread([p.server_cpu for p in paced], '5.2f')} us/delivery, "
            f"p50 {spread([p.p50 for p in paced], '5.1f')} ms, p99 {spread([p.p99 for p in paced], '5.1f')} ms; "
            f"load {paced[0].load_cpu:.2f} us" + (f"; {wrong} EVENTS WRONG" if wrong else "")
        )


def main() -> None:
    """Measure, print, and write the figures if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contestants", nargs="*", default=["roomcast-redis", "python-socketio-redis", "node-redis"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--paced", type=float, default=5000)
    parser.add_argument("--paced-seconds", type=float, default=3.0)
    parser.add_argument("--ws", default="auto", help="uvicorn's websocket implementation")
    parser.add_argument("--json", type=Path, help="write every round's figures to this file")
    options = parser.parse_args()
    settings = Settings(
        options.clients,
        options.size,
        options.seconds,
        options.in_flight,
        options.paced,
        options.paced_seconds,
        options.ws,
    )
    done = asyncio.run(rounds(options.contestants, options.rounds, settings))
    report(done)
    if options.json:
        figures = {
            name: [{"burst": asdict(burst), "paced": asdict(paced)} for burst, paced in results]
            for name, results in done.items()
        }
        options.json.write_text(json.dumps({"settings": asdict(settings), "rounds": figures}, indent=1))


if __name__ == "__main__":
    main()
