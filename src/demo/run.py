"""The command: nodes, balancer, and either a person with a browser or the check; then everything is stopped."""

import asyncio
import errno
import signal
from dataclasses import dataclass
from functools import partial

import roomcast
from roomcast.demo import DemoError
from roomcast.demo.balancer import Balancer
from roomcast.demo.check import check
from roomcast.demo.launch import Cluster

_CHECK = 24.0
"""Seconds that the check may take, the start of the nodes included; their stop takes at most 5 more."""

say = partial(print, flush=True)


@dataclass(frozen=True, slots=True)
class Order:
    """What the person wants."""

    nodes: int
    broker: str
    host: str
    port: int
    check: bool


async def run(order: Order) -> int:
    """Run the demo until it is stopped by SIGINT or SIGTERM, or run the check; the exit code.

    Raises:
        DemoError: it cannot start, a node does not stay up, or the check failed.
    """
    this = asyncio.current_task()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if not stopped and this is not None:
            stopped = True
            this.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    try:
        await _run(order)
    except asyncio.CancelledError:
        if not stopped:
            raise
        say("\nStopped.")
        return 130 if order.check else 0
    return 0


async def _run(order: Order) -> None:
    _look_at(order.broker)
    cluster = Cluster(order.nodes, order.broker, say)
    balancer = Balancer(cluster.ports)
    try:
        port = await balancer.start(order.host, order.port)
    except OSError as exc:
        why = "is taken" if exc.errno == errno.EADDRINUSE else f"cannot be had ({exc.strerror or exc})"
        raise DemoError(
            f"Port {order.port} of {order.host} {why}: choose another one with --port, or --port 0 for any free one."
        ) from exc
    address = f"http://{f'[{order.host}]' if ':' in order.host else order.host}:{port}"
    try:
        if order.check:
            await _check(cluster, address)
        else:
            await _show(cluster, address, order.broker)
    finally:
        await balancer.aclose()


async def _check(cluster: Cluster, address: str) -> None:
    try:
        async with asyncio.timeout(_CHECK), cluster:
            await check(address, list(cluster.ports), say)
    except TimeoutError:
        raise DemoError(f"The check did not end within {_CHECK:.0f} s.") from None
    say("All nodes hear each other.")


async def _show(cluster: Cluster, address: str, broker: str) -> None:
    async with cluster:
        say(f"roomcast demo: {len(cluster.ports)} nodes joined by {broker.partition(':')[0]}://")
        for number, pid in sorted(cluster.pids.items()):
            say(f"  node {number}  pid {pid}  {address}/?node={number}")
        say(f"Open {address} in several tabs: each tab lands on the next node.\nCtrl-C stops everything.")
        await cluster.failed()


def _look_at(broker: str) -> None:
    """Refuse at once what no node could work with."""
    if broker.startswith("memory:"):
        raise DemoError(
            "memory:// does not leave its process, and the demo's nodes are processes: use another --broker."
        )
    try:
        roomcast.Adapter(broker)
    except roomcast.ConfigurationError as exc:
        raise DemoError(str(exc)) from exc
