"""Brokers with one seeded bug each, and the conformance checks that must catch them."""

import asyncio
from collections.abc import Callable, Collection, Sequence

from roomcast.core.broker import BrokerConfig, Delivery, Gap, Position, Subject
from roomcast.core.errors import BrokerUnavailable
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


# Publishing while the link breaks.


@caught_by(link.rule_05_no_publish_while_down)
class SendsLate(ModelBroker):
    def publish_while_down(self, outer: Outer, subject: Subject, payload: bytes) -> None:
        outer.set_exception(self.unavailable())
        self.late = [*getattr(self, "late", []), (subject, payload)]

    async def greet(self, connection: Connection) -> None:
        await super().greet(connection)
        for subject, payload in getattr(self, "late", []):
            await connection.ask("publish", [subject], payload)


@caught_by(link.rule_05_lost_replies_end_unconfirmed, link.rule_05_every_outcome_is_true)
class RetriesBehindTheBack(ModelBroker):
    unsure: tuple[tuple[Subject, bytes], ...] = ()

    def send(self, connection: Connection, outer: Outer, subject: Subject, payload: bytes) -> None:
        super().send(connection, outer, subject, payload)
        outer.add_done_callback(lambda done: self.note(done, subject, payload))

    def note(self, done: Outer, subject: Subject, payload: bytes) -> None:
        if not done.cancelled() and done.exception() is not None:
            self.unsure += ((subject, payload),)

    async def greet(self, connection: Connection) -> None:
        await super().greet(connection)
        for subject, payload in self.unsure:
            await connection.ask("publish", [subject], payload)


@caught_by(link.rule_05_every_outcome_is_true)
class SaysCancelledForLost(ModelBroker):
    def settle(self, outer: Outer, answer: "asyncio.Future[None]") -> None:
        if answer.exception() is None:
            super().settle(outer, answer)
        else:
            outer.cancel()


@caught_by(link.rule_05_every_outcome_is_true, link.rule_05_lost_replies_end_unconfirmed)
class AcceptsBeforeItIsConfirmed(ModelBroker):
    def send(self, connection: Connection, outer: Outer, subject: Subject, payload: bytes) -> None:
        outer.set_result(None)
        connection.ask("publish", [subject], payload)


@caught_by(link.rule_05_lost_replies_end_unconfirmed)
class SaysUnavailableForUnconfirmed(ModelBroker):
    def settle(self, outer: Outer, answer: "asyncio.Future[None]") -> None:
        if answer.exception() is None:
            super().settle(outer, answer)
        elif not outer.done():
            outer.set_exception(self.unavailable())


# Gaps of the link.


@caught_by(link.rule_08_every_loss_is_told, link.rule_08_a_loss_is_told_once)
class ReconnectsInSilence(ModelBroker):
    def put(self, event: Delivery | Gap) -> None:
        if isinstance(event, Delivery) or event.reason == "overflow":
            super().put(event)


@caught_by(link.rule_08_every_loss_is_told, link.rule_08_a_loss_is_told_once)
class SaysLostAtEachAttempt(ModelBroker):
    async def connect(self) -> None:
        if self.connection is not None:
            self.put(Gap("disconnected", ongoing=True))
        await super().connect()


@caught_by(link.rule_08_a_loss_is_told_once, link.rule_08_every_loss_is_told)
class DoesNotSayThatLossGoesOn(ModelBroker):
    def put(self, event: Delivery | Gap) -> None:
        super().put(Gap(event.reason) if isinstance(event, Gap) else event)


# Connecting.


@caught_by(link.rule_01_start_raises_when_nothing_listens, link.rule_13_errors_are_ours_and_tell_no_secret)
class RaisesTheClientsOwnError(ModelBroker):
    async def start(self) -> None:
        await self.connect()
        await super().start()


@caught_by(
    link.rule_01_start_raises_when_nothing_listens,
    link.rule_01_start_gives_up_on_a_silent_server,
    link.rule_13_errors_are_ours_and_tell_no_secret,
)
class StartsInTheBackground(ModelBroker):
    async def start(self) -> None:
        self.check_open()

        async def begin() -> None:
            await self.reconnect()
            await self.keep()

        self.keeper = asyncio.create_task(begin())


@caught_by(link.rule_01_start_gives_up_on_a_silent_server)
class WaitsForEverToStart(ModelBroker):
    async def start(self) -> None:
        try:
            await self.connect()
        except OSError as exc:
            raise self.unavailable() from exc
        self.keeper = asyncio.create_task(self.keep())


