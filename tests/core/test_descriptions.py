"""What one node tells another about a client: whole where it fits, named where it does not, and never a failure."""

import datetime as dt
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.core.descriptions import Description, Handshake, describe, handshake, stored
from roomcast.core.subjects import Room
from tests.core.effort import effort
from tests.core.test_messages import anything, rooms, texts

SID = "abc-_1" + "x" * 14
PLENTY = 1 << 20
SMALLEST = 4096 - 200
"""About what is left of the smallest max_payload for one description."""

SHAKEN = Handshake({"host": "example.org"}, "10.0.0.1", {"EIO": "4"}, {"token": "secret"}, 1.5, secure=True)
BARE = Handshake({}, SHAKEN.address, {}, None, SHAKEN.time, SHAKEN.secure)


def described(
    session: object, shaken: Handshake = SHAKEN, *, entered: tuple[Room, ...] = (), limit: int = PLENTY
) -> Description:
    """A description as the asking node reads it."""
    raw = describe(SID, (SID, *entered), session, shaken, limit)
    assert len(raw) <= limit
    return msgspec.msgpack.decode(raw, type=Description)


class Unknown:
    """What no serializer knows."""


def endless() -> list[Any]:
    inside: list[Any] = []
    inside.append(inside)
    return inside


# Rule 1: "`data` is the application's session, key by key."


@given(session=st.dictionaries(texts, anything, max_size=5), entered=st.lists(rooms, max_size=4, unique_by=repr))
@effort(200)
def test_rule_1_what_can_be_serialised_arrives_as_it_was_stored(session: dict[str, Any], entered: list[Room]) -> None:
    assert described(session, entered=tuple(entered)) == Description(SID, (SID, *entered), session, (), SHAKEN)


@pytest.mark.parametrize(
    "value",
    [Unknown(), print, 1j, 2**64, -(2**63) - 1, "\ud800", endless(), {"deep": [Unknown()]}, {1: {2: Unknown}}],
    ids=lambda value: type(value).__name__,
)
def test_rule_1_what_cannot_be_serialised_is_left_out_and_named(value: Any) -> None:
    """ "What cannot be serialised, or is too large to travel, is left out and named in `omitted`: it never fails on
    another node."
    """
    assert described({"name": "Ann", "bad": value, "n": 1}) == Description(
        SID, (SID,), {"name": "Ann", "n": 1}, ("bad",), SHAKEN
    )


def test_rule_1_by_value_tuples_are_lists_and_a_set_is_one_too() -> None:
    session = {"tuple": (1, (2,)), "set": {3}, "when": dt.datetime(2024, 1, 1, tzinfo=dt.UTC)}
    data = described(session).data
    assert (data["tuple"], data["set"]) == ([1, [2]], [3])
    assert data["when"] == session["when"]


@pytest.mark.parametrize(("key", "name"), [(1, "1"), (None, "None"), ((1, 2), "(1, 2)")])
def test_rule_1_a_key_that_is_not_text_is_named_as_it_looks(key: object, name: str) -> None:
    assert described({key: "value"}).data == {name: "value"}
    assert described({key: Unknown()}).omitted == (name,)


def test_rule_1_a_key_that_is_no_text_of_any_wire_is_named_in_ascii() -> None:
    one = described({"\ud800": 1, "good": 2})
    assert (one.data, one.omitted) == ({"good": 2}, ("'\\ud800'",))


