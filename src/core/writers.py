"""How bytes get past a server's websocket code, straight to its transport: one writer per kind of server.

1. `writer_of` knows a connection by the exact class of the object behind it, and by every attribute that its writer
   will read. Any other server, an application's subclass, a wrapped `send`, a version whose attributes differ: None,
   and the connection keeps to engine.io's own writer. Starlette's wrapper, which is around every mounted application
   (FastAPI's too) and hands on what a websocket sends, is looked through.
2. A writer is `ready` while the websocket is open on both sides and at most the transport's high-water mark is
   buffered. Whoever writes asks first: what is written to a closing transport is lost without a word.
3. A writer never looks into frames and never waits.

All of these servers write whole messages, one frame each, in one call, so that a frame written between two of their
calls cannot fall into the middle of another one.
"""

import asyncio
import inspect
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, cast

_TRANSPARENT = "starlette._exception_handler.wrap_app_handling_exceptions.<locals>.wrapped_app.<locals>.sender"
"""It takes note of the start of an HTTP response, and hands on everything."""

_OPEN = 1  # websockets.protocol.State.OPEN and websockets.legacy's
_HIGH_WATER = 64 * 1024  # asyncio's own, where a transport does not say


class Writer:
    """Writes frames to one connection.

    Attributes:
        compressed: the connection has negotiated compression.
        paced: the server's own `send` waits while the transport is over its high-water mark.
        write: writes frames; `Transport.write`.
    """

    __slots__ = ("_high", "_transport", "compressed", "paced", "write")

    def __init__(self, transport: Any, *, compressed: bool) -> None:
        self._transport = transport
        self.compressed = compressed
        self.paced = True
        self.write: Callable[[bytes], None] = transport.write
        limits = getattr(transport, "get_write_buffer_limits", None)
        self._high: int = limits()[1] if limits is not None else _HIGH_WATER

    def ready(self) -> bool:
        """Whether frames may be written now (rule 2)."""
        transport = self._transport
        return not (transport.is_closing() or transport.get_write_buffer_size() > self._high)

    def idle(self) -> bool:
        """Whether the kernel has taken everything written so far."""
        return cast("int", self._transport.get_write_buffer_size()) == 0

    def full(self) -> bool:
        """Whether the transport is open and over its high-water mark."""
        transport = self._transport
        return transport.get_write_buffer_size() > self._high and not transport.is_closing()

    def abort(self) -> None:
        """Drop the connection and what is buffered for it, at once."""
        self._transport.abort()


class _Uvicorn(Writer):
    """uvicorn over websockets' sans-I/O protocol, its default, and over wsproto."""

    __slots__ = ("_protocol",)

    def __init__(self, protocol: Any, *, compressed: bool) -> None:
        super().__init__(protocol.transport, compressed=compressed)
        self._protocol = protocol
        # older sans-I/O ones never hear that the transport is full, and write on
        pause: object = getattr(cast("object", type(protocol)), "pause_writing", None)
        self.paced = pause is not asyncio.Protocol.pause_writing

    def ready(self) -> bool:
        protocol, transport = self._protocol, self._transport
        return not (protocol.close_sent or transport.is_closing() or transport.get_write_buffer_size() > self._high)


class _UvicornLegacy(Writer):
    """uvicorn over websockets' first implementation, the default before the sans-I/O one."""

    __slots__ = ("_protocol",)

    def __init__(self, protocol: Any, *, compressed: bool) -> None:
        super().__init__(protocol.transport, compressed=compressed)
        self._protocol = protocol

    def ready(self) -> bool:
        transport = self._transport
        return not (
            self._protocol.state != _OPEN or transport.is_closing() or transport.get_write_buffer_size() > self._high
        )


class _Aiohttp(Writer):
    """aiohttp's own websocket responses."""

    __slots__ = ("_response", "_writer")

    def __init__(self, response: Any, writer: Any) -> None:
        super().__init__(writer.transport, compressed=bool(writer.compress))
        self._response = response
        self._writer = writer

    def ready(self) -> bool:
        transport = self._transport
        return not (
            self._writer._closing  # noqa: SLF001 - it has no other face
            or self._response.closed
            or transport.is_closing()
            or transport.get_write_buffer_size() > self._high
        )


def writer_of(ws: Any) -> Writer | None:
    """The writer of a connection that engine.io has accepted, given its driver's websocket; None (rule 1)."""
    send = getattr(ws, "asgi_send", None)
    connection = getattr(ws, "_sock", None) if send is None else _owner(send)
    make = _KINDS.get(f"{type(connection).__module__}.{type(connection).__qualname__}")
    if make is None:
        return None
    try:
        writer = make(connection)
        return writer if writer.ready() in (True, False) and writer.idle() in (True, False) else None
    except (AttributeError, TypeError, LookupError):
        return None


def _owner(send: Any) -> Any:
    """The object whose own `send` this is, nobody's wrapper but Starlette's."""
    while isinstance(send, FunctionType) and f"{send.__module__}.{send.__qualname__}" == _TRANSPARENT:
        send = inspect.getclosurevars(send).nonlocals.get("send")
    if not isinstance(send, MethodType):
        return None
    owner = send.__self__
    return (
        owner
        if send.__func__ in (getattr(type(owner), "send", None), getattr(type(owner), "asgi_send", None))
        else None
    )


def _sansio(protocol: Any) -> Writer:
    return _Uvicorn(protocol, compressed=bool(protocol.conn.extensions))


def _wsproto(protocol: Any) -> Writer:
    return _Uvicorn(protocol, compressed=bool(protocol.conn.connection._proto.extensions))  # noqa: SLF001 - likewise


def _legacy(protocol: Any) -> Writer:
    return _UvicornLegacy(protocol, compressed=bool(protocol.extensions))


def _aiohttp(response: Any) -> Writer:
    return _Aiohttp(response, response._writer)  # noqa: SLF001 - likewise


_KINDS: dict[str, Callable[[Any], Writer]] = {
    "uvicorn.protocols.websockets.websockets_sansio_impl.WebSocketsSansIOProtocol": _sansio,
    "uvicorn.protocols.websockets.wsproto_impl.WSProtocol": _wsproto,
    "uvicorn.protocols.websockets.websockets_impl.WebSocketProtocol": _legacy,
    "aiohttp.web_ws.WebSocketResponse": _aiohttp,
}
