"""The membership table, against a dictionary."""

from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from roomcast.core.rooms import Rooms, State
from roomcast.core.subjects import Room
from tests.core.effort import run

NAMESPACES = ("/", "/chat")
SIDS = ("a", "b", "c", "d")
ROOMS: tuple[Room, ...] = ("red", "blue", "", 1, "1", "a")

namespaces = st.sampled_from(NAMESPACES)
sids = st.sampled_from(SIDS)
rooms = st.sampled_from(ROOMS)


class RoomsMachine(RuleBasedStateMachine):
    """Clients come, go, enter and leave; every question has the answer that a dictionary of sets gives."""

    make: ClassVar[type[Rooms]] = Rooms

    def __init__(self) -> None:
        super().__init__()
        self.real = self.make()
        self.model: dict[tuple[str, str], set[Room]] = {}

    def inside(self, namespace: str, room: Room) -> set[str]:
        """Sids that are in a room because they entered it."""
        return {sid for (where, sid), entered in self.model.items() if where == namespace and room in entered}

    def reached(self, namespace: str, room: Room | None) -> set[str]:
        """Sids that an event to a room is for (rule 2: a sid's own room exists implicitly)."""
        here = {sid for where, sid in self.model if where == namespace}
        return here if room is None else self.inside(namespace, room) | (here & {str(room)} if room != 1 else set())

    @rule(namespace=namespaces, sid=sids)
    def add(self, namespace: str, sid: str) -> None:
        if (namespace, sid) not in self.model:
            client = self.real.add(namespace, sid, f"eio-{sid}")
            assert (client.sid, client.eio_sid, client.state) == (sid, f"eio-{sid}", State.CONNECTING)
            self.model[namespace, sid] = set()

    @rule(namespace=namespaces, sid=sids)
    def remove(self, namespace: str, sid: str) -> None:
        entered = self.model.pop((namespace, sid), None)
        removed = self.real.remove(namespace, sid)
        if entered is None:
            assert removed is None
        else:
            assert removed is not None
            assert removed[0].sid == sid
            emptied = [room for room in entered if not self.inside(namespace, room)]
            assert len(removed[1]) == len(emptied)
            assert set(removed[1]) == set(emptied)

    @rule(namespace=namespaces, sid=sids, room=rooms)
    def enter(self, namespace: str, sid: str, room: Room) -> None:
        client = self.real.client(namespace, sid)
        if client is not None:
            first = not self.inside(namespace, room)
            assert self.real.enter(namespace, client, room) is first
            self.model[namespace, sid].add(room)

    @rule(namespace=namespaces, sid=sids, room=rooms)
    def leave(self, namespace: str, sid: str, room: Room) -> None:
        client = self.real.client(namespace, sid)
        if client is not None:
            was = self.inside(namespace, room)
            self.model[namespace, sid].discard(room)
            assert self.real.leave(namespace, client, room) is (was == {sid})

    @rule(namespace=namespaces, addressed=st.lists(rooms, max_size=3), excluded=st.lists(rooms | sids, max_size=3))
    def select(self, namespace: str, addressed: list[Room], excluded: list[Room]) -> None:
        selected = [client.sid for client in self.real.select(namespace, addressed, excluded)]
        everyone: list[Room | None] = [*addressed] or [None]
        wanted = {sid for room in everyone for sid in self.reached(namespace, room)}
        assert len(selected) == len(set(selected)), "rule 4: each client once"
        assert set(selected) == wanted - {sid for room in excluded for sid in self.reached(namespace, room)}

    @invariant()
    def same(self) -> None:
        real, model = self.real, self.model
        assert len(real) == len(model)
        assert set(real.namespaces()) == {namespace for namespace, _ in model}
        for namespace in NAMESPACES:
            assert set(real.rooms(namespace)) == {room for room in ROOMS if self.inside(namespace, room)}
            for room in (None, *ROOMS):
                members = [client.sid for client in real.members(namespace, room)]
                assert sorted(members) == sorted(self.reached(namespace, room))
            for sid in SIDS:
                client = real.client(namespace, sid)
                assert client is real.by_eio_sid(namespace, f"eio-{sid}")
                assert (None if client is None else set(client.rooms)) == model.get((namespace, sid))


def test_membership_is_that_of_a_dictionary() -> None:
    run(RoomsMachine)


def test_rule_2_the_room_of_a_sid_is_looked_up_and_not_stored() -> None:
    """ "A sid's own room exists implicitly: it is looked up, not stored." """
    table = Rooms()
    client = table.add("/", "a", "e")
    assert list(table.members("/", "a")) == [client]
    assert list(table.rooms("/")) == []
    assert table.remove("/", "a") == (client, [])


