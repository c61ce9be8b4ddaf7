"""Brokers with one seeded bug each, and the conformance checks that must catch them."""

import asyncio
from collections.abc import Callable, Collection, Sequence

from roomcast.core.broker import BrokerConfig, Delivery, Gap, Position, Subject
from tests.brokers import checks_delivery as delivery
from tests.brokers import checks_link as link
from tests.brokers.cluster import Check
from tests.brokers.model import Connection, Hub, ModelBroker

Outer = asyncio.Future[Position | None]
Twin = type[ModelBroker]

CAUGHT_BY: dict[Twin, tuple[Check, ...]] = {}


def caught_by(*checks: Check) -> Callable[[Twin], Twin]:
    """Name the checks that must fail on the decorated twin."""

    def register(twin: Twin) -> Twin:
        CAUGHT_BY[twin] = checks
        return twin

    return register


# Delivery: what is lost, repeated, reordered or changed.


@caught_by(
    delivery.rule_04_the_call_fixes_the_order,
    delivery.rule_04_other_calls_do_not_disturb_the_order,
    delivery.rule_09_order_is_fifo_per_publisher,
    link.rule_08_every_loss_is_told,
)
class DropsOneWithoutGap(ModelBroker):
    count = 0

    def deliver(self, delivery: Delivery) -> None:
        self.count += 1
        if self.count % 40:
            super().deliver(delivery)


@caught_by(
    delivery.rule_04_the_call_fixes_the_order,
    delivery.rule_07_cancelling_receive_loses_nothing,
    delivery.rule_09_order_is_fifo_per_publisher,
    link.rule_05_every_outcome_is_true,
)
class DeliversOneTwice(ModelBroker):
    count = 0

    def deliver(self, delivery: Delivery) -> None:
        self.count += 1
        super().deliver(delivery)
        if self.count % 40 == 0:
            super().deliver(delivery)


@caught_by(delivery.rule_04_the_call_fixes_the_order, delivery.rule_09_order_is_fifo_per_publisher)
class SendsLargeOnesLater(ModelBroker):
    def send(self, connection: Connection, outer: Outer, subject: Subject, payload: bytes) -> None:
        if len(payload) > 150 or payload.endswith(b"7"):
            asyncio.get_running_loop().call_later(0.001, super().send, connection, outer, subject, payload)
        else:
            super().send(connection, outer, subject, payload)


@caught_by(delivery.rule_04_other_calls_do_not_disturb_the_order)
class SubscribingHoldsUpDeliveries(ModelBroker):
    async def subscribe(self, subjects: Collection[Subject], /) -> None:
        before = list(self.events)
        self.events.clear()
        await super().subscribe(subjects)
        self.events.extend(before)
        self.ready.set()


@caught_by(delivery.rule_04_other_calls_do_not_disturb_the_order, delivery.rule_05_a_cancelled_publish_harms_no_other)
class CancelsNeighbours(ModelBroker):
    def __init__(self, config: BrokerConfig, hub: Hub) -> None:
        super().__init__(config, hub)
        self.outers: list[Outer] = []

    def send(self, connection: Connection, outer: Outer, subject: Subject, payload: bytes) -> None:
        super().send(connection, outer, subject, payload)
        self.outers.append(outer)
        outer.add_done_callback(self.cancel_all)

    def cancel_all(self, done: Outer) -> None:
        if done.cancelled():
            for outer in self.outers:
                outer.cancel()


@caught_by(delivery.rule_05_a_large_payload_is_refused_before_the_wire)
class CutsPayloads(ModelBroker):
    def publish(self, subject: Subject, payload: bytes, /) -> Outer:
        return super().publish(subject, payload[: self.guarantees.max_payload])


@caught_by(delivery.rule_05_a_large_payload_is_refused_before_the_wire)
class StripsLineEnds(ModelBroker):
    def deliver(self, delivery: Delivery) -> None:
        super().deliver(Delivery(delivery.subject, delivery.payload.rstrip(b"\r\n")))


@caught_by(delivery.rule_05_any_subject_is_carried)
class FoldsCase(ModelBroker):
    def send(self, connection: Connection, outer: Outer, subject: Subject, payload: bytes) -> None:
        super().send(connection, outer, Subject(subject.lower()), payload)


@caught_by(delivery.rule_05_any_subject_is_carried)
class CutsSubjects(ModelBroker):
    def send(self, connection: Connection, outer: Outer, subject: Subject, payload: bytes) -> None:
        super().send(connection, outer, Subject(subject[:128]), payload)


@caught_by(delivery.rule_05_a_node_that_is_not_started_cannot_publish, link.rule_05_no_publish_while_down)
class SwallowsPublishesWhileDown(ModelBroker):
    def publish_while_down(self, outer: Outer, _subject: Subject, _payload: bytes) -> None:
        outer.set_result(None)


@caught_by(delivery.rule_06_a_node_hears_itself)
class SaysThatItDoesNotEcho(ModelBroker):
    def __init__(self, config: BrokerConfig, hub: Hub) -> None:
        super().__init__(config, hub)
        self.guarantees = type(self.guarantees)("publisher", confirmed=True, max_payload=config.max_payload, echo=False)


@caught_by(delivery.rule_10_a_position_is_set_exactly_with_a_log)
class HasPositionsWithoutLog(ModelBroker):
    def deliver(self, delivery: Delivery) -> None:
        super().deliver(Delivery(delivery.subject, delivery.payload, Position("e", "1")))


