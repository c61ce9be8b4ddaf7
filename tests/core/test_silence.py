"""How long an owner is waited for, rule by rule."""

from roomcast.core.silence import Silence


def silence() -> Silence:
    return Silence(hearing=1.0, patience=3.0)


def test_rule_1_who_says_nothing_is_silent_for_all_who_ask() -> None:
    """ "One that has said nothing of any session for `hearing` seconds since then is silent" """
    one = silence()
    one.ask("a", 10.0)
    assert one.left("a", 10.0, 10.0) == 1.0
    one.ask("a", 10.5)
    assert one.left("a", 10.5, 10.5) == 0.5, "it was asked before, and is waited for since then"
    assert one.left("a", 10.0, 11.0) == one.left("a", 10.5, 11.0) == 0.0
    one.ask("a", 12.0)
    assert one.left("a", 12.0, 12.0) == 0.0
    one.ask("b", 12.0)
    assert one.left("b", 12.0, 12.0) == 1.0


def test_rule_1_who_is_heard_again_is_not_silent() -> None:
    one = silence()
    one.ask("a", 10.0)
    one.heard("a")
    one.ask("a", 20.0)
    assert one.left("a", 20.0, 20.0) == 1.0


def test_rule_2_who_has_been_heard_has_time_to_answer() -> None:
    """ "One that has been heard has `patience` seconds from each request to answer that." """
    one = silence()
    one.ask("a", 10.0)
    one.heard("a")
    assert one.left("a", 10.0, 11.0) == 2.0
    one.ask("a", 12.5)
    assert one.left("a", 10.0, 12.5) == 0.5, "what it did not say since then is another matter"
    assert one.left("a", 12.5, 12.5) == 1.0
    assert one.left("a", 10.0, 13.0) == 0.0
