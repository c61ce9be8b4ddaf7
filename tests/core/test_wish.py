"""What a client says of itself as it connects, rule by rule."""

from typing import Any, cast

import pytest
from socketio import msgpack_packet

from roomcast.core.options import Recovery
from roomcast.core.tail import read_place
from roomcast.core.wish import Wish, look_at, new_pid


def wish(auth: Any) -> tuple[Wish, Any]:
    found, own, error = look_at(Recovery(), {}, auth)
    assert error is None
    return found, own


@pytest.mark.parametrize("pid", [None, "", "mine", 4711, ["p"], {"p": 1}])
def test_rule_1_another_pid_is_the_applications_own_with_all_that_stands_beside_it(pid: object) -> None:
    auth = {"pid": pid, "offset": "50", "user": "ann"}
    assert wish(auth) == (Wish(offered=True), auth)


@pytest.mark.parametrize("auth", [None, "ann", 5, ["ann"], {}])
def test_rule_1_without_one_it_is_a_new_client(auth: object) -> None:
    assert wish(auth) == (Wish(offered=True), auth)


def test_rule_2_a_client_that_got_nothing_names_no_place() -> None:
    pid = new_pid()
    assert wish({"pid": pid})[0] == Wish(offered=True, pid=pid)
    undefined = cast("Any", msgpack_packet).msgpack.loads(b"\xd4\0\0")  # as the parser of its client says it
    assert wish({"pid": pid, "offset": undefined})[0] == Wish(offered=True, pid=pid)


@pytest.mark.parametrize("place", [None, 50, 0, -1, 1.5, True, [1], [0, 0], {"a": 1}, "", "50"])
def test_rule_2_what_cannot_be_a_place_is_not_taken_for_none(place: object) -> None:
    found, _ = wish({"pid": new_pid(), "offset": place})
    assert found.place is not None
    assert read_place(found.place) is None


def test_rule_3_the_application_gets_the_rest() -> None:
    assert wish({"pid": new_pid(), "offset": "e.1.0", "user": "ann"})[1] == {"user": "ann"}
    assert wish({"pid": new_pid(), "offset": "e.1.0"})[1] is None
