"""What the broker has not taken of what a node says of its sessions."""

from roomcast.core.messages import Part
from roomcast.core.unsaid import Unsaid
from tests.core.effort import run
from tests.core.unsaid_machine import UnsaidMachine, keep


def test_whatever_is_refused_the_latest_and_every_end_is_said_at_last() -> None:
    run(UnsaidMachine, 150, steps=50)


def test_what_follows_waits_behind_what_was_refused() -> None:
    """Rule 1."""
    unsaid = Unsaid(10)
    assert not unsaid.waits(Part("p", 0, number=1))
    unsaid.refused(keep(1))
    assert unsaid.waits(Part("p", 0, number=1))
    assert unsaid.waits(Part("p", 0, number=1))
    assert not unsaid.waits(Part("q", 0))
    assert unsaid.take("p") == [keep(1), Part("p", 0, number=1)]
    assert "p" not in unsaid
    assert not unsaid.waits(Part("p", 0, number=1))


def test_what_was_refused_is_said_again_in_the_order_in_which_it_was_said() -> None:
    """Rule 2: although the end was refused first."""
    unsaid = Unsaid(10)
    unsaid.refused(Part("p", 0, over=True))
    unsaid.refused(keep(1))
    assert unsaid.take("p") == [keep(1), Part("p", 0, over=True)]


def test_a_newer_description_takes_the_place_of_all_that_waits() -> None:
    """Rule 2."""
    unsaid = Unsaid(10)
    unsaid.refused(keep(1))
    assert not unsaid.waits(keep(2))
    assert not unsaid.waits(Part("p", 0, number=2))
    assert not unsaid


def test_a_newer_description_takes_the_place_of_what_is_refused_after_it() -> None:
    """Rule 2: "even when that is refused later"."""
    unsaid = Unsaid(10)
    unsaid.refused(keep(1, term=1))
    unsaid.refused(keep(7))
    unsaid.refused(Part("p", 0, number=7))
    assert unsaid.take("p") == [keep(1, term=1)]


def test_that_a_client_is_sent_away_waits_on_and_follows_a_newer_description() -> None:
    """Rule 2: that is meant in whichever term it is read."""
    unsaid = Unsaid(10)
    sent_away = Part("p", 0, over=True, sent_away=True)
    unsaid.refused(sent_away)
    assert not unsaid.waits(keep(1, term=1))
    assert "p" in unsaid
    unsaid.refused(keep(1, term=1))
    assert unsaid.take("p") == [keep(1, term=1), sent_away]


def test_the_pause_doubles_until_something_is_taken() -> None:
    """Rule 3."""
    unsaid = Unsaid(10)
    pauses = [unsaid.pause]
    for _ in range(5):
        unsaid.tried(taken=False)
        pauses.append(unsaid.pause)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    unsaid.tried(taken=True)
    assert unsaid.pause == 0.1


def test_of_too_many_the_one_that_has_waited_longest_gives_way() -> None:
    """Rule 4."""
    unsaid = Unsaid(2)
    for pid in "abc":
        unsaid.refused(keep(1, pid))
    assert len(unsaid) == 2
    assert unsaid.first(1) == ["b"]
    assert unsaid.first(9) == ["b", "c"]
