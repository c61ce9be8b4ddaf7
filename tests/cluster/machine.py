"""The state machine: whatever an application, its clients and a failing broker do to a cluster, in any order."""

import asyncio
import logging
import os
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar, cast

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from roomcast.core.broker import Subject
from roomcast.core.errors import (
    Backpressure,
    EncodeError,
    PayloadTooLarge,
    PublishRejected,
    PublishUnconfirmed,
    RequestTimeout,
)
from roomcast.core.wire import Envelope
from tests.cluster.clock import Timeline
from tests.cluster.harness import Cluster, SimClient, SimNode
from tests.cluster.model import History, Room, bounds

NIGHTLY = os.environ.get("ROOMCAST_HYPOTHESIS_PROFILE") == "nightly"

logger = logging.getLogger("roomcast")

OUTBOX = 6
BURST = 12

ROOMS: Sequence[Room] = ("a", "b", "", 7, "7", "a.*.>", "Zürich \r\n🏙", "x" * 300)
NAMESPACES = ("/", "/chat")

indexes = st.integers(0, 7)
rooms = st.sampled_from(("a", "a", "a", "b", *ROOMS))  # mostly few, so that clients meet
namespaces = st.sampled_from((*NAMESPACES[:1] * 3, *NAMESPACES[1:]))
moments = st.sampled_from((0.0, 0.0005, 0.0015, 0.0025, 0.1, 0.5, 1.1, 2.5, 6.0, 12.0))
targets: st.SearchStrategy[Any] = st.one_of(
    st.lists(rooms, min_size=1, max_size=1),
    st.lists(rooms, min_size=2, max_size=3, unique=True),
    st.just([]),
    st.just(["a"]),
    indexes,  # the sid of a client
    st.tuples(indexes, rooms),  # a sid and a room
)
skips = st.lists(indexes, max_size=2)
garbage = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=40).map(lambda tail: b"\1\0" + tail),
    st.binary(min_size=1, max_size=20).map(
        lambda tail: b"\1\0" + msgspec.msgpack.encode(Envelope("stranger", 1, 0, 1, [msgspec.Raw(b"\x91" + tail)]))
    ),
)


def profile(*, examples: int, steps: int = 30, **more: Any) -> settings:
    """Moderate by default, ten times larger with ROOMCAST_HYPOTHESIS_PROFILE=nightly."""
    return settings(
        max_examples=examples * (10 if NIGHTLY else 1),
        stateful_step_count=steps * (2 if NIGHTLY else 1),
        deadline=None,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
        **more,
    )


QUICK: dict[str, Any] = {"phases": (Phase.generate,), "derandomize": True, "database": None}


