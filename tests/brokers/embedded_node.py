"""One process of an embedded group, driven by lines: `python -m tests.brokers.embedded_node DIR NAME NODE`.

Reads `publish TEXT`, `flood` (publish without end, numbered), `fork` (a child that outlives this process) and
`close`; says `started`, `published TEXT`, `failed TEXT ERROR`, `heard TEXT`, `gap REASON`, `forked PID`, `closed`.
"""

import asyncio
import os
import sys
import time
from dataclasses import replace

from roomcast.brokers.embedded import EmbeddedBroker
from roomcast.brokers.nats import NatsBroker
from roomcast.core.broker import Broker, BrokerConfig, Gap, Subject
from roomcast.core.errors import BrokerClosed, BrokerError

ROOM = Subject("test.room")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def listen(broker: Broker) -> None:
    while True:
        try:
            events = await broker.receive()
        except BrokerClosed:
            return
        for event in events:
            say(f"gap {event.reason}" if isinstance(event, Gap) else f"heard {event.payload.decode()}")


async def publish(broker: Broker, text: str) -> None:
    try:
        await broker.publish(ROOM, text.encode())
    except BrokerError as exc:
        say(f"failed {text} {type(exc).__name__}")
    else:
        say(f"published {text}")


async def flood(broker: Broker, node: str) -> None:
    number = 0
    while True:
        await publish(broker, f"{node}-{number}")
        number += 1
        await asyncio.sleep(0.005)


async def main() -> None:
    directory, name, node = sys.argv[1:]
    config = BrokerConfig(f"embedded://{name}", {"dir": directory}, prefix="test", node=node, connect_timeout=20.0)

    def connect(url: str) -> Broker:
        return NatsBroker(replace(config, url=url, parameters={}, connect=None))

    broker = EmbeddedBroker(replace(config, connect=connect))
    await broker.start()
    await broker.subscribe([ROOM])
    tasks = [asyncio.create_task(listen(broker))]
    say("started")
    stdin = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    while (line := (await stdin.readline()).decode().strip()) not in ("", "close"):
        verb, _, text = line.partition(" ")
        if verb == "publish":
            await publish(broker, text)
        elif verb == "flood":
            tasks.append(asyncio.create_task(flood(broker, node)))
        elif verb == "fork":
            if not (pid := os.fork()):
                time.sleep(60)  # noqa: ASYNC251 - the child is no process of asyncio
                os._exit(0)
            say(f"forked {pid}")
    await broker.aclose()
    for task in tasks[1:]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    say("closed")


if __name__ == "__main__":
    asyncio.run(main())
