"""Which subjects a node hears, against counts and a clock that is passed in."""

from collections import Counter
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from roomcast.core.broker import Subject
from roomcast.core.interest import Interest
from tests.core.effort import run

A, B, C = SUBJECTS = tuple(Subject(f"roomcast.room.{name}") for name in "abc")
LINGER = 2.0

subjects = st.sampled_from(SUBJECTS)


class InterestMachine(RuleBasedStateMachine):
    """A shell that talks to a broker, one call at a time, while clients come and go.

    `asked` is what the broker delivers. Whatever happens, it covers the subjects in use once the shell has nothing
    left to do, and nothing in use is ever unsubscribed.
    """

    make: ClassVar[type[Interest]] = Interest

    def __init__(self) -> None:
        super().__init__()
        self.real = self.make(LINGER)
        self.now = 100.0
        self.users: Counter[Subject] = Counter()
        self.asked: set[Subject] = set()
        self.idle: dict[Subject, float] = {}  # subscribed, without a user, until then
        self.calling: list[Subject] | None = None

    @rule(subject=subjects)
    def acquire(self, subject: Subject) -> None:
        assert self.real.acquire(subject) is (subject in self.asked), "rule 2: one who comes back finds it active"
        self.users[subject] += 1
        self.idle.pop(subject, None)

    @rule(subject=subjects)
    def release(self, subject: Subject) -> None:
        if self.users[subject]:
            self.real.release(subject, self.now)
            self.users[subject] -= 1
            if not self.users[subject] and subject in self.asked:
                self.idle[subject] = self.now + LINGER

    @precondition(lambda self: self.calling is None)
    @rule()
    def call_subscribe(self) -> None:
        wanted = self.real.to_subscribe()
        assert len(wanted) == len(set(wanted)), "rule 3: once"
        assert set(wanted) == {subject for subject in SUBJECTS if self.users[subject] and subject not in self.asked}
        self.calling = wanted

    @precondition(lambda self: self.calling is not None)
    @rule(accepted=st.booleans())
    def subscribe_returns(self, accepted: bool) -> None:
        assert self.calling is not None
        if accepted:
            self.real.subscribed(self.calling, self.now)
            self.asked.update(self.calling)
            self.idle |= {subject: self.now + LINGER for subject in self.calling if not self.users[subject]}
        self.calling = None

    @precondition(lambda self: self.calling is None)
    @rule()
    def call_unsubscribe(self) -> None:
        due = self.real.to_unsubscribe(self.now)
        assert not [subject for subject in due if self.users[subject]], "a subject in use is unsubscribed"
        assert len(due) == len(set(due))
        assert set(due) == {subject for subject, until in self.idle.items() if until <= self.now}
        assert not set(due) & set(self.real.to_subscribe()), "rule 3: never both"
        self.asked.difference_update(due)
        for subject in due:
            del self.idle[subject]

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def covers_what_is_in_use(self) -> None:
        in_use = {subject for subject in SUBJECTS if self.users[subject]}
        assert in_use <= self.asked | set(self.real.to_subscribe())
        assert {subject for subject in SUBJECTS if self.real.active(subject)} == self.asked
        assert len(self.real) == len(self.asked)
        assert self.real.next_deadline() == min(self.idle.values(), default=None)


def test_what_the_broker_was_asked_for_covers_what_is_in_use() -> None:
    run(InterestMachine, 100)


def _active(*names: Subject) -> Interest:
    interest = Interest(LINGER)
    for subject in names:
        interest.acquire(subject)
    interest.subscribed(interest.to_subscribe(), 0.0)
    return interest


def test_rule_1_only_the_first_and_the_last_have_an_effect() -> None:
    """ "`acquire` and `release` are counted per subject; only the first and the last have an effect." """
    interest = Interest(LINGER)
    assert not interest.acquire(A)
    assert not interest.acquire(A)
    assert interest.to_subscribe() == [A]
    interest.subscribed([A], 0.0)
    assert interest.to_subscribe() == []
    interest.release(A, 1.0)
    assert interest.next_deadline() is None
    interest.release(A, 2.0)
    assert interest.next_deadline() == 4.0


def test_rule_2_an_active_subject_lingers() -> None:
    """ "An active subject whose last user left stays active for `linger` seconds." """
    interest = _active(A, B)
    interest.release(A, 10.0)
    interest.release(B, 11.0)
    assert interest.to_unsubscribe(11.99) == []
    assert interest.active(A)
    assert interest.to_unsubscribe(12.0) == [A]
    assert not interest.active(A)
    assert interest.active(B)
    assert len(interest) == 1


def test_rule_2_who_comes_back_meanwhile_finds_it_active() -> None:
    """ "a user who comes back meanwhile finds it active, and no call to the broker is made" """
    interest = _active(A)
    interest.release(A, 10.0)
    assert interest.acquire(A)
    assert interest.to_subscribe() == []
    assert interest.to_unsubscribe(1e9) == []


def test_rule_3_never_a_subscribe_and_an_unsubscribe_together() -> None:
    """ "each change once, and never a subscribe and an unsubscribe of one subject together" """
    interest = _active(A)
    interest.release(A, 10.0)
    assert interest.to_unsubscribe(20.0) == [A]
    assert interest.to_unsubscribe(20.0) == []
    interest.acquire(A)
    assert (interest.to_subscribe(), interest.to_unsubscribe(99.0)) == ([A], [])


def test_a_user_who_leaves_before_the_subscribe_costs_no_call() -> None:
    interest = Interest(LINGER)
    interest.acquire(A)
    interest.release(A, 0.0)
    assert interest.to_subscribe() == []
    assert interest.next_deadline() is None


def test_a_user_who_leaves_during_the_subscribe_leaves_it_lingering() -> None:
    interest = Interest(LINGER)
    interest.acquire(A)
    calling = interest.to_subscribe()
    interest.release(A, 0.0)
    interest.subscribed(calling, 1.0)
    assert interest.active(A)
    assert interest.next_deadline() == 3.0


def test_without_linger_the_last_one_out_unsubscribes_at_once() -> None:
    interest = Interest(0.0)
    interest.acquire(A)
    interest.subscribed([A], 0.0)
    interest.release(A, 5.0)
    assert interest.to_unsubscribe(5.0) == [A]


def test_a_refused_subscribe_is_wanted_again() -> None:
    interest = Interest(LINGER)
    interest.acquire(A)
    assert interest.to_subscribe() == interest.to_subscribe() == [A]
