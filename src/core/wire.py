"""What a broker carries: messages of one node in an envelope, and the seal around it.

A payload is `version (1 byte) | seal (1 byte: 0 none, 1 signed) | [mac, 32 bytes] | envelope`, the envelope in
msgpack, an array that newer versions only append to.

1. Size is checked before anything is decoded.
2. An unknown version, an unknown kind of message, and bytes that are no message are refused with a `WireError`
   whose `kind` says which; unknown trailing fields are ignored.
3. With secrets, every envelope is signed (keyed BLAKE2b-256 over the subject and the whole envelope) with the
   first secret and accepted under any; unsigned or wrongly signed ones are refused. A signed envelope sent more
   than `freshness` seconds from the receiver's clock is refused (a log may hold it for as long as it `keeps` things),
   and so is one that was not sent later than the last one of its origin: it has been played before. So has one that
   came too late for anybody: after another that was sent so much later that no clock makes both fresh. So nothing can
   be forged, moved to another subject, or replayed.
4. Decoding costs nothing that grows beyond the payload, and raises nothing but `WireError`.

Pure: time is an argument, in microseconds since 1970.
"""

import re
from collections.abc import Sequence
from hashlib import blake2b
from hmac import compare_digest
from typing import Annotated, Any

import msgspec

from roomcast.core.broker import Subject
from roomcast.core.errors import ConfigurationError, WireError
from roomcast.core.messages import DECODE_ERRORS, Count, Message, Number, decode_message

VERSION = 1
_PLAIN, _SIGNED = bytes((VERSION, 0)), bytes((VERSION, 1))
_MAC = 32  # bytes of a signature
_SECRET = 16  # bytes of the shortest secret that is worth the name
OVERHEAD = 2 + _MAC + 81
"""Bytes an envelope adds to its messages, at most."""


_NODE_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")  # it becomes part of a subject
_Origin = Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
_SOME = msgspec.Meta(min_length=1, max_length=65_536)
_ORIGINS = 16_384  # whose ids are known to be well formed


class Envelope(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Messages of one node on one subject, in order.

    Attributes:
        origin: id of the node that publishes.
        sent: microseconds since 1970 by its clock, strictly increasing per origin.
        epoch, first: the number of the first message (see `sequences`); the others follow on.
        messages: each one encoded, so that one of an unknown kind does not spoil its neighbours.
        place: of the first message in everything that the origin sends; 0 for what is not numbered.
    """

    origin: _Origin
    sent: Number
    epoch: Count
    first: Number
    messages: Annotated[list[msgspec.Raw], _SOME]
    place: Count = 0


class Opened(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An envelope that was read: the same fields, its messages decoded.

    Attributes:
        messages: each one, or, for one that cannot be read, the `WireError` that says why.
    """

    origin: _Origin
    sent: Number
    epoch: Count
    first: Number
    messages: Sequence[Message | WireError]
    place: Count = 0


class _Readable(Opened, frozen=True, gc=False):
    """An envelope of which every message can be read: as good as all of them."""

    messages: Annotated[list[Message], _SOME]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Readable)
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)


class Wire:
    """Seals and opens the payloads of one node.

    Args:
        secrets: the cluster's shared secrets; the first one signs, all of them verify; none: no signatures.
        max_payload: largest payload to decode, in bytes.
        freshness: how far a signed envelope's clock may be from this one's, in seconds.
        keeps: seconds for which the broker may hold a payload before this node reads it: a log's retention.

    Raises:
        ConfigurationError: a secret is shorter than 16 bytes or is not `str` or `bytes`.
    """

    def __init__(
        self, secrets: Sequence[str | bytes] = (), *, max_payload: int, freshness: float = 30.0, keeps: float = 0.0
    ) -> None:
        self._keys = tuple(_key(secret) for secret in secrets)
        self._max_payload = max_payload
        self._freshness = round(freshness * 1e6)
        self._oldest = round((freshness + keeps) * 1e6)
        self._last_sent: dict[str, int] = {}
        self._latest = 0  # of all that was fresh
        self._origins: set[str] = set()

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

    def open(self, subject: Subject, payload: bytes, now: int | None) -> Opened:
        """The envelope in a payload (rules 1 to 4), with its messages.

        Args:
            subject: where the payload arrived.
            payload: what arrived.
            now: microseconds since 1970; None for what a log gives back, which need not be fresh.

        Raises:
            WireError: the whole payload is refused.
        """
        if len(payload) > self._max_payload:
            raise WireError("too_large", f"A payload of {len(payload)} bytes is over {self._max_payload}.")
        body = self._body(subject, payload)
        try:
            opened: Opened = _decoder.decode(body)
        except DECODE_ERRORS:
            opened = _piecewise(body)
        if opened.origin not in self._origins:
            self._check_origin(opened.origin)
        if self._keys and now is not None:
            self._check_fresh(opened, now)
        elif self._keys:
            self._last_sent[opened.origin] = max(opened.sent, self._last_sent.get(opened.origin, 0))
        return opened

    def forget(self, now: int) -> None:
        """Drop what is remembered of origins whose envelopes are too old to be accepted anyway."""
        oldest = min(now, self._latest) - self._oldest - self._freshness
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

    def _check_origin(self, origin: str) -> None:
        if _NODE_ID.fullmatch(origin) is None:
            raise WireError("malformed", f"An envelope names its node {origin!r}, which is no token.")
        if len(self._origins) >= _ORIGINS:
            self._origins.clear()
        self._origins.add(origin)

    def _check_fresh(self, envelope: Opened, now: int) -> None:
        too_late = envelope.sent < self._latest - self._oldest - self._freshness
        if too_late or envelope.sent <= self._last_sent.get(envelope.origin, 0):
            raise WireError("replayed", "A signed payload arrived a second time.")
        if not -self._freshness <= now - envelope.sent <= self._oldest:
            raise WireError(
                "stale",
                f"A signed payload was sent {(now - envelope.sent) / 1e6:.1f} s ago: replayed, long delayed, "
                "or the clocks of the nodes differ.",
            )
        self._last_sent[envelope.origin] = envelope.sent
        self._latest = max(self._latest, envelope.sent)


def _piecewise(body: memoryview | bytes) -> Opened:
    """An envelope of which something cannot be read: all of it, or some of its messages (rule 2)."""
    try:
        envelope = _envelope_decoder.decode(body)
    except DECODE_ERRORS as exc:
        raise WireError("malformed", f"An envelope could not be read: {exc}.") from exc
    messages: list[Message | WireError] = []
    for raw in envelope.messages:
        try:
            messages.append(decode_message(raw))
        except WireError as exc:
            messages.append(exc)
    return Opened(envelope.origin, envelope.sent, envelope.epoch, envelope.first, messages, envelope.place)


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
