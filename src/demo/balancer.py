"""One address in front of the nodes: each connection goes to one node, chosen by the head of its first request.

1. `?sid=2.…` goes to node 2, which gave out that id: long polling stays where it began.
2. `?node=2` goes to node 2, because somebody wants that one.
3. Any other new Socket.IO client goes to the next node in turn; everything else (the page) to any node.

A connection carries one request, unless it becomes a WebSocket, so that the next request is looked at as well.
"""

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

_HEAD = 65_536
_PATIENCE = 10.0
"""Bytes, and seconds, within which a request's head must be there."""
_CHUNK = 65_536
_CONNECTION = re.compile(rb"\r\n(?:connection|keep-alive):[^\r\n]*", re.IGNORECASE)
_UPGRADE = re.compile(rb"\r\nupgrade:[ \t]*websocket", re.IGNORECASE)


class _RefusedError(Exception):
    """A request that no node gets; its text goes to the client."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Balancer:
    """Listens on one address and hands each connection to a node.

    Args:
        ports: the loopback port of each node by its number, None while it is down; read at every connection.
    """

    def __init__(self, ports: Mapping[int, int | None]) -> None:
        self._ports = ports
        self._turn = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port; raises OSError when the address cannot be had."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=_HEAD)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def aclose(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
            try:
                await self._join(self._choose(head), _one_request(head), reader, writer)
            except _RefusedError as exc:
                writer.write(_answer(exc))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client or a node that went away in the middle, or no client at all
        finally:
            await _close(writer)

    def _choose(self, head: bytes) -> int:
        target = head.split(b" ", 2)[1].decode("latin-1") if head.count(b" ") > 1 else "/"
        url = urlsplit(target)
        query = parse_qs(url.query)
        wanted = query.get("sid", [""])[0].partition(".")[0] or query.get("node", [""])[0]
        if wanted:
            number = int(wanted) if wanted.isascii() and wanted.isdigit() else 0
            if number not in self._ports:
                raise _RefusedError(
                    HTTPStatus.NOT_FOUND, f"There is no such node; there are nodes 1 to {len(self._ports)}."
                )
            if (port := self._ports[number]) is None:
                raise _RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, f"Node {number} is starting.")
            return port
        up = [port for _, port in sorted(self._ports.items()) if port is not None]
        if not up:
            raise _RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "The nodes are starting.")
        chosen = up[self._turn % len(up)]
        if url.path.startswith("/socket.io/"):
            self._turn += 1
        return chosen

    async def _join(self, port: int, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_node, to_node = await asyncio.open_connection("127.0.0.1", port)
        to_node.write(head)
        upstream = asyncio.create_task(_pump(reader, to_node))
        try:
            await _pump(from_node, writer)
        finally:
            upstream.cancel()
            await asyncio.gather(upstream, return_exceptions=True)
            await _close(to_node)


def _one_request(head: bytes) -> bytes:
    """The head with `Connection: close` in it, unless it asks for a WebSocket."""
    return head if _UPGRADE.search(head) else _CONNECTION.sub(b"", head)[:-2] + b"Connection: close\r\n\r\n"


def _answer(exc: _RefusedError) -> bytes:
    body = f"{exc}\n".encode()
    return (
        f"HTTP/1.1 {exc.status.value} {exc.status.phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
