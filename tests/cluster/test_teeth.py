"""Every check has teeth: for each one a bug is planted in the core, and the state machine must find it."""

import re
from typing import Any
from unittest import mock

import pytest
from hypothesis.stateful import run_state_machine_as_test

from roomcast.core.adapter import Adapter
from roomcast.core.broadcast import Broadcast
from roomcast.core.gaps import Gaps
from roomcast.core.interest import Interest
from roomcast.core.outbox import Outbox
from roomcast.core.publisher import Publisher
from roomcast.core.receiver import Receiver
from roomcast.core.rooms import Rooms
from roomcast.core.sequences import Tracking
from roomcast.core.subscriber import Subscriber
from tests.cluster.bugs import (
    Plant,
    a_lost_link_is_not_told,
    an_emit_suspends_half_way,
    batches_gather_from_afar,
    confirms_free_nothing,
    each_room_is_served_apart,
    garbage_ends_the_loop,
    holes_are_ignored,
    joins_do_not_wait,
    local_clients_come_before_the_place,
    local_clients_wait_for_the_broker,
    repeats_are_kept,
    resends_wait_for_nobody,
    skip_is_ignored_elsewhere,
    the_last_to_wait_is_let_in_first,
    the_linger_is_not_checked_again,
    what_came_back_goes_last,
    what_is_given_up_is_not_told,
    who_leaves_still_hears,
)
from tests.cluster.machine import QUICK, ClusterMachine, profile
from tests.core.effort import focused

pytestmark = pytest.mark.teeth

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
    (Gaps, "tell", a_lost_link_is_not_told, r"P5: .* no gap tells"),
    (Gaps, "tell", what_is_given_up_is_not_told, r"P5: .* no gap tells|P5: .* given up"),
    (Receiver, "refuse", garbage_ends_the_loop, r"still on its way|done"),
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
