"""What the measurements must show: goals as ratios in one run, and where a peer is ahead. Pure.

A goal compares the medians of one figure: of a contestant with a peer in the same case, or with itself in another one
(a cost that must stay flat). Only where the plan names an absolute time is there a limit in microseconds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.report import Case, Result, Row

Results = Mapping[str, Result]


@dataclass(frozen=True, slots=True)
class Figure:
    """Where a number is: one figure of one contestant in one case of one part."""

    part: str
    contestant: str
    figure: str
    case: Case = field(default_factory=dict[str, str | int | float])

    def median(self, results: Results) -> float | None:
        """Its median; None if it was not measured."""
        result = results.get(self.part)
        return None if result is None else result.median(self.case, self.contestant, self.figure)


@dataclass(frozen=True, slots=True)
class Goal:
    """One thing that the measurements must show.

    Attributes:
        about: what is measured, without the bound.
        ours: the figure.
        than: what it is divided by; None: it is compared as it is.
        at_least, at_most: the bound of the quotient, or of the figure itself; one of the two.
    """

    about: str
    ours: Figure
    than: Figure | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bound(self) -> str:
        """The bound in words."""
        sign, bound = ("at least", self.at_least) if self.at_least is not None else ("at most", self.at_most)
        assert bound is not None
        times = "" if self.than is None else " times"
        return f"{sign} {short(bound)}{times}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a goal: the quotient (or the figure), and whether it is met; None: it was not measured."""

    goal: Goal
    value: float | None
    met: bool | None


def judge(goal: Goal, results: Results) -> Outcome:
    """Whether a goal is met."""
    value = goal.ours.median(results)
    if value is not None and goal.than is not None:
        other = goal.than.median(results)
        value = value / other if other else None
    if value is None:
        return Outcome(goal, None, None)
    met = (goal.at_least is None or value >= goal.at_least) and (goal.at_most is None or value <= goal.at_most)
    return Outcome(goal, value, met)


