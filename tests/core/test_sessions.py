"""The table of all sessions: one history, worked out by a machine; and rule by rule what that seldom comes to."""

import msgspec
import pytest

from roomcast.core.messages import Keep, Part, Refuse, Resume, Seize, Stay
from roomcast.core.rooms import Client
from roomcast.core.served import Served
from roomcast.core.sessions import Asked, Denied, Ended, Granted, Session, Sessions
from roomcast.core.tail import UNKNOWN
from tests.core.effort import run
from tests.core.session_machine import Cluster


def keep(pid: str = "p", term: int = 0, *, epoch: str = "e", born: int = 10, last: int = 0, upto: int = 10) -> Keep:
    return Keep(pid, term, f"sid of {pid}", "/", (Stay("red", 11),), msgspec.Raw(b"\x80"), epoch, born, last, upto)


def table(*pids: str, limit: int = 100) -> Sessions:
    """Sessions that node "a" serves."""
    sessions = Sessions(window=100.0, limit=limit)
    for pid in pids:
        sessions.keep("a", keep(pid))
    return sessions


def test_every_node_agrees_and_every_client_gets_what_it_missed() -> None:
    run(Cluster, 50, steps=50)


def test_rule_1_only_the_owner_speaks_and_only_in_its_term() -> None:
    sessions = table("p")
    sessions.part("b", Part("p", 0), 1.0)
    sessions.part("a", Part("p", 1), 1.0)
    sessions.refuse("b", Refuse("p", 0))
    assert sessions.free == 0
    sessions.keep("b", keep(term=0))
    session = sessions.get("p")
    assert session is not None
    assert session.owner == "a"
    sessions.keep("b", keep(term=1))
    assert session.owner == "b", "a later term: what lies between was not read here"
    sessions.part("a", Part("p", 0), 2.0)
    assert session.parted is None
    assert sessions.serves("b")
    assert not sessions.serves("a")


def test_rule_2_a_free_session_goes_to_the_first_who_asks_within_the_window() -> None:
    sessions = table("p", "q")
    sessions.part("a", Part("p", 0), 5.0)
    session = sessions.get("p")
    assert session is not None
    assert sessions.resume("b", Resume(1, "p"), 105.0) == (Granted(session, "b", 1),)
    assert session.term == 1
    assert sessions.resume("c", Resume(2, "p"), 105.0) == (Asked(session, "c", 2),)
    sessions.part("a", Part("q", 0), 5.0)
    assert sessions.resume("b", Resume(3, "q"), 105.1) == (Denied("b", 3, "expired"),)
    assert sessions.resume("b", Resume(4, "q"), 105.1) == (Denied("b", 4, "unknown"),)


def test_rule_2_a_session_is_over_whose_last_description_was_lost() -> None:
    """An outbox that is full gives up the oldest: a description, and not the parting behind it."""
    sessions, served = Sessions(window=100.0, limit=100), Served("p", Client("sid", ""), "/", born=1, identity="")
    for _ in range(2):
        sessions.keep("a", served.describe("e", 5))
    told = Part("p", 0, number=served.number)
    served.describe("e", 6)  # lost
    sessions.part("a", Part("p", 0, number=served.number), 1.0)
    assert sessions.get("p") is None
    sessions.keep("a", served.describe("e", 7))
    sessions.part("a", told, 1.0)
    assert sessions.get("p") is None, "an older one than the last is not what it was either"
    sessions.keep("a", served.describe("e", 7))
    sessions.part("a", Part("p", 0, number=served.number), 1.0)
    assert [type(one) for one in sessions.resume("b", Resume(1, "p"), 1.0)] == [Granted]
    sessions.part("b", Part("p", 1), 2.0)  # its new owner said nothing of it
    assert [type(one) for one in sessions.resume("c", Resume(1, "p"), 2.0)] == [Granted]


def test_rule_2_a_session_that_is_ended_as_it_is_resumed_is_over() -> None:
    """Who ended it has not read yet that it was."""
    sessions = table("p")
    sessions.part("a", Part("p", 0), 1.0)
    sessions.resume("b", Resume(1, "p"), 1.0)
    session = sessions.get("p")
    assert session is not None
    sessions.resume("c", Resume(2, "p"), 1.0)
    for late in (Part("p", 0, over=True), Part("p", 0, sent_away=True), Part("p", 2, over=True, sent_away=True)):
        assert list(sessions.part("a", late, 2.0)) == []
    assert list(sessions.part("c", Part("p", 0, over=True, sent_away=True), 2.0)) == [
        Ended(session, whole=True),
        Denied("c", 2, "over"),
    ]
    assert sessions.get("p") is None
    assert not sessions.serves("b")


