"""roomcast: run a python-socketio application on many processes, joined by the broker of your choice.

adapter = roomcast.Adapter("redis://localhost:6379")     # or nats://, amqp://, embedded://, memory://
sio = socketio.AsyncServer(async_mode="asgi", client_manager=adapter)
app = socketio.ASGIApp(sio, on_startup=adapter.start, on_shutdown=adapter.aclose)
"""

from roomcast.core.adapter import Adapter
from roomcast.core.broadcast import Answer
from roomcast.core.broker import Gap
from roomcast.core.claims import Claimed
from roomcast.core.descriptions import Handshake
from roomcast.core.emitter import Emitter
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
from roomcast.core.events import NodeAnswer
from roomcast.core.health import Health
from roomcast.core.membership import NodeInfo
from roomcast.core.operator import Operator, RemoteSocket
from roomcast.core.options import Recovery
from roomcast.core.presence import PresenceWatch
from roomcast.core.sync_emitter import SyncEmitter, SyncOperator, SyncRemoteSocket
from roomcast.core.watching import Change

__all__ = [
    "AckTimeout",
    "Adapter",
    "Answer",
    "Backpressure",
    "BrokerClosed",
    "BrokerError",
    "BrokerUnavailable",
    "Change",
    "Claimed",
    "ConfigurationError",
    "Emitter",
    "EncodeError",
    "Gap",
    "Handshake",
    "Health",
    "NodeAnswer",
    "NodeInfo",
    "Operator",
    "PayloadTooLarge",
    "PresenceWatch",
    "PublishRejected",
    "PublishUnconfirmed",
    "Recovery",
    "RemoteSocket",
    "ReplayUnavailable",
    "RequestTimeout",
    "RoomcastError",
    "SyncEmitter",
    "SyncOperator",
    "SyncRemoteSocket",
    "WireError",
]