class Nameless:
    """A key that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError


def test_rule_1_of_two_keys_that_look_alike_the_first_one_travels() -> None:
    one = described({1: "first", "1": "second"})
    assert (one.data, one.omitted) == ({"1": "first"}, ("1",))


def test_rule_1_a_key_that_cannot_be_shown_is_named_by_its_type() -> None:
    one = described({Nameless(): 1, "good": 2})
    assert one.data == {"Nameless": 1, "good": 2}


@pytest.mark.parametrize("session", [None, 7, "text", ["a"], Unknown()])
def test_rule_1_a_session_that_is_no_dictionary_is_named_as_such(session: object) -> None:
    """python-socketio stores whatever `save_session` is given."""
    one = described(session)
    assert (one.data, one.omitted) == ({}, ("session",))


@pytest.mark.parametrize("auth", [Unknown(), "\ud800", endless(), {"token": 2**70}])
def test_rule_1_auth_that_cannot_be_serialised_does_no_harm(auth: Any) -> None:
    one = described({"n": 1}, msgspec.structs.replace(SHAKEN, auth=auth))
    assert one.handshake == msgspec.structs.replace(SHAKEN, auth=None)
    assert (one.data, one.omitted) == ({"n": 1}, ("handshake.auth",))


# Rule 2: "A description takes no more than a given number of bytes"


@given(
    sizes=st.dictionaries(st.text("abcdef", min_size=1, max_size=12), st.integers(0, 3000), max_size=8),
    entered=st.lists(st.text("xyz", max_size=400), max_size=20, unique=True),
    header=st.integers(0, 3000),
    auth=st.integers(0, 3000),
    limit=st.integers(150, 6000),
)
@effort(300)
def test_rule_2_no_more_than_the_limit_and_no_less_than_fits(
    sizes: dict[str, int], entered: list[str], header: int, auth: int, limit: int
) -> None:
    """In this order: "first the largest data, then the handshake's headers, query and auth, then
    the rooms".
    """
    session = {name: "v" * size for name, size in sizes.items()}
    shaken = Handshake({"h": "h" * header}, "10.0.0.1", {"q": "1"}, "a" * auth, 1.5, secure=False)
    one = described(session, shaken, entered=tuple(entered), limit=limit)
    whole = describe(SID, (SID, *entered), session, shaken, PLENTY)
    assert one.sid == SID
    assert (one.handshake.address, one.handshake.time, one.handshake.secure) == ("10.0.0.1", 1.5, False)
    assert one.data.items() <= session.items()
    if len(whole) <= limit:
        assert one == msgspec.msgpack.decode(whole, type=Description)
        return
    if one.rooms != (SID, *entered):
        assert one.rooms == (SID,)
        assert "rooms" in one.omitted
        assert one.handshake.headers == {}, "the rooms come last"
    if one.handshake.headers == {}:
        assert one.data == {}, "the handshake comes after the data"
        assert (one.handshake.query, one.handshake.auth) == ({}, None)
        assert "handshake" in one.omitted
        return
    assert one.handshake == shaken
    assert set(one.omitted) == session.keys() - one.data.keys(), "named"
    assert one.omitted, "or it would have been whole"
    smallest = min(len(session[name]) for name in one.omitted)
    assert all(len(value) <= smallest for value in one.data.values()), "the largest go first"
    *omitted, last = one.omitted
    with_last = msgspec.structs.replace(one, data=one.data | {last: session[last]}, omitted=tuple(omitted))
    assert len(msgspec.msgpack.encode(with_last)) > limit - 8, "no more than need be, but for the length of lengths"


def test_rule_2_only_what_is_too_large_is_left_out() -> None:
    session = {"small": 1, "photo": b"x" * 5000, "name": "Ann", "page": "y" * 4000}
    one = described(session, limit=SMALLEST)
    assert (one.data, one.omitted) == ({"small": 1, "name": "Ann"}, ("photo", "page"))
    assert one.handshake == SHAKEN


def test_rule_2_then_the_handshake() -> None:
    shaken = msgspec.structs.replace(SHAKEN, headers={"cookie": "c" * SMALLEST})
    one = described({"n": 1}, shaken, entered=("red", 7), limit=SMALLEST)
    assert one.handshake == BARE
    assert one.rooms == (SID, "red", 7)
    assert one.omitted == ("n", "handshake")


def test_rule_2_then_the_rooms() -> None:
    entered = tuple(range(100_000, 110_000))
    one = described({"n": 1}, entered=entered, limit=SMALLEST)
    assert (one.rooms, one.handshake, one.omitted) == ((SID,), BARE, ("session", "handshake", "rooms"))


# The handshake, as each server gives it

ENVIRON: dict[str, Any] = {
    "QUERY_STRING": "EIO=4&transport=websocket&room=a%20b&room=c&flag=&x=%ff",
    "HTTP_HOST": "example.org",
    "HTTP_X_FORWARDED_FOR": "1.2.3.4",
    "CONTENT_TYPE": "text/plain",
    "CONTENT_LENGTH": "12",
    "REMOTE_ADDR": "127.0.0.1",
    "REMOTE_PORT": "0",
    "SERVER_NAME": "asgi",
    "wsgi.url_scheme": "http",
    "wsgi.input": object(),
    "wsgi.async": True,
}


@given(st.dictionaries(texts, anything, max_size=5), st.integers(0, 100))
@effort(50)
def test_what_is_kept_of_a_session_fits_and_the_largest_is_left_out(session: dict[str, Any], limit: int) -> None:
    raw, omitted = stored(session, limit)
    kept = msgspec.msgpack.decode(raw)
    sizes = {name: len(msgspec.msgpack.encode(value)) for name, value in session.items()}
    assert kept.keys() | set(omitted) == session.keys()
    assert sum(len(name) + sizes[name] for name in kept) <= limit
    if omitted:
        assert min(sizes[name] for name in omitted) >= max((sizes[name] for name in kept), default=0)
    assert stored(session | {"odd": object()}, 10**6) == (stored(session, 10**6)[0], ["odd"])


def test_headers_query_auth_and_time() -> None:
    shaken = handshake(ENVIRON, {"token": 1}, 12.5)
    assert shaken.headers == {
        "host": "example.org",
        "x-forwarded-for": "1.2.3.4",
        "content-type": "text/plain",
        "content-length": "12",
    }
    assert shaken.query == {"EIO": "4", "transport": "websocket", "room": "c", "flag": "", "x": "�"}
    assert (shaken.auth, shaken.time) == ({"token": 1}, 12.5)


def asgi(scheme: str, client: object = ("10.0.0.1", 5000)) -> dict[str, Any]:
    return {"asgi.scope": {"type": "http", "scheme": scheme, "client": client}}


def aiohttp(remote: str | None, *, secure: bool) -> dict[str, Any]:
    return {"aiohttp.request": SimpleNamespace(remote=remote, secure=secure)}


def tornado(protocol: str) -> dict[str, Any]:
    return {"tornado.handler": SimpleNamespace(request=SimpleNamespace(remote_ip="10.0.0.1", protocol=protocol))}


def sanic(scheme: str) -> dict[str, Any]:
    return {"sanic.request": SimpleNamespace(ip="10.0.0.1", scheme=scheme)}


@pytest.mark.parametrize(
    ("server", "address", "secure"),
    [
        (asgi("http"), "10.0.0.1", False),
        (asgi("ws"), "10.0.0.1", False),
        (asgi("https"), "10.0.0.1", True),
        (asgi("wss"), "10.0.0.1", True),
        (asgi("ws", None), "", False),
        (asgi("ws", ["::1", 5000]), "::1", False),
        ({"asgi.scope": {}}, "", False),
        (aiohttp("10.0.0.1", secure=False), "10.0.0.1", False),
        (aiohttp("10.0.0.1", secure=True), "10.0.0.1", True),
        (aiohttp(None, secure=False), "", False),
        (tornado("http"), "10.0.0.1", False),
        (tornado("https"), "10.0.0.1", True),
        (sanic("http"), "10.0.0.1", False),
        (sanic("wss"), "10.0.0.1", True),
        (sanic("https"), "10.0.0.1", True),
        ({}, "127.0.0.1", False),
        ({"wsgi.url_scheme": "https"}, "127.0.0.1", True),
    ],
)
def test_the_address_is_the_peers_and_not_what_python_engineio_says(
    server: dict[str, Any], address: str, secure: bool
) -> None:
    shaken = handshake(ENVIRON | server, None, 1.0)
    assert (shaken.address, shaken.secure) == (address, secure)


def test_a_client_whose_connection_is_gone_has_an_empty_environ() -> None:
    assert handshake({}, None, 1.0) == Handshake({}, "", {}, None, 1.0, secure=False)


@pytest.mark.parametrize(
    "environ",
    [
        {"HTTP_USER_AGENT": "robot \udcff"},
        {"QUERY_STRING": "name=\udcff"},
        asgi("ws", ("\udcff", 1)),
    ],
    ids=["header", "query", "address"],
)
def test_what_a_client_sends_as_no_text_does_no_harm(environ: Mapping[str, Any]) -> None:
    """aiohttp hands on what is not UTF-8 as lone surrogates, which no wire carries."""
    shaken = handshake(ENVIRON | dict(environ), None, 1.0)
    assert described({"n": 1}, shaken).handshake == shaken


def test_a_session_of_very_many_keys_is_not_encoded_once_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would block the loop of its node for minutes."""
    encoded: list[bytes] = []

    def counted(*parts: Any) -> bytes:
        encoded.append(msgspec.msgpack.encode(parts))
        return encoded[-1]

    monkeypatch.setattr("roomcast.core.descriptions._encode", counted)
    one = described({f"key {number}": number for number in range(1000)}, limit=SMALLEST)
    assert one.data == {}, "the names alone are too many"
    assert len(encoded) < 10
