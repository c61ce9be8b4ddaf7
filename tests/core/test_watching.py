"""What a watch knows and shows, rule by rule."""

from roomcast.core.messages import Members
from roomcast.core.watching import Change, Mirror, View
from tests.core.presence_machine import joined, left


def test_rule_1_a_part_is_sure_once_the_whole_set_was_told_and_unsure_after_a_hole() -> None:
    """ "A node's part is sure once it has told its whole set." """
    mirror = Mirror()
    mirror.expect(["a", "b"])
    assert mirror.take("a", Members(1, 5, ("a1", "a2"), whole=True, more=True)) == []
    assert mirror.unsure == {"a", "b"}
    assert set(mirror.take("a", Members(1, 6, ("a3",)))) == {joined("a1"), joined("a2"), joined("a3")}
    assert mirror.unsure == {"b"}
    assert mirror.take("a", Members(1, 8, ("a4",))) == [], "7 is missing"
    assert mirror.unsure == {"a", "b"}
    assert mirror.take("a", Members(1, 9, ("a5",))) == [], "it was asked already"
    changes = mirror.take("a", Members(1, 10, ("a2", "a3", "a4", "a5"), whole=True))
    assert set(changes) == {left("a1"), joined("a4"), joined("a5")}
    assert mirror.unsure == {"b"}


def test_changes_come_in_the_order_in_which_they_were_told() -> None:
    mirror = Mirror()
    mirror.expect(["a"])
    sids = tuple(f"a{number}" for number in range(50))
    assert mirror.take("a", Members(1, 1, sids, whole=True)) == [joined(sid) for sid in sids]
    assert mirror.take("a", Members(1, 2, sids[:3], whole=True)) == [left(sid) for sid in sids[3:]]
    assert mirror.left("a") == [left(sid) for sid in sids[:3]]


def whole(version: int, *sids: str) -> Members:
    return Members(1, version, sids, whole=True)


def test_rule_6_who_came_back_on_another_node_is_there_once() -> None:
    """ "It has left the one and joined the other, and what the first one says of it later is no change." """
    mirror, view = Mirror(), View()

    def note(changes: list[Change]) -> list[Change]:
        view.note(changes)
        return changes

    mirror.expect(["a", "b"])
    note(mirror.take("a", whole(1, "x", "y")))
    note(mirror.take("b", whole(1)))
    assert view.look() == {"x": "a", "y": "a"}
    moved = [Change("left", "x", "a"), Change("joined", "x", "b")]
    assert note(mirror.take("b", Members(1, 2, ("x",)))) == moved
    assert dict(mirror) == view.look() == {"x": "b", "y": "a"}
    assert note(mirror.take("a", whole(2, "x", "y"))) == [], "it does not know yet"
    assert note(mirror.left("a")) == [Change("left", "y", "a")], "the node that it was on is lost"
    assert dict(mirror) == view.look() == {"x": "b"}
    assert note(mirror.take("b", Members(1, 3, (), ("x",)))) == [Change("left", "x", "b")]
    assert dict(mirror) == view.look() == {}


def test_rule_6_who_is_gone_from_where_it_came_last_is_where_it_still_is() -> None:
    mirror = Mirror()
    mirror.expect(["a", "b"])
    mirror.take("a", whole(1, "x"))
    mirror.take("b", whole(1, "x"))
    assert mirror.left("b") == [Change("left", "x", "b"), Change("joined", "x", "a")]
    assert mirror.left("a") == [Change("left", "x", "a")]


def test_rule_6_a_move_there_and_back_that_nobody_has_seen_is_no_change() -> None:
    view = View([("x", "a")])
    view.note([Change("left", "x", "a"), Change("joined", "x", "b")])
    view.note([Change("left", "x", "b"), Change("joined", "x", "a")])
    assert len(view) == 0
    view.next()
    view.note([Change("left", "x", "a"), Change("joined", "x", "b")])
    assert [view.next(), view.next()] == [Change("left", "x", "a"), Change("joined", "x", "b")]
    assert view.look() == {"x": "b"}


def test_rule_3_who_is_not_expected_is_not_believed() -> None:
    mirror = Mirror()
    assert mirror.take("a", Members(1, 1, ("a1",), whole=True)) == []
    mirror.doubt("a")
    assert (mirror.left("a"), dict(mirror), mirror.unsure) == ([], {}, set())


def test_what_this_node_knows_of_itself_is_always_sure() -> None:
    mirror = Mirror()
    assert mirror.here("a", ["a1", "a2"]) == [joined("a1"), joined("a2")]
    assert mirror.here("a", ["a1"], ["a2", "a3"]) == [left("a2")]
    assert (dict(mirror), mirror.unsure) == ({"a1": "a"}, set())


def test_rule_4_until_the_first_change_is_asked_for_each_look_shows_what_is_so() -> None:
    """ "Until the first change is asked for, each look shows what is so now." """
    view = View([("a1", "a")])
    view.note([joined("a2")])
    assert view.look() == {"a1": "a", "a2": "a"}
    view.note([left("a1")])
    assert view.next() == left("a1"), "what was looked at is not told again"
    view.note([joined("a3"), left("a2")])
    assert view.look() == {"a2": "a"}
    assert [view.next(), view.next(), view.next()] == [joined("a3"), left("a2"), None]
    assert view.look() == {"a3": "a"}


def test_rule_5_a_change_and_its_reverse_that_nobody_has_seen_cancel_out() -> None:
    view = View([("a1", "a")])
    for number in range(1000):
        view.note([joined(f"a{number + 2}")])
        view.note([left(f"a{number + 2}")])
    view.note([left("a1"), joined("a1")])
    assert (len(view), view.next()) == (0, None)
