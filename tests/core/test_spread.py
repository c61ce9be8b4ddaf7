"""Packets on their way into many queues, rule by rule."""

from collections import defaultdict
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from roomcast.core.frames import Frame
from roomcast.core.spread import Puts, Spread
from tests.core.effort import effort

WHO = range(6)

steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sets(st.sampled_from(WHO), min_size=1)),
        st.tuples(st.just("some"), st.integers(1, 4)),
        st.tuples(st.just("owed"), st.sampled_from(WHO)),
    ),
    max_size=40,
)


@given(steps)
@effort(200)
def test_each_connection_gets_each_packet_once_and_in_order(schedule: list[tuple[str, object]]) -> None:
    spread = Spread[int, str]()
    sent: dict[str, list[str]] = defaultdict(list)
    got: dict[str, list[str]] = defaultdict(list)

    def put(puts: Puts[str]) -> None:
        for client in puts.clients:
            got[client].append(str(puts.frame.packets[0].data if puts.frame.packets[0] else None))

    for number, (kind, what) in enumerate(schedule):
        if kind == "add":
            to = {who: f"client {who}" for who in WHO if who in cast("set[int]", what)}
            spread.add(Frame((str(number),)), to, volatile=number % 2 == 0)
            for client in to.values():
                sent[client].append(str(number))
        elif kind == "some" and isinstance(what, int) and spread.left:
            puts = spread.some(what)
            assert 0 < len(puts.clients) <= what
            put(puts)
        elif kind == "owed" and isinstance(what, int):
            for puts in spread.owed(what):
                assert puts.clients == (f"client {what}",)
                put(puts)
            assert got[f"client {what}"] == sent[f"client {what}"], "nothing is owed any more"
        assert spread.left == sum(map(len, sent.values())) - sum(map(len, got.values()))
    while spread.left:
        put(spread.some(3))
    assert got == {client: events for client, events in sent.items() if events} | {c: [] for c in got if not sent[c]}


def test_the_oldest_packet_goes_first_and_a_volatile_one_is_known_as_such() -> None:
    spread = Spread[int, str]()
    spread.add(Frame(("old",)), {1: "one"}, volatile=True)
    spread.add(Frame(("new",)), {1: "one", 2: "two"}, volatile=False)
    assert [(p.volatile, p.clients) for p in (spread.some(9), spread.some(9))] == [
        (True, ["one"]),
        (False, ["two", "one"]),
    ]