class ClusterMachine(RuleBasedStateMachine):
    """2 to 4 nodes with their clients, against the model."""

    url: ClassVar[str] = "faulty://hub"
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.line = Timeline()
        self._log, logger.disabled = logger.disabled, True  # thousands of warnings, all of them deserved
        self.cluster = Cluster(
            url=self.url,
            **{"outbox_messages": OUTBOX, "outbox_age": 8.0, "emit_timeout": 3.0, "max_payload": 16_384} | self.options,
        )
        self.history = History(self.cluster.hub)
        self.clients: list[SimClient] = []
        self.run(self.cluster.__aenter__())

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.line.run(coroutine)

    def node(self, index: int) -> SimNode:
        return self.cluster.nodes[index % len(self.cluster.nodes)]

    def client(self, index: int) -> SimClient:
        return self.clients[index % len(self.clients)]

    # Clients

    @initialize(nodes=st.integers(2, 4), clients=st.lists(st.tuples(indexes, rooms), min_size=1, max_size=4))
    def begin(self, nodes: int, clients: list[tuple[int, Room]]) -> None:
        async def join() -> None:
            for _ in range(nodes):
                self.history.add_node(await self.cluster.node())

        self.run(join())
        for index, room in clients:
            self.connect(index, "/")
            self.join(len(self.clients) - 1, room)

    @precondition(lambda self: len(self.clients) < 8)
    @rule(index=indexes, namespace=namespaces)
    def connect(self, index: int, namespace: str) -> None:
        async def connect() -> None:
            client = SimClient(self.node(index), namespace)
            self.history.watch(client)
            called = self.history.stamp()
            await client.connect()
            client.node.clients.append(client)
            self.clients.append(client)
            self.history.connected(client, called)

        self.run(connect())

    @precondition(lambda self: len(self.clients) > 1)
    @rule(index=indexes)
    def disconnect(self, index: int) -> None:
        client = self.client(index)
        self.run(client.leave())
        client.disconnected = True
        self.history.gone(client)
        self.clients.remove(client)

    @precondition(lambda self: self.clients)
    @rule(index=indexes, room=rooms)
    def join(self, index: int, room: Room) -> None:
        client = self.client(index)
        stay = self.history.entering(client, room)
        self.run(client.node.server.enter_room(client.sid, room, namespace=client.namespace))
        self.history.entered(client, room, stay)

    @precondition(lambda self: self.clients)
    @rule(index=indexes, room=rooms, by=indexes, operator=st.booleans())
    def join_from_anywhere(self, index: int, room: Room, by: int, operator: bool) -> None:
        """Another node puts the client into the room: done when the call returns, in doubt when it times out."""
        client = self.client(index)
        stay = self.history.entering(client, room)

        async def enter() -> None:
            node, joined = self.node(by), 1
            try:
                if operator:
                    joined = await node.adapter.namespace(client.namespace).to(client.sid).sockets_join(room)
                else:
                    await node.server.enter_room(client.sid, room, namespace=client.namespace)
            except (RequestTimeout, ValueError, Backpressure):
                joined = 0
            if joined:
                self.history.entered(client, room, stay)
            else:
                self.history.haunted.add((client, room))

        self.run(enter())

    @precondition(lambda self: self.clients)
    @rule(index=indexes, room=rooms)
    def leave(self, index: int, room: Room) -> None:
        client = self.client(index)
        self.history.leaving(client, room)
        self.run(client.node.server.leave_room(client.sid, room, namespace=client.namespace))
        self.history.left(client, room)

    @rule(index=indexes, room=rooms, namespace=namespaces)
    def close(self, index: int, room: Room, namespace: str) -> None:
        node = self.node(index)

        async def close() -> None:
            try:
                await node.server.close_room(room, namespace=namespace)
            except Backpressure:
                return
            self.history.room_closed(node, namespace, room)

        self.run(close())

    # Emits

    async def _emit(self, node: SimNode, namespace: str, target: Any, skip: list[int], data: object = None) -> None:
        if isinstance(target, int):
            target = [self.client(target).sid] if self.clients else ["nobody"]
        elif isinstance(target, tuple):
            index, room_too = cast("tuple[int, Room]", target)
            target = [self.client(index).sid, room_too] if self.clients else [room_too]
        skipped = [self.client(one).sid for one in skip] if self.clients else []
        emitted = self.history.emit(node, namespace, tuple(target), skipped)
        room = None if not target else target[0] if len(target) == 1 else target
        try:
            if emitted.number % 2:
                await node.server.emit(
                    "e", (emitted.number, data), room=room, skip_sid=skipped or None, namespace=namespace
                )
            else:  # the operators mean the same
                operator = node.adapter.namespace(namespace)
                operator = operator.to(*target) if target else operator
                operator = operator.except_(*skipped) if skipped else operator
                await operator.emit("e", emitted.number, data)
        except asyncio.CancelledError:
            self.history.emit_ended(emitted, "cancelled")
            raise
        except (Backpressure, PayloadTooLarge, EncodeError) as exc:
            self.history.emit_ended(emitted, "failed", exc)
        except (
            PublishUnconfirmed,
            PublishRejected,
        ):  # with `confirm`: it has happened, and may come late or be given up
            self.history.emit_ended(emitted, "accepted")
        else:
            self.history.emit_ended(emitted, "accepted")

    @rule(index=indexes, namespace=namespaces, to=targets, skip=skips)
    def emit(self, index: int, namespace: str, to: Any, skip: list[int]) -> None:
        self.run(self._emit(self.node(index), namespace, to, skip))

    @rule(index=indexes, room=rooms, data=st.sampled_from((object(), float("nan"), "x" * 20_000, b"\0\1")))
    def emit_what_may_not_travel(self, index: int, room: Room, data: object) -> None:
        self.run(self._emit(self.node(index), "/", [room], [], data))

    @rule(index=indexes, many=st.lists(targets, min_size=2, max_size=BURST), moment=st.sampled_from((0.0, 0.0005)))
    def emit_many_at_once(self, index: int, many: list[Any], moment: float) -> None:
        async def burst() -> None:
            node = self.node(index)
            await asyncio.gather(*(self._emit(node, "/", to, []) for to in many))
            await asyncio.sleep(moment)

        self.run(burst())

    @rule(index=indexes, to=targets, others=st.sampled_from((0, 0, 0, BURST)), turns=st.integers(0, 3))
    def emit_and_cancel(self, index: int, to: Any, others: int, turns: int) -> None:
        async def cancel() -> None:
            node = self.node(index)
            before = [asyncio.ensure_future(self._emit(node, "/", ["a"], [])) for _ in range(others)]
            task = asyncio.ensure_future(self._emit(node, "/", to, []))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, *before, return_exceptions=True)

        self.run(cancel())

    # Faults

    @rule(index=indexes, seconds=st.sampled_from((0.0005, 0.01, 0.5, 3.0)), deliveries=st.integers(1, 3))
    def delay(self, index: int, seconds: float, deliveries: int) -> None:
        self.node(index).broker.delay(seconds, deliveries)

    @rule(index=indexes, reach=st.integers(0, 3), partial=st.integers(0, 3), turns=st.integers(0, 3))
    def lose_link(self, index: int, reach: int, partial: int, turns: int) -> None:
        async def lose() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            self.node(index).broker.lose_link(reach=reach, partial=partial)

        self.run(lose())

    @rule(
        index=indexes,
        before=st.lists(rooms, min_size=1, max_size=OUTBOX),
        after=st.lists(rooms, max_size=3),
        reach=st.integers(0, 3),
        partial=st.integers(0, 3),
        moment=st.sampled_from((0.0005, 0.1, 2.5)),
    )
    def break_the_link_under_load(
        self, index: int, before: list[Room], after: list[Room], reach: int, partial: int, moment: float
    ) -> None:
        async def burst() -> None:
            node = self.node(index)
            for room in before:
                await self._emit(node, "/", [room], [])
            await asyncio.sleep(0)
            node.broker.lose_link(reach=reach, partial=partial)
            for room in after:
                await self._emit(node, "/", [room], [])
            await asyncio.sleep(moment)
            node.broker.restore_link()

        self.run(burst())

    @rule(index=indexes)
    def restore_link(self, index: int) -> None:
        async def restore() -> None:
            self.node(index).broker.restore_link()

        self.run(restore())

    @rule(moment=moments, order=st.permutations(range(4)), apart=st.sampled_from((0.0, 0.0015, 0.4)))
    def restart_broker(self, moment: float, order: list[int], apart: float) -> None:
        async def restart() -> None:
            self.cluster.lose_links()
            await asyncio.sleep(moment)
            for index in order:
                if index < len(self.cluster.nodes):
                    self.cluster.nodes[index].broker.restore_link()
                    await asyncio.sleep(apart)

        self.run(restart())

    @rule(index=indexes, deliveries=st.integers(1, 3))
    def overflow(self, index: int, deliveries: int) -> None:
        self.node(index).broker.overflow(deliveries)

    @rule(index=indexes, deliveries=st.integers(1, 2))
    def lose_in_silence(self, index: int, deliveries: int) -> None:
        self.node(index).broker.lose(deliveries)

    @rule(index=indexes, deliveries=st.integers(1, 2))
    def repeat(self, index: int, deliveries: int) -> None:
        self.node(index).broker.repeat(deliveries)

    @rule(index=indexes, stalled=st.booleans())
    def stall(self, index: int, stalled: bool) -> None:
        async def stall() -> None:
            self.node(index).broker.stall(stalled=stalled)

        self.run(stall())

    @rule(index=indexes, payload=garbage, kind=st.integers(0, 3), room=rooms)
    def publish_garbage(self, index: int, payload: bytes, kind: int, room: Room) -> None:
        subjects = self.node(index).core.subjects
        subject: Subject = (
            subjects.control,
            subjects.inbox(self.node(index).id),
            subjects.namespace("/"),
            subjects.room("/", room),
        )[kind]

        async def publish() -> None:
            self.cluster.hub.route(None, subject, payload)

        self.run(publish())

    # Time

    @rule(moment=moments)
    def pass_time(self, moment: float) -> None:
        self.run(asyncio.sleep(moment))

    @rule()
    def settle(self) -> None:
        """Everything works again, and all that was under way arrives."""

        async def settle() -> None:
            for node in self.cluster.nodes:
                node.broker.behave()
            self.cluster.restore_links()
            await asyncio.sleep(13.0)  # a heartbeat, a regroup, the longest delay, an outbox's age
            for _ in range(1000):  # a heartbeat may just be on its way, and another one right behind it
                if all(node.broker.quiet for node in self.cluster.nodes):
                    return
                await asyncio.sleep(0.0007)
            raise AssertionError("something is still on its way")

        self.run(settle())
        for node in self.cluster.nodes:
            assert node.core.publisher.backlog == 0, "the outbox holds on to something"
            assert node.adapter.health(), node.adapter.health().reason
        self.history.check_settled()
        self.history.check_rooms()

    # What always holds

    @invariant()
    def every_promise_is_kept(self) -> None:
        assert not self.history.violations, "\n".join(self.history.violations)

    @invariant()
    def nothing_grows(self) -> None:
        for node in self.cluster.nodes:
            size = bounds(node)
            assert size["backlog"] <= 2 * OUTBOX + 2 * BURST, size
            assert size["interest"] <= len(ROOMS) * len(NAMESPACES) + len(NAMESPACES), size
            subjects = (len(ROOMS) + 1) * len(NAMESPACES) + 2
            assert size["tracking"] <= subjects * (len(self.cluster.nodes) - 1), size
            assert size["tasks"] <= 8, size
            assert size["barriers"] <= 8, size
            assert size["surveys"] == size["answers"] == size["acks"] == 0, size
            assert size["waiting"] == 0, size

    @invariant()
    def nothing_breaks(self) -> None:
        for node in self.cluster.nodes:
            stats = node.adapter.stats()
            assert stats["faults"] == 0, stats
            assert not any(loop.done() for loop in node.core._loops)  # pyright: ignore[reportPrivateUsage]
            strange = sum(count for kind, count in stats["refused"].items() if kind != "replayed")
            assert strange <= self.history.numbers[node].garbage, stats

    def teardown(self) -> None:
        try:
            if self.cluster.nodes and not self.history.violations:
                self.end()
        finally:
            try:
                self.run(self.cluster.__aexit__(None, None, None))
            finally:
                self.line.close()
                logger.disabled = self._log

    def end(self) -> None:
        """Every hole shows by what comes behind it; then everybody leaves, and nothing is left."""
        self.settle()

        async def sentinels() -> None:
            for node in self.cluster.nodes:
                for namespace in NAMESPACES:
                    for target in (*([room] for room in ROOMS), [], *range(len(self.clients))):
                        await self._emit(node, namespace, target, [])
                        await asyncio.sleep(0.01)
            await asyncio.sleep(3.0)

        self.run(sentinels())
        self.history.check_settled()
        self.run(self._everybody_leaves())
        self.history.check_counts()
        self.every_promise_is_kept()
        for node in self.cluster.nodes:
            size = bounds(node)
            left = {name: count for name, count in size.items() if count and name != "tracking"}
            assert not left, left
            strange = sum(count for kind, count in node.adapter.stats()["refused"].items() if kind != "replayed")
            assert strange == self.history.numbers[node].garbage, "P8: each piece of garbage is counted once"

    async def _everybody_leaves(self) -> None:
        for client in self.clients:
            await client.leave()
        await asyncio.sleep(3.0)