# Subjects.


@caught_by(
    delivery.rule_02_subscribe_is_a_barrier,
    link.rule_02_subscribe_is_a_barrier_on_a_slow_link,
    link.rule_02_subscribe_takes_one_round_trip,
)
class SubscribesLater(ModelBroker):
    async def subscribe(self, subjects: Collection[Subject], /) -> None:
        if (connection := self.up()) is not None:
            asyncio.get_running_loop().call_later(0.01, connection.ask, "subscribe", tuple(subjects))


@caught_by(link.rule_02_subscribe_is_a_barrier_on_a_slow_link, link.rule_02_subscribe_takes_one_round_trip)
class SubscribesWithoutWaiting(ModelBroker):
    async def subscribe(self, subjects: Collection[Subject], /) -> None:
        self.check_open()
        self.subjects.update(subjects)
        if (connection := self.up()) is None:
            raise self.unavailable()
        connection.ask("subscribe", subjects)


@caught_by(link.rule_02_subscribe_takes_one_round_trip)
class SubscribesOneByOne(ModelBroker):
    async def subscribe(self, subjects: Collection[Subject], /) -> None:
        for subject in subjects:
            await super().subscribe([subject])


@caught_by(delivery.rule_02_subscribe_is_plural)
class SubscribesToAFew(ModelBroker):
    async def subscribe(self, subjects: Collection[Subject], /) -> None:
        await super().subscribe(list(subjects)[:50])


@caught_by(delivery.rule_02_subscribe_is_idempotent)
class HearsAsOftenAsItSubscribed(ModelBroker):
    def __init__(self, config: BrokerConfig, hub: Hub) -> None:
        super().__init__(config, hub)
        self.times: dict[Subject, int] = {}

    async def subscribe(self, subjects: Collection[Subject], /) -> None:
        for subject in subjects:
            self.times[subject] = self.times.get(subject, 0) + 1
        await super().subscribe(subjects)

    def deliver(self, delivery: Delivery) -> None:
        for _ in range(self.times[delivery.subject]):
            super().deliver(delivery)


@caught_by(delivery.rule_03_unsubscribe_is_idempotent)
class RefusesToUnsubscribeTwice(ModelBroker):
    async def unsubscribe(self, subjects: Collection[Subject], /) -> None:
        for subject in subjects:
            self.subjects.remove(subject)
        await super().unsubscribe(subjects)


@caught_by(delivery.rule_03_unsubscribe_is_idempotent, delivery.rule_02_subscribe_is_idempotent)
class NeverUnsubscribes(ModelBroker):
    async def unsubscribe(self, subjects: Collection[Subject], /) -> None:
        self.subjects.difference_update(subjects)


@caught_by(link.rule_02_and_03_subjects_change_while_down)
class ForgetsWhatItWasAskedWhileDown(ModelBroker):
    async def subscribe(self, subjects: Collection[Subject], /) -> None:
        if self.up() is None:
            raise self.unavailable()
        await super().subscribe(subjects)


@caught_by(link.rule_02_and_03_subjects_change_while_down)
class KeepsWhatItShouldForgetWhileDown(ModelBroker):
    async def unsubscribe(self, subjects: Collection[Subject], /) -> None:
        if self.up() is not None:
            await super().unsubscribe(subjects)


@caught_by(link.rule_02_and_03_subjects_change_while_down)
class CannotUnsubscribeWhileDown(ModelBroker):
    async def unsubscribe(self, subjects: Collection[Subject], /) -> None:
        if self.up() is None:
            raise self.unavailable()
        await super().unsubscribe(subjects)


# Receiving.


@caught_by(delivery.rule_07_receive_waits_and_returns_all_that_is_ready)
class ReturnsOneAtATime(ModelBroker):
    async def receive(self) -> Sequence[Delivery | Gap]:
        events = list(await super().receive())
        self.events.extendleft(reversed(events[1:]))
        return events[:1]


@caught_by(delivery.rule_07_receive_waits_and_returns_all_that_is_ready)
class ReturnsNothing(ModelBroker):
    async def receive(self) -> Sequence[Delivery | Gap]:
        await asyncio.sleep(0)
        return () if not self.events and not self.closed else await super().receive()


@caught_by(delivery.rule_07_cancelling_receive_loses_nothing)
class LosesWhatACancelledReceiveHad(ModelBroker):
    async def receive(self) -> Sequence[Delivery | Gap]:
        events = await super().receive()
        await asyncio.sleep(0)
        return events


@caught_by(delivery.rule_08_overflow_is_bounded_and_told)
class ForgetsTheGapOnOverflow(ModelBroker):
    def overflow(self) -> None:
        pass


@caught_by(delivery.rule_08_overflow_is_bounded_and_told)
class BuffersWithoutBound(ModelBroker):
    def put(self, event: Delivery | Gap) -> None:
        self.events.append(event)
        self.ready.set()


@caught_by(delivery.rule_08_overflow_is_bounded_and_told)
class DropsTheOldest(ModelBroker):
    def overflow(self) -> None:
        self.events.popleft()
        self.events.append(Gap("overflow", missed=1))


@caught_by(delivery.rule_08_overflow_is_bounded_and_told)
class CountsOneLossPerOverflow(ModelBroker):
    def overflow(self) -> None:
        if not isinstance(self.events[-1], Gap):
            self.events.append(Gap("overflow", missed=1))
