"""Every check has teeth: for each one a bug is planted in the core, and the state machine must find it."""

import asyncio
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis.stateful import run_state_machine_as_test

from roomcast.core.adapter import Adapter
from roomcast.core.broadcast import Broadcast
from roomcast.core.broker import Gap
from roomcast.core.interest import Interest
from roomcast.core.messages import encode_message
from roomcast.core.node import Node
from roomcast.core.outbox import Entry, Outbox
from roomcast.core.publisher import Publisher
from roomcast.core.rooms import Rooms
from roomcast.core.sequences import Reading, Tracking
from roomcast.core.subscriber import Subscriber
from tests.cluster.machine import QUICK, ClusterMachine, profile
from tests.core.effort import focused

# pyright: reportPrivateUsage=false

pytestmark = pytest.mark.teeth

Plant = Callable[[Any], Callable[..., Any]]


def holes_are_ignored(real: Any) -> Any:
    def read(*args: Any) -> Reading:
        return Reading(repeats=real(*args).repeats)

    return read


def repeats_are_kept(real: Any) -> Any:
    def read(*args: Any) -> Reading:
        return Reading(missed=real(*args).missed)

    return read


def batches_gather_from_afar(_real: Any) -> Any:
    def neighbours(self: Any) -> list[Entry]:
        first = self._queue[0]
        gathered = [entry for entry in self._queue if entry.subject == first.subject and entry.epoch == first.epoch]
        for entry in gathered:
            self._queue.remove(entry)
        return gathered

    return neighbours


def what_came_back_goes_last(real: Any) -> Any:
    def take(self: Any) -> Any:
        returned, self._returned = self._returned, []
        batch = real(self)
        self._returned = returned
        return batch if batch is not None else real(self)

    return take


def confirms_free_nothing(_real: Any) -> Any:
    def confirm(self: Any, batch: Any) -> None:
        self._flying.pop(batch.index, None)

    return confirm


def joins_do_not_wait(_real: Any) -> Any:
    async def heard(_self: Any, _subject: Any) -> None:
        await asyncio.sleep(0)

    return heard


def the_linger_is_not_checked_again(real: Any) -> Any:
    def acquire(self: Any, subject: Any) -> Any:
        deadline = self._lingering.get(subject)
        active = real(self, subject)
        if deadline is not None:
            self._lingering[subject] = deadline
        return active

    return acquire


def local_clients_come_before_the_place(real: Any) -> Any:
    async def send(self: Any, emit: Any, subject: Any) -> Any:
        if subject is None:
            return await real(self, emit, subject)
        message = encode_message(emit)
        self._deliver(emit)
        await self._node.publisher.reserve(len(message))
        return self._node.publisher.put(subject, message)

    return send


def an_emit_suspends_half_way(real: Any) -> Any:
    async def send(self: Any, emit: Any, subject: Any) -> Any:
        if subject is None:
            return await real(self, emit, subject)
        message = encode_message(emit)
        await self._node.publisher.reserve(len(message))
        self._deliver(emit)
        try:
            for _ in range(5):  # turns of the loop, in any of which the emit may be cancelled
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._node.publisher.release_place(len(message))
            raise
        return self._node.publisher.put(subject, message)

    return send


def local_clients_wait_for_the_broker(real: Any) -> Any:
    def deliver(self: Any, origin: str, *rest: Any) -> None:
        if origin == self._node.id:
            asyncio.get_running_loop().call_later(0.0001, real, self, origin, *rest)
        else:
            real(self, origin, *rest)

    return deliver


def skip_is_ignored_elsewhere(real: Any) -> Any:
    def deliver(self: Any, origin: str, emit: Any, *rest: Any) -> None:
        real(self, origin, emit if origin == self._node.id else msgspec.structs.replace(emit, excluded=()), *rest)

    return deliver


def each_room_is_served_apart(_real: Any) -> Any:
    def select(self: Any, namespace: str, rooms: Any, skip: Any = ()) -> Any:
        chosen = [client for room in (rooms or (None,)) for client in self.members(namespace, room)]
        return [client for client in chosen if client.sid not in skip]

    return select


def who_leaves_still_hears(_real: Any) -> Any:
    async def leave_room(*_args: Any) -> None:
        await asyncio.sleep(0)

    return leave_room


