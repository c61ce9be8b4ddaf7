"""What a python-socketio server does with its clients and does not tell its manager: heard by standing in its way.

1. What recovery adds to a client's `auth` is taken out before the application sees it, and the pid is put into the
   answer to its CONNECT.
2. `environ["roomcast.recovered"]` says, as the connect handler begins, whether this client's session was restored: one
   connection has one environ, for its clients in all namespaces. Without recovery the adapter says no.
3. A client that was restored gets what it missed once its connect handler has accepted it, also with `always_connect`.
4. A handler that ends when its client has come back already, on another connection, has no say in that: what it was
   about is over, be it a connect handler that agrees or refuses, or a disconnect handler.
5. A client that was restored is refused, whatever its connect handler says, when the application has disconnected it
   meanwhile: others know its sid. Of a new client nobody does, and nothing happens, as with python-socketio alone.
"""

from contextvars import ContextVar
from typing import Any

from socketio import packet as sio_packet

from roomcast.core.recovery import Recoveries
from roomcast.core.rooms import Client, Rooms, State
from roomcast.core.wish import Wish

_NOTHING = Wish(offered=False)


class _Turn:
    """What the server does about one client just now; empty once it is done, for tasks that were begun meanwhile."""

    __slots__ = ("client", "decided", "leaves")

    def __init__(self, client: Client | None = None, *, leaves: bool = False) -> None:
        self.client = client
        self.leaves = leaves
        self.decided = False  # the connect handler is done


_turn: ContextVar[_Turn | None] = ContextVar("roomcast_turn", default=None)


class Doorway:
    """Stands in the way of one server.

    Args:
        server: the `socketio.AsyncServer`.
        rooms: where its clients are.
        recoveries: decides; another one in a process that was forked since.
    """

    def __init__(self, server: Any, rooms: Rooms, recoveries: Recoveries) -> None:
        self.recoveries = recoveries
        self._server = server
        self._rooms = rooms
        self._wishes: dict[tuple[str, str], Wish] = {}
        for name in ("_handle_connect", "_handle_disconnect", "_send_packet", "_trigger_event", "save_session"):
            setattr(server, name, getattr(self, name.lstrip("_"))(getattr(server, name)))

    async def restored(self, eio_sid: str, namespace: str) -> str | None:
        """The sid of a client that was taken back; None when it needs a fresh one."""
        wish = self._wishes.get((eio_sid, namespace), _NOTHING)
        sid = await self.recoveries.restore(eio_sid, namespace, wish) if await self.recoveries.reader.ready() else None
        self._server.environ.get(eio_sid, {})["roomcast.recovered"] = sid is not None
        if sid is not None:
            self._is_about(self._rooms.client(namespace, sid))
        return sid

    def admit(self, client: Client, namespace: str) -> None:
        """A client has a fresh sid."""
        self._is_about(client)
        wish = self._wishes.get((client.eio_sid, namespace))
        if wish is not None:
            self.recoveries.admit(client, namespace, wish)

    def overtaken(self, sid: str, namespace: str) -> bool:
        """Whether the client that is being handled here has come back meanwhile (rule 4)."""
        turn = _turn.get()
        client = None if turn is None else turn.client
        return client is not None and client.sid == sid and self._rooms.client(namespace, sid) is not client

    def refuses_in_vain(self, sid: str, namespace: str) -> bool:
        """Whether the client has come back before the connect handler has refused it here (rule 4)."""
        turn = _turn.get()
        return turn is not None and turn.decided and self.overtaken(sid, namespace)

    @staticmethod
    def leaves(client: Client) -> bool:
        """Whether its connection, or the client itself, is what ends it here; else the application does."""
        turn = _turn.get()
        return turn is not None and turn.leaves and turn.client is client

    @staticmethod
    def _is_about(client: Client | None) -> None:
        if (turn := _turn.get()) is not None:
            turn.client = client

    # In the server's way

    def handle_connect(self, handle: Any) -> Any:
        """Rules 1, 3 and 4."""

        async def handle_connect(eio_sid: str, namespace: str | None, data: Any) -> None:
            namespace = namespace or "/"
            key = (eio_sid, namespace)
            environ: dict[str, Any] = self._server.environ.get(eio_sid, {})
            self._wishes[key], auth = self.recoveries.look_at(environ, data)
            turn = _Turn()
            before = _turn.set(turn)
            try:
                await handle(eio_sid, namespace, auth)
            finally:
                self._wishes.pop(key, None)
                turn.client = None
                _turn.reset(before)
            client = self._rooms.by_eio_sid(namespace, eio_sid)
            if client is not None and client.state is State.CONNECTED:
                self.recoveries.let_in(client)

        return handle_connect

    def handle_disconnect(self, handle: Any) -> Any:
        """Rule 4."""

        async def handle_disconnect(eio_sid: str, namespace: str | None, reason: Any = None) -> None:
            turn = _Turn(self._rooms.by_eio_sid(namespace or "/", eio_sid), leaves=True)
            before = _turn.set(turn)
            try:
                await handle(eio_sid, namespace, reason)
            finally:
                turn.client = None
                _turn.reset(before)

        return handle_disconnect

    def send_packet(self, send: Any) -> Any:
        """Rule 1."""

        async def send_packet(eio_sid: str, packet: Any) -> None:
            if packet.packet_type == sio_packet.CONNECT and "sid" in (packet.data or ()):
                client = self._rooms.by_eio_sid(packet.namespace or "/", eio_sid)
                if client is not None and client.session is not None:
                    packet.data = {**packet.data, "pid": client.session.pid}
            await send(eio_sid, packet)

        return send_packet

    def trigger_event(self, trigger: Any) -> Any:
        """Rule 5; and leave out the connect handler of a restored client, where that is wanted."""

        async def trigger_event(event: str, namespace: str, *args: Any) -> Any:
            if event != "connect":
                return await trigger(event, namespace, *args)
            client = self._rooms.client(namespace, args[0])
            restored = None if client is None or client.session is None or not client.session.term else client.session
            if restored is not None and restored.unwanted:
                return False
            if restored is not None and self.recoveries.settings.skip_connect_handler:
                return None
            try:
                agreed = await trigger(event, namespace, *args)
            finally:
                if (turn := _turn.get()) is not None:
                    turn.decided = True
            return False if restored is not None and restored.unwanted else agreed

        return trigger_event

    def save_session(self, save: Any) -> Any:
        """What an application stores with a client is kept."""

        async def save_session(sid: str, session: Any, namespace: str | None = None) -> None:
            await save(sid, session, namespace=namespace)
            client = self._rooms.client(namespace or "/", sid)
            if client is not None:
                self.recoveries.serving.changed(client)

        return save_session
