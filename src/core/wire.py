"""What nodes say to one another, as bytes: the messages, the envelope around them, and the seal.

A payload is `version (1 byte) | seal (1 byte: 0 none, 1 signed) | [mac, 32 bytes] | envelope`, the envelope and
its messages in msgpack, each struct an array that newer versions only append to.

1. Size is checked before anything is decoded.
2. An unknown version, an unknown kind of message, and bytes that are no message are refused with a `WireError`
   whose `kind` says which; unknown trailing fields are ignored.
3. With secrets, every envelope is signed (keyed BLAKE2b-256 over the subject and the whole envelope) with the
   first secret and accepted under any; unsigned or wrongly signed ones are refused. A signed envelope sent more
   than `freshness` seconds from the receiver's clock is refused, and so is one that was not sent later than the
   last one of its origin: it has been played before. So nothing can be forged, moved to another subject, or
   replayed.
4. Decoding costs nothing that grows beyond the payload, and raises nothing but `WireError`.

Pure: time is an argument, in microseconds since 1970.
"""

from collections.abc import Sequence
from hashlib import blake2b
from hmac import compare_digest
from typing import Annotated, Any

import msgspec

from roomcast.core.broker import Subject
from roomcast.core.errors import ConfigurationError, EncodeError, WireError
from roomcast.core.subjects import Room

VERSION = 1
_PLAIN, _SIGNED = bytes((VERSION, 0)), bytes((VERSION, 1))
_MAC = 32  # bytes of a signature
_SECRET = 16  # bytes of the shortest secret that is worth the name
OVERHEAD = 2 + _MAC + 72
"""Bytes an envelope adds to its messages, at most."""

