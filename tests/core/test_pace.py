"""How the reading of a log waits for clients, rule by rule, and what it comes to for a node with many of them."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.core.pace import PERIOD, STILL, Pace
from tests.core.effort import effort

BOUND = 20
"""Packets that may wait for a client."""


class Reader:
    """One that has no client in its way: fast, and one packet of every message for each."""

    def __init__(self, pace: Pace, speeds: list[float]) -> None:
        self.now = 0.0
        self.read = 0
        self.cut: set[int] = set()
        self._pace = pace
        self._speeds = speeds  # packets that each client takes in a second
        self._waiting = [0.0] * len(speeds)
        self._taken = [0] * len(speeds)

    def behind(self) -> Mapping[object, object]:
        return {
            who: self._taken[who]
            for who, waiting in enumerate(self._waiting)
            if waiting > BOUND / 2 and who not in self.cut
        }

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        for who, speed in enumerate(self._speeds):
            taken = min(self._waiting[who], speed * seconds)
            self._waiting[who] -= taken
            self._taken[who] += taken > 0

    def catch_up(self, messages: int) -> None:
        for _ in range(messages):
            while self._pace.waits(self.behind(), self.now):
                self._pass(0.02)
            self._pass(0.0001)
            self.read += 1
            for who in range(len(self._speeds)):
                self._waiting[who] += 1
                if self._waiting[who] > BOUND:
                    self.cut.add(who)


moving = st.floats(20.0, 2000.0)


@given(st.lists(moving, min_size=1, max_size=5), st.integers(1, 300))
@effort(20)
def test_after_an_absence_nobody_who_moves_is_cut(speeds: list[float], messages: int) -> None:
    pace = Pace()
    pace.away(0.0)
    reader = Reader(pace, speeds)
    reader.catch_up(messages)
    assert not reader.cut
    assert reader.now <= messages / min(speeds) + 0.03 * messages, "no longer than the slowest takes"


@given(st.integers(1, 5), st.integers(0, 300))
@effort(20)
def test_rule_3_those_who_do_not_read_cost_the_others_one_wait(still: int, messages: int) -> None:
    """ "Who does not read at all is waited for once, and then no more until it moves." """
    pace = Pace()
    pace.away(0.0)
    reader = Reader(pace, [0.0] * still + [10**6])
    reader.catch_up(messages)
    assert reader.now <= STILL + 0.03 + 0.0001 * messages
    assert reader.cut == (set(range(still)) if messages > BOUND else set())


def test_rule_3_who_moves_again_is_waited_for_again() -> None:
    pace = Pace()
    pace.away(0.0)
    assert pace.waits({"a": 1}, 0.0)
    assert pace.waits({"a": 1}, STILL * 0.9)
    assert not pace.waits({"a": 1}, STILL)
    assert pace.waits({"a": 2}, STILL + 0.1)
    assert pace.waits({"a": 2, "b": 1}, 3 * STILL), "for another"
    assert not pace.waits({"a": 2}, 3 * STILL)


@pytest.mark.parametrize("speed", [1.5, 5.0])
def test_rule_1_who_reads_more_slowly_than_the_rooms_speak_is_not_waited_for_for_ever(speed: float) -> None:
    pace = Pace()
    pace.away(0.0)
    reader = Reader(pace, [speed])
    reader.catch_up(1000)
    assert reader.cut == {0}
    assert reader.now < PERIOD + STILL + 2.0


@given(st.lists(st.tuples(st.floats(0.0, PERIOD), st.sampled_from(["away", "look"])), max_size=20))
@effort(50)
def test_rule_1_and_2_without_an_absence_or_a_client_behind_nothing_waits(steps: list[tuple[float, str]]) -> None:
    pace, now, until = Pace(), 0.0, 0.0
    for number, (seconds, step) in enumerate(steps):
        now += seconds
        if step == "away":
            pace.away(now)
            until = now + PERIOD
        assert not pace.waits({}, now)
        assert pace.waits({"who moves": number}, now) == (now < until)
