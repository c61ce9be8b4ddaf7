"""A session as its owner knows it, rule by rule."""

from roomcast.core.messages import Stay
from roomcast.core.rooms import Client
from roomcast.core.served import Served
from roomcast.core.tail import UNKNOWN


def served() -> Served:
    return Served("pid", Client("sid", "eio"), "/", born=3, identity="me")


def test_rule_1_a_stay_goes_from_the_last_message_read_to_the_last_message_read() -> None:
    one = served()
    one.entered("red", 5)
    one.entered(7, 6)
    one.exited("red", 9)
    one.exited("never", 9)
    keep = one.describe("e", 12)
    assert keep.stays == (Stay(7, 6), Stay("red", 5, 9))
    assert (keep.pid, keep.sid, keep.namespace, keep.born, keep.upto, keep.identity) == ("pid", "sid", "/", 3, 12, "me")


def test_rule_1_who_leaves_before_anything_came_was_owed_nothing() -> None:
    one = served()
    one.entered("red", 5)
    one.exited("red", 5)
    assert one.describe("e", 5).stays == ()


def test_rule_2_so_many_ended_stays_are_kept() -> None:
    one = served()
    for number in range(100):
        one.entered("red", number)
        one.exited("red", number + 1)
    keep = one.describe("e", 100)
    assert [stay.joined for stay in keep.stays] == list(range(36, 100))
    assert keep.floor == 36, "what was sent to the room before is not known any more"
    one.cut(anew=True)
    assert one.describe("f", 1).floor == 0


def test_rule_3_after_a_cut_nothing_is_known_of_who_got_nothing_since() -> None:
    one = served()
    one.last = 9
    one.entered("red", 5)
    one.exited("red", 6)
    one.entered("blue", 7)
    one.cut(anew=False)
    keep = one.describe("e", 12)
    assert (keep.born, keep.last) == (UNKNOWN, UNKNOWN)
    assert keep.stays == (Stay("blue", 7), Stay("red", 5, 6))
    one.cut(anew=True)
    assert one.describe("f", 1).stays == (Stay("blue", 0),), "its places are of another log"


def test_another_owner_goes_on_from_what_was_described() -> None:
    one = served()
    one.entered("red", 5)
    one.exited("red", 6)
    one.entered("blue", 7)
    keep = one.describe("e", 9)
    other = Served.resumed(keep, 1, Client("sid", "other"))
    other.replayed(8)
    again = other.describe("e", 10)
    assert (again.term, again.last, again.upto) == (1, 8, 10)
    assert (again.stays, again.born, again.data, again.identity) == (keep.stays, keep.born, keep.data, "me")


def test_rule_4_while_a_client_is_given_what_it_missed_its_last_place_is_not_known() -> None:
    """ "nor is it after rule 3" """
    keep = served().describe("e", 9)
    one, new, cut = (Served.resumed(keep, 1, Client("sid", "other")) for _ in range(3))
    assert one.describe("e", 10).last == UNKNOWN
    one.replayed(8)
    assert one.describe("e", 10).last == 8
    new.last = 11
    new.replayed(8)
    assert new.describe("e", 12).last == 11, "it was given something newer behind that"
    cut.cut(anew=False)
    cut.replayed(8)
    assert cut.describe("e", 12).last == UNKNOWN, "what came after 8 was not read"
