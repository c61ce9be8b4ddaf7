"""Socket.IO packets: encoded once by the publisher, checked and handed on by everyone else.

1. A packet is encoded before any client sees the event; what cannot be serialised is an `EncodeError`.
2. What leaves here, or is let in, is a well-formed packet of its namespace: valid JSON (no NaN, which breaks a
   browser's parser) or msgpack, a name first that is not one of Socket.IO's own, placeholders that fit the attachments.
   Half of a surrogate pair may stand in JSON, escaped: a browser sends one where a text was cut in an emoji.
3. A packet whose serializer is this server's own is passed on as the same bytes. One made by the other standard
   serializer is decoded and encoded again; one made by a packet class that this server does not use is refused.

Socket.IO protocol v5: `<type>[<attachments>-][<namespace>,][<id>][<JSON payload>]`.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from json import encoder as json_encoder
from typing import Any, Protocol, cast

import engineio.json
import msgspec
from socketio import packet as sio_packet

from roomcast.core.errors import EncodeError, WireError
from roomcast.core.messages import Packet

Parts = tuple[str | bytes, ...]

_json_array = msgspec.json.Decoder(list[msgspec.Raw])
_json_string = msgspec.json.Decoder(str)
_json_any = msgspec.json.Decoder(list[Any])
_escapes = re.compile(
    r"\\\\"  # a backslash, so that what follows it is text
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair
    r"|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)

_RESERVED = frozenset({"connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"})
_BAD_DATA = (TypeError, ValueError, OverflowError, RecursionError, AttributeError, KeyError, IndexError)

_SHORT = 1024  # characters of a JSON text that is short enough not to be nested too deep for a receiver


class SocketioPacket(Protocol):
    """What roomcast uses of `socketio.packet.Packet` and of the classes that take its place."""

    packet_type: int
    data: Any
    attachment_count: int

    def encode(self) -> str | bytes | list[str | bytes]:
        """The packet as Engine.IO carries it."""
        ...

    def add_attachment(self, attachment: bytes) -> bool:
        """Take in the next attachment; True when it was the last one."""
        ...


class Packets:
    """Encodes, checks and translates the packets of one server.

    Args:
        packet_class: the server's `packet_class`: socketio's `Packet`, `MsgPackPacket`, or an application's own.
    """

    def __init__(self, packet_class: type[Any] = sio_packet.Packet) -> None:
        self._class = packet_class
        self.codec = _codec(packet_class)
        # the standard encoders refuse bytes, so a packet they encode has no attachment
        standard = self.codec == "json" and packet_class.json in (json, engineio.json)
        self._dumps = _standard_json() if standard else None

    def event(self, event: object, args: Sequence[Any], namespace: str) -> Packet:
        """An EVENT packet, or BINARY_EVENT when there are bytes at any depth.

        Raises:
            EncodeError: rules 1 and 2.
            TypeError: the event's name is not text.
        """
        if not isinstance(event, str):
            raise TypeError(f"An event is named by text, not by {type(event).__name__} {event!r:.80}.")
        data = [event, *args]
        if self._dumps is not None and event not in _RESERVED:
            try:
                text = self._dumps(data)
            except ValueError as exc:
                raise _not_serialisable(event, exc) from exc
            except _BAD_DATA:
                pass  # bytes somewhere, or not serialisable at all: the long way finds out which
            else:
                packet = Packet("json", f"2{text}" if namespace == "/" else f"2{namespace},{text}")
                # What the encoder makes is JSON; only deep nesting is more than a client reads.
                return packet if len(text) <= _SHORT else self._checked(event, packet, namespace)
        try:
            parts = self._encode(sio_packet.EVENT, _plain(data), namespace)
            return self._checked(event, _packet(self.codec, parts), namespace)
        except EncodeError:
            raise
        except _BAD_DATA as exc:
            raise _not_serialisable(event, exc) from exc

    def ack(self, data: Sequence[Any], namespace: str, number: int) -> Packet:
        """An ACK packet with a client's answer, to travel to the node that asked.

        Raises:
            EncodeError: the answer cannot be serialised again.
        """
        try:
            return _packet(self.codec, self._encode(sio_packet.ACK, list(data), namespace, number))
        except _BAD_DATA as exc:
            raise EncodeError(f"A client's acknowledgement cannot be serialised again: {exc}.") from exc

    def ack_data(self, packet: Packet) -> list[Any]:
        """The arguments in an ACK packet.

        Raises:
            WireError: it is not a well-formed ACK packet.
        """
        decoded = self._decode(packet)
        data: object = decoded.data
        if decoded.packet_type not in (sio_packet.ACK, sio_packet.BINARY_ACK) or not isinstance(data, list):
            raise WireError("packet", "An acknowledgement arrived that is no ACK packet.")
        return cast("list[Any]", data)

    def accept(self, packet: Packet, namespace: str) -> Parts:
        """The parts to hand to clients of this server, checked (rules 2 and 3).

        Raises:
            WireError: "packet" for one that is broken, "codec" for one of a foreign packet class.
        """
        if packet.codec == self.codec:
            check(packet, namespace)
            if packet.codec not in ("json", "msgpack"):
                self._decode(packet)
            return packet.parts if packet.blobs else (packet.text,)
        if packet.codec not in ("json", "msgpack"):
            raise WireError("codec", f"A packet made by {packet.codec!r:.80} arrived; this server uses {self.codec}.")
        check(packet, namespace)
        data = self._decode(packet).data
        try:
            parts = self._encode(sio_packet.EVENT, data, namespace)
            check(_packet(self.codec, parts), namespace)
        except _BAD_DATA as exc:
            raise WireError("packet", f"A packet cannot be translated to {self.codec}: {exc}.") from exc
        return parts

    def with_id(self, parts: Parts, namespace: str, number: int) -> Parts:
        """The same packet, asking for an acknowledgement under a number."""
        head = parts[0]
        if self.codec == "json" and isinstance(head, str):
            at = _payload_start(head, namespace)
            return (f"{head[:at]}{number}{head[at:]}", *parts[1:])
        decoded = self._decode(_packet(self.codec, parts))
        return self._encode(sio_packet.EVENT, decoded.data, namespace, number)

    def with_place(self, parts: Parts, namespace: str, place: str) -> Parts:
        """The same packet with a place of the log as one more argument, its last."""
        head = parts[0]
        if self.codec == "json" and isinstance(head, str):
            return (f'{head.rstrip()[:-1]},"{place}"]', *parts[1:])
        decoded = self._decode(_packet(self.codec, parts))
        return self._encode(sio_packet.EVENT, [*decoded.data, place], namespace)

    @staticmethod
    def _checked(event: str, packet: Packet, namespace: str) -> Packet:
        try:
            check(packet, namespace)
        except WireError as exc:
            raise EncodeError(f"Event {event!r:.80} does not make a packet that clients can read: {exc}") from exc
        return packet

    def _encode(self, kind: int, data: Any, namespace: str, number: int | None = None) -> Parts:
        packet = cast("SocketioPacket", self._class(kind, data=data, namespace=namespace, id=number))
        encoded = packet.encode()
        if not isinstance(encoded, list):
            return (encoded,)
        return tuple(encoded)

    def _decode(self, packet: Packet) -> SocketioPacket:
        try:
            packet_class = self._class
            if packet.codec != self.codec:
                packet_class = sio_packet.Packet if packet.codec == "json" else _msgpack_class()
            head, *attachments = packet.parts
            decoded: Any = packet_class(encoded_packet=head)
            for part in attachments:
                decoded.add_attachment(part)
            if decoded.attachment_count != len(attachments):
                raise ValueError("attachments are missing")
        except (*_BAD_DATA, ImportError) as exc:
            raise WireError("packet", f"A packet could not be decoded: {exc}.") from exc
        return cast("SocketioPacket", decoded)


def _not_serialisable(event: str, exc: Exception) -> EncodeError:
    return EncodeError(
        f"The data of event {event!r:.80} cannot be serialised: {exc}. Convert it to text, numbers (JSON has neither "
        "NaN nor infinity), bytes, lists and dictionaries first."
    )


def check(packet: Packet, namespace: str) -> None:
    """Refuse an event packet that would reach a client as a broken frame (rule 2).

    Raises:
        WireError: "packet".
    """
    try:
        if packet.codec == "json":
            _check_json(packet, namespace)
        elif packet.codec == "msgpack":
            _check_msgpack(packet.parts, namespace)
    except (msgspec.DecodeError, ImportError, *_BAD_DATA) as exc:
        raise WireError("packet", f"A packet is broken: {exc}.") from exc


def _check_json(packet: Packet, namespace: str) -> None:
    head = packet.text
    at = _payload_start(head, namespace)
    if head[at : at + 1] != "[":  # a browser takes a blank here for an acknowledgement's id
        raise ValueError("its payload is not a list")
    payload = head[at:]
    try:
        items = _json_array.decode(payload)
    except msgspec.DecodeError:
        payload = _escapes.sub(lambda escape: "\\ufffd" if escape["half"] else escape[0], payload)  # rule 2
        items = _json_array.decode(payload)
    _check_name(_json_string.decode(items[0]) if items else None)
    if not packet.blobs and head[0] == "2":
        return
    attachments = len(packet.blobs)
    binary = head[0] == "5"
    if binary != bool(attachments):
        raise ValueError("its attachments are not those it announces")
    if binary:
        if head[1 : head.index("-")] != str(attachments):
            raise ValueError("it announces another number of attachments")
        if sorted(_placeholders(_json_any.decode(payload))) != list(range(attachments)):
            raise ValueError("its placeholders do not fit its attachments")


def _check_msgpack(parts: Parts, namespace: str) -> None:
    """Read it as clients of python-socketio will: that is stricter than msgpack itself, about keys of maps."""
    head = parts[0] if len(parts) == 1 else ""
    if isinstance(head, str):
        raise ValueError("a msgpack packet is one piece of bytes")
    event = _msgpack_class()(encoded_packet=head)
    if event.packet_type != sio_packet.EVENT or event.namespace != namespace or event.id is not None:
        raise ValueError("it is not an event of its namespace")
    data: object = event.data
    if not isinstance(data, list) or not data:
        raise ValueError("its event has no name")
    _check_name(cast("list[Any]", data)[0])


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise ValueError("its event has no name")
    if name in _RESERVED:
        raise ValueError(f"the name {name!r} is reserved, and a browser's parser refuses it")


def _payload_start(head: str, namespace: str) -> int:
    """Where the id and the JSON payload begin in the text of an event packet of a namespace."""
    if head[:1] == "2":
        at = 1
    elif head[:1] == "5":
        at = head.index("-") + 1
    else:
        raise ValueError("it is not an event")
    if namespace == "/":
        return at
    end = at + len(namespace)
    if head[at:end] != namespace or head[end : end + 1] != ",":
        raise ValueError("it belongs to another namespace")
    return end + 1


def _placeholders(data: Any) -> list[int]:
    found: list[int] = []
    stack: list[Any] = [data]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(cast("list[Any]", item))
        elif isinstance(item, dict):
            fields = cast("dict[str, Any]", item)
            if fields.get("_placeholder") is True:
                number = fields.get("num")
                if type(number) is not int:
                    raise ValueError("a placeholder has no number")
                found.append(number)
            else:
                stack.extend(fields.values())
    return found


def _packet(codec: str, parts: Parts) -> Packet:
    head, *rest = parts
    if isinstance(head, str):
        return Packet(codec, head, tuple(_bytes(part) for part in rest))
    return Packet(codec, "", tuple(_bytes(part) for part in parts))


def _bytes(part: str | bytes) -> bytes:
    if isinstance(part, str):
        raise TypeError("the packet class made more than one piece of text")
    return bytes(part)


def _standard_json() -> Callable[[object], str]:
    """`json.dumps(data, separators=(",", ":"), allow_nan=False)` with one encoder for all calls."""
    encoder = json.JSONEncoder(check_circular=False, separators=(",", ":"), allow_nan=False)
    in_c: Callable[..., Callable[[object, int], Iterable[str]]] | None = getattr(json_encoder, "c_make_encoder", None)
    if in_c is None:
        return encoder.encode
    text = json_encoder.encode_basestring_ascii
    pieces = in_c(None, encoder.default, text, None, ":", ",", False, False, False)
    return lambda data: "".join(pieces(data, 0))


def _plain(data: Any) -> Any:
    """The same data in the types that socketio's packet classes look into: tuples as lists, views as bytes."""
    if isinstance(data, (list, tuple)):
        return [_plain(item) for item in cast("Sequence[Any]", data)]
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in cast("dict[Any, Any]", data).items()}
    if isinstance(data, (bytearray, memoryview)):
        return bytes(cast("bytearray", data))
    return data


def _codec(packet_class: type[Any]) -> str:
    if packet_class.encode is sio_packet.Packet.encode:
        return "json"
    if packet_class.encode.__module__ == "socketio.msgpack_packet":
        return "msgpack"
    return f"{packet_class.__module__}.{packet_class.__qualname__}"


def _msgpack_class() -> type[Any]:
    from socketio.msgpack_packet import MsgPackPacket  # noqa: PLC0415 - needs msgpack, which is optional

    return cast("type[Any]", MsgPackPacket)
