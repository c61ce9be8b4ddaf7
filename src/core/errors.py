"""Every exception roomcast raises, by state and by certainty.

RoomcastError
├─ ConfigurationError            a setting cannot work: URL, option, missing extra, nodes that disagree
├─ BrokerError                   something is wrong between this node and its broker
│  ├─ BrokerUnavailable          not connected now; retryable
│  ├─ BrokerClosed               used after aclose()
│  ├─ PublishRejected            definitely not delivered to anyone
│  │  ├─ PayloadTooLarge         checked before the wire
│  │  └─ Backpressure            the outbox is full
│  └─ PublishUnconfirmed         may or may not have been delivered
├─ EncodeError                   the data cannot be serialised; no client saw the event
├─ RequestTimeout                some nodes did not answer in time; carries what did arrive
│  └─ AckTimeout                 some clients did not acknowledge in time
├─ ReplayUnavailable             the log no longer holds what was asked for
└─ WireError                     a malformed or foreign payload arrived; counted, never raised to a user

Messages say what to do next. Credentials never stand in them.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal


class RoomcastError(Exception):
    """The root of every exception this library raises on its own account."""


class ConfigurationError(RoomcastError, ValueError):
    """A setting cannot work, and no retry will mend it."""


class BrokerError(RoomcastError):
    """Something is wrong between this node and its broker.

    Attributes:
        broker: the broker's name, as its URL scheme spells it ("redis", "nats", "amqp", ...).
    """

    def __init__(self, message: str, *, broker: str) -> None:
        super().__init__(message)
        self.broker = broker


class BrokerUnavailable(BrokerError):
    """The broker is not connected now; the same call may succeed later."""


class BrokerClosed(BrokerError):
    """The broker, or the adapter that owns it, was used after `aclose()`."""


class PublishRejected(BrokerError):
    """The message was definitely not delivered to any other node."""


class PayloadTooLarge(PublishRejected):
    """The message is larger than the broker carries.

    Attributes:
        size: bytes the message would take on the wire.
        limit: bytes the broker accepts.
    """

    def __init__(self, *, size: int, limit: int, broker: str) -> None:
        super().__init__(
            f"The message takes {size} bytes and {broker} carries at most {limit}: "
            "send less at once, or raise the limit on the broker and in max_payload.",
            broker=broker,
        )
        self.size = size
        self.limit = limit


class Backpressure(PublishRejected):
    """The outbox stayed full until the deadline: this node emits faster than its broker accepts."""


class PublishUnconfirmed(BrokerError):
    """The connection was lost, or the deadline passed, before the broker said whether it has the message."""


class EncodeError(RoomcastError, TypeError):
    """The data cannot be serialised. Raised at the caller, before any client saw the event."""


class RequestTimeout(RoomcastError, TimeoutError):
    """Some nodes did not answer in time, or went away first; what did arrive is kept.

    Attributes:
        replies: the answers that arrived, by node id.
        missing: ids of the nodes that did not answer.
    """

    def __init__(self, message: str, *, replies: Mapping[str, Any], missing: AbstractSet[str]) -> None:
        super().__init__(message)
        self.replies = dict(replies)
        self.missing = frozenset(missing)


class AckTimeout(RequestTimeout):
    """Some clients did not acknowledge in time.

    Attributes:
        responses: the acknowledgements that arrived, in the order of arrival.
        missing: sids (and ids of nodes that never said whom they reached) still waited for.
    """

    def __init__(self, message: str, *, responses: Sequence[Any], missing: AbstractSet[str]) -> None:
        super().__init__(message, replies={}, missing=missing)
        self.responses = list(responses)


class ReplayUnavailable(RoomcastError):
    """The log cannot give back everything since the position asked for.

    Attributes:
        reason: "trimmed" (retention took it) or "epoch_changed" (another log than before).
    """

    def __init__(self, message: str, *, reason: Literal["trimmed", "epoch_changed"]) -> None:
        super().__init__(message)
        self.reason = reason


class WireError(RoomcastError):
    """A payload that is not a well-formed message of this cluster.

    Attributes:
        kind: one word for the counter and the log, such as "version", "malformed", "signature", "stale".
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
