"""The receiver lets the loop run (rule 3), whatever it is that arrives."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from roomcast.core import receiver
from roomcast.core.broker import Delivery, Subject
from roomcast.core.errors import BrokerClosed
from roomcast.core.messages import Emit, Packet, encode_message
from roomcast.core.receiver import Receiver
from roomcast.core.stats import Stats
from roomcast.core.wire import Envelope, Wire

HERE, ELSEWHERE = Subject("app.room.a"), Subject("app.room.b")
MANY = 400
EMIT = msgspec.Raw(encode_message(Emit("/", (), Packet("json", '2["n"]'))))


class Broker:
    """Gives everything at once."""

    def __init__(self, deliveries: Sequence[Delivery]) -> None:
        self._deliveries = deliveries

    async def receive(self) -> Sequence[Delivery]:
        if not self._deliveries:
            raise BrokerClosed("over", broker="fake")
        deliveries, self._deliveries = self._deliveries, ()
        return deliveries


class Clock:
    """Moves a millisecond with each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.001
        return self.now

    def time_ns(self) -> int:
        return 0


def delivery(subject: Subject, origin: str, first: int, place: int) -> Delivery:
    wire = Wire(max_payload=1 << 20)
    return Delivery(subject, wire.seal(subject, Envelope(origin, 1, 1, first, [EMIT], place)))


KINDS = {
    "new": [delivery(HERE, "peer", n, n) for n in range(1, MANY + 1)],
    "own": [delivery(HERE, "me", n, n) for n in range(1, MANY + 1)],
    "unwanted": [delivery(ELSEWHERE, "peer", n, n) for n in range(1, MANY + 1)],
    "repeated": [delivery(HERE, "peer", 1, 1)] * MANY,
    "unreadable": [Delivery(HERE, b"?")] * MANY,
}


@pytest.mark.parametrize("kind", KINDS)
async def test_rule_3_the_loop_runs_after_each_slice(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "It runs after each `_SLICE` of handling", also when nothing of what arrived is for anybody here."""
    handled: list[object] = []

    def handle(_origin: str, message: object) -> None:
        handled.append(message)

    node: Any = SimpleNamespace(
        id="me",
        total=False,
        handlers={Emit: handle},
        reader=None,
        readback=None,
        paced=None,
        stats=Stats(),
        gaps=None,
        wire=Wire(max_payload=1 << 20),
        wants=HERE.__eq__,
    )
    one = Receiver(node, on_gap=lambda _: None, heard=lambda _: None, in_order=True)
    one.closed = True
    broker: Any = Broker(KINDS[kind])
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(receiver, "time", Clock())
    counting = asyncio.ensure_future(count())
    await one.run(broker)
    counting.cancel()
    assert len(handled) == {"new": MANY, "repeated": 1}.get(kind, 0)
    assert turns > MANY / 10