def test_rule_3_the_first_one_in_and_the_last_one_out_are_told() -> None:
    """ "A room exists while it has a member; `enter` tells the first one in, `leave` and `remove` the last out." """
    table = Rooms()
    one, two = table.add("/", "a", "ea"), table.add("/", "b", "eb")
    assert table.enter("/", one, "red")
    assert not table.enter("/", two, "red")
    assert not table.enter("/", one, "red"), "twice is once"
    assert not table.leave("/", one, "red")
    assert not table.leave("/", one, "red")
    assert table.remove("/", "b") == (two, ["red"])
    assert list(table.rooms("/")) == []


@pytest.mark.parametrize("addressed", [["red", "blue"], ["red", "a"], ["red", "red"], ["red"], []])
def test_rule_4_each_addressed_client_once(addressed: list[Room]) -> None:
    """ "`select` gives each addressed client once, however many ways it matches." """
    table = Rooms()
    client = table.add("/", "a", "e")
    for room in ("red", "blue"):
        table.enter("/", client, room)
    assert list(table.select("/", addressed)) == [client]
    assert list(table.select("/", addressed, ["b"])) == [client]
    assert list(table.select("/", addressed, ["a"])) == []


@pytest.mark.parametrize(
    ("excluded", "left"),
    [
        (["red"], ["c", "d"]),
        (["red", "blue"], ["d"]),
        (["red", "d"], ["c"]),
        (["a"], ["b", "c", "d"]),
        (["c", "nobody"], ["a", "b", "d"]),
        ([1], ["a", "b", "c", "d"]),
        (["1"], ["a", "b", "c"]),
    ],
)
def test_who_is_in_an_excluded_room_or_named_by_sid_is_left_out(excluded: list[Room], left: list[str]) -> None:
    """ "Everyone in any of `rooms` (in the namespace when there are none) and in none of `excluded`." """
    table = Rooms()
    inside: dict[str, list[Room]] = {"a": ["red"], "b": ["red", "blue"], "c": ["blue"], "d": ["1"]}
    for sid, entered in inside.items():
        client = table.add("/", sid, f"e{sid}")
        for room in entered:
            table.enter("/", client, room)
    assert [client.sid for client in table.select("/", [], excluded)] == left
    addressed = [client.sid for client in table.select("/", ["blue", "1"], excluded)]
    assert sorted(addressed) == [sid for sid in left if sid != "a"]


def test_rule_4_in_the_order_in_which_they_entered() -> None:
    table = Rooms()
    sids = [f"sid{number}" for number in range(50)]
    for number, sid in enumerate(sids):
        table.enter("/", table.add("/", sid, f"e{sid}"), "red" if number < 30 else "blue")
    assert [client.sid for client in table.select("/", ["red", "blue"])] == sids
    assert [client.sid for client in table.select("/", ["blue", "red"])] == sids[30:] + sids[:30]


def test_the_integer_1_and_the_text_1_are_two_rooms() -> None:
    table = Rooms()
    client = table.add("/", "a", "e")
    table.enter("/", client, 1)
    assert list(table.members("/", "1")) == []
    assert list(table.members("/", 1)) == [client]


def test_who_is_not_here_is_in_nothing() -> None:
    table = Rooms()
    assert table.remove("/", "a") is None
    assert table.client("/", "a") is None
    assert table.by_eio_sid("/", "e") is None
    assert not table.members("/", None)
    assert not table.rooms("/")
    assert list(table.select("/nowhere", [])) == []


class _Counted(str):
    """A sid that counts how often a set or dictionary had to look at it."""

    __slots__ = ()
    looks: ClassVar[int] = 0

    def __hash__(self) -> int:
        _Counted.looks += 1
        return str.__hash__(self)

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)


def test_rule_1_the_cost_does_not_grow_with_the_number_of_clients() -> None:
    """ "Every operation costs O(rooms of the sid) or less, whatever the number of rooms and clients." """

    def cost(others: int) -> int:
        table = Rooms()
        for number in range(others):
            other = table.add("/", _Counted(f"other{number}"), f"e{number}")
            for room in ("red", f"room{number}"):
                table.enter("/", other, room)
        before = _Counted.looks
        client = table.add("/", _Counted("me"), "me")
        table.enter("/", client, "red")
        table.enter("/", client, "mine")
        table.leave("/", client, "red")
        table.remove("/", "me")
        return _Counted.looks - before

    assert cost(1000) == cost(10)
