"""What is to be published and is not confirmed yet, against a list."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from roomcast.core.broker import Subject
from roomcast.core.outbox import Batch, Entry, Outbox
from tests.core.effort import run

A, B = SUBJECTS = (Subject("roomcast.room.a"), Subject("roomcast.room.b"))
MESSAGES, BYTES, AGE, BATCH, WINDOW = 6, 60, 10.5, 20, 3


@dataclass
class Inside:
    """An entry the model still knows of; entries with the same `batch` left together."""

    entry: Entry
    batch: Batch | None = None
    flying: bool = False


class OutboxMachine(RuleBasedStateMachine):
    """Messages come in, leave in batches, are confirmed or come back in any order, grow old and are given up.

    `inside` is the list of all that is not settled, in the order in which it came in.
    """

    make: ClassVar[type[Outbox]] = Outbox

    def __init__(self) -> None:
        super().__init__()
        self.real = self.make(max_messages=MESSAGES, max_bytes=BYTES, max_age=AGE, batch_bytes=BATCH, window=WINDOW)
        self.now = 100
        self.inside: list[Inside] = []
        self.settled: list[Batch] = []
        self.reserved: list[int] = []
        self.numbers = dict.fromkeys(SUBJECTS, 0)
        self.entries = 0
        self.out = 0

    @property
    def size(self) -> int:
        return sum(len(one.entry.message) for one in self.inside) + sum(self.reserved)

    @property
    def ground(self) -> list[Inside]:
        """What could leave now, in its order."""
        return [one for one in self.inside if not one.flying]

    @property
    def flying(self) -> list[Batch]:
        return list({id(one.batch): one.batch for one in self.inside if one.flying and one.batch is not None}.values())

    def fits(self, size: int) -> bool:
        messages = len(self.inside) + len(self.reserved)
        return not messages or (messages < MESSAGES and self.size + size <= BYTES)

    def given_up(self, entries: list[Entry]) -> list[Inside]:
        """Rule 4: the oldest ones, and nothing but those; they are handed over."""
        gone = self.ground[: len(entries)]
        assert [one.entry for one in gone] == entries
        self.inside = [one for one in self.inside if one not in gone]
        self.out += len(entries)
        return gone

    @rule(subject=st.sampled_from(SUBJECTS), size=st.sampled_from([0, 1, 8, 12, 25, 70]), hole=st.booleans())
    def put(self, subject: Subject, size: int, hole: bool) -> None:
        assert self.real.fits(size) is self.fits(size)
        if not self.fits(size):
            return
        self.numbers[subject] += 2 if hole else 1
        entry = Entry(subject, bytes(size), 7, self.numbers[subject], self.now)
        self.real.reserve(size)
        self.real.put(entry)
        self.inside.append(Inside(entry))
        self.entries += 1

    @rule(size=st.integers(0, 20))
    def reserve(self, size: int) -> None:
        if self.fits(size):
            self.real.reserve(size)
            self.reserved.append(size)

    @precondition(lambda self: self.reserved)
    @rule()
    def release(self) -> None:
        self.real.release(self.reserved.pop())

    @rule()
    def take(self) -> None:
        ground, flying = self.ground, self.flying
        batch = self.real.take()
        if len(flying) == WINDOW or not ground:
            assert batch is None
            return
        assert batch is not None
        left = ground[: len(batch.entries)]
        assert [one.entry for one in left] == list(batch.entries), "rule 1: in the order they came in"
        assert batch.subject == left[0].entry.subject
        if left[0].batch is not None:
            assert batch is left[0].batch, "rule 3: what came back leaves as it was"
            assert all(one.batch is batch for one in left)
        else:
            self.check_new(left, ground[len(left) :])
        for one in left:
            one.batch, one.flying = batch, True

    def check_new(self, left: list[Inside], rest: list[Inside]) -> None:
        def goes_on(one: Entry, other: Entry) -> bool:
            return (one.subject, one.number + 1) == (other.subject, other.number)

        size = sum(len(one.entry.message) for one in left)
        assert len(left) == 1 or size <= BATCH
        for one, other in pairwise(left):
            assert goes_on(one.entry, other.entry), "neighbours on one subject, without a hole"
        if rest and goes_on(left[-1].entry, rest[0].entry):
            assert size + len(rest[0].entry.message) > BATCH, "neighbours share a batch"

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(self.flying))
        self.real.confirm(batch)
        self.out += len(batch.entries)
        self.inside = [one for one in self.inside if one.batch is not batch]
        self.settled.append(batch)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(self.flying))
        self.real.give_back(batch)
        for one in self.inside:
            one.flying = one.flying and one.batch is not batch

    @precondition(lambda self: self.settled)
    @rule(late=st.booleans())
    def settled_twice(self, late: bool) -> None:
        """A confirm or a failure of what is not under way any more changes nothing."""
        (self.real.confirm if late else self.real.give_back)(self.settled[-1])

    @rule()
    def expire(self) -> None:
        gone = self.given_up(self.real.expire(self.now))
        for one in gone:
            heads = [other for other in gone if other.batch is one.batch and one.batch is not None] or [one]
            assert self.now - heads[0].entry.queued > AGE
        assert not self.ground or self.now - self.ground[0].entry.queued <= AGE

    @rule(size=st.sampled_from([1, 20, 70]))
    def evict(self, size: int) -> None:
        fitted = self.fits(size)
        gone = self.given_up(self.real.evict(size))
        assert not (fitted and gone), "nothing is given up without need"
        assert self.fits(size) or not self.ground
        if gone:  # nor more than was needed
            last = [one for one in gone if one is gone[-1] or (one.batch is gone[-1].batch and one.batch is not None)]
            self.inside = [*last, *self.inside]
            assert not self.fits(size)
            del self.inside[: len(last)]

    @rule(seconds=st.integers(1, 6))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(really=st.sampled_from([True, False, False, False]))
    def clear(self, really: bool) -> None:
        if really:
            left = self.real.clear()
            assert sorted(map(id, left)) == sorted(id(one.entry) for one in self.inside)
            self.settled.extend(self.flying)
            self.out += len(left)
            self.inside = []

    @invariant()
    def nothing_vanishes(self) -> None:
        messages = len(self.inside) + len(self.reserved)
        assert self.entries == self.out + len(self.inside)
        assert (len(self.real), self.real.messages, self.real.bytes) == (messages, messages, self.size)
        assert self.real.idle is (messages == 0)
        assert self.real.flying == len(self.flying)
        assert messages <= 1 or (messages <= MESSAGES and self.size <= BYTES), "rule 2"


def test_every_message_is_confirmed_or_given_up_or_still_inside_and_in_order() -> None:
    run(OutboxMachine, 150, steps=50)


def outbox(*, messages: int = 100, size: int = 10_000, batch: int = 100, window: int = 10) -> Outbox:
    return Outbox(max_messages=messages, max_bytes=size, max_age=10.0, batch_bytes=batch, window=window)


def put(box: Outbox, subject: Subject, number: int, *, size: int = 10, at: float = 0.0, epoch: int = 1) -> Entry:
    entry = Entry(subject, bytes(size), epoch, number, at)
    box.reserve(size)
    box.put(entry)
    return entry


def take(box: Outbox) -> Batch:
    batch = box.take()
    assert batch is not None
    return batch


def test_rule_1_neighbours_share_a_batch_and_nobody_overtakes() -> None:
    """ "Messages leave in the order they came in. Neighbours on one subject share a batch; a message is never moved
    past one of another subject, for a client may hear both."
    """
    box = outbox()
    one, two, other, three = put(box, A, 1), put(box, A, 2), put(box, B, 1), put(box, A, 3)
    assert [list(take(box).entries) for _ in range(3)] == [[one, two], [other], [three]]
    assert box.take() is None


@pytest.mark.parametrize(("number", "epoch", "size"), [(3, 1, 10), (2, 2, 10), (1, 2, 10), (2, 1, 91)])
def test_a_batch_has_no_hole_in_its_numbers_and_a_bound(number: int, epoch: int, size: int) -> None:
    """ "Neighbouring messages of one subject, numbered without a hole"; `batch_bytes` bounds more than one message."""
    box = outbox(batch=100)
    first = put(box, A, 1)
    second = put(box, A, number, epoch=epoch, size=size)
    assert [list(take(box).entries) for _ in range(2)] == [[first], [second]]


def test_a_message_larger_than_a_batch_leaves_alone() -> None:
    box = outbox(batch=100)
    big, small = put(box, A, 1, size=500), put(box, A, 2, size=1)
    assert [list(take(box).entries) for _ in range(2)] == [[big], [small]]


def test_rule_2_bounds_count_what_is_queued_and_what_is_unconfirmed() -> None:
    """ "Queued and unconfirmed messages together take at most `max_messages` and `max_bytes`." """
    box = outbox(messages=2, size=25)
    put(box, A, 1)
    batch = take(box)
    assert not box.fits(16)
    assert box.fits(15)
    put(box, A, 2, size=1)
    assert not box.fits(0)
    box.confirm(batch)
    assert (box.fits(24), box.fits(25)) == (True, False)


def test_an_empty_outbox_takes_any_one_message() -> None:
    box = outbox(size=25)
    assert box.fits(1000)
    box.reserve(1000)
    assert not box.fits(0)
    box.release(1000)
    assert (box.idle, box.fits(1000)) == (True, True)


def test_the_window_bounds_what_is_under_way() -> None:
    box = outbox(window=1)
    put(box, A, 1)
    batch = take(box)
    put(box, A, 2)
    assert (box.take(), box.flying) == (None, 1)
    box.confirm(batch)
    assert box.take() is not None


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_rule_3_what_comes_back_keeps_its_place(order: tuple[int, ...]) -> None:
    """ "A batch that the broker has not confirmed when the link is lost goes back to its place and is sent again." """
    box = outbox()
    for number in range(3):
        put(box, A if number % 2 else B, number + 1)
    batches = [take(box) for _ in range(3)]
    put(box, A, 9)
    for index in order:
        box.give_back(batches[index])
    assert [take(box) for _ in range(3)] == batches
    assert [entry.number for entry in take(box).entries] == [9]


def test_rule_4_what_is_too_old_is_given_up_and_handed_over() -> None:
    """ "A message older than `max_age` seconds is given up ... handed to the caller, never dropped in silence." """
    box = outbox()
    sent, first, second = put(box, B, 1, at=0.0), put(box, A, 1, at=0.0), put(box, A, 2, at=5.0)
    batch = take(box)
    assert box.expire(10.0) == []
    assert box.expire(10.1) == [first], "what is under way may still arrive"
    box.give_back(batch)
    assert box.expire(10.1) == [sent]
    assert box.expire(15.1) == [second]
    assert box.idle


def test_rule_4_the_oldest_makes_room_during_an_outage() -> None:
    """ "and so is the oldest one when `evict` makes room during an outage" """
    box = outbox(messages=3, size=30)
    entries = [put(box, A, number) for number in (1, 2, 3)]
    assert box.evict(10) == entries[:1]
    assert box.evict(10) == []
    assert box.evict(20) == entries[1:2]
    assert box.evict(1000) == entries[2:], "an empty outbox takes any one message"
    assert box.idle


def test_evict_cannot_give_up_what_is_under_way() -> None:
    box = outbox(messages=1)
    put(box, A, 1)
    take(box)
    assert box.evict(10) == []
    assert not box.fits(10)


def test_everything_can_be_given_up_at_the_end() -> None:
    box = outbox()
    entries = [put(box, A if number % 2 else B, number) for number in range(4)]
    returned, flying = take(box), take(box)
    box.give_back(returned)
    assert sorted(box.clear(), key=lambda entry: entry.number) == entries
    box.confirm(flying)
    box.give_back(flying)
    assert (box.idle, box.take(), box.bytes, box.flying) == (True, None, 0, 0)
