"""Bugs that the simulation must find: each one is planted by name, and a checker must tell of it."""

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from roomcast.brokers.log_places import Places
from roomcast.brokers.nats import NatsBroker
from roomcast.brokers.nats_link import Link as NatsLink
from roomcast.brokers.redis import RedisBroker
from roomcast.brokers.redis_link import Line as RedisLine
from roomcast.brokers.redis_link import Link as RedisLink
from roomcast.core import claims
from roomcast.core.adapter import Adapter
from roomcast.core.broadcast import Broadcast, Collector
from roomcast.core.broker import Gap
from roomcast.core.claims import Claims
from roomcast.core.gaps import Gaps
from roomcast.core.interest import Interest
from roomcast.core.membership import Membership
from roomcast.core.node import Node
from roomcast.core.outbox import Outbox
from roomcast.core.presence import Presence
from roomcast.core.publisher import Publisher
from roomcast.core.receiver import Receiver
from roomcast.core.rooms import Rooms
from roomcast.core.sequences import Tracking
from roomcast.core.subscriber import Subscriber
from tests.cluster import bugs
from tests.core.test_teeth_tickets import AdmitsOneMore, KeepsTheSurplus, WaitsForNobody
from tests.simulation import client_mutants as planted
from tests.simulation.plan import WorldKind, plan
from tests.simulation.simulate import Result, simulate

# pyright: reportPrivateUsage=false


@dataclass(frozen=True, slots=True)
class Mutant:
    """A bug.

    Attributes:
        owner, attribute: where it is planted.
        plant: makes it from what stands there.
        finds: what a finding must say.
        first: the seed from which it is hunted, because that one finds it.
        world: the kind of cluster that it shows in.
    """

    owner: Any
    attribute: str
    plant: Callable[[Any], Any]
    finds: str
    first: int = 0
    world: WorldKind | None = None

    @property
    def name(self) -> str:
        return self.plant.__name__

    @contextmanager
    def planted(self) -> Generator[None]:
        with mock.patch.object(self.owner, self.attribute, self.plant(getattr(self.owner, self.attribute))):
            yield

    def hunt(self, *, first: int, seeds: int) -> Result | None:
        """The first result of so many seeds that tells of it."""
        with self.planted():
            for seed in range(first, first + seeds):
                result = simulate(plan(seed, world=self.world))
                if any(re.search(self.finds, finding) for finding in result.findings):
                    return result
        return None


def own_clients_come_first(real: Any) -> Any:
    """With one order for all, local clients get an event at once."""

    async def send(self: Any, emit: Any, subject: Any) -> Any:
        entry = await real(self, emit, subject)
        if self._node.total and subject is not None:
            self._deliver(emit)
        return entry

    return send


def nobody_waits_for_what_was_emitted(_real: Any) -> Any:
    async def caught_up(_self: Any) -> None:
        """What is done to a client is done at once."""

    return caught_up


def the_dead_live_on(_real: Any) -> Any:
    """No peer is ever lost."""

    def tick(_self: Any, _now: float) -> None:
        """Nothing."""

    return tick


def no_bye_is_heard(_real: Any) -> Any:
    def on_bye(_self: Any, _origin: str, _bye: Any) -> None:
        """Nothing."""

    return on_bye


def cancelled_callers_keep_their_place(_real: Any) -> Any:
    def abandon(_self: Any, _future: Any, _size: int) -> None:
        """Nothing."""

    return abandon


def a_trimmed_log_is_not_told(real: Any) -> Any:
    def resume(self: Any, views: Any) -> list[Gap]:
        real(self, views)
        return []

    return resume


def presence_misses_who_leaves(_real: Any) -> Any:
    def exited(_self: Any, *_args: Any) -> None:
        """Nothing."""

    return exited


def the_gone_keep_their_claims(_real: Any) -> Any:
    def went(_self: Any, _sid: str) -> None:
        """Nothing."""

    return went


def nobody_is_let_in(_real: Any) -> Any:
    def admit(_self: Any) -> None:
        """Nothing."""

    return admit


def one_more_is_admitted(_real: Any) -> Any:
    return AdmitsOneMore


def nobody_is_waited_for(_real: Any) -> Any:
    return WaitsForNobody


def the_surplus_stays(_real: Any) -> Any:
    return KeepsTheSurplus


def a_stale_number_is_kept(_real: Any) -> Any:
    """What a node forgets of a subject it gave up it takes for a hole later."""

    def pause(_self: Any, _subject: Any) -> None:
        """Nothing."""

    return pause


def answers_come_twice(real: Any) -> Any:
    def take(self: Any, answer: Any) -> None:
        real(self, answer)
        real(self, answer)

    return take


