"""`AsyncServer.instrument`: the Admin UI of Socket.IO works on a node, and acts on the whole cluster."""

from typing import Any

from tests.adapter.servers import Client, Cluster


async def hear(admin: Client, event: str, *beginning: Any) -> tuple[Any, ...]:
    """The arguments of the next `event` that begins with these."""
    while True:
        *_, (_, *args) = await admin.hear(event)
        if args[: len(beginning)] == list(beginning):
            return tuple(args)


async def test_the_admin_ui_sees_a_node_and_acts_on_the_cluster(cluster: Cluster) -> None:
    a = await cluster.node(server={"namespaces": ["/", "/admin"]})
    b = await cluster.node()
    instrumented = a.sio.instrument(auth=False, server_stats_interval=0.05)
    try:
        here, far = await a.client(), await b.client()
        await a.sio.enter_room(here.sid, "red")
        await b.sio.enter_room(far.sid, "red")
        admin = await a.client("/admin")
        (config,) = await hear(admin, "config")
        assert {"EMIT", "JOIN", "LEAVE", "DISCONNECT", "ALL_EVENTS"} <= set(config["supportedFeatures"])
        (sockets,) = await hear(admin, "all_sockets")
        by_id = {socket["id"]: socket for socket in sockets}
        assert by_id[here.sid]["rooms"] == [here.sid, "red"]
        assert by_id[here.sid]["nsp"] == "/"
        (stats,) = await hear(admin, "server_stats")
        assert stats["serverId"] == a.adapter.host_id
        assert stats["clientsCount"] == 2
        counts = {namespace["name"]: namespace["socketsCount"] for namespace in stats["namespaces"]}
        assert counts["/admin"] == 1

        await admin.emit("join", "/", "blue", here.sid)
        assert (await hear(admin, "room_joined", "/", "blue"))[2] == here.sid
        await admin.emit("emit", "/", "red", "from the admin", 1, "two")
        assert (await here.hear("from the admin"))[-1] == ("from the admin", 1, "two")
        assert (await far.hear("from the admin"))[-1] == ("from the admin", 1, "two")
        assert (await hear(admin, "event_sent", "/", here.sid))[2] == ["from the admin", 1, "two"]
        await admin.emit("leave", "/", "blue", here.sid)
        assert (await hear(admin, "room_left", "/", "blue"))[2] == here.sid
        sid = here.sid
        await admin.emit("_disconnect", "/", False, sid)
        assert (await hear(admin, "socket_disconnected", "/"))[1] == sid
        await here.gone.wait()
        assert await cluster.finish(b, far) == [[]]
    finally:
        await instrumented.shutdown()
        instrumented.uninstrument()
