"""The reference model: what was done, who got what, and the promises P1 to P9 checked on that history.

Everything is stamped by one counter, so that "before" and "after" are exact, whatever the virtual time.
The model knows the seam's events (what a node was handed, what was dropped on purpose) and the public face, and
nothing of how the core works, but for two facts of the wire: an envelope's numbers, and the text in a packet.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from roomcast.core.broker import Delivery, Gap, Subject
from roomcast.core.errors import WireError
from roomcast.core.messages import Emit, decode_message
from roomcast.core.wire import Envelope
from tests.cluster.faulty import FaultyBroker, Hub
from tests.cluster.harness import Arguments, SimClient, SimNode

Room = str | int
Outcome = Literal["pending", "accepted", "cancelled", "failed"]

NEVER = 1 << 60
_envelopes = msgspec.msgpack.Decoder(Envelope)


def read_envelope(payload: bytes) -> Envelope | None:
    """What a payload holds, signed or not; None for garbage."""
    try:
        return _envelopes.decode(payload[34:] if payload[1:2] == b"\1" else payload[2:])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


@dataclass(eq=False)
class Stay:
    """One stay of a client in a room, or in its namespace: from and until when, each for possible and for sure."""

    called: int
    entered: int = NEVER
    leaving: int = NEVER
    left: int = NEVER

    def possible(self, since: int, until: int) -> bool:
        return self.called <= until and self.left > since

    def sure(self, since: int, until: int) -> bool:
        return self.entered < since and self.leaving > until


@dataclass(eq=False)
class Emitted:
    """One emit and what became of it."""

    number: int
    publisher: SimNode
    namespace: str
    rooms: tuple[Room, ...]
    skip: frozenset[str]
    started: int
    ended: int = NEVER
    outcome: Outcome = "pending"
    error: BaseException | None = None
    received: dict[SimClient, int] = field(default_factory=dict[SimClient, int])
    settled: bool = False


class Numbers:
    """What one node can know of its losses: the deliveries it was handed, read as rule by rule as `sequences` says."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self.garbage = 0
        self.last: dict[tuple[Subject, str], tuple[int, int]] = {}
        self.missed: dict[tuple[Subject, str], int] = defaultdict(int)
        self._resumed: set[tuple[Subject, str]] = set()

    def handed(self, delivery: Delivery) -> None:
        if delivery.subject not in self._node.broker.asked:
            return  # nobody has been told yet that the subject is heard
        envelope = read_envelope(delivery.payload)
        if envelope is None or envelope.origin.startswith("stranger"):
            self.garbage += 1
            return
        if envelope.epoch == 0 or envelope.origin == self._node.id:
            return
        key = delivery.subject, envelope.origin
        begin, end = envelope.first, envelope.first + len(envelope.messages) - 1
        known = self.last.get(key)
        if known is not None:
            if (envelope.epoch, end) <= known:
                return
            expected = known[1] + 1 if envelope.epoch == known[0] else 1
            if key not in self._resumed:
                self.missed[key] += max(0, begin - expected)
        self._resumed.discard(key)
        self.last[key] = envelope.epoch, end

    def forgotten(self, subjects: Collection[Subject]) -> None:
        """Nobody listened from here on: the next number is a baseline, but an old one stays a repeat."""
        self._resumed.update(key for key in self.last if key[0] in subjects)

    def listens(self, subject: Subject, origin: str) -> bool:
        """Whether a hole in these numbers would show."""
        return (subject, origin) in self.last and (subject, origin) not in self._resumed


