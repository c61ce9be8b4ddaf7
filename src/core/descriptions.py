"""What one node tells another about a client: who it is, where it came from, what the application stored with it.

1. `data` is the application's session, key by key. What cannot be serialised, or is too large to travel, is left out
   and named in `omitted`: it never fails on another node.
2. A description takes no more than a given number of bytes: what is left out then is first the largest data, then
   the handshake's headers, query and auth (as "handshake"), then everything else (and "session" and "rooms").

Pure: the environ and the session are arguments.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast
from urllib.parse import parse_qsl

import msgspec

from roomcast.core.subjects import Room

_encoder = msgspec.msgpack.Encoder()
_UNSERIALISABLE = (TypeError, ValueError, OverflowError, RecursionError)


class Handshake(msgspec.Struct, array_like=True, frozen=True):
    """How a client connected.

    Attributes:
        headers: of its first request, names in lower case with dashes.
        address: of the peer of the connection: the client, or the proxy nearest to the server.
        query: of its first request; of a name given twice, the last one.
        auth: what it sent as `auth`; None for nothing.
        time: when it was admitted to the namespace, seconds since 1970 by its node's clock.
        secure: whether that connection is encrypted.
    """

    headers: dict[str, str]
    address: str
    query: dict[str, str]
    auth: Any
    time: float
    secure: bool


class Description(msgspec.Struct, array_like=True, frozen=True):
    """A client as it travels; `roomcast.RemoteSocket` is its face."""

    sid: str
    rooms: tuple[Room, ...]
    data: dict[str, Any]
    omitted: tuple[str, ...]
    handshake: Handshake


def handshake(environ: Mapping[str, Any], auth: Any, time: float) -> Handshake:
    """The handshake in what a web server gave python-engineio."""
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): _text(value)
        for name, value in environ.items()
        if (name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH")) and isinstance(value, str)
    }
    address, secure = _peer(environ)
    query = dict(parse_qsl(_text(str(environ.get("QUERY_STRING", ""))), keep_blank_values=True))
    return Handshake(headers, _text(address), query, auth, time, secure)


def _text(text: str) -> str:
    """Text that travels: aiohttp hands on what is not UTF-8 as lone surrogates."""
    return text.encode(errors="replace").decode()


def _peer(environ: Mapping[str, Any]) -> tuple[str, bool]:
    """Address of the peer and whether its connection is encrypted; python-engineio itself says 127.0.0.1 of all."""
    if (scope := environ.get("asgi.scope")) is not None:
        client = scope.get("client") or ("",)
        return str(client[0]), scope.get("scheme") in ("https", "wss")
    if (request := environ.get("aiohttp.request")) is not None:
        return str(request.remote or ""), bool(request.secure)
    if (handler := environ.get("tornado.handler")) is not None:
        return str(handler.request.remote_ip), handler.request.protocol == "https"
    if (request := environ.get("sanic.request")) is not None:
        return str(request.ip), request.scheme in ("https", "wss")
    return str(environ.get("REMOTE_ADDR", "")), environ.get("wsgi.url_scheme") == "https"


def describe(sid: str, rooms: Sequence[Room], session: object, shaken: Handshake, limit: int) -> bytes:
    """A `Description` in msgpack, of at most `limit` bytes (rules 1 and 2)."""
    values, omitted = _values(session)
    try:
        _encoder.encode(shaken)
    except _UNSERIALISABLE:
        shaken = msgspec.structs.replace(shaken, auth=None)
        omitted.append("handshake.auth")
    raw = _encode(sid, rooms, values, omitted, shaken)
    by_size = sorted(values, key=lambda name: len(bytes(values[name])))
    while len(raw) > limit and by_size:
        excess = len(raw) - limit
        while excess > 0 and by_size:  # the name stays, among those omitted
            largest = by_size.pop()
            excess -= len(bytes(values.pop(largest)))
            omitted.append(largest)
        raw = _encode(sid, rooms, values, omitted, shaken)
    if len(raw) > limit:
        shaken = Handshake({}, shaken.address, {}, None, shaken.time, shaken.secure)
        omitted.append("handshake")
        raw = _encode(sid, rooms, values, omitted, shaken)
    if len(raw) > limit:
        raw = _encode(sid, (sid,), {}, ["session", "handshake", "rooms"], shaken)
    return raw


def stored(session: object, limit: int) -> tuple[msgspec.Raw, list[str]]:
    """What an application stored with a client, in msgpack by name, of about `limit` bytes, and what was left out."""
    values, omitted = _values(session)
    size = sum(len(name) + len(bytes(value)) for name, value in values.items())
    for name in sorted(values, key=lambda name: len(bytes(values[name])), reverse=True):
        if size <= limit:
            break
        size -= len(name) + len(bytes(values.pop(name)))
        omitted.append(name)
    return msgspec.Raw(_encoder.encode(values)), omitted


def travelled(session: object) -> dict[str, Any]:
    """What arrives elsewhere of what an application stored with a client, whatever its size (rule 1)."""
    values, _ = _values(session)
    return {name: msgspec.msgpack.decode(value) for name, value in values.items()}


def _values(session: object) -> tuple[dict[str, msgspec.Raw], list[str]]:
    values: dict[str, msgspec.Raw] = {}
    omitted: list[str] = []
    try:
        items = list(cast("Mapping[Any, Any]", session).items())
    except Exception:  # noqa: BLE001 - whatever an application keeps there, it does not fail on another node
        return {}, ["session"]
    for key, value in items:
        name = _name(key)
        if name in values or (isinstance(key, str) and key != name):
            omitted.append(name)  # of two that look alike the first one travels
            continue
        try:
            values[name] = msgspec.Raw(_encoder.encode(value))
        except Exception:  # noqa: BLE001 - likewise
            omitted.append(name)
    return values, omitted


def _name(key: object) -> str:
    """What a key is called: itself when it is text that travels, else as it looks."""
    try:
        if isinstance(key, str):
            key.encode()
            return key
        return ascii(key)
    except UnicodeEncodeError:
        return ascii(key)
    except Exception:  # noqa: BLE001 - what an application's object says of itself may fail
        return type(key).__name__


def _encode(
    sid: str, rooms: Sequence[Room], values: Mapping[str, msgspec.Raw], omitted: Sequence[str], shaken: Handshake
) -> bytes:
    return _encoder.encode((sid, tuple(rooms), values, tuple(omitted), shaken))
