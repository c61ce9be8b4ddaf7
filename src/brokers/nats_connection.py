"""A connection to a NATS server: nats-py makes it and logs in, from then on it is the link's own.

1. `open` returns once the server has taken the login. The library's tasks have ended by then: it neither reads nor
   writes any more, so its reconnection, its buffers and its pings are no concern of anybody.
2. A `tls://` URL never ends in plain text, whatever the server offers.
3. Nothing is written to a connection that is closing; that it closes, the reader is told.

The one module of the brokers that imports nats-py.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

from roomcast.core.errors import ConfigurationError

try:
    from nats import errors as nats_errors
    from nats.aio.client import Client
except ImportError as exc:
    raise ConfigurationError('nats:// needs the NATS client: pip install "roomcast[nats]"') from exc

CLOG = 256 * 1024
"""Bytes that may wait for the socket before nothing is added to them."""
_GOODBYE = 1.0
"""Seconds that closing may take, while the socket takes what was written."""


class _Client(Client):
    secure = False

    def _connect_command(self) -> bytes:
        # The library turns to TLS only if the server offers it (rule 2).
        if self.secure and not self._server_info.get("tls_required"):
            raise nats_errors.SecureConnWantedError
        return super()._connect_command()

    @property
    def info(self) -> Mapping[str, Any]:
        return self._server_info

    @property
    def writer(self) -> asyncio.StreamWriter | None:
        """Of the connection that it made last, if any."""
        return cast("asyncio.StreamWriter | None", getattr(self._transport, "_io_writer", None))

    @property
    def unread(self) -> bytes:
        """What has come and was not handled; `ConnectionError` where nothing has, nor will."""
        reader: Any = getattr(self._transport, "_io_reader", None)
        if reader.at_eof():
            raise ConnectionError("The connection was closed")
        return bytes(self._ps.buf) + bytes(reader._buffer)  # noqa: SLF001 - a stream has no other way

    def end_tasks(self) -> "list[asyncio.Task[Any]]":
        """Cancel the tasks that it has."""
        mine: list[asyncio.Task[Any]] = [one for one in vars(self).values() if isinstance(one, asyncio.Task)]
        for task in mine:
            task.cancel()
        return mine


class Connection:
    """A connection that is opened once and closed once.

    Attributes:
        info: what the server says of itself (NATS protocol, INFO); the reader keeps it up to date.
    """

    def __init__(self) -> None:
        self.info: Mapping[str, Any] = {}
        self._client = _Client()
        self._writer: asyncio.StreamWriter | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._gone = asyncio.Event()

    async def open(self, server: str, *, name: str, timeout: float, options: Mapping[str, Any]) -> None:
        """Connect and log in (rules 1 and 2).

        Args:
            server: scheme, host and port.
            name: what the server shows of this connection.
            timeout: seconds for each step of the library's.
            options: of nats-py's `connect`: the login, and what TLS needs.

        Raises:
            Exception: whatever the library raises.
        """
        said: list[Exception] = []

        async def failed(error: Exception) -> None:
            said.append(error)

        self._client.secure = server.startswith("tls://")
        given: dict[str, Any] = {"connect_timeout": timeout, **options}
        try:
            await self._client.connect(
                servers=[server],
                name=name,
                allow_reconnect=False,
                max_reconnect_attempts=1,  # 0 would try for ever
                reconnect_time_wait=0,
                error_cb=failed,
                **given,
            )
        except nats_errors.NoServersError as exc:
            raise (said[-1] if said else exc) from exc
        self.info = self._client.info
        self._client.end_tasks()

    def read_with(self, make: Callable[[asyncio.Protocol], asyncio.Protocol]) -> None:
        """Let the protocol that `make` puts before that of the library's stream read, beginning with what is there."""
        writer = self._client.writer
        if writer is None:
            raise ConnectionError("nats-py keeps its connection in another place: this version is not supported.")
        protocol = make(cast("asyncio.Protocol", writer.transport.get_protocol()))
        writer.transport.set_protocol(protocol)
        self._writer, self._transport = writer, writer.transport
        if unread := self._client.unread:
            protocol.data_received(unread)

    def gone(self) -> None:
        """What reads has heard that the connection is lost."""
        self._gone.set()

    @property
    def closing(self) -> bool:
        """Whether it takes nothing any more, known or not to those who read from it."""
        return self._transport is None or self._transport.is_closing()

    @property
    def clogged(self) -> bool:
        """Whether the socket has more to take than it should."""
        return self._transport is not None and self._transport.get_write_buffer_size() >= CLOG

    def send(self, commands: bytes) -> None:
        """Write at once (rule 3)."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(commands)

    async def drained(self) -> None:
        """Return once the socket has taken most of what clogs it.

        Raises:
            ConnectionError: the connection is lost.
        """
        if self._writer is not None:
            # Looks at what waits, too: a TLS transport, which counts only what waits for the one below it, would make
            # nobody wait before 512 KB.
            self._writer.transport.set_write_buffer_limits(high=CLOG // 4)  # well below what clogs it
            await self._writer.drain()

    async def aclose(self, *, graceful: bool) -> None:
        """Leave no task and no socket behind.

        Args:
            graceful: the socket gets a moment to take what was written; never from a peer that does not read.
        """
        tasks = self._client.end_tasks()
        try:
            if graceful and self._transport is not None:
                self._transport.close()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_GOODBYE):
                        await self._gone.wait()
        finally:
            if self._client.writer is not None:
                with suppress(AttributeError):  # of CPython 3.11's TLS transport, when it was closed twice before
                    self._client.writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the transport says goodbye to its socket in the loop's next turn