class History:
    """All that happened in one cluster.

    Attributes:
        violations: promises that were broken, each as a sentence.
        closing: rooms whose closing is under way to other nodes.
        haunted: who may enter a room at any later time, by a request that was not answered in time.
    """

    def __init__(self, hub: Hub) -> None:
        self._stamps = itertools.count(1)
        self.emitted: list[Emitted] = []
        self.stays: dict[tuple[SimClient, Room | None], list[Stay]] = defaultdict(list)
        self.gaps: dict[SimNode, list[tuple[int, Gap]]] = defaultdict(list)
        self.numbers: dict[SimNode, Numbers] = {}
        self.clients: list[SimClient] = []
        self.violations: list[str] = []
        self.closing: set[tuple[str, Room]] = set()
        self.haunted: set[tuple[SimClient, Room]] = set()
        self._nodes: dict[FaultyBroker, SimNode] = {}
        self._last: dict[tuple[SimClient, SimNode], int] = defaultdict(int)
        self._lost: set[tuple[SimNode, int]] = set()
        self._excused: set[tuple[SimNode, int]] = set()
        self._at_stake: dict[tuple[SimNode, Subject], set[int]] = defaultdict(set)
        hub.dropped = self._dropped

    def stamp(self) -> int:
        return next(self._stamps)

    # What happened

    def add_node(self, node: SimNode) -> None:
        numbers = self.numbers[node] = Numbers(node)
        self._nodes[node.broker] = node
        node.on_gap = lambda gap: self.gaps[node].append((self.stamp(), gap))
        node.broker.handed = numbers.handed

        def forgotten(subjects: Collection[Subject]) -> None:
            numbers.forgotten(subjects)
            for subject in subjects:  # nobody is left who could find out
                self._excuse(node, subject)

        node.broker.forgotten = forgotten

    def connected(self, client: SimClient, called: int) -> None:
        self.clients.append(client)
        now = self.stamp()
        for room in (None, client.sid):
            self.stays[client, room].append(Stay(called, now))

    def watch(self, client: SimClient) -> None:
        client.on_event = lambda event: self.received(client, event)

    def entering(self, client: SimClient, room: Room) -> Stay:
        stays = self.stays[client, room]
        if stays and stays[-1].leaving == NEVER:
            return stays[-1]
        stays.append(Stay(self.stamp()))
        return stays[-1]

    def entered(self, client: SimClient, room: Room, stay: Stay) -> None:
        doubt = (client.namespace, room) in self.closing
        if not doubt and stay.entered == NEVER:
            stay.entered = self.stamp()

    def leaving(self, client: SimClient, room: Room | None) -> None:
        now = self.stamp()
        for stay in self.stays[client, room]:
            stay.leaving = min(stay.leaving, now)

    def left(self, client: SimClient, room: Room | None) -> None:
        if room is not None and (client, room) in self.haunted:
            return
        now = self.stamp()
        for stay in self.stays[client, room]:
            stay.left = min(stay.left, now)

    def gone(self, client: SimClient) -> None:
        for of, room in list(self.stays):
            if of is client:
                if room is not None:
                    self.haunted.discard((client, room))
                self.leaving(client, room)
                self.left(client, room)

    def room_closed(self, node: SimNode, namespace: str, room: Room) -> None:
        """Over at once on the node that closes; elsewhere once its message is there."""
        self.closing.add((namespace, room))
        for client, of in list(self.stays):
            if of == room and type(of) is type(room) and client.namespace == namespace:
                self.leaving(client, room)
                if client.node is node:
                    self.left(client, room)

    def emit(self, node: SimNode, namespace: str, rooms: tuple[Room, ...], skip: Iterable[str] = ()) -> Emitted:
        emitted = Emitted(len(self.emitted), node, namespace, rooms, frozenset(skip), self.stamp())
        self.emitted.append(emitted)
        return emitted

    def emit_ended(self, emitted: Emitted, outcome: Outcome, error: BaseException | None = None) -> None:
        emitted.ended, emitted.outcome, emitted.error = self.stamp(), outcome, error
        if outcome == "accepted":  # P9
            for client in self._sure(emitted, emitted.ended):
                if client.node is emitted.publisher and client not in emitted.received:
                    self._violated("P9", emitted, client, "a local client had to wait")

    def received(self, client: SimClient, event: Arguments) -> None:
        if event[0] != "e":
            return
        emitted = self.emitted[int(event[1])]
        now = self.stamp()
        if client in emitted.received:
            self._violated("P3", emitted, client, "got it twice")
            return
        emitted.received[client] = now
        key = client, emitted.publisher
        if emitted.number < self._last[key]:
            self._violated("P1", emitted, client, f"got it after number {self._last[key]}")
        self._last[key] = max(self._last[key], emitted.number)
        if client.namespace != emitted.namespace or not self._may(emitted, client, now):
            self._violated("P3", emitted, client, "got it and is not addressed")

    def _dropped(self, broker: FaultyBroker, delivery: Delivery) -> None:
        """A delivery vanished in silence: which emits were in it, and could the node ever find out?"""
        envelope = read_envelope(delivery.payload)
        node = self._nodes.get(broker)
        if node is None or envelope is None:
            return
        for raw in envelope.messages:
            try:
                message = decode_message(raw)
            except WireError:
                continue
            if isinstance(message, Emit):
                number = json.loads(message.packet.text[message.packet.text.index("[") :])[1]
                if self.numbers[node].listens(delivery.subject, envelope.origin):
                    self._lost.add((node, number))
                    self._at_stake[node, delivery.subject].add(number)
                else:
                    self._excused.add((node, number))

    def _excuse(self, node: SimNode, subject: Subject) -> None:
        self._excused.update((node, number) for number in self._at_stake.pop((node, subject), ()))

    # What must hold

    def check_settled(self) -> None:
        """P4, P5, P6 for every emit so far: every link is up, and all that was under way has arrived."""
        now = self.stamp()
        for emitted in self.emitted:
            if emitted.settled or emitted.outcome == "pending":
                continue
            emitted.settled = True
            if emitted.outcome != "accepted" and not emitted.received:
                continue
            if emitted.outcome == "failed":
                self._violated("P6", emitted, next(iter(emitted.received)), f"got it, though {emitted.error!r}")
                continue
            for client in self._sure(emitted, now):
                if client not in emitted.received and not self._covered(emitted, client, now):
                    promise = "P6" if emitted.outcome == "cancelled" else "P4, P5"
                    self._violated(promise, emitted, client, "did not get it, and no gap tells")

    def check_rooms(self) -> None:
        """Membership is what the calls made it; where the model is in doubt it learns what happened."""
        now = self.stamp()
        for (client, room), stays in self.stays.items():
            if room is None or not stays or client.disconnected:
                continue
            truth = room in client.node.server.rooms(client.sid, namespace=client.namespace)
            doubt = (client.namespace, room) in self.closing or (client, room) in self.haunted
            if not doubt and truth != any(stay.left == NEVER for stay in stays):
                self.violations.append(f"rooms: {client.sid} {'is' if truth else 'is not'} in {room!r}")
            elif doubt and not (truth and any(stay.entered < stay.leaving == NEVER for stay in stays)):
                for stay in stays:
                    stay.leaving, stay.left = min(stay.leaving, now), min(stay.left, now)
                if truth:
                    stays.append(Stay(now, now))
        self.closing.clear()
        self.haunted.clear()

    def check_counts(self) -> None:
        """P5: every hole that the numbers show was told, with its size, and nothing else was."""
        for node, numbers in self.numbers.items():
            told: dict[tuple[Subject | None, str | None], int] = defaultdict(int)
            for gap in node.told("missed"):
                told[gap.subject, gap.origin] += gap.missed or 0
            truth = {key: count for key, count in numbers.missed.items() if count}
            if told != truth:
                self.violations.append(f"P5: node {node.id} told {dict(told)} missing, and it was {truth}")
            given_up = sum(gap.missed or 0 for gap in node.told("given_up"))
            if given_up != node.adapter.stats()["given_up"]:
                self.violations.append(f"P5: node {node.id} told {given_up} given up, and counted another number")

    def _selected(self, emitted: Emitted) -> Iterable[SimClient]:
        for client in self.clients:
            if client.namespace == emitted.namespace and client.sid not in emitted.skip:
                yield client

    def _sure(self, emitted: Emitted, until: int) -> list[SimClient]:
        return [
            client
            for client in self._selected(emitted)
            if any(
                stay.sure(emitted.started, until)
                for room in (emitted.rooms or (None,))
                for stay in self._stays(client, room)
            )
        ]

    def _may(self, emitted: Emitted, client: SimClient, now: int) -> bool:
        return client.sid not in emitted.skip and any(
            stay.possible(emitted.started, now)
            for room in (emitted.rooms or (None,))
            for stay in self._stays(client, room)
        )

    def _stays(self, client: SimClient, room: Room | None) -> Iterable[Stay]:
        return self.stays.get((client, room), ())

    def _covered(self, emitted: Emitted, client: SimClient, until: int) -> bool:
        node, publisher = client.node, emitted.publisher
        if (node, emitted.number) in self._excused:
            return True
        if (node, emitted.number) in self._lost:
            return True  # `check_counts` holds the node to it, once something came behind the hole
        told = {gap.reason for when, gap in self.gaps[node] if emitted.started < when <= until}
        gave_up = any(
            gap.reason == "given_up" and emitted.started < when <= until for when, gap in self.gaps[publisher]
        )
        return gave_up or bool(told & {"disconnected", "reconnected", "overflow"})

    def _violated(self, promise: str, emitted: Emitted, client: SimClient, what: str) -> None:
        self.violations.append(
            f"{promise}: emit {emitted.number} to {emitted.rooms or 'everyone'} of {emitted.namespace}"
            f" ({emitted.outcome}): client {client.sid} {what}"
        )


def bounds(node: SimNode) -> dict[str, Any]:
    """P7: what may grow in a node, by name."""
    core: Any = node.core
    adapter: Any = node.adapter
    return {
        "backlog": core.publisher.backlog,
        "interest": len(core.subscriber._interest),
        "tracking": len(core.receiver.tracking),
        "barriers": len(core.subscriber._barriers),
        "surveys": len(adapter._surveys),
        "answers": len(adapter._answers._parts),
        "tasks": len(core._tasks),
        "acks": len(adapter._broadcast.acks),
        "waiting": len(core.publisher._queue),
    }