def test_rule_3_who_waits_gets_the_session_when_its_owner_parts_or_is_lost_and_nobody_when_it_refuses() -> None:
    for lost in (False, True):
        sessions = table("p")
        session = sessions.get("p")
        assert session is not None
        sessions.resume("b", Resume(1, "p"), 1.0)
        sessions.resume("c", Resume(2, "p"), 2.0)
        news = sessions.lost("a", 3.0) if lost else sessions.part("a", Part("p", 0), 3.0)
        assert list(news) == [Granted(session, "b", 1), Asked(session, "c", 2)]
        assert list(sessions.part("b", Part("p", 1), 4.0)) == [Granted(session, "c", 2)]
    sessions = table("p")
    sessions.resume("b", Resume(1, "p"), 1.0)
    assert list(sessions.refuse("a", Refuse("p", 0))) == [Denied("b", 1, "refused")]
    assert list(sessions.part("a", Part("p", 0, over=True), 2.0)) == []
    assert sessions.resume("b", Resume(2, "p"), 2.0) == (Denied("b", 2, "unknown"),)


def test_rule_3_not_any_number_may_wait() -> None:
    sessions = table("p")
    denied = [sessions.resume("b", Resume(number, "p"), 1.0)[0] for number in range(1, 20)]
    assert [isinstance(one, Denied) for one in denied] == [False] * 8 + [True] * 11


def test_rule_4_only_who_waits_can_seize() -> None:
    sessions = table("p")
    session = sessions.get("p")
    assert session is not None
    assert list(sessions.seize("b", Seize("p", 0), 1.0)) == []
    sessions.resume("b", Resume(1, "p"), 1.0)
    assert list(sessions.seize("b", Seize("p", 7), 2.0)) == []
    assert list(sessions.seize("b", Seize("p", 0), 2.0)) == [Granted(session, "b", 1)]
    sessions.keep("a", keep(term=0, last=99))
    assert session.keep.last == 0


@pytest.mark.parametrize("lost", [False, True])
def test_rule_4_what_an_owner_says_late_ends_a_session_that_was_given_back_in_part(lost: bool) -> None:
    """ "When that describes another session than the one that was resumed, the log did not have all of it" """
    for late in (keep(), keep(last=70, upto=80)):
        sessions, session = seized(lost=lost)
        assert list(sessions.keep("a", late)) == []
        assert sessions.get("p") is session
    for change in ({"stays": ()}, {"data": msgspec.Raw(b"\x81\xa1a\x01")}, {"floor": 5}):
        sessions, session = seized(lost=lost)
        late = msgspec.structs.replace(keep(), **change)
        assert list(sessions.keep("b", late)) == list(sessions.keep("a", msgspec.structs.replace(late, term=5))) == []
        sessions, session = seized(lost=lost)
        sessions.resume("c", Resume(2, "p"), 3.0)
        assert list(sessions.keep("a", late)) == [Ended(session, whole=False), Denied("c", 2, "over")]
        assert sessions.get("p") is None


def seized(*, lost: bool) -> tuple[Sessions, Session]:
    """A session that node "b" has from "a", which did not part with it."""
    sessions = table("p")
    session = sessions.get("p")
    assert session is not None
    sessions.resume("b", Resume(1, "p"), 1.0)
    news = sessions.lost("a", 2.0) if lost else sessions.seize("b", Seize("p", 0), 2.0)
    assert list(news) == [Granted(session, "b", 1)]
    return sessions, session


def test_rule_5_an_owner_that_was_not_lost_takes_back_what_nobody_has() -> None:
    sessions = table("p", "q")
    sessions.lost("a", 1.0)
    assert sessions.free == 2
    sessions.resume("b", Resume(1, "q"), 2.0)
    for pid in ("p", "q"):
        sessions.keep("a", keep(pid))
    assert [session.owner for pid in ("p", "q") if (session := sessions.get(pid))] == ["a", "b"]
    assert sessions.free == 0


