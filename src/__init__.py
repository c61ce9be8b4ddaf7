"""roomcast: run a python-socketio application on many processes, joined by the broker of your choice.

adapter = roomcast.Adapter("redis://localhost:6379")     # or nats://, amqp://, embedded://, memory://
sio = socketio.AsyncServer(async_mode="asgi", client_manager=adapter)
app = socketio.ASGIApp(sio, on_startup=adapter.start, on_shutdown=adapter.aclose)
"""

from roomcast.core.adapter import Adapter
from roomcast.core.broker import Gap
from roomcast.core.errors import (
    AckTimeout,
    Backpressure,
    BrokerClosed,
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    EncodeError,
    PayloadTooLarge,
    PublishRejected,
    PublishUnconfirmed,
    ReplayUnavailable,
    RequestTimeout,
    RoomcastError,
    WireError,
)
from roomcast.core.health import Health

__all__ = [
    "AckTimeout",
    "Adapter",
    "Backpressure",
    "BrokerClosed",
    "BrokerError",
    "BrokerUnavailable",
    "ConfigurationError",
    "EncodeError",
    "Gap",
    "Health",
    "PayloadTooLarge",
    "PublishRejected",
    "PublishUnconfirmed",
    "ReplayUnavailable",
    "RequestTimeout",
    "RoomcastError",
    "WireError",
]
