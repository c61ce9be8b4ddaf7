"""Presence: who is in a room on all nodes, and who comes and goes, as it happens.

1. A watch is entered once every node alive then has told who it has in the room. A node that dies meanwhile is not
   waited for; one that comes later tells, too, and its members are joins.
2. The watches of one room on one node share what is known. Each one shows it step by step (see `watching`).
3. What a node tells is in order with all it sends: whoever gets a message of it knows the joins that came before.
4. A node that says bye, or is lost, takes its members along. What may be missing is asked for again: at once when
   there is a gap, else with the next heartbeat. While this node has no link, what it shows stays as it was.
5. With each heartbeat this node renews its watches, `_RENEWED` of them at most, in turns, and is answered: so a hole is
   seen that nothing else tells, and a watch comes back that another node has forgotten, since it took this one for
   lost. One that is over here and is told nevertheless is ended again.
6. Nothing is kept for a watch that was left, here or anywhere.

What is known is kept in `watching`, what others are told in `telling`; this is the shell around both.
"""

import asyncio
import time
from types import TracebackType
from typing import Literal

from roomcast.core.broker import Gap, Subject
from roomcast.core.errors import BrokerClosed, RequestTimeout, WireError
from roomcast.core.membership import NodeInfo
from roomcast.core.messages import Members, Message, Unwatch, Watch, encode_message
from roomcast.core.node import Node
from roomcast.core.rooms import Rooms
from roomcast.core.sids import owner
from roomcast.core.subjects import Room
from roomcast.core.telling import Place, Telling
from roomcast.core.watching import Change, Mirror, View
from roomcast.core.wire import OVERHEAD

_PAGE = 500  # sids in one message
_SID, _HEAD = 22, 64  # bytes of one of them, and of the message without them
_RENEWED = 500  # watches that are renewed with one heartbeat
_AT_ONCE, _PAUSE = 1000, 0.05  # requests that are sent in one go, and seconds to the next one
_ENDED = 1000  # watches of others that are ended again with one heartbeat


class PresenceWatch:
    """Who is in a room: use it as an async context manager, and iterate over it for who comes and goes.

    `async with` returns once the present set is complete (rule 1). One task at a time should iterate. The iteration
    ends when the watch is left, and raises `BrokerClosed` when the adapter is closed.
    """

    def __init__(self, presence: "Presence", place: Place) -> None:
        self._presence = presence
        self._place = place
        self._view = View()
        self._open = False
        self.news = asyncio.Event()

    @property
    def present(self) -> dict[str, str]:
        """The members, and the id of each one's node.

        Until the first change is asked for, who is there now. From then on, who is there after the changes that were
        given: what is copied from here is kept exact by the changes that follow.
        """
        return self._view.look()

    async def __aenter__(self) -> "PresenceWatch":
        """Begin to watch.

        Raises:
            RequestTimeout: nodes did not tell within `request_timeout`; they are in `missing`, and the watch is over.
            BrokerUnavailable: the adapter has not joined the cluster.
            PayloadTooLarge, Backpressure, BrokerClosed: the other nodes cannot be asked.
            RuntimeError: it is entered already.
        """
        if self._open:
            raise RuntimeError("This watch is entered already: make another one with `adapter.presence`.")
        self._open = True
        try:
            self._view = View(await self._presence.begin(self, self._place))
        except BaseException:
            self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def __aiter__(self) -> "PresenceWatch":
        return self

    async def __anext__(self) -> Change:
        while self._open:
            if (change := self._view.next()) is not None:
                return change
            self._presence.check_open()
            self.news.clear()
            await self.news.wait()
        raise StopAsyncIteration

    def note(self, changes: list[Change]) -> None:
        """This has changed; nothing, when only the state of the nodes or of the adapter has."""
        self._view.note(changes)
        self.news.set()

    def _end(self) -> None:
        self._open = False
        self._presence.end(self, self._place)
        self.news.set()


class _Watched:
    """A room that is watched here: what is known of it, and the watches that share that (rule 2)."""

    def __init__(self, number: int, place: Place) -> None:
        self.number = number
        self.place = place
        self.mirror = Mirror()
        self.beginning: dict[PresenceWatch, None] = {}
        self.watches: dict[PresenceWatch, None] = {}

    def note(self, changes: list[Change]) -> None:
        """Tell the watches."""
        for watch in self.watches:
            watch.note(changes)
        for watch in self.beginning:
            watch.news.set()

    def message(self, *, again: bool) -> Watch:
        """What asks another node."""
        return Watch(self.number, *self.place, again)


