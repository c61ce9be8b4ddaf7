"""Numbers per publisher and subject, over a channel that loses and repeats."""

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from roomcast.core.broker import Subject
from roomcast.core.sequences import Numbering, Reading, Tracking
from tests.core.effort import run

A, B = Subject("roomcast.room.a"), Subject("roomcast.room.b")
C = Subject("roomcast.room.c")
SUBJECTS = (A, B)
ORIGINS = ("x", "x", "y")


@dataclass(frozen=True)
class Sent:
    """A payload on its way: messages `first` .. `first + count - 1` of an origin's list for a subject."""

    origin: str
    subject: Subject
    first: int
    count: int
    place: int


class SequencesMachine(RuleBasedStateMachine):
    """Two publishers, one receiver, and a FIFO channel between them that loses payloads and sends some again.

    The truth is the list of all that was published: what is missing is counted in it, not computed from numbers.
    The publishers can count two subjects, so others make them forget, and begin new epochs.
    """

    numbering: ClassVar[type[Numbering]] = Numbering
    tracking: ClassVar[type[Tracking]] = Tracking

    def __init__(self) -> None:
        super().__init__()
        self.publishers = {origin: self.numbering(1000, limit=2) for origin in set(ORIGINS)}
        self.receiver = self.tracking()
        self.published: dict[tuple[str, Subject], list[tuple[int, int]]] = {}
        self.channel: deque[Sent] = deque()
        self.history: deque[Sent] = deque(maxlen=4)
        self.last: dict[tuple[str, Subject], int] = {}
        self.paused: set[tuple[str, Subject]] = set()
        self.places: dict[str, int] = dict.fromkeys(ORIGINS, 0)
        self.reached: dict[str, int] = {}

    @rule(origin=st.sampled_from(ORIGINS), subject=st.sampled_from(SUBJECTS), count=st.integers(1, 3))
    def publish(self, origin: str, subject: Subject, count: int) -> None:
        numbers = self.published.setdefault((origin, subject), [])
        sent = Sent(origin, subject, len(numbers), count, self.places[origin] + 1)
        self.places[origin] += count
        for _ in range(count):
            epoch, number = self.publishers[origin].next(subject)
            last_epoch, last_number = numbers[-1] if numbers else (0, 0)
            assert (number == last_number + 1) if epoch == last_epoch else (epoch > last_epoch and number == 1)
            numbers.append((epoch, number))
        self.channel.append(sent)
        self.history.append(sent)

    @rule(origin=st.sampled_from(ORIGINS), others=st.sampled_from([0, 0, 1, 2]))
    def publish_elsewhere(self, origin: str, others: int) -> None:
        for number in range(others):
            self.publishers[origin].next(Subject(f"elsewhere.{len(self.history)}.{number}"))
            self.places[origin] += 1

    @precondition(lambda self: self.channel)
    @rule()
    def lose(self) -> None:
        self.channel.popleft()

    @rule(origin=st.sampled_from(ORIGINS), subject=st.sampled_from(SUBJECTS), others=st.integers(0, 2))
    def lose_between(self, origin: str, subject: Subject, others: int) -> None:
        """Two arrive and the one between them does not; perhaps the publisher forgot its count after the first."""
        self.publish(origin, subject, 1)
        self.receive(len(self.channel))
        self.publish_elsewhere(origin, others)
        self.publish(origin, subject, 1)
        self.lose()
        self.publish(origin, subject, 1)
        self.receive(1)

    @precondition(lambda self: self.history)
    @rule(back=st.integers(1, 4))
    def send_again(self, back: int) -> None:
        """After a reconnection the publisher sends what was not confirmed again, in order."""
        self.channel.extend(list(self.history)[-back:])

    @rule(count=st.integers(1, 4))
    def receive(self, count: int) -> None:
        for _ in range(min(count, len(self.channel))):
            self.read(self.channel.popleft())

    def read(self, sent: Sent) -> None:
        origin, subject, first, count = sent.origin, sent.subject, sent.first, sent.count
        numbers = self.published[origin, subject]
        epoch, number = numbers[first]
        reading = self.receiver.read(subject, origin, epoch, number, count, sent.place)
        last = self.last.get((origin, subject))
        end = first + count - 1
        late = sent.place <= self.reached.get(origin, 0)
        self.reached[origin] = max(self.reached.get(origin, 0), sent.place + count - 1)
        if last is None:
            assert reading == (Reading(repeats=count) if late else Reading()), "rules 1 and 7: the baseline"
            self.last[origin, subject] = end
            return
        lost = [pair for pair in numbers[last + 1 : first] if pair[0] == epoch]
        if (origin, subject) in self.paused:
            lost = []  # rule 6: nobody here listened
        seen = [index for index in range(first, end + 1) if index <= last]
        if late and len(seen) < count:  # rule 7
            owed = (origin, subject) not in self.paused
            assert reading == Reading(repeats=count, missed=len(lost) + count - len(seen) if owed else 0)
        else:
            assert reading == Reading(repeats=len(seen), missed=len(lost))
        if end > last:
            self.last[origin, subject] = end
            self.paused.discard((origin, subject))

    @rule(subject=st.sampled_from(SUBJECTS))
    def stop_listening(self, subject: Subject) -> None:
        self.receiver.pause((subject,))
        self.paused |= {key for key in self.last if key[1] == subject}

    @rule(origin=st.sampled_from(ORIGINS), really=st.sampled_from([False, False, False, True]))
    def publisher_leaves(self, origin: str, really: bool) -> None:
        if not really:
            return
        self.receiver.forget_origin(origin)
        self.reached.pop(origin, None)
        self.last = {key: last for key, last in self.last.items() if key[0] != origin}
        self.paused &= self.last.keys()

    @invariant()
    def counted(self) -> None:
        assert len(self.receiver) == len(self.last)


