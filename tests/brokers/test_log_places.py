"""How far a node has read a log, against a reader that keeps everything it has ever seen."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from roomcast.brokers.log_places import Place, Places, View
from roomcast.core.broker import Gap
from tests.core.effort import effort


def view(epoch: str, end: int, *, start: int = 0, first: int | None = None) -> View:
    return View(Place(epoch, start), Place(epoch, end), first)


def met(epoch: str = "a", end: int = 0) -> Places:
    places = Places(1)
    assert places.resume([view(epoch, end)]) == []
    return places


def test_rule_1_the_entry_after_the_last_is_new() -> None:
    places = met(end=7)
    assert places.read(0, Place("a", 8)) is True
    assert places.read(0, Place("a", 9)) is True
    assert places.of(0) == Place("a", 9)


def test_rule_2_an_entry_that_was_read_is_passed_over() -> None:
    places = met(end=7)
    assert places.read(0, Place("a", 7)) is False
    assert places.read(0, Place("a", 3)) is False
    assert places.of(0) == Place("a", 7)


def test_rule_3_a_hole_is_counted() -> None:
    assert met(end=7).read(0, Place("a", 12)) == Gap("trimmed", missed=4)


def test_rule_4_another_life_is_a_gap_that_cannot_be_counted() -> None:
    places = met(end=7)
    assert places.read(0, Place("b", 8)) == Gap("trimmed")
    assert places.read(0, Place("b", 9)) is True


def test_rule_5_the_same_life_goes_on_where_it_was_left() -> None:
    places = met(end=7)
    assert places.resume([view("a", 20, first=3)]) == []
    assert places.read(0, Place("a", 8)) is True


def test_rule_5_what_is_trimmed_already_is_told_at_once_and_once() -> None:
    places = met(end=7)
    assert places.resume([view("a", 20, first=21)]) == [Gap("trimmed", missed=13)]
    assert places.read(0, Place("a", 21)) is True


def test_rule_6_another_life_is_read_from_its_beginning() -> None:
    places = met(end=7)
    assert places.resume([view("b", 9, start=4)]) == [Gap("trimmed")]
    assert places.of(0) == Place("b", 4)
    assert places.read(0, Place("b", 5)) is True


def test_rule_7_a_stream_is_first_read_from_its_end() -> None:
    assert met(end=7).of(0) == Place("a", 7)


@pytest.mark.parametrize("first", [0, 3, 7, 8])
def test_rule_8_what_the_broker_took_for_itself_is_no_hole_in_a_stream_that_was_not_trimmed_so_far(first: int) -> None:
    places = met(end=7)
    assert places.jumps(0, 10)
    assert places.read(0, Place("a", 10), first) is True
    assert places.of(0) == Place("a", 10)


@pytest.mark.parametrize("first", [9, 10, 12])
def test_rule_8_what_may_be_trimmed_is_told(first: int) -> None:
    assert met(end=7).read(0, Place("a", 10), first) == Gap("trimmed", missed=2)


def test_rule_8_only_a_later_offset_than_the_next_is_a_jump() -> None:
    places = met(end=7)
    assert [places.jumps(0, offset) for offset in (6, 7, 8, 9)] == [False, False, False, True]
    assert places.read(0, Place("b", 9), 0) == Gap("trimmed"), "another life is one, whatever that has"


def test_streams_have_places_of_their_own() -> None:
    places = Places(2)
    places.resume([view("a", 1), view("b", 5)])
    assert places.read(1, Place("b", 6)) is True
    assert places.read(0, Place("a", 2)) is True


def test_a_stream_that_ends_before_its_place_is_behind() -> None:
    places = met(end=7)
    assert places.behind([view("a", 6)]) == [0]
    assert places.behind([view("a", 7)]) == []
    assert places.behind([view("b", 6)]) == []
    assert Places(1).behind([view("a", 6)]) == []


def test_a_stream_that_has_something_else_where_it_was_read_is_behind() -> None:
    places = met(end=7)
    assert places.behind([replace(view("a", 9), kept=False)]) == [0]
    assert places.behind([replace(view("b", 9), kept=False)]) == []
    assert Places(1).behind([replace(view("a", 9), kept=False)]) == []


def test_places_are_marked_when_each_is_known_in_the_brokers_words() -> None:
    places = Places(2)
    assert not places.marked
    places.resume([view("a", 1), view("b", 5)])
    places.read(0, Place("a", 2, "two"))
    assert not places.marked
    places.read(1, Place("b", 6, "six"))
    assert places.marked == [Place("a", 2, "two"), Place("b", 6, "six")]


def test_a_stream_that_was_never_met_has_no_place() -> None:
    with pytest.raises(LookupError):
        Places(1).of(0)


Steps = Sequence[tuple[str, int]]
STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "own", "trim", "recreate", "renew", "relink", "read"]), st.integers(1, 5)),
    max_size=40,
)
Entry = tuple[int, int]


def history(kind: type[Places], steps: Steps) -> tuple[list[Entry], set[Entry], list[Entry | Gap]]:
    """Drive a reader through a stream that is trimmed and recreated: what was appended, trimmed, and told.

    The broker takes offsets for itself here and there, and tells the first one that has an entry.
    """
    life, end, first = 0, 0, 0
    appended: list[Entry] = [(0, 0)]

    def held() -> list[int]:
        return [offset for of, offset in appended if of == life and first <= offset]

    trimmed: set[Entry] = set()
    told: list[Entry | Gap] = [(0, 0)]
    places = kind(1)
    places.resume([view("0", 0)])
    for what, count in (*steps, ("append", 1), ("read", 1_000)):
        if what == "append":
            appended += [(life, end + number) for number in range(1, count + 1)]
            end += count
        elif what == "own":
            end += 1
        elif what == "trim":
            first = min(first + count, end + 1)
            trimmed |= {(life, offset) for offset in range(first)}
        elif what in {"recreate", "renew"}:
            life, end, first = life + 1, 0, 1
        if what in {"relink", "recreate"}:  # a deleted stream ends the link; a renewed one need not
            told += places.resume([view(str(life), end, first=min(held(), default=end + 1))])
        if what == "read":
            place = places.of(0)
            begin = max(first, place.offset - 1) if place.epoch == str(life) else first  # some of it again
            due = [offset for offset in held() if begin <= offset <= begin + count]
            told += read(places, life, due, min(held(), default=0))
    return appended, trimmed, told


def read(places: Places, life: int, offsets: Sequence[int], first: int) -> list[Entry | Gap]:
    """What a reader tells of these entries."""
    told: list[Entry | Gap] = []
    for offset in offsets:
        news = places.read(0, Place(str(life), offset), first if places.jumps(0, offset) else None)
        told += [news] if isinstance(news, Gap) else []
        told += [] if news is False else [(life, offset)]
    return told


def every_loss_is_told(appended: Sequence[Entry], trimmed: set[Entry], told: Sequence[Entry | Gap]) -> None:
    """Nothing twice or out of order; each hole has its gaps before the entry after it, and nothing else has.

    They count it exactly, and at most what the broker took for itself besides.
    """
    at, gaps = 0, list[Gap]()
    for one in told[1:]:
        if isinstance(one, Gap):
            gaps.append(one)
            continue
        index = appended.index(one)
        assert index > at, f"{one} came again, or late"
        missed = index - at - 1
        held = [other for other in appended[at + 1 : index] if other[0] == one[0] and other not in trimmed]
        assert not held, f"{held} passed over"
        if appended[at][0] == one[0] and all(gap.missed is not None for gap in gaps):
            own = one[1] - appended[at][1] - 1 - missed
            told_missed = sum(gap.missed or 0 for gap in gaps)
            assert missed <= told_missed <= missed + own, f"{missed} missed before {one}, told: {gaps}"
            assert not gaps or appended[at] in trimmed, f"nothing was trimmed before {one}, told: {gaps}"
            assert len(gaps) <= missed + own
        else:
            lives = {life for life, _ in appended[at : index + 1]}
            assert len(lives) > 1, f"a gap without a count before {one}, in the same life"
            assert any(gap.missed is None for gap in gaps), f"another life before {one} without a gap"
        at, gaps = index, []
    assert at == len(appended) - 1, "the last entry was not read"


@given(steps=STEPS)
@effort(300)
def test_every_loss_is_told_and_counted(steps: Steps) -> None:
    every_loss_is_told(*history(Places, steps))


class ForgetsTheEpoch(Places):
    def read(self, stream: int, at: Place, first: int | None = None) -> Gap | bool:
        return super().read(stream, Place(self.of(stream).epoch, at.offset), first)


class CountsOneTooMany(Places):
    def read(self, stream: int, at: Place, first: int | None = None) -> Gap | bool:
        news = super().read(stream, at, first)
        return Gap("trimmed", missed=news.missed + 1) if isinstance(news, Gap) and news.missed else news


class ReadsAgain(Places):
    def read(self, stream: int, at: Place, first: int | None = None) -> Gap | bool:
        return super().read(stream, at, first) or True


class TakesEveryJumpForAHole(Places):
    def read(self, stream: int, at: Place, first: int | None = None) -> Gap | bool:
        del first
        return super().read(stream, at)


class TakesEveryJumpForTheBrokers(Places):
    def read(self, stream: int, at: Place, first: int | None = None) -> Gap | bool:
        return super().read(stream, at, None if first is None else 0)


class TakesANewLifeUpAtItsEnd(Places):
    def resume(self, views: Sequence[View]) -> list[Gap]:
        return super().resume([View(one.end, one.end, one.first) for one in views])


class SaysNothingWhenItGoesOn(Places):
    def resume(self, views: Sequence[View]) -> list[Gap]:
        super().resume(views)
        return []


@pytest.mark.parametrize(
    "twin",
    [
        ForgetsTheEpoch,
        CountsOneTooMany,
        ReadsAgain,
        TakesEveryJumpForAHole,
        TakesEveryJumpForTheBrokers,
        TakesANewLifeUpAtItsEnd,
        SaysNothingWhenItGoesOn,
    ],
)
def test_a_seeded_bug_is_caught(twin: type[Places]) -> None:
    @given(steps=STEPS)
    @settings(max_examples=1000, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
    def run(steps: Steps) -> None:
        every_loss_is_told(*history(twin, steps))

    with pytest.raises(AssertionError):
        run()
