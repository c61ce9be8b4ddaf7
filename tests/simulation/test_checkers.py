"""Each checker, put to histories made by hand: a good one, and ones in which its promise is broken."""

from collections.abc import Iterable
from typing import Any

import pytest

from tests.simulation.checkers import CHECKERS, check
from tests.simulation.history import (
    Away,
    Back,
    Called,
    Change,
    ClientGone,
    ClientLeaving,
    ClientUp,
    Deaf,
    Dropped,
    Ended,
    Event,
    Fault,
    Got,
    Handed,
    History,
    Met,
    NodeDown,
    NodeStopping,
    NodeUp,
    Quiet,
    Seen,
    Size,
    Told,
    Watched,
)
from tests.simulation.story import NEVER, Story

UP = (NodeUp("n0"), NodeUp("n1"), Met("n0", "n1", "joined"), Met("n1", "n0", "joined"))
CLIENTS = (ClientUp("c0", "n0", "/"), ClientUp("c1", "n1", "/"))
ALL_WELL = (Quiet(), Seen("n0", ("n1",), (("c0", ("@c0",)),)), Seen("n1", ("n0",), (("c1", ("@c1",)),)))


def history(*events: Event | Iterable[Event], total: bool = False, log: bool = False) -> History:
    made = History(total=total, log=log)
    for event in events:
        for one in (event,) if isinstance(event, Event) else event:
            made.add(one, len(made.events) / 1000)
    return made


def call(number: int, op: str = "emit", node: str = "n0", within: float = 3.0, **details: Any) -> Called:
    return Called(number, node, op, within, **details)


def entered(number: int, client: str, room: str = "r") -> tuple[Event, ...]:
    return (
        call(number, "enter", "n0" if client == "c0" else "n1", client=client, rooms=(room,)),
        Ended(number, "returned"),
    )


def emitted(number: int, *receivers: str, node: str = "n0", **details: Any) -> tuple[Event, ...]:
    return (call(number, node=node, **details), *(Got(one, number) for one in receivers), Ended(number, "returned"))


GOOD = history(
    UP,
    CLIENTS,
    entered(1, "c0"),
    entered(2, "c1"),
    emitted(3, "c0", rooms=("r",)),
    Got("c1", 3),
    call(4, "leave", "n1", client="c1", rooms=("r",)),
    Ended(4, "returned"),
    emitted(5, "c0", rooms=("r",)),
    Size("n0", "outbox", 3, 3),
    ALL_WELL,
)


def test_a_good_history_passes() -> None:
    assert check(GOOD) == []