def versus(
    about: str,
    part: str,
    figure: str,
    case: Case,
    pair: tuple[str, str],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Goal:
    """A goal of the first of the pair against the second, in one case."""
    ours, theirs = (Figure(part, name, figure, case) for name in pair)
    return Goal(f"{about}: {pair[0]} against {pair[1]}", ours, theirs, at_least, at_most)


def flat(about: str, part: str, figure: str, name: str, cases: tuple[Case, Case], at_most: float) -> Goal:
    """A goal that a cost does not grow from the first case to the second."""
    few, many = (Figure(part, name, figure, case) for case in cases)
    return Goal(f"{about}: {name}", many, few, at_most=at_most)


PYTHON, NODE, OURS = "python-socketio-redis", "node-redis", "roomcast-redis"


def _fan_out() -> Iterable[Goal]:
    bounds = {1: (6.0, 2.0), 100: (10.0, 2.0), 1000: (15.0, 0.8)}
    for ours in (OURS, "roomcast-nats"):
        for members, (python, node) in bounds.items():
            about = f"events/s to {members} remote member{'s' * (members > 1)}"
            case = {"members": members}
            for peer, bound in ((PYTHON, python), (NODE, node)):
                yield versus(about, "remote_fanout", "events_per_second", case, (ours, peer), at_least=bound)
    for members in bounds:
        about = f"events/s to {members} remote member{'s' * (members > 1)}, publisher confirms on"
        pair = ("roomcast-amqp", "python-socketio-amqp")
        yield versus(about, "remote_fanout", "events_per_second", {"members": members}, pair, at_least=10)


def _emits() -> Iterable[Goal]:
    for ours in (OURS, "roomcast-redis-confirm", "roomcast-nats"):
        about, case = "CPU per emit, 64 in flight", {"in_flight": 64}
        yield versus(about, "emits", "us_per_emit", case, (ours, PYTHON), at_most=1 / 6)
        yield versus(about, "emits", "us_per_emit", case, (ours, NODE), at_most=1)
    for ours in (OURS, "roomcast-nats"):
        about, case = "CPU per message at an uninterested node", {"size": 200}
        yield versus(about, "uninterested", "us_per_message", case, (ours, PYTHON), at_most=1 / 100)


def _latency() -> Iterable[Goal]:
    for ours in (OURS, "roomcast-nats"):
        for figure in ("p50_us", "p99_us"):
            for peer in (PYTHON, NODE):
                about = f"{figure[:3]} from emit to delivery at 200/s"
                yield versus(about, "latency", figure, {"per_second": 200}, (ours, peer), at_most=1)


def _rooms() -> Iterable[Goal]:
    for rooms in (100, 10_000, 100_000):
        ours = Figure("disconnects", OURS, "forget_us", {"rooms": rooms})
        yield Goal(f"microseconds to forget a client while {rooms:,} rooms exist: {OURS}", ours, at_most=25)
    cases: tuple[Case, Case] = ({"rooms": 100}, {"rooms": 100_000})
    yield flat("forgetting a client, 100,000 rooms against 100", "disconnects", "forget_us", OURS, cases, 1.5)
    for members, bound in ((1000, 1.7), (10, 1.7), (1, 1.0)):
        about = f"memory per membership, rooms of {members}"
        yield versus(about, "membership", "bytes", {"members": members}, (OURS, PYTHON), at_most=bound)


def _curves() -> Iterable[Goal]:
    for ours in (OURS, "roomcast-nats", "roomcast-amqp"):
        for curve, few, many in (("rooms", 100, 100_000), ("nodes", 1, 32)):
            cases: tuple[Case, Case] = ({"curve": curve, "point": few}, {"curve": curve, "point": many})
            about = f"CPU per delivery at the receiver, {many:,} {curve} against {few}"
            yield flat(about, "curves", "receiver_us_per_delivery", ours, cases, 1.5)


def _end_to_end() -> Iterable[Goal]:
    for mode, bound in (("burst", 1 / 3.5), ("paced", 1 / 3)):
        about = f"server CPU per delivery, 1000 websockets, {mode}"
        for peer, most in ((PYTHON, bound), (NODE, 1.0)):
            figure = "server_us_per_delivery"
            yield versus(about, "end_to_end", figure, {"mode": mode}, (OURS, peer), at_most=most)
    about = "p99 at 5,000 deliveries/s, 1000 websockets"
    yield versus(about, "end_to_end", "p99_ms", {"mode": "paced"}, (OURS, NODE), at_most=1)
    lag = Figure("connections", OURS, "lag_max_ms", {"clients": 20_000})
    yield Goal(f"milliseconds of event loop lag, an event to 20,000 websockets: {OURS}", lag, at_most=50)


GOALS: Sequence[Goal] = (*_fan_out(), *_emits(), *_latency(), *_rooms(), *_curves(), *_end_to_end())
"""All goals, in the order in which the page has them."""


def _guards() -> Iterable[Goal]:
    rate, amqp = "events_per_second", ("roomcast-amqp", "python-socketio-amqp")
    for members, bound in ((1, 3.0), (100, 4.0)):
        about, case = f"events/s, {members} remote", {"members": members}
        yield versus(about, "remote_fanout", rate, case, (OURS, PYTHON), at_least=bound)
        yield versus(about, "remote_fanout", rate, case, ("roomcast-nats", PYTHON), at_least=bound)
        yield versus(about, "remote_fanout", rate, case, amqp, at_least=bound)
        figure = "receiver_us_per_delivery"
        yield versus(
            f"receiver CPU, {members} remote", "remote_fanout", figure, case, (OURS, PYTHON), at_most=1 / bound
        )
    for ours, bound in ((OURS, 1 / 2.5), ("roomcast-redis-confirm", 1 / 1.5)):
        yield versus("CPU per emit", "emits", "us_per_emit", {"in_flight": 64}, (ours, PYTHON), at_most=bound)
    pair = (OURS, PYTHON)
    yield versus("CPU, uninterested", "uninterested", "us_per_message", {"size": 200}, pair, at_most=1 / 20)
    yield versus("p50 latency", "latency", "p50_us", {"per_second": 200}, pair, at_most=1.5)
    yield versus("disconnect", "disconnects", "forget_us", {"rooms": 10_000}, pair, at_most=1 / 4)
    for members, most in ((10, 2.5), (1, 2.0)):
        yield versus("memory per membership", "membership", "bytes", {"members": members}, pair, at_most=most)


GUARDS: Sequence[Goal] = tuple(_guards())
"""What the short form must show in CI: ratios far below the goals, so that a busy machine does not fail it."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """A peer that is better than roomcast in one figure of one case.

    Attributes:
        times: how much better, by the medians; above 1.
        surely: no round of ours is as good as any of the peer's.
    """

    part: str
    case: Case
    figure: str
    ours: str
    peer: str
    times: float
    surely: bool


_AGAINST = {
    "roomcast-redis": "redis",
    "roomcast-nats": "redis",  # no peer is on NATS
    "roomcast-amqp": "amqp",
}


def ahead(results: Results, figures: Mapping[str, Sequence[str]]) -> list[Ahead]:
    """Every case in which a peer is better, of the figures named for each part."""
    found: list[Ahead] = []
    for part, names in figures.items():
        rows = results[part].rows if part in results else []
        for ours in rows:
            for peer in rows:
                if peer.case == ours.case and _are_peers(ours.contestant, peer.contestant):
                    found += [one for name in names if (one := _ahead(part, name, ours, peer)) is not None]
    return found


def _are_peers(ours: str, peer: str) -> bool:
    broker = _AGAINST.get(ours)
    return broker is not None and not peer.startswith("roomcast") and f"-{broker}" in peer


def higher_is_better(figure: str) -> bool:
    """Whether more of a figure is better: rates are, costs and times are not."""
    return figure.endswith("_per_second")


def _ahead(part: str, figure: str, ours: Row, peer: Row) -> Ahead | None:
    if figure not in ours.figures or figure not in peer.figures:
        return None
    mine, theirs = ours.summary(figure), peer.summary(figure)
    if higher_is_better(figure):
        times, surely = theirs.median / mine.median if mine.median else 1, theirs.low > mine.high
    else:
        times, surely = mine.median / theirs.median if theirs.median else 1, theirs.high < mine.low
    if times <= 1:
        return None
    return Ahead(part, ours.case, figure, ours.contestant, peer.contestant, times, surely)


def short(value: float) -> str:
    """A number with the digits that say something."""
    size = abs(value)
    if size >= 100:  # noqa: PLR2004
        return f"{value:,.0f}"
    return f"{value:.3g}" if size >= 0.001 else f"{value:.2g}"  # noqa: PLR2004
