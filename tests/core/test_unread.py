"""What of a node's own messages has not come back, against a list that knows the fate of each."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.core.unread import Unread
from tests.core.effort import effort

FATES = ("confirm", "give up", "read")


@dataclass
class One:
    place: int
    certain: bool
    undecided: bool = True
    lost: bool = False


Step = str | tuple[str, int]
"""A message is put, or something happens to the one before the last so many."""

schedules = st.lists(
    st.one_of(st.sampled_from(["certain", "uncertain"]), st.tuples(st.sampled_from(FATES), st.integers(0, 9))),
    max_size=40,
)


def check(unread: Unread, steps: Iterable[Step]) -> None:
    sent = list[One]()
    for now, step in enumerate(steps):
        if isinstance(step, str):
            sent.append(One(len(sent) + 1, step == "certain"))
            unread.put(sent[-1].place, float(now), certain=sent[-1].certain)
        elif sent:
            fate, which = step
            one = sent[-1 - which % len(sent)]
            if fate == "read" and one.certain and not one.lost:
                unread.came_back(one.place)
            elif fate == "confirm" and one.undecided:
                one.undecided = False
                if one.certain:
                    unread.confirmed(one.place)
            elif fate == "give up" and one.undecided:
                one.undecided, one.lost = False, True
                unread.given_up({one.place}, [left.place for left in sent if left.undecided and left.certain])
        owed = [one.place for one in sent if one.certain and not one.lost and one.place > unread.read]
        if unread.certain:
            assert unread.outstanding == bool(owed), (unread.newest, unread.read, owed)
        elif owed:
            assert unread.outstanding


def check_all_short(twin: type[Unread]) -> None:
    """Check each schedule of five steps, and with it all shorter ones, that looks back no further than two messages."""
    steps: list[Step] = ["certain", "uncertain", *product(FATES, range(2))]
    for schedule in product(steps, repeat=5):
        check(twin(), schedule)


@given(steps=schedules)
@effort(150)
def test_rules_1_and_2_all_that_comes_back_is_waited_for_and_nothing_else(steps: list[Step]) -> None:
    check(Unread(), steps)


def test_rules_1_and_2_hold_in_all_that_can_happen_at_first() -> None:
    check_all_short(Unread)


class WaitsForTheLost(Unread):
    """What was given up is waited for."""

    def given_up(self, places: Collection[int], left: Iterable[int]) -> None:
        """Nothing."""


class ForgetsTheRest(Unread):
    """Nothing stands in the place of what was given up."""

    def instead_of(self, place: int, left: Iterable[int]) -> int:  # noqa: ARG002
        return 0


class ForgetsTheConfirmed(Unread):
    """Only what the log does not have yet stands in the place of what was given up."""

    def confirmed(self, place: int) -> None:
        """Nothing."""


@pytest.mark.teeth
@pytest.mark.parametrize("twin", [WaitsForTheLost, ForgetsTheRest, ForgetsTheConfirmed])
def test_the_check_catches(twin: type[Unread]) -> None:
    with pytest.raises(AssertionError):
        check_all_short(twin)


def test_what_was_given_up_is_replaced_by_the_latest_before_it_that_may_come_back() -> None:
    """Rule 2."""
    unread = Unread()
    for place in range(1, 5):
        unread.put(place, 7.0, certain=True)
    unread.confirmed(1)
    unread.given_up({3, 4}, [2])
    assert unread.newest == 2
    unread.given_up({2}, [])
    assert unread.newest == 1
    unread.came_back(1)
    assert not unread.outstanding


def test_what_is_not_certain_is_outstanding_until_something_behind_it_has_come_back() -> None:
    """Rule 1."""
    unread = Unread()
    unread.put(1, 7.0, certain=False)
    assert unread.outstanding
    assert not unread.certain
    unread.put(2, 8.0, certain=True)
    unread.came_back(2)
    assert not unread.outstanding