NodeId = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,32}\Z")]  # it becomes part of a subject
Name = Annotated[str, msgspec.Meta(max_length=100_000)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Number = Annotated[int, msgspec.Meta(ge=1, le=2**62)]


class Packet(msgspec.Struct, array_like=True, frozen=True):
    """A Socket.IO packet as its publisher encoded it; opaque to the core.

    Attributes:
        codec: which serializer made it: "json", "msgpack", or the name of an application's packet class.
        text: the packet, when it is text; else empty.
        blobs: the packet, when it is bytes, or its binary attachments.
    """

    codec: str
    text: str
    blobs: tuple[bytes, ...] = ()

    @property
    def parts(self) -> tuple[str | bytes, ...]:
        """What Engine.IO carries, in this order."""
        return (self.text, *self.blobs) if self.text else self.blobs


class Emit(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """Hand a packet to clients: those in any of `rooms` (all of the namespace when empty) and not in `skip`.

    With a `request`, their acknowledgements are wanted, under that number.
    """

    namespace: Name
    rooms: tuple[Room, ...]
    packet: Packet
    skip: tuple[str, ...] = ()
    request: Count = 0


class Expect(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """Answer to an `Emit` with a request: these clients were given the packet and may acknowledge it.

    Attributes:
        more: whether another `Expect` of this node follows.
    """

    request: Number
    sids: tuple[str, ...]
    more: bool = False


class Ack(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """A client acknowledged; `packet` is its ACK packet, or None when the client went away instead."""

    request: Number
    sid: str
    packet: Packet | None = None


class Enter(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """Put a client of the addressed node into a room; answered by a `Reply`."""

    request: Number
    namespace: Name
    sid: str
    room: Room


class Leave(msgspec.Struct, array_like=True, tag=5, frozen=True):
    """Take a client of the addressed node out of a room; answered by a `Reply`."""

    request: Number
    namespace: Name
    sid: str
    room: Room


class Disconnect(msgspec.Struct, array_like=True, tag=6, frozen=True):
    """Disconnect a client of the addressed node; answered by a `Reply`."""

    request: Number
    namespace: Name
    sid: str


class CloseRoom(msgspec.Struct, array_like=True, tag=7, frozen=True):
    """Take everyone out of a room."""

    namespace: Name
    room: Room


class Reply(msgspec.Struct, array_like=True, tag=8, frozen=True):
    """The answer of one node to one request. `error` is empty when it was done."""

    request: Number
    value: Count = 0
    error: str = ""


class Hello(msgspec.Struct, array_like=True, tag=9, frozen=True):
    """A node introduces itself.

    Attributes:
        name: for people: host and process.
        started: seconds since 1970.
        partitions: its broker's `guarantees.partitions`, 0 for none; nodes that differ cannot hear one another.
        heartbeat: seconds between its heartbeats.
        answer: whether the hearers shall introduce themselves in turn, to its inbox.
    """

    name: Annotated[str, msgspec.Meta(max_length=256)]
    started: float
    partitions: Count
    heartbeat: Annotated[float, msgspec.Meta(gt=0)]
    answer: bool


class Heartbeat(msgspec.Struct, array_like=True, tag=10, frozen=True):
    """A node is alive, with so many clients."""

    clients: Count


class Bye(msgspec.Struct, array_like=True, tag=11, frozen=True):
    """A node leaves for good."""


Message = Emit | Expect | Ack | Enter | Leave | Disconnect | CloseRoom | Reply | Hello | Heartbeat | Bye


class Envelope(msgspec.Struct, array_like=True, frozen=True):
    """Messages of one node on one subject, in order.

    Attributes:
        origin: id of the node that publishes.
        sent: microseconds since 1970 by its clock, strictly increasing per origin.
        epoch, first: the number of the first message (see `sequences`); the others follow on.
        messages: each one encoded, so that one of an unknown kind does not spoil its neighbours.
    """

    origin: NodeId
    sent: Number
    epoch: Count
    first: Number
    messages: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=65_536)]


_encoder = msgspec.msgpack.Encoder()
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)
_message_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)

_DECODE_ERRORS = (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError)


def encode_message(message: Message) -> bytes:
    """One message as bytes, ready for an envelope.

    Raises:
        EncodeError: it holds text that is not Unicode, or a number that no wire carries.
    """
    try:
        return _encoder.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise EncodeError(f"The message cannot be encoded: {exc}.") from exc


def decode_message(raw: bytes | msgspec.Raw) -> Message:
    """The inverse of `encode_message`.

    Raises:
        WireError: "unknown" for a kind of message that this version does not know, else "malformed".
    """
    try:
        return _message_decoder.decode(raw)
    except _DECODE_ERRORS as exc:
        kind = "unknown" if "Invalid value" in str(exc) and "$[0]" in str(exc) else "malformed"
        raise WireError(kind, f"A message could not be read: {exc}.") from exc


class Wire:
    """Seals and opens the payloads of one node.

    Args:
        secrets: the cluster's shared secrets; the first one signs, all of them verify; none: no signatures.
        max_payload: largest payload to decode, in bytes.
        freshness: how far a signed envelope's clock may be from this one's, in seconds.

    Raises:
        ConfigurationError: a secret is shorter than 16 bytes or is not `str` or `bytes`.
    """

    def __init__(self, secrets: Sequence[str | bytes] = (), *, max_payload: int, freshness: float = 30.0) -> None:
        self._keys = tuple(_key(secret) for secret in secrets)
        self._max_payload = max_payload
        self._freshness = round(freshness * 1e6)
        self._last_sent: dict[str, int] = {}

    @property
    def signed(self) -> bool:
        """Whether envelopes carry a signature."""
        return bool(self._keys)

    def seal(self, subject: Subject, envelope: Envelope) -> bytes:
        """The payload that carries an envelope on a subject."""
        body = _encoder.encode(envelope)
        if not self._keys:
            return _PLAIN + body
        return _SIGNED + _mac(self._keys[0], subject, body) + body

    def open(self, subject: Subject, payload: bytes, now: int) -> Envelope:
        """The envelope in a payload (rules 1 to 4), its messages not read yet.

        Args:
            subject: where the payload arrived.
            payload: what arrived.
            now: microseconds since 1970.

        Raises:
            WireError: the whole payload is refused.
        """
        if len(payload) > self._max_payload:
            raise WireError("too_large", f"A payload of {len(payload)} bytes is over {self._max_payload}.")
        body = self._body(subject, payload)
        try:
            envelope = _envelope_decoder.decode(body)
        except _DECODE_ERRORS as exc:
            raise WireError("malformed", f"An envelope could not be read: {exc}.") from exc
        if self._keys:
            self._check_fresh(envelope, now)
        return envelope

    def forget(self, now: int) -> None:
        """Drop what is remembered of origins whose envelopes are too old to be accepted anyway."""
        oldest = now - 2 * self._freshness
        for origin in [origin for origin, sent in self._last_sent.items() if sent < oldest]:
            del self._last_sent[origin]

    def _body(self, subject: Subject, payload: bytes) -> memoryview | bytes:
        head = payload[:2]
        if head == _PLAIN:
            if self._keys:
                raise WireError("signature", "An unsigned payload arrived, and this cluster signs.")
            return memoryview(payload)[2:]
        if head == _SIGNED:
            if not self._keys:
                raise WireError("signature", "A signed payload arrived, and this node has no secret.")
            body = payload[2 + _MAC :]
            mac = payload[2 : 2 + _MAC]
            if not any(compare_digest(mac, _mac(key, subject, body)) for key in self._keys):
                raise WireError("signature", "A payload's signature is wrong: another secret, or forged.")
            return body
        if len(head) == len(_PLAIN) and payload[0] != VERSION:
            raise WireError("version", f"A payload of version {payload[0]} arrived; this node speaks {VERSION}.")
        raise WireError("malformed", "A payload without a roomcast header arrived.")

    def _check_fresh(self, envelope: Envelope, now: int) -> None:
        if abs(now - envelope.sent) > self._freshness:
            raise WireError(
                "stale",
                f"A signed payload was sent {(now - envelope.sent) / 1e6:.1f} s ago: replayed, long delayed, "
                "or the clocks of the nodes differ.",
            )
        if envelope.sent <= self._last_sent.get(envelope.origin, 0):
            raise WireError("replayed", "A signed payload arrived a second time.")
        self._last_sent[envelope.origin] = envelope.sent


def _key(secret: Any) -> bytes:
    raw = secret.encode() if isinstance(secret, str) else secret
    if not isinstance(raw, bytes) or len(raw) < _SECRET:
        raise ConfigurationError(f"Each secret is text or bytes, {_SECRET} bytes or more of it.")
    return blake2b(raw, digest_size=32, person=b"roomcast wire 1").digest()


def _mac(key: bytes, subject: Subject, body: bytes) -> bytes:
    mac = blake2b(subject.encode("ascii"), digest_size=_MAC, key=key)
    mac.update(b"\0")
    mac.update(body)
    return mac.digest()