@caught_by(
    link.rule_01_reconnects_and_restores_subjects,
    link.rule_01_keeps_trying_with_back_off,
    link.rule_12_a_black_hole_is_noticed,
)
class ForgetsSubjectsWithTheConnection(ModelBroker):
    async def greet(self, connection: Connection) -> None:
        await connection.ask("ping")


@caught_by(link.rule_01_reconnects_and_restores_subjects, link.rule_08_a_loss_is_told_once)
class NeverReconnects(ModelBroker):
    async def reconnect(self) -> None:
        await asyncio.Event().wait()


@caught_by(link.rule_01_reconnects_and_restores_subjects)
class TakesItsTimeToReconnect(ModelBroker):
    async def reconnect(self) -> None:
        await asyncio.sleep(2.1)
        await super().reconnect()


@caught_by(link.rule_01_keeps_trying_with_back_off)
class GivesUpAfterFive(ModelBroker):
    async def reconnect(self) -> None:
        for _ in range(5):
            try:
                await self.connect()
            except OSError:
                await asyncio.sleep(0.05)
            else:
                return
        await asyncio.Event().wait()


@caught_by(link.rule_01_keeps_trying_with_back_off)
class StormsTheServer(ModelBroker):
    async def reconnect(self) -> None:
        while True:
            try:
                return await self.connect()
            except OSError:
                await asyncio.sleep(0)


@caught_by(
    link.rule_12_a_black_hole_is_noticed,
    link.rule_12_a_publish_into_a_black_hole_ends,
)
class TrustsTheKernel(ModelBroker):
    async def watch(self, connection: Connection) -> None:
        await connection.lost.wait()


@caught_by(link.rule_12_a_publish_into_a_black_hole_ends)
class ForgetsWhatWasInFlight(ModelBroker):
    def settle(self, outer: Outer, answer: "asyncio.Future[None]") -> None:
        if answer.exception() is None:
            super().settle(outer, answer)


@caught_by(link.rule_12_a_quiet_link_is_not_lost)
class TakesSilenceForDeath(ModelBroker):
    async def watch(self, connection: Connection) -> None:
        await asyncio.wait([asyncio.ensure_future(connection.lost.wait())], timeout=self.config.heartbeat)


# Closing.


@caught_by(delivery.rule_11_aclose_is_idempotent)
class ClosesOnce(ModelBroker):
    async def aclose(self) -> None:
        self.check_open()
        await super().aclose()


@caught_by(delivery.rule_11_aclose_is_idempotent)
class StartsAgainAfterClose(ModelBroker):
    async def start(self) -> None:
        self.closed = False
        await super().start()


@caught_by(delivery.rule_11_aclose_frees_blocked_calls, link.rule_11_aclose_on_a_dead_link)
class LeavesReceiveBlocked(ModelBroker):
    def wake(self) -> None:
        pass


@caught_by(delivery.rule_11_aclose_flushes)
class ClosesWithoutFlushing(ModelBroker):
    async def flush(self) -> None:
        pass


@caught_by(link.rule_11_aclose_on_a_dead_link)
class FlushesForEver(ModelBroker):
    async def flush(self) -> None:
        if self.connection is not None and self.connection.asked:
            await asyncio.wait(self.connection.asked.values())


@caught_by(link.rule_11_aclose_leaves_nothing)
class LeavesItsKeeper(ModelBroker):
    def stop(self) -> None:
        if self.connection is not None:
            self.connection.close()


@caught_by(link.rule_11_aclose_leaves_nothing, link.rule_11_aclose_on_a_dead_link)
class LeavesItsConnection(ModelBroker):
    def stop(self) -> None:
        if self.keeper is not None:
            self.keeper.cancel()


@caught_by(link.rule_11_a_cancelled_start_leaves_nothing, link.rule_01_start_gives_up_on_a_silent_server)
class LeavesAConnectionHalfMade(ModelBroker):
    async def connect(self) -> None:
        connection = self.hub.connect(self.config.url, self.deliver)
        await self.greet(connection)
        self.connection = connection


@caught_by(link.rule_13_errors_are_ours_and_tell_no_secret)
class TellsItsUrl(ModelBroker):
    def unavailable(self) -> BrokerUnavailable:
        return BrokerUnavailable(f"cannot reach {self.config.url}", broker="model")


@caught_by(link.rule_13_errors_are_ours_and_tell_no_secret)
class ShowsItsUrl(ModelBroker):
    def __repr__(self) -> str:
        return f"ShowsItsUrl({self.config.url!r})"
