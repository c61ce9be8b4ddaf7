"""`manager.rooms` as python-socketio's instrumentation reads it."""

import pytest

from roomcast.core.rooms import Rooms
from roomcast.core.views import RoomsView


@pytest.fixture
def rooms() -> Rooms:
    table = Rooms()
    one, two = table.add("/", "a", "eio-a"), table.add("/", "b", "eio-b")
    for client in (one, two):
        table.enter("/", client, "red")
    table.enter("/", two, 7)
    table.add("/chat", "c", "eio-a")
    return table


def test_it_reads_like_python_socketios_own(rooms: Rooms) -> None:
    """ "namespace to room to {sid: eio_sid}" """
    view = RoomsView(rooms)
    assert {namespace: {room: dict(sids) for room, sids in there.items()} for namespace, there in view.items()} == {
        "/": {
            None: {"a": "eio-a", "b": "eio-b"},
            "a": {"a": "eio-a"},
            "b": {"b": "eio-b"},
            "red": {"a": "eio-a", "b": "eio-b"},
            7: {"b": "eio-b"},
        },
        "/chat": {None: {"c": "eio-a"}, "c": {"c": "eio-a"}},
    }
    assert (len(view), len(view["/"]), len(view["/chat"])) == (2, 5, 2)
    assert "/" in view
    assert "red" in view["/"]


def test_what_is_not_there_is_a_key_error(rooms: Rooms) -> None:
    view = RoomsView(rooms)
    with pytest.raises(KeyError):
        view["/elsewhere"]
    with pytest.raises(KeyError):
        view["/"]["blue"]
    assert "/elsewhere" not in view
    assert view["/"].get("blue") is None


def test_it_is_made_at_each_look(rooms: Rooms) -> None:
    """ "Read-only, made at each look from the membership table" """
    view = RoomsView(rooms)
    for _ in view:
        rooms.add("/new", "d", "eio-d")
    for _ in view["/"]:
        rooms.remove("/", "b")
    assert "/new" in view
    assert set(view["/"]) == {None, "a", "red"}
    assert not hasattr(view, "__setitem__")


def test_a_room_that_bears_the_name_of_a_sid_is_listed_once(rooms: Rooms) -> None:
    client = rooms.client("/", "b")
    assert client is not None
    rooms.enter("/", client, "a")
    there = RoomsView(rooms)["/"]
    assert len(there) == len(list(there)) == len(set(there))
    assert set(there["a"]) == {"a", "b"}
