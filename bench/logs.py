"""What a log costs beside publish/subscribe on the same server: rates in one run, interleaved, CPU of this process.

`python -m bench.logs redis nats amqp` takes servers on their usual ports; each has about 10 s. One node publishes as
fast as it is confirmed, with at most 1,000 on their way, and another receives all of it.
"""

import asyncio
import importlib.metadata
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import cast
from uuid import uuid4

from roomcast.brokers.log_broker import LogBroker
from roomcast.core.broker import Broker, BrokerConfig, Delivery, Subject

HOSTS = {"redis": "127.0.0.1:6379", "nats": "127.0.0.1:4222", "amqp": "guest:guest@127.0.0.1:5672/"}
LOGS = {"redis": "redis+streams", "nats": "nats+jetstream", "amqp": "amqp+streams"}
COUNTS = {"redis": 20_000, "nats": 20_000, "amqp": 5_000}
ROUNDS = 3
WINDOW = 1_000
PAYLOAD = bytes(200)


def make(scheme: str, host: str, prefix: str) -> Broker:
    """A broker of a scheme, as an application finds it."""
    (point,) = importlib.metadata.entry_points(group="roomcast.brokers", name=scheme)
    kind = cast("Callable[[BrokerConfig], Broker]", point.load())
    return kind(BrokerConfig(f"{scheme}://{host}", prefix=prefix))


async def receive(broker: Broker, count: int) -> None:
    """Receive so many deliveries."""
    got = 0
    while got < count:
        got += sum(isinstance(event, Delivery) for event in await broker.receive())


async def once(scheme: str, host: str, count: int) -> tuple[float, float, float]:
    """Messages a second from the first publish to the last delivery, CPU microseconds for each, and a round trip."""
    prefix = f"b{uuid4().hex[:10]}"
    tells, hears = make(scheme, host, prefix), make(scheme, host, prefix)
    await tells.start()
    await hears.start()
    subject = Subject(f"{prefix}.room")
    await hears.subscribe([subject])
    trips: list[float] = []
    for _ in range(100):
        began = time.perf_counter()
        receiving = asyncio.create_task(receive(hears, 1))
        await tells.publish(subject, PAYLOAD)
        await receiving
        trips.append(time.perf_counter() - began)
    receiving = asyncio.create_task(receive(hears, count))
    used = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    for _ in range(0, count, WINDOW):
        await asyncio.gather(*(asyncio.ensure_future(tells.publish(subject, PAYLOAD)) for _ in range(WINDOW)))
    await receiving
    took = time.perf_counter() - began
    spent = resource.getrusage(resource.RUSAGE_SELF)
    cpu = spent.ru_utime + spent.ru_stime - used.ru_utime - used.ru_stime
    await tells.aclose()
    await hears.aclose()
    if isinstance(tells, LogBroker):
        gone = make(scheme, host, prefix)
        await cast("LogBroker", gone).delete()
        await gone.aclose()
    return count / took, cpu / count * 1e6, statistics.median(trips) * 1e3


async def compare(name: str) -> None:
    """Both brokers of a server, in turn."""
    rows: dict[str, list[tuple[float, float, float]]] = {name: [], LOGS[name]: []}
    for _ in range(ROUNDS):
        for scheme, results in rows.items():
            results.append(await once(scheme, HOSTS[name], COUNTS[name]))
    for scheme, results in rows.items():
        rates, cpus, trips = zip(*results, strict=True)
        print(
            f"{scheme:15} {statistics.median(rates):8.0f}/s ({min(rates):.0f} to {max(rates):.0f})"
            f"  {statistics.median(cpus):6.1f} us CPU each  {statistics.median(trips):6.2f} ms publish to receive"
        )
    ratio = statistics.median(one[0] / other[0] for one, other in zip(rows[LOGS[name]], rows[name], strict=True))
    print(f"{'':15} the log carries {ratio:.2f} of what publish/subscribe does")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or HOSTS:
        asyncio.run(compare(chosen))