MUTANTS: tuple[Mutant, ...] = (
    Mutant(Tracking, "read", bugs.holes_are_ignored, r"P5: .* told 0 missing", world="pubsub"),
    Mutant(Tracking, "read", bugs.repeats_are_kept, r"P3: .* times|P1:", first=1, world="partitions"),
    Mutant(Tracking, "pause", a_stale_number_is_kept, r"P5: .* and it was", first=80, world="partitions"),
    Mutant(Outbox, "_neighbours", bugs.batches_gather_from_afar, r"P1:|P2:", world="pubsub"),
    Mutant(Outbox, "take", bugs.what_came_back_goes_last, r"P1:|P4:|P5:", first=5, world="pubsub"),
    Mutant(Outbox, "confirm", bugs.confirms_free_nothing, r"P[678]:", world="pubsub"),
    Mutant(Subscriber, "heard", bugs.joins_do_not_wait, r"P4:", first=10, world="pubsub"),
    Mutant(Interest, "acquire", bugs.the_linger_is_not_checked_again, r"P4:", first=7, world="log"),
    Mutant(Broadcast, "_send", bugs.local_clients_come_before_the_place, r"P1:|P4:|P6:", first=3, world="total"),
    Mutant(Broadcast, "_send", bugs.an_emit_suspends_half_way, r"P[146]:", first=3, world="total"),
    Mutant(Broadcast, "_send", own_clients_come_first, r"P2:|P3:", world="total"),
    Mutant(Adapter, "_deliver", bugs.local_clients_wait_for_the_broker, r"P9:", world="pubsub"),
    Mutant(Adapter, "_deliver", bugs.skip_is_ignored_elsewhere, r"P3:", first=1, world="partitions"),
    Mutant(Node, "caught_up", nobody_waits_for_what_was_emitted, r"P1: .* taken out", world="total"),
    Mutant(Rooms, "select", bugs.each_room_is_served_apart, r"P3:", world="pubsub"),
    Mutant(Adapter, "leave_room", bugs.who_leaves_still_hears, r"P3:", world="pubsub"),
    Mutant(Publisher, "_admit", bugs.the_last_to_wait_is_let_in_first, r"P1:|P2:", first=1, world="partitions"),
    Mutant(Publisher, "_admit", nobody_is_let_in, r"P6:|P8:", first=4, world="recovery"),
    Mutant(Publisher, "_abandon", cancelled_callers_keep_their_place, r"P8: .* backlog", first=85, world="pubsub"),
    Mutant(Publisher, "hold", bugs.resends_wait_for_nobody, r"P4:", first=5, world="pubsub"),
    Mutant(Gaps, "tell", bugs.a_lost_link_is_not_told, r"P4:", world="pubsub"),
    Mutant(Gaps, "tell", bugs.what_is_given_up_is_not_told, r"P4:", first=6, world="partitions"),
    Mutant(Receiver, "refuse", bugs.garbage_ends_the_loop, r"P[48]:|ME:", world="pubsub"),
    Mutant(Places, "resume", a_trimmed_log_is_not_told, r"P4:", world="log", first=13),
    Mutant(Membership, "tick", the_dead_live_on, r"ME:", first=1, world="partitions"),
    Mutant(Membership, "on_bye", no_bye_is_heard, r"ME:|P6:", first=4, world="recovery"),
    Mutant(Presence, "exited", presence_misses_who_leaves, r"PR:", first=1, world="partitions"),
    Mutant(Claims, "went", the_gone_keep_their_claims, r"CL:|P6:", first=4, world="recovery"),
    Mutant(claims, "Tickets", one_more_is_admitted, r"CL:", first=4, world="recovery"),
    Mutant(claims, "Tickets", nobody_is_waited_for, r"CL:", first=4, world="recovery"),
    Mutant(claims, "Tickets", the_surplus_stays, r"CL:", first=121, world="partitions"),
    Mutant(Collector, "take", answers_come_twice, r"AN:", world="pubsub"),
    Mutant(RedisBroker, "_restore", planted.subjects_are_not_restored, r"P4:", world="redis"),
    Mutant(RedisBroker, "_lost", planted.a_lost_link_is_kept_secret, r"P5:", world="redis"),
    Mutant(RedisLine, "ping", planted.replies_are_those_of_the_command_before, r"P[4-8]:", world="redis"),
    Mutant(RedisLine, "_read", planted.what_is_cut_by_a_read_is_lost, r"P[4-8]:", world="redis"),
    Mutant(RedisLink, "publish", planted.a_publish_counts_when_it_is_written, r"P4:", first=1, world="redis"),
    Mutant(RedisLink, "_watch", planted.a_silent_redis_is_waited_for, r"P4:|P6:", first=6, world="redis"),
    Mutant(
        RedisLink, "_tell_channels", planted.a_subscription_to_redis_is_not_waited_for, r"P4:", first=4, world="redis"
    ),
    Mutant(NatsBroker, "_open", planted.subscriptions_are_not_restored, r"P4:", world="nats"),
    Mutant(NatsBroker, "_on_lost", planted.a_lost_link_is_kept_secret, r"P5:", world="nats"),
    Mutant(NatsLink, "barrier", planted.a_barrier_is_no_barrier, r"P4:", first=4, world="nats"),
    Mutant(NatsLink, "_beat", planted.a_silent_nats_is_waited_for, r"P4:|P6:", first=6, world="nats"),
)
