"""The life of a client: connect handlers, sessions, namespaces, who is where, and what stays behind."""

import asyncio
from typing import Any, cast

import pytest
import socketio
from socketio.exceptions import ConnectionError as ClientConnectionError

from roomcast.brokers import memory
from tests.adapter.servers import Client, Cluster, Node
from tests.waiting import until

AsyncNamespace: Any = cast("Any", socketio).AsyncNamespace


def nothing_is_left(node: Node) -> bool:
    """No client, namespace, room or callback; and, where the broker can be asked, no subject but the node's own."""
    hubs = cast("Any", memory)._hubs.get(asyncio.get_running_loop(), {}).values()
    heard = {subject.split(".")[1] for hub in hubs for subject in hub}
    return node.sio.manager.rooms == {} and not len(node.inside._broadcast.acks) and heard <= {"control", "inbox"}


async def test_a_sid_is_opaque_url_safe_and_names_its_client_everywhere(cluster: Cluster) -> None:
    a, b = await cluster.pair()
    clients = await asyncio.gather(*(node.client() for node in (a, b) for _ in range(5)))
    sids = [client.sid for client in clients]
    assert len(set(sids)) == 10
    assert all(len(sid) == 20 and sid.replace("-", "").replace("_", "").isalnum() for sid in sids)
    for number, client in enumerate(clients):
        await b.sio.emit("number", number, to=client.sid)
    assert await cluster.finish(b, *clients) == [[("number", number)] for number in range(10)]


async def test_a_session_is_kept_where_the_client_is(alone: Cluster) -> None:
    a, b = await alone.pair()
    client = await a.client("/", "/chat")
    sid = client.sid
    await a.sio.save_session(sid, {"user": "ann"})
    async with a.sio.session(sid) as session:
        session["visits"] = 1
    assert await a.sio.get_session(sid) == {"user": "ann", "visits": 1}
    assert await a.sio.get_session(client.sid_in("/chat"), namespace="/chat") == {}
    with pytest.raises(KeyError):
        await b.sio.get_session(sid)


async def test_who_is_where(alone: Cluster) -> None:
    a, b = await alone.pair()
    one, two = await a.client("/", "/chat"), await a.client()
    await b.client()
    eio = {one.sid: one.socket.eio.sid, two.sid: two.socket.eio.sid}
    await a.sio.enter_room(one.sid, "red")
    await a.sio.enter_room(two.sid, "blue")
    manager = a.sio.manager
    assert sorted(manager.get_participants("/", None)) == sorted(eio.items())
    assert list(manager.get_participants("/", "red")) == [(one.sid, eio[one.sid])]
    assert sorted(manager.get_participants("/", ["red", "blue", one.sid])) == sorted(eio.items())
    assert list(manager.get_participants("/", two.sid)) == [(two.sid, eio[two.sid])]
    assert not list(manager.get_participants("/", "green"))
    assert not list(manager.get_participants("/nowhere", None))
    assert sorted(manager.get_namespaces()) == ["/", "/chat"]
    assert manager.eio_sid_from_sid(one.sid, "/") == eio[one.sid]
    assert manager.sid_from_eio_sid(eio[one.sid], "/chat") == one.sid_in("/chat")
    assert dict(manager.rooms["/"]["red"]) == {one.sid: eio[one.sid]}
    assert dict(manager.rooms["/"][None]) == eio
    assert manager.is_connected(one.sid, "/")
    assert not manager.is_connected(one.sid, "/chat")
    assert a.sio.rooms(one.sid_in("/chat"), namespace="/chat") == [one.sid_in("/chat")]


