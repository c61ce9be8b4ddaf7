"""What a node tells those who watch its rooms, rule by rule."""

from collections.abc import Callable, Iterable

import pytest

from roomcast.core.messages import Members, Watch
from roomcast.core.subjects import Room
from roomcast.core.telling import Telling
from tests.core.presence_machine import PATIENCE, PLACE


def clients(*sids: str) -> Callable[[str, Room | None], Iterable[str]]:
    """They are in every room."""

    def members(_namespace: str, _room: Room | None) -> Iterable[str]:
        return sids

    return members


class Log:
    """Who was told what."""

    def __init__(self) -> None:
        self.sent: list[Members] = []
        self.works = True

    def __call__(self, _origin: str, message: Members) -> bool:
        if self.works:
            self.sent.append(message)
        return self.works

    def taken(self) -> list[Members]:
        taken, self.sent = self.sent, []
        return taken


def test_rule_1_the_whole_set_is_told_when_a_watch_is_new_or_asks_again() -> None:
    """ "A watch is told the whole set when it is new and when it asks for it again." """
    log = Log()
    telling = Telling(clients("1", "2", "3"), patience=PATIENCE)
    telling.watch("w", Watch(7, *PLACE), 0.0)
    telling.tell(log, 2)
    whole = [Members(7, 1, ("1", "2"), whole=True, more=True), Members(7, 2, ("3",))]
    assert log.taken() == whole
    telling.watch("w", Watch(7, *PLACE, again=True), 2.0)
    telling.tell(log, 10)
    assert log.taken() == [Members(7, 3, ("1", "2", "3"), whole=True)]


def test_rule_1_an_empty_set_is_told_as_well() -> None:
    log = Log()
    telling = Telling(clients(), patience=PATIENCE)
    telling.watch("w", Watch(7, *PLACE), 0.0)
    telling.tell(log, 2)
    assert log.taken() == [Members(7, 1, whole=True)]


def test_rule_1_a_number_that_names_another_room_now_is_a_new_watch() -> None:
    log = Log()
    telling = Telling(lambda _namespace, room: [str(room)], patience=PATIENCE)
    telling.watch("w", Watch(7, "/", "one"), 0.0)
    telling.tell(log, 2)
    telling.watch("w", Watch(7, "/", "two"), 0.0)
    telling.tell(log, 2)
    assert [message.joined for message in log.taken()] == [("one",), ("two",)]
    telling.entered(("/", "one"), "x")
    assert not telling.due
    assert len(telling) == 1


def test_rule_2_a_join_and_a_leave_between_two_messages_cancel_out() -> None:
    """ "A join and a leave of one client between two messages cancel out." """
    log, telling = watched()
    telling.entered(PLACE, "x")
    telling.exited(PLACE, "x")
    telling.exited(PLACE, "y")
    telling.entered(PLACE, "y")
    telling.tell(log, 10)
    assert log.taken() == []
    telling.exited(PLACE, "y")
    telling.entered(PLACE, "z")
    telling.tell(log, 10)
    assert log.taken() == [Members(7, 2, ("z",), ("y",))]


def test_rule_4_what_could_not_be_sent_is_made_good_at_the_next_beat() -> None:
    """ "What could not be sent is made good with the whole set, at the next beat." """
    log, telling = watched()
    log.works = False
    telling.entered(PLACE, "x")
    telling.tell(log, 10)
    log.works = True
    telling.exited(PLACE, "x")
    assert not telling.due, "not before the beat"
    telling.beat(1.0, {"w"})
    telling.tell(log, 10)
    assert [(message.whole, message.joined) for message in log.taken()] == [(True, ("y",))]


def test_rule_5_a_renewal_is_answered_with_an_empty_message_when_nothing_has_changed() -> None:
    """ "A watch that is merely renewed is answered, too, with an empty message when nothing has changed: so the loss of
    the last message is seen with the next one."
    """
    log, telling = watched()
    telling.watch("w", Watch(7, *PLACE), 1.0)
    telling.tell(log, 10)
    assert log.taken() == [Members(7, 2)]
    telling.watch("w", Watch(7, *PLACE), 2.0)
    telling.entered(PLACE, "x")
    telling.tell(log, 10)
    assert log.taken() == [Members(7, 3, ("x",))]
    assert not telling.due


@pytest.mark.parametrize("end", ["unwatch", "bye", "patience"])
def test_rule_6_a_watch_ends_and_leaves_nothing(end: str) -> None:
    """ "A watch ends when its origin says so or says bye. It outlives an origin that is merely not live by `patience`
    seconds since it was last renewed."
    """
    log, telling = watched()
    telling.beat(PATIENCE, ())
    assert len(telling) == 1, "it was stopped for a while"
    telling.entered(PLACE, "x")
    if end == "unwatch":
        telling.unwatch("w", 8)
        assert len(telling) == 1
        telling.unwatch("w", 7)
    elif end == "bye":
        telling.bye("w")
    else:
        telling.beat(PATIENCE + 1, {"w"})
        assert len(telling) == 1
        telling.beat(PATIENCE + 1, ())
    telling.tell(log, 10)
    assert (len(telling), log.taken()) == (0, [])
    telling.entered(PLACE, "z")
    assert not telling.due


def test_rule_7_one_watch_too_many_is_refused() -> None:
    """ "At most `limit` watches are kept; one more is refused." """
    telling = Telling(clients(), patience=PATIENCE, limit=2)
    assert telling.watch("w", Watch(1, *PLACE), 0.0)
    assert telling.watch("v", Watch(1, *PLACE), 0.0)
    assert not telling.watch("w", Watch(2, *PLACE), 0.0)
    assert telling.watch("w", Watch(1, *PLACE, again=True), 0.0)
    telling.unwatch("v", 1)
    assert telling.watch("w", Watch(2, *PLACE), 0.0)
    assert len(telling) == 2


def watched() -> tuple[Log, Telling]:
    """A place with one member, "y", and a watch 7 of the node "w" that has been told so."""
    log = Log()
    telling = Telling(clients("y"), patience=PATIENCE)
    telling.watch("w", Watch(7, *PLACE), 0.0)
    telling.tell(log, 10)
    assert log.taken() == [Members(7, 1, ("y",), whole=True)]
    return log, telling
