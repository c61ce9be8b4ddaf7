"""A message of a stream queue in RabbitMQ.

Its subject is the `type`, the epoch the `app_id`, the milliseconds of its publishing the `correlation_id`, the offset a
header that RabbitMQ adds. A hello has no subject, and a token as `message_id`. So a message is known again by its
token, or by its milliseconds and its epoch: this is the `mark` of the place behind it.
"""

from typing import cast

from roomcast.brokers.log_broker import Entry
from roomcast.brokers.log_places import Place
from roomcast.core.broker import Subject
from roomcast.core.errors import BrokerUnavailable, ConfigurationError

try:
    from pamqp.header import ContentHeader
except ImportError as exc:
    raise ConfigurationError('amqp+streams:// needs the RabbitMQ client: pip install "roomcast[rabbitmq]"') from exc
NAME = "amqp+streams"
NOT_OPEN = "does not serve the log yet; when that lasts, see how-to/choose-a-broker"
"""What a server is said to do of which `not_open` holds."""


def queue_name(prefix: str, stream: int) -> str:
    """The name of a stream's queue."""
    return f"{prefix}.log.{stream}"


def exchange_name(prefix: str) -> str:
    """The name of the exchange that leads to them."""
    return f"{prefix}.log"


class NotYet(BrokerUnavailable):
    """The server is there, and does not serve the log yet: in the first second of its life, or of the log's."""


def not_open(text: str) -> bool:
    """Whether RabbitMQ says that it has the stream, and does not serve it: so it is for a moment after its start."""
    return "does not have a replica" in text or "is down or inaccessible" in text


def offset_of(header: ContentHeader) -> int:
    """Where it is in its stream."""
    return int(cast("int", (header.properties.headers or {}).get("x-stream-offset", -1)))


def mark_of(header: ContentHeader) -> str:
    """What tells a message from another one that might be at its place."""
    return header.properties.message_id or header.properties.correlation_id or ""


def holds(place: Place, header: ContentHeader) -> bool:
    """Whether this is the message before a place that has a mark."""
    same = offset_of(header) == place.offset and mark_of(header) == place.mark
    return same and (header.properties.app_id or place.epoch) == place.epoch


def is_hello(header: ContentHeader) -> bool:
    """Whether it is of a link that was opened, and for nobody to receive."""
    return bool(header.properties.message_id) and not header.properties.message_type


def time_of(header: ContentHeader) -> int:
    """The milliseconds at which it was published, 0 when it does not say."""
    text = header.properties.correlation_id or ""
    return int(text) if text.isascii() and text.isdigit() else 0


def entry_of(epoch: str, offset: int, header: ContentHeader, payload: bytes) -> Entry | None:
    """An entry of ours, or None."""
    properties = header.properties
    if not properties.message_type or not properties.app_id or not time_of(header):
        return None
    return Entry(Place(epoch, offset, mark_of(header)), Subject(properties.message_type), payload)