def test_every_loss_between_two_messages_is_told_and_nothing_else() -> None:
    run(SequencesMachine, 150)


def test_rule_1_the_first_number_is_the_baseline() -> None:
    """ "The first number ever seen is the baseline: what came before it was sent before anyone here listened." """
    assert Tracking().read(A, "x", 7, 41, 1) == Reading()


def test_rule_2_the_next_number_is_in_order() -> None:
    """ "n directly after the last one is in order." """
    tracking = Tracking()
    tracking.read(A, "x", 7, 1, 3)
    assert tracking.read(A, "x", 7, 4, 1) == Reading()


def test_rule_3_a_higher_number_is_a_hole() -> None:
    """ "A higher n is a hole: the numbers between were lost." """
    tracking = Tracking()
    tracking.read(A, "x", 7, 1, 1)
    assert tracking.read(A, "x", 7, 5, 2) == Reading(missed=3)
    assert tracking.read(A, "x", 7, 7, 1) == Reading(), "told once"


@pytest.mark.parametrize(("first", "count", "repeats"), [(3, 1, 1), (1, 3, 3), (1, 1, 1), (2, 4, 2), (3, 2, 1)])
def test_rule_4_a_number_at_or_below_the_last_one_is_a_repeat(first: int, count: int, repeats: int) -> None:
    """ "An n at or below the last one is a repeat." """
    tracking = Tracking()
    tracking.read(A, "x", 7, 1, 3)
    assert tracking.read(A, "x", 7, first, count) == Reading(repeats=repeats)
    assert tracking.read(A, "x", 7, max(4, first + count), 1) == Reading(), "a repeat does not turn the count back"


def test_rule_5_a_higher_epoch_begins_anew() -> None:
    """ "A higher epoch begins anew, and what it lacks before its first n is a hole; a lower epoch is a repeat." """
    tracking = Tracking()
    tracking.read(A, "x", 7, 1, 3)
    assert tracking.read(A, "x", 9, 1, 1) == Reading()
    assert tracking.read(A, "x", 12, 3, 1) == Reading(missed=2)
    assert tracking.read(A, "x", 9, 2, 5) == Reading(repeats=5)
    assert tracking.read(A, "x", 12, 4, 1) == Reading()


def test_rule_6_a_pause_sets_a_new_baseline() -> None:
    """ "After a pause, in which nobody here listened, a higher number is a new baseline" """
    tracking = Tracking()
    tracking.read(A, "x", 7, 1, 3)
    tracking.pause((A,))
    tracking.pause((A,))
    assert tracking.read(A, "x", 7, 9, 1) == Reading()
    assert tracking.read(A, "x", 7, 11, 1) == Reading(missed=1), "the pause is over"
    tracking.pause((A,))
    assert tracking.read(A, "x", 8, 4, 1) == Reading()


def test_rule_7_what_would_break_the_order_is_dropped() -> None:
    """ "One that comes after a later one of its origin has been sent again: it is dropped." """
    tracking = Tracking()
    tracking.read(A, "x", 7, 1, 1, 1)
    tracking.read(A, "x", 7, 2, 1, 4)
    assert tracking.read(B, "x", 8, 1, 2, 2) == Reading(repeats=2), "never owed: nobody here listened"
    assert tracking.read(B, "x", 8, 3, 1, 5) == Reading()
    tracking.read(A, "x", 7, 3, 1, 8)
    assert tracking.read(B, "x", 8, 4, 2, 6) == Reading(repeats=2, missed=2), "owed, and too late"
    assert tracking.read(B, "x", 8, 6, 1, 9) == Reading()
    assert tracking.read(B, "y", 9, 1, 1, 1) == Reading(), "places are those of one origin"