JOINED = (*UP, *CLIENTS, *entered(1, "c0"), *entered(2, "c1"))
BOTH = (call(3, rooms=("r",)), Got("c0", 3), Ended(3, "returned"), Got("c1", 3))
BAD: list[tuple[str, History, str]] = [
    (
        "late",
        history(JOINED, call(3), call(4), Got("c0", 4), Got("c0", 3), Ended(3, "returned"), Ended(4, "returned")),
        "P1: c0 got 3",
    ),
    (
        "taken out too soon",
        history(
            JOINED,
            *(call(3, rooms=("r",)), Ended(3, "returned")),
            *(call(4, "leave", client="c0", rooms=("r",)), Ended(4, "returned"), Got("c1", 3), Quiet()),
            total=True,
            log=True,
        ),
        "P1: c0 did not get 3 of n0 before it was taken out, by 4",
    ),
    (
        "let in too soon",
        history(UP, CLIENTS, call(3, rooms=("r",)), Ended(3, "returned"), entered(4, "c0"), Got("c0", 3), total=True),
        "P1: c0 got 3 of n0, and came in after it, by 4",
    ),
    (
        "two orders",
        history(
            JOINED,
            call(3),
            call(4, node="n1"),
            *(Got("c0", 3), Got("c0", 4), Got("c1", 4), Got("c1", 3)),
            *(Ended(3, "returned"), Ended(4, "returned")),
            total=True,
        ),
        "P2: c0 got 3 where c1 got 4",
    ),
    ("twice", history(JOINED, BOTH, Got("c1", 3)), "P3: c1 got 3 2 times"),
    ("not a member", history(UP, CLIENTS, emitted(3, "c0", rooms=("r",))), "P3: c0 got 3"),
    ("left out", history(JOINED, emitted(3, "c0", rooms=("r",), excluded=("@c0",))), "P3: c0 got 3"),
    ("another namespace", history(JOINED, emitted(3, "c0", namespace="/chat")), "P3: c0 got 3"),
    ("local and elsewhere", history(JOINED, emitted(3, "c0", "c1", local=True)), "P3: c1 got 3"),
    (
        "left before",
        history(JOINED, call(4, "leave", "n1", client="c1", rooms=("r",)), Ended(4, "returned"), BOTH),
        "P3: c1 got 3",
    ),
    ("out of nothing", history(JOINED, Got("c0", 99)), "P3: an event 99"),
    ("lost", history(JOINED, emitted(3, "c0", rooms=("r",)), Quiet()), "P4: c1 on n1 did not get 3"),
    (
        "cancelled by halves",
        history(JOINED, call(3, rooms=("r",)), Got("c0", 3), Ended(3, "cancelled"), Quiet()),
        "P4: c1 on n1 did not get 3 (cancelled)",
    ),
    (
        "a gap before",
        history(JOINED, Told("n1", "reconnected"), emitted(3, "c0", rooms=("r",)), Quiet()),
        "P4: c1 on n1 did not get 3",
    ),
    (
        "lost on a log, though a link was lost",
        history(JOINED, emitted(3, "c0", rooms=("r",)), Told("n1", "reconnected"), Quiet(), log=True),
        "P4: c1 on n1 did not get 3",
    ),
    (
        "in the log, and then its node died",
        history(
            JOINED, emitted(3, "c0", rooms=("r",)), NodeStopping("n0"), NodeDown("n0", "killed"), Quiet(), log=True
        ),
        "P4: c1 on n1 did not get 3",
    ),
    (
        "a hole",
        history(UP, Handed("n1", "s", "n0", 1, 1, 1), Handed("n1", "s", "n0", 1, 3, 3)),
        "P5: n1 told 0 missing of n0 on s, and it was 1",
    ),
    (
        "what came too late",
        history(UP, *(Handed("n1", "s", "n0", 1, first, first, place) for first, place in ((1, 1), (4, 9), (5, 5)))),
        "P5: n1 told 0 missing of n0 on s, and it was 3",
    ),
    ("a hole that is none", history(UP, Told("n1", "missed", "s", "n0", 2)), "P5: n1 told 2 missing"),
    ("deaf, and well", history(UP, Deaf("n1", told=True), Deaf("n1", told=False)), "P5: n1 hears nothing"),
    ("no end", history(UP, call(1, "survey")), "P6: survey 1 of n0 never ended"),
    ("too late", history(UP, call(1, "survey", within=-1.0), Ended(1, "failed")), "P6: survey 1 of n0 took"),
    (
        "failed and got",
        history(JOINED, Fault("cut", "n0"), call(3), Got("c0", 3), Ended(3, "failed", "Backpressure")),
        "P6: emit 3 failed (Backpressure), and",
    ),
    (
        "failed for nothing",
        history(JOINED, call(3), Ended(3, "failed", "Backpressure")),
        "P6: emit 3 failed, and nothing",
    ),
    ("too much", history(UP, Size("n0", "outbox", 4, 3)), "P7: n0 holds 4 of outbox"),
    (
        "came back without what it missed",
        history(JOINED, Away("c1"), emitted(3, rooms=("@c1",)), Back("c1", "n0"), Quiet(), log=True),
        "P4: c1 on n1 did not get 3",
    ),
    (
        "came back and got it twice",
        history(JOINED, emitted(3, "c0", "c1", rooms=("r",)), Away("c1"), Back("c1", "n0"), Got("c1", 3), log=True),
        "P3: c1 got 3 2 times",
    ),
    ("broken", history(UP, Seen("n0", ("n1",), (), (), ("1 faults",))), "P8: n0: 1 faults"),
    ("had to wait", history(JOINED, call(3), Ended(3, "returned"), Got("c0", 3), Got("c1", 3)), "P9: c0 had to wait"),
    ("unknown peer", history(UP, Quiet(), Seen("n0", (), ())), "ME: n0 knows ()"),
    ("joined twice", history(UP, Met("n0", "n1", "joined")), "ME: n0 was told twice"),
    (
        "a bye that nobody heard",
        history(UP, NodeStopping("n1"), NodeDown("n1", "closed"), *[Quiet()] * 600, Met("n0", "n1", "left")),
        "ME: n0 did not hear the bye of n1",
    ),
    ("who is there is not shown", history(UP, CLIENTS, ALL_WELL, Watched("n1", "/", "@c0", ())), "PR: n1 sees ()"),
    ("a change that is none", history(UP, Change("n1", "r", "joined", "c0", fits=False)), "PR: n1 was told"),
    (
        "one too many",
        history(
            UP,
            CLIENTS,
            *(call(1, "claim", client="c0", key="k0"), Ended(1, "returned", value=True)),
            *(call(2, "claim", "n1", client="c1", key="k0"), Ended(2, "returned", value=True)),
            *(Quiet(), Seen("n0", ("n1",), (), (("c0", "k0"),)), Seen("n1", ("n0",), (), (("c1", "k0"),))),
        ),
        "CL: ['c0', 'c1'] hold k0",
    ),
    (
        "never granted",
        history(UP, CLIENTS, Quiet(), Seen("n0", ("n1",), (), (("c0", "k0"),))),
        "CL: c0 holds k0, and was never",
    ),
    (
        "gone, and holds",
        history(
            UP,
            CLIENTS,
            *(call(1, "claim", client="c0", key="k0"), Ended(1, "returned", value=True)),
            *(ClientLeaving("c0"), ClientGone("c0"), Quiet(), Seen("n0", ("n1",), (), (("c0", "k0"),))),
        ),
        "CL: c0 holds k0, and is gone",
    ),
    (
        "answered twice",
        history(JOINED, call(3, "ask"), Got("c0", 3), Got("c1", 3), Ended(3, "returned", value=("c0", "c0", "c1"))),
        "AN: somebody answered 3 twice",
    ),
    (
        "not waited for",
        history(JOINED, call(3, "ask"), Got("c0", 3), Got("c1", 3), Ended(3, "returned", value=("c0",))),
        "AN: c1 got 3, is still there",
    ),
    (
        "answered what it did not get",
        history(JOINED, call(3, "ask"), Got("c0", 3), Ended(3, "returned", value=("c0", "c1"))),
        "AN: c1 answered 3 without",
    ),
]


