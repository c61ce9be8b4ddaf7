"""The last stretch of a log, rule by rule."""

import gc
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.core.broker import Position, Subject
from roomcast.core.errors import ReplayUnavailable
from roomcast.core.messages import Emit, Packet
from roomcast.core.tail import UNKNOWN, Tail, number_of, place_text, read_place
from tests.core.effort import effort

RED, BLUE = Subject("t.room.red"), Subject("t.room.blue")


def emit(text: str = "x") -> Emit:
    return Emit("/", ("red",), Packet("json", text))


def tail_of(*subjects: Subject, seconds: float = 60.0, size: int = 1 << 20) -> Tail:
    """A tail that has read one packet on each subject, at 1, 2, 3 and so on, one in each second."""
    tail = Tail(seconds=seconds, size=size)
    for number, subject in enumerate(subjects, 1):
        tail.mark("e", number)
        tail.add(subject, emit(), float(number))
    return tail


def numbers(tail: Tail, after: int, *subjects: Subject) -> list[int]:
    return [kept.number for kept in tail.since(after, subjects)]


def refused(tail: Tail, after: int) -> str:
    with pytest.raises(ReplayUnavailable) as told:
        tail.since(after, [RED])  # at once, before any of them is taken
    return told.value.reason


@given(st.text(max_size=10), st.integers(0, 10**12), st.integers(0, 65_535))
@effort(50)
def test_a_place_reads_as_written(epoch: str, offset: int, index: int) -> None:
    number = number_of(Position(epoch, str(offset)), index)
    assert read_place(place_text(epoch, number)) == ((epoch, number) if epoch else None)


@pytest.mark.parametrize(
    "text", ["", "e", "e.1", "e.1.", "e.x.1", "e.1.-1", "e.1.65536", ".1.2", "e.1.²", "e.1." + "1" * 30]
)
def test_what_is_no_place_is_told_apart(text: str) -> None:
    assert read_place(text) is None


def test_rule_1_latest_is_what_was_read_last_whatever_it_was() -> None:
    tail = tail_of(RED)
    tail.mark("e", 9)
    assert tail.text == "e.0.9"
    assert numbers(tail, 9, RED) == []
    assert refused(tail, 10) == "epoch_changed", "nobody can have got that yet"


def test_rule_2_packets_come_in_the_order_of_the_log_whatever_their_subjects() -> None:
    """ "gives every packet after a place that is held for some subjects, in the order of the log" """
    tail = tail_of(RED, BLUE, RED, BLUE, RED)
    assert numbers(tail, 0, BLUE, RED) == [1, 2, 3, 4, 5]
    assert numbers(tail, 2, RED, RED) == [3, 5]
    assert numbers(tail, 2, Subject("t.room.other")) == []


def test_rule_2_it_gives_nothing_later_than_what_was_the_latest() -> None:
    tail = tail_of(RED, BLUE, RED)
    taking = tail.since(1, [RED, BLUE])
    tail.mark("e", 4)
    tail.add(RED, emit(), 4.0)
    assert [kept.number for kept in taking] == [2, 3]


@pytest.mark.parametrize("taken", [0, 1, 90, 150])
@pytest.mark.parametrize("how", ["time", "cut", "epoch"])
def test_rule_2_what_is_forgotten_before_it_is_taken_is_never_passed_over(taken: int, how: str) -> None:
    """ "when the next one is forgotten before it is taken, that raises, too" """
    tail = tail_of(*[RED, BLUE] * 100, seconds=1000.0)
    taking = tail.since(0, [RED, BLUE])
    got = [next(taking).number for _ in range(taken)]
    if how == "time":
        tail.tick(1160.5)
    elif how == "cut":
        tail.cut()
    else:
        tail.mark("f", 1)
    with pytest.raises(ReplayUnavailable):
        got += [kept.number for kept in taking]
    assert got == list(range(1, len(got) + 1))


def test_rule_2_who_has_taken_all_is_done_whatever_is_forgotten_since() -> None:
    tail = tail_of(*[RED, BLUE] * 100, seconds=1000.0)
    taking = tail.since(0, [RED, BLUE])
    got = [next(taking).number for _ in range(180)]
    tail.tick(1170.5)
    got += [kept.number for kept in taking]
    assert got == list(range(1, 201))


def test_rule_3_what_is_forgotten_is_let_go_at_once() -> None:
    class Text(str):
        """Text that can be looked after."""

        __slots__ = ("__weakref__",)

    tail, texts = Tail(seconds=60.0, size=1 << 20), list[Any]()
    for number in (1, 2):
        text = Text("x")
        texts.append(weakref.ref(text))
        tail.mark("e", number)
        tail.add(RED, emit(text), float(number))
    del text
    tail.tick(61.5)
    gc.collect()
    assert [text() is None for text in texts] == [True, False]


def test_rule_2_what_was_before_the_first_message_is_not_known() -> None:
    tail = Tail(seconds=60, size=1000)
    assert refused(tail, UNKNOWN) == "trimmed"
    tail.mark("e", 7)
    assert numbers(tail, 6, RED) == []
    assert refused(tail, 5) == "trimmed"
    assert refused(tail, UNKNOWN) == "trimmed"


def test_rule_3_the_oldest_gives_way_to_time_and_to_size() -> None:
    old = tail_of(RED, BLUE, RED, seconds=1.5)
    assert numbers(old, 1, RED, BLUE) == [2, 3]
    assert refused(old, 0) == "trimmed"
    old.tick(100.0)
    assert numbers(old, 3, RED, BLUE) == []
    assert len(old) == old.bytes == 0
    large = tail_of(*[RED] * 500, size=10_000)
    assert 0 < large.bytes <= 10_000
    first = numbers(large, 500 - len(large), RED)[0]
    assert numbers(large, first - 1, RED) == list(range(first, 501))
    assert refused(large, first - 2) == "trimmed"


def test_rule_4_after_a_cut_nothing_before_the_next_message_is_known() -> None:
    tail = tail_of(RED, RED)
    tail.cut()
    assert refused(tail, 2) == "trimmed"
    assert not tail.mark("e", 5)
    assert refused(tail, 3) == "trimmed"
    tail.add(RED, emit(), 5.0)
    assert numbers(tail, 4, RED) == [5]


def test_rule_4_a_new_epoch_begins_anew() -> None:
    tail = tail_of(RED, RED)
    assert tail.mark("f", 1)
    assert refused(tail, 2) == "epoch_changed"
    assert numbers(tail, 0, RED) == []


@given(st.lists(st.tuples(st.sampled_from([RED, BLUE, None]), st.integers(1, 3)), max_size=60), st.integers(0, 99))
@effort(100)
def test_rule_2_it_gives_all_or_nothing(read: list[tuple[Subject | None, int]], after: int) -> None:
    """Against a list of everything: whatever was forgotten, what is given is what there was."""
    tail = Tail(seconds=8.0, size=20_000)
    everything: list[tuple[int, Subject]] = []
    number = 0
    for subject, step in read:
        number += step
        tail.mark("e", number)
        if subject is not None:
            tail.add(subject, emit(), float(number))
            everything.append((number, subject))
    try:
        found = numbers(tail, after, RED)
    except ReplayUnavailable:
        assert after > number or not read or after < read[0][1] - 1 or any(at <= number - 8 for at, _ in everything)
    else:
        assert found == [at for at, subject in everything if subject == RED and at > after]