def the_last_to_wait_is_let_in_first(real: Any) -> Any:
    def admit(self: Any) -> None:
        self._queue.reverse()
        real(self)

    return admit


def a_lost_link_is_not_told(real: Any) -> Any:
    def tell(self: Any, gap: Gap) -> None:
        if gap.reason not in ("disconnected", "reconnected"):
            real(self, gap)

    return tell


def what_is_given_up_is_not_told(real: Any) -> Any:
    def tell(self: Any, gap: Gap) -> None:
        if gap.reason != "given_up":
            real(self, gap)

    return tell


def garbage_ends_the_loop(_real: Any) -> Any:
    def refuse(_self: Any, error: Exception) -> None:
        raise error

    return refuse


def resends_wait_for_nobody(real: Any) -> Any:
    def hold(self: Any, *, link_down: bool) -> None:
        real(self, link_down=link_down)
        if not link_down:
            self._outbox.clear()

    return hold


BUGS: list[tuple[type[Any], str, Plant, str]] = [
    (Tracking, "read", holes_are_ignored, r"P5: node .* told \{\} missing"),
    (Tracking, "read", repeats_are_kept, r"P3: .* got it twice|P1: .* got it after"),
    (Outbox, "_neighbours", batches_gather_from_afar, r"P1: .* got it after|did not get it"),
    (Outbox, "take", what_came_back_goes_last, r"P1: .* got it after|P5: .* missing|no gap tells"),
    (Outbox, "confirm", confirms_free_nothing, r"backlog|holds on"),
    (Subscriber, "heard", joins_do_not_wait, r"did not get it, and no gap tells"),
    (Interest, "acquire", the_linger_is_not_checked_again, r"did not get it, and no gap tells"),
    (
        Broadcast,
        "_send",
        local_clients_come_before_the_place,
        r"P6: .* got it|P6: .* did not|P1: .* got it after",
    ),
    (Broadcast, "_send", an_emit_suspends_half_way, r"P6: .* did not get it|P8: each piece"),
    (Adapter, "_deliver", local_clients_wait_for_the_broker, r"P9: .* had to wait"),
    (Adapter, "_deliver", skip_is_ignored_elsewhere, r"P3: .* is not addressed|P8: each piece"),
    (Rooms, "select", each_room_is_served_apart, r"P3: .* got it twice"),
    (Adapter, "leave_room", who_leaves_still_hears, r"P3: .* is not addressed|rooms: .* is in"),
    (Publisher, "_admit", the_last_to_wait_is_let_in_first, r"P1: .* got it after"),
    (Node, "_tell", a_lost_link_is_not_told, r"P5: .* no gap tells"),
    (Node, "_tell", what_is_given_up_is_not_told, r"P5: .* no gap tells|P5: .* given up"),
    (Node, "refuse", garbage_ends_the_loop, r"still on its way|done"),
    (Publisher, "hold", resends_wait_for_nobody, r"P5: .* no gap tells"),
]


FOCUS: dict[Plant, str] = {
    repeats_are_kept: "join emit repeat pass_time",
    batches_gather_from_afar: "join leave emit_many_at_once stall pass_time",
    joins_do_not_wait: "join leave emit emit_many_at_once close pass_time",
    the_linger_is_not_checked_again: "join leave emit pass_time",
    an_emit_suspends_half_way: "join emit emit_and_cancel pass_time",
    skip_is_ignored_elsewhere: "connect join emit pass_time",
    a_lost_link_is_not_told: "emit lose_link restore_link pass_time",
}
"""The rules that a hunt needs, where it would be long with all of them."""


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("owner", "name", "plant", "finding"), BUGS, ids=[plant.__name__ for _owner, _name, plant, _finding in BUGS]
)
def test_the_machine_finds(owner: type[Any], name: str, plant: Plant, finding: str) -> None:
    with (
        mock.patch.object(owner, name, plant(getattr(owner, name))),
        pytest.raises(BaseException) as raised,  # noqa: PT011 - what it says is looked at below
    ):
        run_state_machine_as_test(
            focused(ClusterMachine, FOCUS.get(plant, "")),
            settings=profile(examples=2000, report_multiple_bugs=False, **QUICK),
        )
    assert re.search(finding, f"{type(raised.value).__name__}: {raised.value}"), raised.value
