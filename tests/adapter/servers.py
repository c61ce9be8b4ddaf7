"""Whole nodes in one event loop: real HTTP servers, an adapter in each, and python-socketio's own clients."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, Unpack, cast
from uuid import uuid4

import socketio
import uvicorn
from aiohttp import web

from roomcast import Adapter
from roomcast.core.options import Settings
from tests.waiting import until

Heard = tuple[Any, ...]
"""One event as a client got it: its name, then its arguments."""

Transport = Literal["websocket", "polling"]
Web = Literal["uvicorn", "aiohttp"]

PATIENCE = 10.0
"""Seconds after which what was waited for will not come."""


class Client:
    """A Socket.IO client that keeps every event it hears, one list per namespace.

    Attributes:
        socket: the `socketio.AsyncClient`.
        namespace: the one that is meant when none is named.
        answers: what to acknowledge an event with: a value, or a function of the event's arguments.
        gone: set once the connection is closed.
    """

    def __init__(self, namespaces: Sequence[str], **options: Any) -> None:
        self.socket: Any = cast("Any", socketio).AsyncClient(reconnection=False, handle_sigint=False, **options)
        self.namespace = namespaces[0]
        self.answers: dict[str, Any] = {}
        self.gone = asyncio.Event()
        self._heard: dict[str, list[Heard]] = {namespace: [] for namespace in namespaces}
        self._news = asyncio.Event()
        for namespace in namespaces:
            self.socket.on("*", self._listener(namespace), namespace=namespace)
            self.socket.on("connect_error", self._refused(namespace), namespace=namespace)
            self.socket.on("disconnect", self._disconnected, namespace=namespace)

    @property
    def sid(self) -> str:
        return self.sid_in(self.namespace)

    def sid_in(self, namespace: str) -> str:
        """The sid in one of the namespaces."""
        return cast("str", self.socket.get_sid(namespace))

    async def hear(self, event: str, namespace: str | None = None) -> list[Heard]:
        """Everything heard up to and with the next `event`, and since the last call."""
        heard = self._heard[namespace or self.namespace]
        at = 0
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    for index in range(at, len(heard)):
                        if heard[index][0] == event:
                            taken, heard[: index + 1] = heard[: index + 1], []
                            return taken
                    at = len(heard)
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"waited in vain for {event!r}; heard {heard[-5:]}") from None

    async def only(self, event: str) -> Heard:
        """The next `event`; what was heard before it is kept for `hear`."""
        *others, found = await self.hear(event)
        self._heard[self.namespace][:0] = others
        return found

    async def emit(self, event: str, *args: Any) -> None:
        """Send an event to the server."""
        await self.socket.emit(event, args, namespace=self.namespace)

    async def aclose(self) -> None:
        """Disconnect; fine when that has happened."""
        async with asyncio.timeout(PATIENCE):
            await self.socket.disconnect()

    def drop(self) -> None:
        """Lose the connection without a word, as a client does that walks out of the network."""
        self.socket.eio.ws._response.connection.transport.abort()

    def _listener(self, namespace: str) -> Callable[..., Any]:
        def listen(event: str, *args: Any) -> Any:
            self._heard[namespace].append((event, *args))
            self._news.set()
            answer = self.answers.get(event)
            return answer(*args) if callable(answer) else answer

        return listen

    def _refused(self, namespace: str) -> Callable[..., Any]:
        listen = self._listener(namespace)

        def refused(why: Any = None) -> None:
            listen("connect_error", why)

        return refused

    def _disconnected(self, *_reason: object) -> None:
        self.gone.set()


class Node:
    """One process of the cluster, in this one: an HTTP server, a Socket.IO server and an adapter.

    Attributes:
        adapter: the adapter.
        inside: the adapter too, for a look at what it holds.
        sio: the `socketio.AsyncServer`.
        port: where it serves; 0 before `start`.
        clients: those made by `client`.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        web: Web = "uvicorn",
        start: bool = True,
        uvicorn_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.adapter = adapter
        self.inside: Any = adapter
        self.sio: Any = cast("Any", socketio).AsyncServer(
            async_mode="asgi" if web == "uvicorn" else "aiohttp",
            client_manager=adapter,
            **({"namespaces": "*"} | options),
        )
        self.port = 0
        self.clients: list[Client] = []
        self._web = web
        self._uvicorn_options = uvicorn_options or {}
        self._start_adapter = start
        self._stop: Callable[[], Any] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Serve on a free loopback port, as an application would: the adapter starts and stops with the server."""
        sock = socket.create_server(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        await (self._serve_asgi(sock) if self._web == "uvicorn" else self._serve_aiohttp(sock))

    async def stop(self) -> None:
        """Disconnect the clients, stop serving, and close the adapter."""
        await asyncio.gather(*(self._part(client) for client in self.clients))
        if self._stop is not None:
            stop, self._stop = self._stop, None
            await stop()
        await self.adapter.aclose()
        await self.sio.shutdown()

    async def client(
        self,
        *namespaces: str,
        transport: Transport = "websocket",
        auth: Any = None,
        query: str = "",
        **options: Any,
    ) -> Client:
        """A connected client, in "/" unless other namespaces are named; `options` are the AsyncClient's."""
        client = Client(namespaces or ("/",), **options)
        self.clients.append(client)
        await client.socket.connect(
            self.url + query, transports=[transport], namespaces=list(namespaces or ("/",)), auth=auth
        )
        return client

    async def _part(self, client: Client) -> None:
        """Disconnect a client; a polling one from this side, for its own `disconnect` waits out its last poll."""
        eio = client.socket.eio
        if eio.state == "connected" and eio.current_transport == "polling":
            reading = eio.read_loop_task
            async with asyncio.timeout(PATIENCE):
                await self.sio.eio.disconnect(eio.sid)
                await eio.queue.put(None)  # wakes its writer, which the reader waits for
                await reading
        await client.aclose()

    async def _serve_asgi(self, sock: socket.socket) -> None:
        life: Mapping[str, Any] = (
            {"on_startup": self.adapter.start, "on_shutdown": self.adapter.aclose} if self._start_adapter else {}
        )
        options: dict[str, Any] = {
            "ws": "websockets-sansio",
            "lifespan": "on",
            "log_config": None,
            "timeout_graceful_shutdown": 2,
        }
        config = uvicorn.Config(
            cast("Any", socketio).ASGIApp(self.sio, **life), **(options | dict(self._uvicorn_options))
        )
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[sock])
        self._stop = lambda: server.shutdown(sockets=[sock])

    async def _serve_aiohttp(self, sock: socket.socket) -> None:
        app = web.Application()
        self.sio.attach(app)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.SockSite(runner, sock).start()
        if self._start_adapter:
            await self.adapter.start()
        self._stop = runner.cleanup