@pytest.mark.parametrize(("bad", "finding"), [(bad, finding) for _, bad, finding in BAD], ids=[one[0] for one in BAD])
def test_a_bad_history_is_found(bad: History, finding: str) -> None:
    assert any(found.startswith(finding) for found in check(bad)), check(bad)


def test_every_checker_finds_something() -> None:
    promises = {found[:2] for _, bad, _ in BAD for found in check(bad)}
    assert promises == {checker.__name__[:2].upper() for checker in CHECKERS}


EXCUSED: list[tuple[str, History]] = [
    ("a gap since", history(JOINED, emitted(3, "c0", rooms=("r",)), Told("n1", "reconnected"), ALL_WELL)),
    ("given up by its node", history(JOINED, emitted(3, "c0", rooms=("r",)), Told("n0", "given_up"), ALL_WELL)),
    ("trimmed", history(JOINED, emitted(3, "c0", rooms=("r",)), Told("n1", "trimmed"), ALL_WELL, log=True)),
    ("dropped: the numbers tell", history(JOINED, emitted(3, "c0", rooms=("r",)), Dropped("n1", (3,)), ALL_WELL)),
    ("gone for good", history(JOINED, Away("c1"), emitted(3, rooms=("@c1",)), Quiet(), log=True)),
    (
        "its node died before the log had it",
        history(
            JOINED,
            *(call(3, "ask", rooms=("r",)), Ended(3, "unsure"), NodeStopping("n0"), NodeDown("n0", "killed"), Quiet()),
            log=True,
        ),
    ),
    ("volatile", history(JOINED, emitted(3, "c0", rooms=("r",), volatile=True), ALL_WELL)),
    ("cancelled for all", history(JOINED, call(3, rooms=("r",)), Ended(3, "cancelled"), ALL_WELL)),
    ("a hole after a pause", history(UP, Handed("n1", "s", "n0", 1, 1, 1), ALL_WELL)),
]


@pytest.mark.parametrize("fine", [one[1] for one in EXCUSED], ids=[one[0] for one in EXCUSED])
def test_what_is_excused_is_not_found(fine: History) -> None:
    assert check(fine) == []


def test_who_is_a_member_surely_and_possibly() -> None:
    story = Story(
        history(
            CLIENTS,  # 0, 1
            call(1, "enter", client="c0", rooms=("r",)),  # 2
            Ended(1, "returned"),  # 3
            call(2, "leave", client="c0", rooms=("r",)),  # 4
            Ended(2, "returned"),  # 5
            Quiet(),  # 6
        )
    )
    life = story.clients["c0"]
    assert not story.surely(life, "r", 2, 3)
    assert story.surely(life, "r", 4, 4)
    assert not story.surely(life, "r", 4, 5)
    assert story.possibly(life, "r", 3, 4)
    assert story.possibly(life, "r", 5, 6)
    assert not story.possibly(life, "r", 6, 7)
    assert story.surely(life, "@c0", 2, 6)
    assert story.surely(life, "*", 2, 6)
    assert story.next_quiet(7) == NEVER


def test_a_leave_under_way_at_the_same_time_leaves_it_open() -> None:
    story = Story(
        history(
            CLIENTS,
            call(2, "leave", client="c0", rooms=("r",)),  # 2
            call(1, "enter", client="c0", rooms=("r",)),  # 3
            Ended(1, "returned"),  # 4
            Ended(2, "returned"),  # 5
        )
    )
    life = story.clients["c0"]
    assert not story.surely(life, "r", 6, 7)
    assert story.possibly(life, "r", 6, 7)
