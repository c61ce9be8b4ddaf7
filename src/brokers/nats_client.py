"""What is used of nats-py, and how: the one module of the broker that imports it."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol, cast
from urllib.parse import ParseResult

from roomcast.core.errors import ConfigurationError

try:
    from nats import errors as nats_errors
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.protocol.parser import AWAITING_CONTROL_LINE
except ImportError as exc:
    raise ConfigurationError('nats:// needs the NATS client: pip install "roomcast[nats]"') from exc

__all__ = ["Inflow", "Msg", "NatsClient", "Subscription", "make_client", "nats_errors"]


class _Client(Client):
    """nats-py's client, with two holes closed."""

    secure = False

    @property
    def info(self) -> Mapping[str, object]:
        """What the server says of itself."""
        return self._server_info

    def _connect_command(self) -> bytes:
        # The library turns to TLS only if the server offers it: a tls:// URL must not end in plain text.
        if self.secure and not self._server_info.get("tls_required"):
            raise nats_errors.SecureConnWantedError
        return super()._connect_command()

    @property
    def _way(self) -> Any:
        """The library's own name for the transport, of a class that is not typed."""
        return self._transport

    @property
    def transport(self) -> asyncio.Transport:
        """The connection."""
        return cast("asyncio.Transport", self._way._io_writer.transport)  # noqa: SLF001

    @property
    def all_read(self) -> bool:
        """Whether the library has parsed all that its stream was given."""
        parser = self._ps
        between = parser.state == AWAITING_CONTROL_LINE and not parser.buf
        return between and not self._way._io_reader._buffer and not self._way.at_eof()  # noqa: SLF001

    @property
    def closing(self) -> bool:
        """Whether the connection takes nothing any more, known or not to those who read from it."""
        return self.transport.is_closing()

    @property
    def unwritten(self) -> int:
        """Bytes that the socket has not taken yet."""
        return self.transport.get_write_buffer_size()

    def send(self, commands: bytes) -> None:
        """Write commands of the protocol at once, behind what the library holds back for its own writer."""
        self._pending.append(commands)
        self._way.writelines(self._pending)
        self._pending = []
        self._pending_data_size = 0

    async def drain_to(self, size: int) -> None:
        """Return once the socket has no more than so many bytes to take, or far less."""
        # Looks at what waits, too: `writelines` of CPython 3.12 and 3.13's first releases makes nobody wait for it, and
        # a TLS transport, which counts only what waits for the one below it, makes nobody wait before 512 KB.
        self.transport.set_write_buffer_limits(high=size)
        await self._way.drain()

    async def _process_headers(self, headers: bytes) -> None:
        # Nobody here reads headers, and a malformed one, which any publisher can send, ends the read loop.
        pass


class NatsClient(Protocol):
    """What is used of the client, with the types that its own annotations leave open."""

    secure: bool

    @property
    def info(self) -> Mapping[str, object]:
        """What the server said of itself when the connection was made."""
        ...

    @property
    def discovered_servers(self) -> list[ParseResult]:
        """The servers that this one has named, so far."""
        ...

    @property
    def max_payload(self) -> int:
        """In bytes, of the server."""
        ...

    @property
    def last_error(self) -> Exception | None:
        """What went wrong last."""
        ...

    async def connect(self, **options: Any) -> None:
        """Connect to a server."""
        ...

    async def publish(self, subject: str, payload: bytes, /, *, headers: Mapping[str, str] | None = None) -> None:
        """Put a message into the buffer of what is to be sent."""
        ...

    @property
    def transport(self) -> asyncio.Transport:
        """The connection."""
        ...

    @property
    def all_read(self) -> bool:
        """Whether the library has parsed all that its stream was given."""
        ...

    @property
    def closing(self) -> bool:
        """Whether the connection takes nothing any more, known or not to those who read from it."""
        ...

    @property
    def unwritten(self) -> int:
        """Bytes that the socket has not taken yet."""
        ...

    def send(self, commands: bytes, /) -> None:
        """Write commands of the protocol at once, behind what the library holds back for its own writer."""
        ...

    async def drain_to(self, size: int, /) -> None:
        """Return once the socket has no more than so many bytes to take, or far less."""
        ...

    async def subscribe(
        self,
        subject: str,
        *,
        queue: str = "",
        cb: Callable[[Msg], Coroutine[Any, Any, None]] | None = None,
        pending_bytes_limit: int,
    ) -> Subscription:
        """Ask for a subject, alone or as one of a queue group."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


class Inflow(asyncio.Queue[Msg]):
    """Stands in for each subscription's queue: no task, no wait, and one order across all subjects."""

    def __init__(self, take: Callable[[Msg], None]) -> None:
        super().__init__()
        self._take = take

    def put_nowait(self, item: Msg) -> None:
        """Hand a message on at once."""
        self._take(item)


def make_client() -> NatsClient:
    """A client that is not connected yet."""
    return cast("NatsClient", _Client())
