"""Goals are ratios of medians in one run; a peer that is ahead is named."""

import pytest
from bench.contestants import CONTESTANTS
from bench.goals import GOALS, GUARDS, Ahead, Figure, Goal, ahead, flat, judge, short, versus
from bench.plan import PARTS
from bench.report import Result
from bench.sections import SECTIONS


def fan_out(**rates: list[float]) -> dict[str, Result]:
    result = Result("remote_fanout")
    for name, rounds in rates.items():
        for rate in rounds:
            result.add({"members": 1}, name.replace("_", "-"), {"events_per_second": rate, "receiver_us": 1e6 / rate})
    return {"remote_fanout": result}


def goal(at_least: float | None = None, at_most: float | None = None, figure: str = "events_per_second") -> Goal:
    pair = ("roomcast-redis", "node-redis")
    return versus("speed", "remote_fanout", figure, {"members": 1}, pair, at_least=at_least, at_most=at_most)


@pytest.mark.parametrize(("bound", "met"), [(1.9, True), (2.0, True), (2.1, False)])
def test_a_goal_is_the_ratio_of_medians(bound: float, met: bool) -> None:
    results = fan_out(roomcast_redis=[10.0, 2000.0, 99999.0], node_redis=[1000.0])
    outcome = judge(goal(at_least=bound), results)
    assert (outcome.value, outcome.met) == (2.0, met)


@pytest.mark.parametrize(("bound", "met"), [(0.4, False), (0.5, True), (0.6, True)])
def test_a_cost_has_an_upper_bound(bound: float, met: bool) -> None:
    results = fan_out(roomcast_redis=[2000.0], node_redis=[1000.0])
    outcome = judge(goal(at_most=bound, figure="receiver_us"), results)
    assert (outcome.value, outcome.met) == (0.5, met)


@pytest.mark.parametrize("results", [{}, fan_out(roomcast_redis=[1.0]), fan_out(node_redis=[1.0])])
def test_what_was_not_measured_is_neither_met_nor_missed(results: dict[str, Result]) -> None:
    outcome = judge(goal(at_least=1), results)
    assert (outcome.value, outcome.met) == (None, None)


def test_a_figure_may_be_compared_with_itself_elsewhere_or_with_a_limit() -> None:
    result = Result("curves")
    for point, cost in ((1, 2.0), (100, 3.1)):
        result.add({"point": point}, "roomcast-redis", {"us": cost})
    results = {"curves": result}
    growth = flat("growth", "curves", "us", "roomcast-redis", ({"point": 1}, {"point": 100}), 1.5)
    assert judge(growth, results).met is False
    assert judge(growth, results).value == pytest.approx(1.55)
    limit = Goal("a limit", Figure("curves", "roomcast-redis", "us", {"point": 100}), at_most=3.1)
    assert judge(limit, results).met is True
    assert limit.bound == "at most 3.1"


def test_every_goal_and_guard_names_what_is_measured() -> None:
    figures = {section.part: section.figures for section in SECTIONS}
    for each in (*GOALS, *GUARDS):
        for one in (each.ours, each.than):
            if one is not None:
                assert one.part in PARTS
                assert one.contestant in CONTESTANTS
                assert one.figure in figures[one.part]
        assert (each.at_least is None) != (each.at_most is None)


def test_guards_are_weaker_than_the_goals_of_the_same_figures() -> None:
    goals = {(repr(each.ours), repr(each.than)): each for each in GOALS}
    compared = 0
    for guard in GUARDS:
        own = goals.get((repr(guard.ours), repr(guard.than)))
        if own is None:
            continue
        compared += 1
        if guard.at_least is not None and own.at_least is not None:
            assert guard.at_least <= own.at_least / 2
        if guard.at_most is not None and own.at_most is not None:
            assert guard.at_most >= own.at_most * 1.4
    assert compared >= 8


def test_a_peer_that_is_ahead_is_named_and_whether_the_rounds_overlap() -> None:
    results = fan_out(
        roomcast_redis=[10.0, 20.0],
        node_redis=[30.0, 50.0],
        node_redis_sharded=[15.0, 25.0],
        python_socketio_redis=[5.0],
    )
    found = ahead(results, {"remote_fanout": ["events_per_second"], "latency": ["p50_us"]})
    assert found == [
        Ahead("remote_fanout", {"members": 1}, "events_per_second", "roomcast-redis", peer, times, surely)
        for peer, times, surely in (("node-redis", 40 / 15, True), ("node-redis-sharded", 20 / 15, False))
    ]


def test_of_a_cost_less_is_better() -> None:
    results = fan_out(roomcast_redis=[10.0], node_redis=[40.0])
    (found,) = ahead(results, {"remote_fanout": ["receiver_us"]})
    assert (found.peer, found.times, found.surely) == ("node-redis", 4.0, True)


def test_only_peers_of_the_same_broker_are_compared() -> None:
    results = fan_out(roomcast_amqp=[10.0], roomcast_nats=[10.0], node_redis=[40.0], python_socketio_amqp=[40.0])
    found = ahead(results, {"remote_fanout": ["events_per_second"]})
    assert [(one.ours, one.peer) for one in found] == [
        ("roomcast-amqp", "python-socketio-amqp"),
        ("roomcast-nats", "node-redis"),
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(123456.7, "123,457"), (99.96, "100"), (1.2345, "1.23"), (0.0123, "0.0123"), (0.0, "0")]
)
def test_numbers_have_the_digits_that_say_something(value: float, text: str) -> None:
    assert short(value) == text
