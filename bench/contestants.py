"""Who is measured: roomcast on each broker, python-socketio's managers, and Node's socket.io with its adapters.

A contestant is a name, a runtime and a broker. `missing` says by name why one cannot take part on this machine;
everything else may assume that it can.
"""

import asyncio
import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

Library = Literal["roomcast", "python-socketio", "node"]

URLS = {
    "redis": ("ROOMCAST_TEST_REDIS_URL", "redis://127.0.0.1:6379"),
    "nats": ("ROOMCAST_TEST_NATS_URL", "nats://127.0.0.1:4222"),
    "amqp": ("ROOMCAST_TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/"),
}
"""The variable that names each broker, and where it is by default."""

LOGS = ("streams", "jetstream")
"""What a broker's scheme ends in where roomcast uses its log."""

NODE = Path(__file__).parent / "node"
"""Where the programs and packages for Node.js are."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to join nodes.

    Attributes:
        name: what the command line, the results and the report call it.
        library: whose code it is.
        broker: scheme of the broker; "memory" for a server alone, without one.
        variant: which of the library's adapters, or what is set in ours: "confirm" waits for the broker's confirm,
            "streams" and "jetstream" are the broker's log.
        about: what the report says of it.
    """

    name: str
    library: Library
    broker: str
    variant: str
    about: str

    @property
    def url(self) -> str:
        """The URL of its broker."""
        if self.broker == "memory":
            return "memory://"
        variable, usual = URLS[self.broker]
        url = os.environ.get(variable) or usual
        return f"{self.broker}+{self.variant}{url.removeprefix(self.broker)}" if self.logs else url

    @property
    def logs(self) -> bool:
        """Whether it is roomcast on a broker's log."""
        return self.library == "roomcast" and self.variant in LOGS

    @property
    def runtime(self) -> Literal["python", "node"]:
        """What its processes run on."""
        return "node" if self.library == "node" else "python"


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("roomcast-redis", "roomcast", "redis", "", "roomcast on Redis"),
        Contestant("roomcast-redis-confirm", "roomcast", "redis", "confirm", "the same, each emit confirmed"),
        Contestant("roomcast-nats", "roomcast", "nats", "", "roomcast on NATS"),
        Contestant("roomcast-amqp", "roomcast", "amqp", "", "roomcast on RabbitMQ, publisher confirms on"),
        Contestant("roomcast-redis-streams", "roomcast", "redis", "streams", "roomcast on a log in Redis"),
        Contestant("roomcast-nats-jetstream", "roomcast", "nats", "jetstream", "roomcast on JetStream"),
        Contestant("roomcast-amqp-streams", "roomcast", "amqp", "streams", "roomcast on a stream of RabbitMQ"),
        Contestant("roomcast-memory", "roomcast", "memory", "", "roomcast in one process, no broker"),
        Contestant("python-socketio-redis", "python-socketio", "redis", "", "socketio.AsyncRedisManager"),
        Contestant("python-socketio-amqp", "python-socketio", "amqp", "", "socketio.AsyncAioPikaManager"),
        Contestant("python-socketio-memory", "python-socketio", "memory", "", "socketio.AsyncManager, no broker"),
        Contestant("node-redis", "node", "redis", "redis", "socket.io with @socket.io/redis-adapter"),
        Contestant("node-redis-sharded", "node", "redis", "sharded", "the same package's sharded adapter"),
        Contestant("node-redis-streams", "node", "redis", "streams", "socket.io with @socket.io/redis-streams-adapter"),
        Contestant("node-memory", "node", "memory", "memory", "socket.io's in-memory adapter, no broker"),
    )
}


def lacking(contestant: Contestant) -> str | None:
    """What a contestant's own programs lack on this machine, in words; None if they are there."""
    if contestant.runtime == "node":
        if shutil.which("node") is None:
            return "no node on this machine"
        if not (NODE / "node_modules" / "socket.io").is_dir():
            return f"its packages are not installed (npm ci in {NODE.parent.name}/{NODE.name})"
    return None


@cache
def missing(contestant: Contestant) -> str | None:
    """Why a contestant cannot take part on this machine, in words; None if it can."""
    if (why := lacking(contestant)) is not None or contestant.broker == "memory":
        return why
    address = urlsplit(contestant.url)
    try:
        with socket.create_connection((address.hostname or "127.0.0.1", address.port or 0), timeout=2):
            return None
    except OSError as exc:
        variable, _ = URLS[contestant.broker]
        return f"no {contestant.broker} broker: {exc} (start it, or set {variable})"


def named(names: Sequence[str]) -> list[Contestant]:
    """Contestants by name.

    Raises:
        SystemExit: one of the names is unknown.
    """
    if unknown := [name for name in names if name not in CONTESTANTS]:
        raise SystemExit(f"There is no contestant {unknown[0]!r}: it is one of {', '.join(CONTESTANTS)}.")
    return [CONTESTANTS[name] for name in names]


def client_manager(contestant: Contestant, channel: str, **settings: Any) -> Any:
    """The client manager of one of the Python contestants; nodes of one `channel` hear one another.

    Args:
        contestant: whose.
        channel: the prefix, or channel, on the broker.
        settings: of roomcast's adapter; the others have none.
    """
    import socketio  # noqa: PLC0415 - the process that only steers needs none of these

    import roomcast  # noqa: PLC0415

    if contestant.library == "roomcast":
        url = f"memory://{channel}" if contestant.broker == "memory" else contestant.url
        if contestant.variant == "confirm":
            settings["confirm"] = True
        return roomcast.Adapter(url, prefix=channel, **settings)
    if contestant.broker == "memory":
        return socketio.AsyncManager()
    kind = {"redis": socketio.AsyncRedisManager, "amqp": socketio.AsyncAioPikaManager}[contestant.broker]
    return kind(contestant.url, channel=channel)


async def join(contestant: Contestant, sio: Any) -> None:
    """Connect a Python server to its broker, as its first client, or its application's start, would."""
    if contestant.library == "roomcast":
        await sio.manager.start()
    sio.manager_initialized = True
    sio.manager.initialize()


async def leave(contestant: Contestant, sio: Any, channel: str) -> None:
    """Disconnect a Python server from its broker, and leave nothing behind on it."""
    manager = sio.manager
    if contestant.library == "roomcast":
        await manager.aclose()
        return
    if contestant.broker == "memory":
        return
    manager.thread.cancel()
    await asyncio.gather(manager.thread, return_exceptions=True)
    if contestant.broker == "amqp" and manager.publisher_connection is not None:
        await manager.publisher_channel.exchange_delete(channel)
        await manager.publisher_connection.close()
    elif contestant.broker == "redis" and manager.redis is not None:
        await manager.redis.aclose()