def test_rule_6_what_is_over_is_not_made_anew_by_who_does_not_know_that_yet() -> None:
    """ "when there may be an owner that does not know that yet, its pid is remembered for two windows" """
    for end in (Part("p", 1, over=True), Part("p", 0, over=True, sent_away=True)):
        sessions, _ = seized(lost=False)
        sessions.part("b", end, 3.0)
        sessions.tick(200.0)
        sessions.keep("a", keep())
        assert sessions.get("p") is None
        sessions.tick(200.1)
        sessions.keep("a", keep())
        assert sessions.get("p")
    sessions = Sessions(window=100.0, limit=2)
    for pid in "pqr":
        sessions.keep("a", keep(pid))
        sessions.part("x", Part(pid, 0, over=True, sent_away=True), 1.0)
        sessions.keep("a", keep(pid))
        assert sessions.get(pid) is None
    sessions.keep("a", keep("p"))
    assert sessions.get("p"), "of so many as may be free"


def test_rule_6_what_is_over_or_old_is_forgotten() -> None:
    sessions = table("p", "q", "r")
    sessions.tick(10.0)
    sessions.part("a", Part("p", 0), 1.0)
    sessions.part("a", Part("q", 0), 1.0)
    sessions.part("x", Part("q", 0, over=True), 1.0)
    assert len(sessions) == 2, "anyone may end what nobody serves"
    sessions.tick(210.0)
    assert len(sessions) == 2
    sessions.tick(210.1)
    assert sessions.get("p") is None
    assert sessions.by_sid("sid of p") is None
    sessions.tick(300.1)
    assert len(sessions) == 0
    assert not sessions.serves("a")


def test_rule_6_the_longest_free_gives_way() -> None:
    sessions = table(*"pqr", limit=2)
    for pid in "qpr":
        sessions.part("a", Part(pid, 0), 1.0)
    assert [pid for pid in "pqr" if sessions.get(pid)] == ["p", "r"]
    assert sessions.forgotten == 1
    for number in range(50):
        sessions.keep("a", keep(f"more {number}"))
    assert len(sessions) == 20


@pytest.mark.parametrize(
    ("place", "start"), [(None, 10), (("e", 40), 60), (("e", 41), 41), (("e", 5), 10), (("other", 40), UNKNOWN)]
)
def test_a_client_has_missed_what_came_after_the_last_place_where_nothing_else_was_for_it(
    place: tuple[str, int] | None, start: int
) -> None:
    """Also when the node holds nothing as old as the last packet that the client got."""
    sessions = table("p")
    for last, upto in ((40, 45), (40, 60), (70, 80)):
        sessions.keep("a", keep(last=last, upto=upto))
    session = sessions.get("p")
    assert session is not None
    assert session.start(place) == start


def test_a_place_of_a_session_before_says_that_a_client_got_nothing_in_this_one() -> None:
    """The official client keeps its last place when it gets another session."""
    sessions = table("p")
    session = sessions.get("p")
    assert session is not None
    sessions.keep("a", keep(upto=70))
    assert session.start(("e", 5)) == session.start(None) == 70
    sessions.keep("b", keep(term=1, last=5, upto=90))
    assert session.start(("e", 5)) == 90, "it came back with that place once, and got nothing after that either"


def test_from_where_a_stay_was_forgotten_nothing_can_be_said() -> None:
    sessions = table("p")
    served = Served.resumed(keep(), 0, Client("sid of p", "eio"))
    for number in range(70):
        served.entered(number, 20 + 2 * number)
        served.exited(number, 21 + 2 * number)
    sessions.keep("a", served.describe("e", 10))
    session = sessions.get("p")
    assert session is not None
    assert session.keep.floor == 31
    assert session.start(None) == session.start(("e", 30)) == UNKNOWN
    assert session.start(("e", 31)) == 31
    assert Served.resumed(session.keep, 1, Client("sid of p", "eio")).describe("e", 99).floor == 31


def test_what_is_remembered_of_a_session_is_bounded() -> None:
    """Where nothing came for long is remembered, for a client that did not get what came after that."""
    sessions = table("p")
    session = sessions.get("p")
    assert session is not None
    for hour in range(1, 30):
        last = hour * 1000
        sessions.keep("a", keep(last=last, upto=last + 900))
        for event in range(20):
            sessions.keep("a", keep(last=last + 901 + 3 * event, upto=last + 902 + 3 * event))
        assert session.start(("e", last)) == last + 900
        assert session.start(("e", last + 958)) == last + 959
        assert len(session.marks) == 8
    sessions.keep("a", keep(epoch="f", born=UNKNOWN, last=UNKNOWN, upto=3))
    assert session.start(None) == session.start(("e", 29_000)) == UNKNOWN
