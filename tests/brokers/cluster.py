"""Nodes of one cluster over any broker, for checks that hold for all of them."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol, cast
from uuid import uuid4

from roomcast.brokers.log_broker import LogBroker
from roomcast.core.broker import Broker, BrokerConfig, Delivery, Gap, GapReason, Position, Subject
from roomcast.core.errors import BrokerError

Event = Delivery | Gap
MakeBroker = Callable[[BrokerConfig], Broker]


class Link(Protocol):
    """What a check may do to the connections of linked nodes; `tests.proxy.TcpProxy` has these verbs."""

    @property
    def delay(self) -> float: ...
    @delay.setter
    def delay(self, seconds: float, /) -> None: ...
    @property
    def hang_up(self) -> bool: ...
    @hang_up.setter
    def hang_up(self, value: bool, /) -> None: ...
    @property
    def connections(self) -> int: ...
    @property
    def bytes_down(self) -> int: ...
    @property
    def url(self) -> str: ...
    @property
    def open(self) -> int: ...
    async def cut(self) -> int: ...
    async def reset(self) -> int: ...
    def stall(self) -> None: ...
    def drop_replies(self) -> None: ...
    def resume(self) -> None: ...
    def refuse(self) -> None: ...
    async def accept(self) -> None: ...


def send(broker: Broker, subject: Subject, payload: bytes) -> "asyncio.Future[Position | None]":
    """Publish without waiting, as the core does: a coroutine becomes a task, a future is used as it is."""
    return asyncio.ensure_future(broker.publish(subject, payload))


async def outcome(publish: "asyncio.Future[Position | None]") -> type[BrokerError] | None:
    """None for a confirmed publish, else the kind of its error; any other error fails the test."""
    try:
        async with asyncio.timeout(10):
            await publish
    except BrokerError as exc:
        return type(exc)
    return None


def deliveries(events: Iterable[Event]) -> list[Delivery]:
    return [event for event in events if isinstance(event, Delivery)]


def gaps(events: Iterable[Event]) -> list[Gap]:
    return [event for event in events if isinstance(event, Gap)]


def payloads(events: Iterable[Event]) -> list[bytes]:
    return [delivery.payload for delivery in deliveries(events)]


class Node:
    """A broker under test and what was received from it."""

    def __init__(self, broker: Broker, config: BrokerConfig, *, patience: float) -> None:
        self.broker = broker
        self.config = config
        self.patience = patience
        self._rest: list[Event] = []

    async def hear(self, done: Callable[[Event], bool], what: str) -> list[Event]:
        """Every event up to and with the first one that is `done`, since the last call."""
        heard: list[Event] = []
        try:
            async with asyncio.timeout(self.patience):
                while True:
                    while self._rest:
                        heard.append(self._rest.pop(0))
                        if done(heard[-1]):
                            return heard
                    self._rest = list(await self.broker.receive())
        except TimeoutError as exc:
            last = heard[-5:]
            raise AssertionError(f"{self.config.node} waited in vain for {what}; last of all: {last}") from exc

    async def hear_payload(self, payload: bytes) -> list[Event]:
        """Every event up to and with the delivery of `payload`."""
        return await self.hear(
            lambda event: isinstance(event, Delivery) and event.payload == payload,
            f"payload {payload[:40]!r}",
        )

    async def hear_gap(self, reason: GapReason) -> list[Event]:
        """Every event up to and with the first gap of this reason."""
        return await self.hear(lambda event: isinstance(event, Gap) and event.reason == reason, f"a gap {reason!r}")


class Cluster:
    """Makes nodes that share a broker, and closes them.

    Args:
        url: of the broker, or of its servers, when it is a cluster: the nodes take them in turn.

    Attributes:
        link: what stands between the broker and nodes made with `linked=True`; None for a broker without one.
        url: of the broker, or of the first of its servers.
        prefix: random, at the head of every subject here.
        nodes: every node made so far.
        scale: how large the loads of checks are, 1.0 for full size.
    """

    def __init__(
        self,
        make: MakeBroker,
        url: str | Sequence[str],
        *,
        link: Link | None = None,
        parameters: Mapping[str, str] | None = None,
        inner: MakeBroker | None = None,
        patience: float = 15.0,
        scale: float = 1.0,
    ) -> None:
        self.make = make
        self._urls = (url,) if isinstance(url, str) else tuple(url)
        self.url = self._urls[0]
        self.prefix = f"t{uuid4().hex[:12]}"
        self.patience = patience
        self.scale = scale
        self._link = link
        self._parameters = parameters or {}
        self._inner = inner
        self.nodes: list[Node] = []

    @property
    def link(self) -> Link:
        if self._link is None:
            raise RuntimeError("This broker has no link to break.")
        return self._link

    def unstarted(self, *, linked: bool = False, **changes: Any) -> Node:
        """A node that is not started; `changes` are fields of its `BrokerConfig`."""
        settings: dict[str, Any] = {
            "url": self.link.url if linked else self._urls[len(self.nodes) % len(self._urls)],
            "parameters": self._parameters,
            "prefix": self.prefix,
            "node": f"n{len(self.nodes)}",
        }
        config = BrokerConfig(**(settings | changes))
        if (inner := self._inner) is not None:
            plain = replace(config, parameters={})

            def connect(url: str) -> Broker:
                return inner(replace(plain, url=url))

            config = replace(config, connect=connect)
        node = Node(self.make(config), config, patience=self.patience)
        self.nodes.append(node)
        return node

    async def node(self, *, linked: bool = False, **changes: Any) -> Node:
        """A started node."""
        node = self.unstarted(linked=linked, **changes)
        await node.broker.start()
        return node

    def subjects(self, count: int, kind: str = "room") -> list[Subject]:
        """Up to `count` subjects; a handful where the broker says that it bears only few."""
        if any(node.broker.guarantees.partitions is not None for node in self.nodes):
            count = min(count, 8)
        return [Subject(f"{self.prefix}.{kind}.{number}") for number in range(count)]

    async def finish(self, publisher: Node, subjects: Sequence[Subject], *receivers: Node) -> list[list[Event]]:
        """What each receiver hears until an end that the publisher sends now on every subject.

        The ends prove absence: what was published earlier and is not heard before them will not come.
        """
        mark = f"end {uuid4().hex}".encode()
        for subject in subjects:
            await publisher.broker.publish(subject, mark)
        return [await self._hear_ends(receiver, mark, len(subjects)) for receiver in receivers]

    async def _hear_ends(self, receiver: Node, mark: bytes, count: int) -> list[Event]:
        heard: list[Event] = []
        for _ in range(count):
            heard += await receiver.hear_payload(mark)
        return [event for event in heard if isinstance(event, Gap) or event.payload != mark]

    async def aclose(self) -> None:
        """Close every node, whatever state a check left it in."""
        for node in self.nodes:
            async with asyncio.timeout(10):
                await node.broker.aclose()


@asynccontextmanager
async def closing(cluster: Cluster) -> AsyncGenerator[Cluster]:
    """The cluster, closed at the end."""
    try:
        yield cluster
    finally:
        await cluster.aclose()


@asynccontextmanager
async def deleted(cluster: Cluster) -> AsyncGenerator[Cluster]:
    """The cluster; the log that its nodes made, once they are closed, is deleted at the end."""
    try:
        yield cluster
    finally:
        if any(isinstance(node.broker, LogBroker) for node in cluster.nodes):
            broker = cast("LogBroker", cluster.make(BrokerConfig(cluster.url, prefix=cluster.prefix)))
            async with asyncio.timeout(10):
                await broker.delete()
                await broker.aclose()


Check = Callable[[Cluster], Coroutine[None, None, None]]
"""One rule put to the test: fails with an AssertionError, or with whatever the broker raised."""