class Cluster:
    """Makes nodes on one broker, under a random prefix, and stops them.

    Attributes:
        url: the broker's.
        prefix: of every node made here.
    """

    def __init__(self, url: str, prefix: str | None = None) -> None:
        self.url = url
        self.prefix = prefix or f"t{uuid4().hex[:12]}"
        self.nodes: list[Node] = []

    def unstarted(
        self,
        *,
        url: str | None = None,
        web: Web = "uvicorn",
        start: bool = True,
        server: Mapping[str, Any] | None = None,
        **settings: Unpack[Settings],
    ) -> Node:
        """A node that does not serve yet; `server` are options of the AsyncServer."""
        settings.setdefault("prefix", self.prefix)
        adapter = Adapter(url or self.url, **settings)
        node = Node(adapter, web=web, start=start, **(server or {}))
        self.nodes.append(node)
        return node

    async def node(
        self,
        *,
        url: str | None = None,
        web: Web = "uvicorn",
        start: bool = True,
        server: Mapping[str, Any] | None = None,
        **settings: Unpack[Settings],
    ) -> Node:
        """A node that serves, and has met every other one that was started."""
        node = self.unstarted(url=url, web=web, start=start, server=server, **settings)
        await node.start()
        if start:
            await self.meet()
        return node

    async def pair(self, **settings: Unpack[Settings]) -> tuple[Node, Node]:
        """Two nodes that have met."""
        return await self.node(**settings), await self.node(**settings)

    async def meet(self) -> None:
        """Return once all running nodes know each other."""
        running = [node for node in self.nodes if node.adapter.health().connected]
        await until(
            lambda: all(node.adapter.health().peers >= len(running) - 1 for node in running), what="the nodes to meet"
        )
        acquaint(*(node.adapter for node in running))

    async def finish(self, node: Node, *clients: Client) -> list[list[Heard]]:
        """What each client heard until an end that `node` emits now to everyone in the clients' namespaces.

        The end proves absence: what `node` emitted earlier and is not heard before it will not come (P1).
        """
        mark = f"end {uuid4().hex}"
        for namespace in dict.fromkeys(client.namespace for client in clients):
            await node.sio.emit(mark, namespace=namespace)
        return [(await client.hear(mark))[:-1] for client in clients]

    async def aclose(self) -> None:
        """Stop every node."""
        await asyncio.gather(*(node.stop() for node in self.nodes))


def acquaint(*adapters: Adapter) -> None:
    """Tell nodes that know one another that this is all: the first of a cluster takes a second to be sure of it."""
    for adapter in adapters:
        inside: Any = adapter
        inside._node.membership._met.set()


@asynccontextmanager
async def serving(url: str) -> AsyncGenerator[Cluster]:
    """A cluster on a broker, stopped at the end."""
    cluster = Cluster(url)
    async with contextlib.aclosing(cluster):
        yield cluster