async def test_a_class_based_namespace_reaches_other_nodes(cluster: Cluster) -> None:
    class Chat(AsyncNamespace):  # type: ignore[misc]  # python-socketio has no annotations
        left: asyncio.Event

        async def on_connect(self, sid: str, _environ: object) -> None:
            await self.enter_room(sid, "lobby")

        async def on_say(self, sid: str, text: str) -> str:
            await self.emit("said", text, room="lobby", skip_sid=sid)
            await self.send(text, room="lobby")
            return "done"

        async def on_ask(self, sid: str, other: str) -> object:
            assert sid
            return await self.call("question", to=other)

        async def on_quit(self, _sid: str) -> None:
            await self.close_room("lobby")

        def on_disconnect(self, _sid: str, _reason: str) -> None:
            self.left.set()

    nodes = await cluster.pair()
    spaces = [Chat("/chat"), Chat("/chat")]
    for node, space in zip(nodes, spaces, strict=True):
        space.left = asyncio.Event()
        node.sio.register_namespace(space)
    one, two = [await node.client("/chat") for node in nodes]
    two.answers["question"] = "answer"
    assert await one.socket.call("say", "hi", namespace="/chat") == "done"
    assert await one.socket.call("ask", two.sid, namespace="/chat") == "answer"
    assert await cluster.finish(nodes[0], one, two) == [
        [("message", "hi")],
        [("said", "hi"), ("message", "hi"), ("question",)],
    ]
    await one.socket.call("quit", namespace="/chat")
    await nodes[0].sio.emit("nobody", room="lobby", namespace="/chat")
    assert await cluster.finish(nodes[0], one, two) == [[], []]
    await spaces[0].disconnect(two.sid)
    await asyncio.wait_for(spaces[1].left.wait(), 5)


async def test_a_client_that_enters_rooms_in_its_connect_handler_hears_from_the_start(cluster: Cluster) -> None:
    a, b = await cluster.pair()

    async def enter(sid: str, _environ: object) -> None:
        await b.sio.enter_room(sid, "lobby")

    b.sio.on("connect", enter)
    clients: list[Client] = []
    for number in range(10):
        clients.append(await b.client())
        await a.sio.emit("number", number, room="lobby")
    for number, heard in enumerate(await cluster.finish(a, *clients)):
        numbers = [later for _, later in heard]  # those emitted just before it came may still be under way
        assert numbers == list(range(numbers[0], 10))
        assert numbers[0] <= number


async def test_without_recovery_every_client_is_a_new_one_and_the_handler_is_told(alone: Cluster) -> None:
    """So that one handler serves with and without it."""
    node = await alone.node()
    told: list[bool] = []

    async def connect(_sid: str, environ: dict[str, Any]) -> None:
        told.append(environ["roomcast.recovered"])

    node.sio.on("connect", connect)
    node.sio.on("connect", connect, namespace="/chat")
    await node.client("/", "/chat")
    assert told == [False, False]


async def test_a_rejected_client_leaves_nothing_and_is_told_why(cluster: Cluster) -> None:
    a, b = await cluster.pair(linger=0)

    async def reject(sid: str, _environ: object, auth: Any) -> bool:
        await b.sio.enter_room(sid, "lobby")
        await a.sio.emit("for nobody", room="lobby")
        if auth == "false":
            return False
        raise cast("Any", socketio).exceptions.ConnectionRefusedError("no", {"code": 7})

    b.sio.on("connect", reject)
    for auth, why in (
        ("false", {"message": "Connection rejected by server"}),
        ("refused", {"message": "no", "data": {"code": 7}}),
    ):
        with pytest.raises(ClientConnectionError):
            await b.client(auth=auth)
        assert await b.clients[-1].hear("connect_error") == [("connect_error", why)]
        await until(lambda: nothing_is_left(b))
    b.sio.handlers["/"].pop("connect")
    client = await b.client()
    assert await cluster.finish(a, client) == [[]]


async def test_always_connect_rejects_after_the_fact(alone: Cluster) -> None:
    node = await alone.node(linger=0, server={"always_connect": True})
    seen: list[bool] = []

    async def reject(sid: str, _environ: object) -> bool:
        await node.sio.enter_room(sid, "lobby")
        seen.append(node.sio.manager.is_connected(sid, "/"))
        return False

    node.sio.on("connect", reject)
    client = Client(("/",))
    node.clients.append(client)
    await client.socket.connect(node.url, transports=["websocket"])
    await asyncio.wait_for(client.gone.wait(), 5)
    assert seen == [True]
    await until(lambda: nothing_is_left(node))


