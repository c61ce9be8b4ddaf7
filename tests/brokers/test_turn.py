"""When a link writes: the rules of `Turn`, and all of them together against a model."""

from hypothesis import given
from hypothesis import strategies as st

from roomcast.brokers.turn import Turn


class Link:
    """As small a link as can have a turn: what waits, and each write that it did."""

    def __init__(self) -> None:
        self.turn = Turn()
        self.waiting: list[int] = []
        self.writes: list[list[int]] = []
        self.clogged = False
        self.sent = 0

    def send(self, count: int = 1) -> None:
        for _ in range(count):
            self.waiting.append(self.sent)
            self.sent += 1
            if not self.turn.under_way and self.turn.begin():
                self.write()

    def end(self) -> None:
        self.turn.end(len(self.waiting))
        self.write()

    def write(self) -> None:
        if self.waiting and not self.clogged:
            self.writes.append(self.waiting)
            self.waiting = []


def test_the_first_of_a_turn_leaves_at_once_and_the_others_together() -> None:
    """Rule 1."""
    link = Link()
    link.send(4)
    assert link.writes == [[0]]
    link.end()
    assert link.writes == [[0], [1, 2, 3]]


def test_ones_that_come_alone_are_never_held() -> None:
    """Rule 1, turn after turn."""
    link = Link()
    for number in range(3):
        link.send()
        assert link.writes[number:] == [[number]]
        link.end()
    assert len(link.writes) == 3


def test_after_a_turn_with_several_all_of_the_next_one_leave_together() -> None:
    """Rule 2: "after a turn with several"."""
    link = Link()
    link.send(2)
    link.end()
    for _ in range(2):
        written = len(link.writes)
        link.send(3)
        assert len(link.writes) == written
        link.end()
    assert link.writes == [[0], [1], [2, 3, 4], [5, 6, 7]]


def test_after_a_turn_with_one_the_first_leaves_at_once_again() -> None:
    """Rule 2: "after a turn with one, rule 1 again"."""
    link = Link()
    link.send(2)
    link.end()
    link.send()
    assert link.writes == [[0], [1]], "it is held, for more may come"
    link.end()
    link.send(2)
    assert link.writes == [[0], [1], [2], [3]]


def test_what_the_socket_did_not_take_counts_for_the_turn() -> None:
    """Rule 3: it was alone, and waits all the same; so what comes next leaves with what comes then."""
    link = Link()
    link.clogged = True
    link.send()
    link.end()
    link.clogged = False
    link.send(2)
    assert not link.writes
    link.end()
    assert link.writes == [[0, 1, 2]]


@given(st.lists(st.integers(1, 4), max_size=30))
def test_a_turn_is_two_writes_at_most_and_keeps_the_order(turns: list[int]) -> None:
    """Rules 1 and 2, whatever comes in a row of turns."""
    link = Link()
    several = False
    for count in turns:
        first = link.sent
        written = len(link.writes)
        link.send(count)
        link.end()
        all_of_it = list(range(first, link.sent))
        apart = [all_of_it[:1], all_of_it[1:]] if count > 1 else [all_of_it]
        assert link.writes[written:] == ([all_of_it] if several else apart)
        several = count > 1
    assert [one for write in link.writes for one in write] == list(range(link.sent))
