"""Brokers with one seeded bug each in how they meet a breaking link, or in how they start and close."""

import asyncio

from roomcast.core.broker import Delivery, Gap, Subject
from roomcast.core.errors import BrokerUnavailable
from tests.brokers import checks_delivery as delivery
from tests.brokers import checks_link as link
from tests.brokers.model import Connection, ModelBroker
from tests.brokers.twins import Outer, caught_by

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
        await asyncio.sleep(4.1)
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