def test_rule_6_a_repeat_is_a_repeat_also_after_a_pause() -> None:
    """ "one at or below the last is still a repeat: its publisher had not learnt that it arrived" """
    tracking = Tracking()
    tracking.read(A, "x", 7, 1, 3)
    tracking.pause((A,))
    assert tracking.read(A, "x", 7, 2, 2) == Reading(repeats=2)
    assert tracking.read(A, "x", 7, 3, 2) == Reading(repeats=1)
    assert tracking.read(A, "x", 7, 5, 1) == Reading()


def test_origins_and_subjects_are_counted_apart() -> None:
    tracking = Tracking()
    tracking.read(A, "x", 7, 1, 1)
    assert tracking.read(A, "y", 7, 9, 1) == Reading()
    assert tracking.read(B, "x", 7, 9, 1) == Reading()
    assert tracking.read(A, "x", 7, 2, 1) == Reading()
    assert len(tracking) == 3


def test_a_publisher_counts_each_subject() -> None:
    """ "n counts 1, 2, 3 within an epoch" """
    numbering = Numbering(100)
    assert [numbering.next(A), numbering.next(A), numbering.next(B), numbering.next(A)] == [
        (101, 1),
        (101, 2),
        (102, 1),
        (101, 3),
    ]


def test_a_publisher_that_forgot_a_count_begins_a_higher_epoch() -> None:
    """ "A publisher begins a new, higher epoch for a subject whose count it no longer has." """
    numbering, tracking = Numbering(100, limit=8), Tracking()
    tracking.read(A, "x", *numbering.next(A), 1)
    for number in range(20):
        numbering.next(Subject(f"other.{number}"))
    epoch, number = numbering.next(A)
    assert (epoch > 101, number) == (True, 1)
    assert tracking.read(A, "x", epoch, number, 1) == Reading()


def test_the_tables_are_bounded() -> None:
    """ "at most `limit` of them": both sides forget the oldest, and a forgotten pair has a new baseline." """
    tracking = Tracking(limit=4)
    for number in range(10):
        tracking.read(Subject(f"room.{number}"), "x", 7, 1, 1)
        assert len(tracking) <= 4
    assert tracking.read(Subject("room.0"), "x", 7, 9, 1) == Reading()
    for number in range(10):
        tracking.read(A, f"origin{number}", 7, 1, 1)
        assert len(tracking) <= 4


def test_what_is_paused_is_forgotten_first() -> None:
    tracking = Tracking(limit=2)
    tracking.read(A, "x", 7, 1, 1)
    tracking.read(B, "x", 7, 1, 1)
    tracking.pause((B,))
    tracking.read(C, "x", 7, 1, 1)
    assert len(tracking) == 2
    assert tracking.read(A, "x", 7, 3, 1) == Reading(missed=1)


def test_many_subjects_are_not_looked_for_one_by_one_at_each_origin() -> None:
    """ "many cost little more than one, with many origins." """
    hashed = 0

    class Counted(str):
        __slots__ = ()

        def __hash__(self) -> int:
            nonlocal hashed
            hashed += 1
            return super().__hash__()

    tracking = Tracking()
    rooms = [Subject(Counted(f"room.{number}")) for number in range(500)]
    for number, room in enumerate(rooms):
        tracking.read(room, f"origin{number}", 7, 1, 1)
    hashed = 0
    tracking.pause(rooms)
    assert hashed < 20 * len(rooms)
    for number, room in enumerate(rooms):
        assert tracking.read(room, f"origin{number}", 7, 5, 1) == Reading(), "a new baseline"
        assert tracking.read(room, f"origin{number}", 7, 7, 1) == Reading(missed=1)


def test_a_forgotten_origin_is_forgotten_everywhere() -> None:
    tracking = Tracking()
    for subject in (A, B):
        tracking.read(subject, "x", 7, 1, 1)
    tracking.read(A, "y", 7, 1, 1)
    tracking.pause((B,))
    tracking.forget_origin("x")
    assert len(tracking) == 1
    assert tracking.read(A, "y", 7, 3, 1) == Reading(missed=1)
    assert tracking.read(A, "x", 7, 3, 1) == Reading()