async def test_always_connect_admits_before_the_handler_has_run(cluster: Cluster) -> None:
    a = await cluster.node()
    b = await cluster.node(server={"always_connect": True})
    go_on = asyncio.Event()

    async def wait(_sid: str, _environ: object) -> None:
        await go_on.wait()

    b.sio.on("connect", wait)
    client = await b.client()
    await a.sio.emit("early", to=client.sid)
    await a.sio.emit("early all")
    go_on.set()
    assert await cluster.finish(a, client) == [[("early",), ("early all",)]]


@pytest.mark.parametrize("noticed", [True, False])
async def test_a_client_that_drops_while_its_connect_handler_runs_leaves_nothing_behind(
    cluster: Cluster, noticed: bool
) -> None:
    """The server notices a lost connection at once by its pings, and for a websocket else when it reads again."""
    a, b = await cluster.pair(linger=0)
    entered, go_on = asyncio.Event(), asyncio.Event()
    disconnected: list[str] = []

    async def wait(sid: str, _environ: object) -> None:
        await b.sio.enter_room(sid, "lobby")
        entered.set()
        await go_on.wait()

    def told(sid: str, _reason: str) -> None:
        disconnected.append(sid)

    b.sio.on("connect", wait)
    b.sio.on("disconnect", told)
    client = Client(("/",))
    b.clients.append(client)
    await client.socket.connect(b.url, transports=["websocket"], wait=False)
    await asyncio.wait_for(entered.wait(), 5)
    (socket,) = b.sio.eio.sockets.values()
    if noticed:
        await socket.close(wait=False, abort=True)
    else:
        client.drop()
    go_on.set()
    await until(lambda: disconnected, what="the disconnect handler to run")
    await until(lambda: b.sio.manager.rooms == {}, what="the client to be forgotten")
    await until(lambda: nothing_is_left(b), what="its rooms to be forgotten")
    b.sio.handlers["/"].pop("connect")
    await a.sio.emit("nobody", room="lobby")
    assert await cluster.finish(a, await b.client()) == [[]]
    assert len(disconnected) == 1
    assert not b.adapter.stats()["faults"]


async def test_a_lost_connection_leaves_nothing_behind(cluster: Cluster) -> None:
    a, b = await cluster.pair(linger=0)
    client = await b.client("/", "/chat")
    called: list[object] = []
    await b.sio.enter_room(client.sid, "lobby")
    client.answers["ask"] = client.drop
    await a.sio.emit("ask", to=client.sid, callback=called.append)
    await asyncio.wait_for(client.gone.wait(), 5)
    await until(lambda: nothing_is_left(b), what="the client to be forgotten")
    await until(lambda: nothing_is_left(a), what="its callback to be forgotten")
    assert called == []
    assert a.sio.manager.rooms == {}


async def test_a_connection_cannot_enter_a_namespace_twice(alone: Cluster) -> None:
    node = await alone.node()
    client = await node.client()
    assert await node.sio.manager.pre_connect(client.socket.eio.sid, "/") is None
    assert len(list(node.sio.manager.get_participants("/", None))) == 1


async def test_a_namespace_that_the_server_does_not_serve_is_refused(alone: Cluster) -> None:
    node = await alone.node(linger=0, server={"namespaces": ["/"]})
    with pytest.raises(ClientConnectionError):
        await node.client("/secret")
    assert nothing_is_left(node)


async def test_transport_and_server_do_not_matter(cluster: Cluster) -> None:
    """Polling and websocket clients, of uvicorn and of aiohttp, share one binary broadcast."""
    a = await cluster.node()
    b = await cluster.node(web="aiohttp")
    clients = [
        await node.client(transport=transport) for node in (a, b) for transport in ("polling", "websocket", "polling")
    ]
    blob = bytes(range(256))
    for node in (a, b):
        await node.sio.emit("mixed", (1, {"blob": [blob, b""]}, "text"))
        await node.sio.emit("plain", "text")
        assert (
            await cluster.finish(node, *clients)
            == [[("mixed", 1, {"blob": [blob, b""]}, "text"), ("plain", "text")]] * 6
        )
