"""Connection state recovery: the shell around `sessions` and `tail`, for clients that come back.

1. A new client is given a pid, and each event the place that it has in the log, as its last argument. A client that
   comes back names both, on whatever node.
2. The node asks for the session, in the log, and answers the client once the log has decided. When that gives it the
   session, it takes the client in at that very place: what came before is what the client missed, what comes after is
   new. The client gets the first, then the second, once its connect handler has accepted it.
3. When not all that was missed can be given, the client gets a fresh session: never a part. What it is cannot be said
   from a place in another epoch of the log, not even that it is nothing. It stays in the tail until the client reads it
   (`replay`); what is forgotten there meanwhile cuts the client, which comes back once more.
4. A session that another node serves is taken from it when that says nothing of any session for a third of `patience`,
   and then others at once, until it is heard again; or when it has not answered for `patience` (`silence`).
5. A node that has not read something of the log forgets what it knew of the sessions of others.
6. The log has `patience` and the `request_timeout` to decide. Without a link to the broker it cannot: a client that
   comes back waits for the link up to `_OUTAGE` more, within its window, and then for the log as long again.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from typing import Any, Literal

import msgspec

from roomcast.core.clients import Clients
from roomcast.core.errors import ReplayUnavailable
from roomcast.core.fanout import FanOut
from roomcast.core.log_reader import LogReader
from roomcast.core.membership import NodeInfo
from roomcast.core.messages import DECODE_ERRORS, Emit, Keep, Lost, Part, Resume, Seize
from roomcast.core.node import Node
from roomcast.core.options import Recovery
from roomcast.core.packets import Packets, Parts
from roomcast.core.replay import Replays
from roomcast.core.rooms import Client, Rooms
from roomcast.core.served import Served
from roomcast.core.serving import Serving
from roomcast.core.sessions import Asked, Denied, Ended, Granted, News, Session, owed
from roomcast.core.silence import Silence
from roomcast.core.tail import Kept, read_place
from roomcast.core.wish import Wish, look_at, new_pid

logger = logging.getLogger("roomcast")

_OUTAGE = 20.0
"""Seconds. With all the rest (rule 6) that is less than what engine.io waits for a ping that nobody reads meanwhile."""

_AGAIN = 0.2  # seconds until what the broker has refused is said again for a client that waits

_decoder = msgspec.msgpack.Decoder(dict[str, Any])


class _Pending:
    """A client that waits for its session."""

    def __init__(self, eio_sid: str, namespace: str, place: str | None) -> None:
        self.eio_sid = eio_sid
        self.namespace = namespace
        self.place = place
        self.sid: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.timer: asyncio.TimerHandle | None = None

    def settle(self, sid: str | None) -> None:
        """It is restored, as this sid, or is not."""
        if self.timer is not None:
            self.timer.cancel()
        if not self.sid.done():
            self.sid.set_result(sid)


class Recoveries:
    """The recoveries of one node.

    Args:
        node: reads the log.
        settings: of the recovery.
        clients: of this node.
        rooms: where they are.

    Attributes:
        reader: of the log.
        serving: the sessions that this node serves.
    """

    def __init__(self, node: Node, settings: Recovery, clients: Clients, rooms: Rooms) -> None:
        self.settings = settings
        self._node = node
        self._clients = clients
        self._rooms = rooms
        self.reader = LogReader(node, settings, self)
        self.serving = Serving(node, settings, self.reader)
        self._pending: dict[int, _Pending] = {}
        self._numbers = count(1)
        self._silence = Silence(hearing=settings.patience / 3, patience=settings.patience)
        node.membership.on_left.append(self._on_left)
        node.on_close.append(self._close)

    def serve(self, server: Any, fanout: FanOut, packets: Packets) -> None:
        """The clients are those of this server."""
        self._eio = server.eio
        self._fanout = fanout
        self._packets = packets
        self._replays = Replays(packets, self.settings.memory // 4, self._node.stats)
        self.serving.serve(server, fanout)

    # What the log decides

    def act(self, news: Iterable[News]) -> None:
        """What has become of sessions that are asked for."""
        node = self._node.id
        for one in news:
            if isinstance(one, Granted):
                self.serving.compare(one.session)
            match one:
                case Granted() if one.node == node:
                    self._granted(one)
                case Denied() if one.node == node:
                    self._denied(one.request, one.why)
                case Asked():
                    if one.session.owner == node:
                        self.serving.asked(one.session)
                    if one.node == node:
                        self._wait(one)
                case Ended() if one.session.owner == node:
                    self.serving.ended(one.session, whole=one.whole)
                case _:
                    pass
        self._node.stats.sessions_forgotten = self.reader.table.forgotten

    def heard(self, node: str) -> None:
        """A node speaks of sessions: it is not silent (rule 4)."""
        self._silence.heard(node)

    # Clients that come (rules 1 and 2)

    def look_at(self, environ: dict[str, Any], auth: Any) -> tuple[Wish, Any]:
        """What a client says of itself, and its `auth` without that."""
        wish, own, error = look_at(self.settings, environ, auth)
        if error is not None:
            self._node.fault("a function of the recovery's settings failed", error)
        return wish, own

    async def restore(self, eio_sid: str, namespace: str, wish: Wish) -> str | None:
        """The sid of a client whose session is restored, and who is taken in; None when it needs a fresh one."""
        if not wish.pid:
            return None
        session = self.reader.table.get(wish.pid)
        if session is None or (session.keep.namespace, session.keep.identity) != (namespace, wish.identity):
            self._count("unknown" if session is None else "not this client's")
            return None
        request = next(self._numbers)
        pending = self._pending[request] = _Pending(eio_sid, namespace, wish.place)
        try:
            if not self._insist(Resume(request, wish.pid), pending):
                self._count("asked for in vain: nothing can be sent")
                return None
            if not await self._decided(pending, session):
                self._count("not decided in time")
                return None
            return pending.sid.result()
        except asyncio.CancelledError:
            if pending.sid.done() and (sid := pending.sid.result()) is not None:
                self._clients.basic_disconnect(sid, namespace)
            raise
        finally:
            del self._pending[request]
            pending.settle(None)

    def _insist(self, message: Resume | Seize, pending: _Pending) -> bool:
        """Say something for a client that waits, and again while the broker does not take it; False when closed."""

        def settled(*, taken: bool) -> None:
            if not taken and not pending.sid.done():
                asyncio.get_running_loop().call_later(_AGAIN, self._insist, message, pending)

        return pending.sid.done() or self.serving.say(message, settled)

    async def _decided(self, pending: _Pending, session: Session) -> bool:
        """Whether the log has decided, in time (rule 6)."""
        node, within = self._node, self.settings.patience + self._node.settings.request_timeout
        before = node.stats.disconnects if node.linked.is_set() else None
        await asyncio.wait({pending.sid}, timeout=within)
        if pending.sid.done() or (node.linked.is_set() and node.stats.disconnects == before):
            return pending.sid.done()
        left = _OUTAGE
        if session.parted is not None:
            left = min(left, session.parted + self.settings.window - time.time())
        link = asyncio.ensure_future(node.linked.wait())
        either: set[asyncio.Future[Any]] = {pending.sid, link}
        try:
            await asyncio.wait(either, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
        finally:
            link.cancel()
        if node.linked.is_set():
            await asyncio.wait({pending.sid}, timeout=within)
        return pending.sid.done()

    def admit(self, client: Client, namespace: str, wish: Wish) -> None:
        """A client has a fresh session."""
        if wish.offered and self.reader.known:
            pid = new_pid()
            client.session = Served(pid, client, namespace, born=self.reader.tail.latest, identity=wish.identity)

    def let_in(self, client: Client) -> None:
        """A client has been told that it is accepted, and its handler is done."""
        if (more := self._fanout.let_go(client)) is not None:
            self._node.spawn(more)

    def deliver(self, clients: Iterable[Client], emit: Emit, parts: Parts) -> None:
        """Hand an event to clients, with its place to those who may come back."""
        placed: list[Client] = []
        plain: list[Client] = []
        place = self.reader.tail.latest
        for client in clients:
            served = client.session
            if served is None:
                plain.append(client)
            else:
                served.last = place
                placed.append(client)
        if plain:
            self._fanout.send(plain, parts, volatile=emit.volatile)
        if placed:
            parts = self._packets.with_place(parts, emit.namespace, self.reader.tail.text)
            self._fanout.send(placed, parts, volatile=emit.volatile)

    def _count(self, why: str) -> None:
        self._node.stats.sessions_unrecovered += 1
        logger.info("roomcast: a client came back and gets a fresh session: the old one is %s", why)

    def _granted(self, granted: Granted) -> None:
        session, pending = granted.session, self._pending.get(granted.request)
        pid, term, keep = session.keep.pid, session.term, session.keep
        if (
            pending is None
            or pending.sid.done()
            or not self.serving.here(pending.eio_sid)
            or self._rooms.by_eio_sid(pending.namespace, pending.eio_sid) is not None
        ):
            self.serving.say(Part(pid, term))  # it has gone again
            if pending is not None:
                pending.settle(None)
            return
        try:
            kept = self._missed(session, pending.place)
        except ReplayUnavailable as exc:
            self.serving.say(Part(pid, term, over=True))
            self._count(f"incomplete: {exc}")
            pending.settle(None)
            return
        place = None if pending.place is None else read_place(pending.place)
        self._take_back(keep, term, pending.eio_sid, 0 if place is None else place[1], *kept)
        self._node.stats.sessions_recovered += 1
        pending.settle(keep.sid)

    def _take_back(
        self, keep: Keep, term: int, eio_sid: str, place: int, kept: Iterator[Kept], wanted: Callable[[Kept], bool]
    ) -> None:
        clients, namespace, sid = self._clients, keep.namespace, keep.sid
        if (before := self._rooms.client(namespace, sid)) is not None:
            self.serving.replaced(before)
            clients.basic_disconnect(sid, namespace)
        client = clients.admit(namespace, sid, eio_sid)
        for stay in keep.stays:
            if stay.left is None:
                with contextlib.suppress(ValueError):  # a sid's own room by now
                    clients.basic_enter_room(sid, namespace, stay.room)
        served = Served.resumed(keep, term, client)
        self.serving.resumed(client, served)
        self._eio.sockets[eio_sid].session[namespace] = _stored(keep)
        frames = self._replays.frames(kept, wanted, keep.epoch, lambda last: served.replayed(last or place))
        self._fanout.hold(client, frames)

    def _missed(self, session: Session, text: str | None) -> tuple[Iterator[Kept], Callable[[Kept], bool]]:
        """What was sent since a client got this place last, and whether it has missed one of that.

        Raises:
            ReplayUnavailable: it cannot be said, or not all of it is held.
        """
        place = None if text is None else read_place(text)
        if (text is not None and place is None) or session.keep.epoch != self.reader.tail.epoch:
            raise ReplayUnavailable("The place is not one of this log.", reason="epoch_changed")
        keep, start = session.keep, session.start(place)
        subjects = self._node.subjects
        heard = [subjects.namespace(keep.namespace)]
        heard += [subjects.room(keep.namespace, room) for room in {stay.room for stay in keep.stays}]
        return self.reader.tail.since(start, heard), owed(start, keep.sid, keep.namespace, keep.stays)

    def _denied(self, request: int, why: str) -> None:
        if (pending := self._pending.get(request)) is not None:
            self._count(why)
            pending.settle(None)

    def _wait(self, asked: Asked) -> None:
        """Another connection, here or elsewhere, has the session: its node shall let go, or it is taken."""
        pending, session, node = self._pending.get(asked.request), asked.session, self._node
        if pending is None:
            return
        if pending.timer is not None:
            pending.timer.cancel()  # it was for the owner before
        gone = node.membership.has_met and session.owner not in node.peers and session.owner != node.id
        now = time.monotonic()
        self._silence.ask(session.owner, now)
        self._wait_on(pending, session.owner, now, Seize(session.keep.pid, session.term), at_once=gone)

    def _wait_on(self, pending: _Pending, owner: str, asked: float, seize: Seize, *, at_once: bool = False) -> None:
        left = 0.0 if at_once else self._silence.left(owner, asked, time.monotonic())
        if left:
            again = partial(self._wait_on, pending, owner, asked, seize)
            pending.timer = asyncio.get_running_loop().call_later(left, again)
        else:
            self._insist(seize, pending)

    # Clients that are away

    def knows(self, sid: str) -> bool:
        """Whether a sid is, or was lately, that of a client that can be restored."""
        return self.reader.table.by_sid(sid) is not None

    def end(self, sid: str) -> None:
        """A client that is away shall not come back."""
        session = self.reader.table.by_sid(sid)
        if session is not None and session.parted is not None:
            self.serving.say(Part(session.keep.pid, session.term, over=True, sent_away=True))

    def data(self, sid: str, namespace: str) -> dict[str, Any] | None:
        """What the application stored with a client that is away; None when it is not."""
        session = self.reader.table.by_sid(sid)
        if session is None or session.keep.namespace != namespace or session.parted is None:
            return None
        return _stored(session.keep) if time.time() - session.parted <= self.settings.window else None

    # The node

    def _on_left(self, info: NodeInfo, why: Literal["bye", "lost"]) -> None:
        self._silence.heard(info.id)
        if why == "lost" and self.reader.table.serves(info.id):
            self.serving.say(Lost(info.id))

    def _close(self) -> None:
        self.serving.close()
        for pending in self._pending.values():
            pending.settle(None)


def _stored(keep: Keep) -> dict[str, Any]:
    try:
        return _decoder.decode(keep.data)
    except DECODE_ERRORS:  # of a stranger's making
        return {}