class Presence:
    """What one node watches, and what it tells to those who watch it.

    Args:
        node: the node.
        rooms: its clients' rooms.
    """

    def __init__(self, node: Node, rooms: Rooms) -> None:
        self._node = node
        self._rooms = rooms
        self._inbox = node.subjects.inbox(node.id)
        self._telling = Telling(self._members, patience=2 * node.settings.peer_timeout)
        self._number = 0
        self._watched: dict[int, _Watched] = {}  # in the order in which they are renewed
        self._places: dict[Place, _Watched] = {}
        self._asks: dict[tuple[str, int], bool] = {}  # (node or "" for all, watch): whether the whole set is wanted
        self._ended: set[tuple[str, int]] = set()
        self._flushing: asyncio.Handle | None = None
        self._asking: asyncio.TimerHandle | None = None
        self._closed = False
        node.handlers |= {Watch: self._on_watch, Unwatch: self._on_unwatch, Members: self._on_members}
        node.membership.on_joined.append(self._on_joined)
        node.membership.on_left.append(self._on_left)
        node.publisher.before.append(self._flush)
        node.on_beat.append(self._on_beat)
        node.on_close.append(self._on_close)

    # What this node's own clients do

    def entered(self, namespace: str, room: Room | None, sid: str) -> None:
        """A client of this node came into a room, or (None) into a namespace."""
        place = namespace, room
        if (watched := self._places.get(place)) is not None:
            watched.note(watched.mirror.here(self._node.id, (sid,)))
        self._telling.entered(place, sid)
        self._flush_soon()

    def exited(self, namespace: str, room: Room | None, sid: str) -> None:
        """A client of this node left a room, or (None) a namespace."""
        place = namespace, room
        if (watched := self._places.get(place)) is not None:
            watched.note(watched.mirror.here(self._node.id, (), (sid,)))
        self._telling.exited(place, sid)
        self._flush_soon()

    def _members(self, namespace: str, room: Room | None) -> list[str]:
        return [client.sid for client in self._rooms.members(namespace, room)]

    # Watching

    def watch(self, namespace: str, room: Room | None) -> PresenceWatch:
        """A watch that is to be entered."""
        return PresenceWatch(self, (namespace, room))

    def check_open(self) -> None:
        """Raise `BrokerClosed` once the node is closed."""
        if self._closed:
            raise BrokerClosed("The adapter was closed: nobody is watched any more.", broker=self._node.broker_name)

    async def begin(self, watch: PresenceWatch, place: Place) -> Mirror:
        """Watch a place; what is known of it, once that is complete (rule 1)."""
        node = self._node
        await node.met()
        deadline = asyncio.get_running_loop().time() + node.settings.request_timeout
        watched = self._places.get(place) or await self._ask_all(place)
        watched.beginning[watch] = None
        waiting = node.peers.ids
        try:
            async with asyncio.timeout_at(deadline):
                while missing := waiting & watched.mirror.unsure:
                    self.check_open()
                    watch.news.clear()
                    await watch.news.wait()
        except TimeoutError:
            timeout = node.settings.request_timeout
            if missing := waiting & watched.mirror.unsure:
                raise RequestTimeout(
                    f"Nodes {', '.join(sorted(missing))} did not tell within {timeout} s who is there.",
                    replies={},
                    missing=missing,
                ) from None
        self.check_open()
        watched.beginning.pop(watch, None)
        watched.watches[watch] = None
        return watched.mirror

    async def _ask_all(self, place: Place) -> _Watched:
        self._number += 1
        watched = _Watched(self._number, place)
        raw = encode_message(watched.message(again=True))
        await self._node.publisher.reserve(len(raw))
        if (other := self._places.get(place)) is not None:  # it came while this one waited for its turn
            self._node.publisher.release_place(len(raw))
            return other
        self._watched[watched.number] = self._places[place] = watched
        watched.mirror.here(self._node.id, self._members(*place))
        watched.mirror.expect(sorted(self._node.peers.ids))
        self._node.publisher.put(self._node.subjects.control, raw)
        return watched

    def end(self, watch: PresenceWatch, place: Place) -> None:
        """A watch is left (rule 6)."""
        watched = self._places.get(place)
        if watched is None:
            return
        watched.watches.pop(watch, None)
        watched.beginning.pop(watch, None)
        if not watched.watches and not watched.beginning:
            del self._places[place], self._watched[watched.number]
            if not self._closed:
                self._send(self._node.subjects.control, Unwatch(watched.number))

    def _on_members(self, origin: str, told: Members) -> None:
        watched = self._watched.get(told.number)
        if watched is None:
            self._end_again(origin, told.number)
            return
        if not self._node.roams and any(owner(sid) != origin for sids in (told.joined, told.left) for sid in sids):
            raise WireError("foreign", f"Node {origin} told of clients that are not its own.")
        watched.note(watched.mirror.take(origin, told))

    def _end_again(self, origin: str, number: int) -> None:
        """Rule 5, once in each heartbeat: a flood must not be answered by another one."""
        if (origin, number) not in self._ended and len(self._ended) < _ENDED:
            self._ended.add((origin, number))
            self._node.answer(origin, Unwatch(number))

    def _on_joined(self, info: NodeInfo) -> None:
        for watched in self._watched.values():
            watched.mirror.expect({info.id})
            self._ask(info.id, watched, again=True)

    def _on_left(self, info: NodeInfo, why: Literal["bye", "lost"]) -> None:
        if why == "bye":
            self._telling.bye(info.id)
        for watched in self._watched.values():
            watched.note(watched.mirror.left(info.id))

    # Making good what may be missing (rules 4 and 5)

    def on_gap(self, gap: Gap) -> None:
        """Something that was told may be missing. What this node gave up itself its watchers will miss."""
        if gap.reason != "given_up" and not gap.ongoing and gap.subject in (None, self._inbox):
            doubted = sorted(self._node.peers.ids) if gap.origin is None else [gap.origin]
            for watched in self._watched.values():
                for node in doubted:
                    watched.mirror.doubt(node)
                self._ask(gap.origin or "", watched, again=True)

    def _on_beat(self) -> None:
        self._ended.clear()
        if not self._connected:
            return
        self._telling.beat(time.monotonic(), self._node.peers.ids)
        self._flush_soon()
        for number in [number for _, number in zip(range(_RENEWED), self._watched, strict=False)]:
            watched = self._watched[number] = self._watched.pop(number)
            self._ask("", watched, again=False)
        for watched in self._watched.values():
            for node in sorted(watched.mirror.unsure):
                self._ask(node, watched, again=True)

    @property
    def _connected(self) -> bool:
        return self._node.health().connected

    def _ask(self, node: str, watched: _Watched, *, again: bool) -> None:
        """Ask a node, or ("") all of them; without a link, not before it is back: then all are asked."""
        if self._connected and not self._closed:
            self._asks[node, watched.number] = self._asks.get((node, watched.number), False) or again
            if self._asking is None:
                self._asking = asyncio.get_running_loop().call_later(0, self._ask_some)

    def _ask_some(self) -> None:
        self._asking = None
        for node, number in list(self._asks)[:_AT_ONCE]:
            again = self._asks.pop((node, number))
            watched = self._watched.get(number)
            if watched is None:
                continue
            subject = self._node.subjects.inbox(node) if node else self._node.subjects.control
            if not self._send(subject, watched.message(again=again)):
                self._asks.clear()  # the next heartbeat asks again
                break
        if self._asks:
            self._asking = asyncio.get_running_loop().call_later(_PAUSE, self._ask_some)

    def _send(self, subject: Subject, message: Message) -> bool:
        raw = encode_message(message)
        if not self._node.publisher.reserve_anyway(len(raw)):
            return False
        self._node.publisher.put(subject, raw)
        return True

    # Telling

    def _on_watch(self, origin: str, watch: Watch) -> None:
        if not self._telling.watch(origin, watch, time.monotonic()):
            raise WireError("busy", "Too many rooms of this node are watched: one more is refused.")
        self._flush_soon()

    def _on_unwatch(self, origin: str, message: Unwatch) -> None:
        self._telling.unwatch(origin, message.number)

    def _flush_soon(self) -> None:
        if self._telling.due and self._flushing is None and not self._closed:
            self._flushing = asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Tell what is due, before anything else is sent (rule 3)."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if not self._telling.due:
            return
        page = min(_PAGE, (self._node.publisher.limit - OVERHEAD - _HEAD) // _SID)
        self._telling.tell(self._node.answer, page)

    def _on_close(self) -> None:
        self._closed = True
        for handle in (self._flushing, self._asking):
            if handle is not None:
                handle.cancel()
        self._asks.clear()
        for watched in self._watched.values():
            watched.note([])
