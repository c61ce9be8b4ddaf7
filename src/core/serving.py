"""The sessions that one node serves: what it tells of them, and how it lets go of them.

1. A client that disconnects, is disconnected or refused has no session any more. One whose connection is lost does.
2. What can change a session (a room, the session data) is told to all within `_SETTLE`, and everything again in each
   half window.
3. A client that has come back is known to others by its sid: when the application sends it away before its connect
   handler is done, its session is over, and it is refused (`doorway`).
4. A session that is asked for is given up when its client does not answer a ping. It is described at once, so that who
   asks knows that this node is there (`silence`).
5. A session of which the latest cannot be told (it has too many rooms for a message) cannot be resumed until it can:
   what was told before is not all of it.
6. What the broker does not take is said again until it does (`unsaid`); when the session is asked for, at once. Until
   then others can only know what was said before. When one of them has been given that, it is told that it was a part.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from roomcast.core.descriptions import stored
from roomcast.core.fanout import FanOut
from roomcast.core.log_reader import PERIODS, LogReader
from roomcast.core.messages import Keep, Message, Part, Refuse
from roomcast.core.node import Node
from roomcast.core.options import Recovery
from roomcast.core.probe import Probe
from roomcast.core.rooms import Client, State
from roomcast.core.served import Served
from roomcast.core.sessions import Session
from roomcast.core.subjects import Room
from roomcast.core.unsaid import Unsaid, is_sent_away

logger = logging.getLogger("roomcast")

_SETTLE = 0.05
"""Seconds within which several changes of a session are told at once (rule 2)."""

_SLICE = 256  # sessions that are said again before the first of them is taken (rule 6)


class Serving:
    """What one node serves.

    Args:
        node: tells of it.
        settings: of the recovery.
        reader: of the log.
    """

    def __init__(self, node: Node, settings: Recovery, reader: LogReader) -> None:
        self._node = node
        self._settings = settings
        self._reader = reader
        self._served: dict[str, Served] = {}
        self._changed: dict[Served, None] = {}
        self._settling: asyncio.TimerHandle | None = None
        self._unsaid = Unsaid(settings.sessions)
        self._again: asyncio.TimerHandle | None = None
        self._omitted: set[str] = set()
        self._period = settings.window * (1 / 2 - 1 / PERIODS)
        self._closed = False

    def serve(self, server: Any, fanout: FanOut) -> None:
        """The clients are those of this server."""
        self._server = server
        self._eio = server.eio
        self._fanout = fanout
        self._probe = Probe(server.eio, self._settings.patience / 3)

    def say(self, message: Message, then: Callable[..., None] | None = None) -> bool:
        """Say something of a session to all; False when it cannot be sent, and will not be.

        Args:
            message: a `Part` is said until the broker takes it (rule 6).
            then: for others, see `Node.send`.
        """
        if self._closed:
            return False
        if not isinstance(message, Part):
            return self._node.send(self._node.subjects.sessions, message, then)
        if not self._unsaid.waits(message):
            self._tell(message)
        return True

    def here(self, eio_sid: str) -> bool:
        """Whether a connection is there, and nothing ends it."""
        socket = self._eio.sockets.get(eio_sid)
        return socket is not None and not socket.closed and not socket.closing

    # Clients that are here

    def connected(self, client: Client) -> None:
        """A client is accepted: from now on it can come back."""
        if (served := _lasting(client)) is not None and not self._closed:
            self._served[served.pid] = served
            self._keep(served)

    def resumed(self, client: Client, served: Served) -> None:
        """A client has come back, with its session."""
        client.session = self._served[served.pid] = served

    def replaced(self, client: Client) -> None:
        """A client has come back already, on another connection: this one has no session any more."""
        if client.session is not None:
            self._drop(client.session)

    def entered(self, client: Client, room: Room) -> None:
        """A client came into a room."""
        if (served := _lasting(client)) is not None:
            served.entered(room, self._reader.tail.latest)
            self._change(served)

    def exited(self, client: Client, room: Room) -> None:
        """A client left a room."""
        if (served := _lasting(client)) is not None:
            served.exited(room, self._reader.tail.latest)
            self._change(served)

    def changed(self, client: Client) -> None:
        """The application stored something with a client."""
        if (served := _lasting(client)) is not None:
            self._change(served)

    # What is told of them (rules 2 and 5)

    def flush(self) -> None:
        """Tell what has changed, now."""
        changed, self._changed = self._changed, {}
        for served in changed:
            if self._served.get(served.pid) is served and not served.parting:
                self._keep(served)
        self._repeat(len(self._unsaid))

    def tick(self) -> None:
        """A period of the reader's clock is over."""
        now = time.monotonic()
        for served in tuple(self._served.values()):
            if not served.parting and served.kept is not None and now - served.kept > self._period:
                self._keep(served)

    def doubt(self, *, anew: bool) -> None:
        """Something of the log was not read, or (`anew`) it is another one: all is said again."""
        for served in self._served.values():
            served.cut(anew=anew)
        self.reassert()

    def reassert(self) -> None:
        """This node was taken for lost, or may have been: what it serves it says again."""
        for served in self._served.values():
            self._change(served)

    def _change(self, served: Served) -> None:
        if served.kept is None:
            return
        self._changed[served] = None
        if self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(_SETTLE, self._settle)

    def _settle(self) -> None:
        self._settling = None
        self.flush()

    def _keep(self, served: Served, *, probe: bool = False) -> None:
        """Describe a session to all."""
        socket = self._eio.sockets.get(served.client.eio_sid)
        if socket is not None:
            served.data, omitted = stored(socket.session.get(served.namespace, {}), self._settings.session_bytes)
            if new := set(omitted) - self._omitted:
                self._omitted |= new
                logger.warning("roomcast: session data that cannot be kept for recovery: %s", ", ".join(sorted(new)))
        served.kept = time.monotonic()
        tail = self._reader.tail
        keep = served.describe(tail.epoch, max(0, tail.latest))
        fits = self._node.carries(keep)
        if served.fits and not fits:
            logger.warning("roomcast: a session cannot be kept: it has too many rooms")
        served.fits = fits
        message = keep if fits else Part(served.pid, served.term, over=True)  # rule 5
        if not self._closed and not self._unsaid.waits(message):
            self._tell(message, served, probe=probe)

    # What the broker does not take (rule 6)

    def _tell(self, message: Keep | Part, served: Served | None = None, *, probe: bool = False) -> None:
        settled = partial(self._settled, message, served, probe)
        if not self._node.send(self._node.subjects.sessions, message, settled):
            settled(taken=False)

    def _settled(self, message: Keep | Part, served: Served | None, probe: bool, taken: bool) -> None:
        if self._closed:
            return
        if not taken and (served is None or not isinstance(message, Keep) or message.number == served.number):
            self._unsaid.refused(message)  # else a later one decides
        if probe:
            self._unsaid.tried(taken=taken)
            if taken:
                self._repeat(_SLICE)
        self._await_broker()

    def _await_broker(self) -> None:
        if self._unsaid and self._again is None:
            self._again = asyncio.get_running_loop().call_later(self._unsaid.pause, self._try_again)

    def _try_again(self) -> None:
        if self._again is not None:
            self._again.cancel()
        self._again = None
        if self._node.linked.is_set():
            self._repeat(1)
        else:
            self._await_broker()

    def _repeat(self, count: int) -> None:
        """Say it again of so many sessions; what becomes of the last of them decides how it goes on."""
        pids = self._unsaid.first(count)
        for pid in pids:
            probe = pid == pids[-1]
            served, messages = self._served.get(pid), self._unsaid.take(pid)
            if served is not None and not served.parting and served.term == messages[0].term:
                self._keep(served, probe=probe)
                for message in filter(is_sent_away, messages):  # in a term before, by whoever did not know of this one
                    self._tell(message)
                continue
            for message in messages:
                self._tell(message, probe=probe and message is messages[-1])
            if served is None and isinstance(messages[-1], Keep):  # whoever knows of none takes it for a new one
                self._node.send(self._node.subjects.sessions, Part(pid, messages[0].term, over=True))

    # Clients that go (rules 1, 3 and 4)

    def parting(self, client: Client, *, sent_away: bool) -> None:
        """A client is going: what it leaves behind is what it has now.

        Args:
            client: which.
            sent_away: the application wants it to go.
        """
        if (served := _lasting(client)) is None:
            return
        if sent_away or self.here(client.eio_sid):
            self._part(served, over=True)
            return
        self._keep(served)
        served.parting = True
        served.timer = asyncio.get_running_loop().call_later(
            self._settings.patience / 3, partial(self._part, served, over=False)
        )

    def went(self, client: Client) -> None:
        """A client is gone, and its disconnect handler is done."""
        if (served := client.session) is not None:
            self._part(served, over=not served.parting and self.here(client.eio_sid))

    def send_away(self, client: Client) -> None:
        """The application wants a client to go that is going already, or is not back yet: it shall not come back."""
        served: Served | None = client.session
        if served is None:
            return
        served.unwanted |= served.term > 0 and client.state is State.CONNECTING
        if served.parting or served.unwanted:
            self._drop(served)
            self.say(Part(served.pid, served.term, over=True, sent_away=True))

    def ended(self, session: Session, *, whole: bool) -> None:
        """A session of this node is over: its client is sent away or, when it is not whole, shall come back anew."""
        served = self._served.get(session.keep.pid)
        if served is None:
            return
        if whole:
            self._node.spawn(self._server.disconnect(served.client.sid, namespace=served.namespace))
            return
        logger.warning("roomcast: a client is cut that had come back: there was more to its session than was known")
        self._part(served, over=True)
        self._node.spawn(self._fanout.end(served.client))

    def _part(self, served: Served, *, over: bool) -> None:
        if self._drop(served):
            self.say(Part(served.pid, served.term, over or not served.fits, served.number))

    def _drop(self, served: Served) -> bool:
        """Serve a session no longer; False when that was so."""
        served.parting = True
        if served.timer is not None:
            served.timer.cancel()
        if self._served.get(served.pid) is not served:
            return False
        del self._served[served.pid]
        return True

    def asked(self, session: Session) -> None:
        """Another connection asks for a session of this node."""
        served = self._served.get(session.keep.pid)
        if served is None:
            self.say(Part(session.keep.pid, session.term, over=True))  # what was said of its end was lost
        else:
            self._keep(served)
        if session.keep.pid in self._unsaid:
            self._try_again()
        if served is None:
            return
        if not served.parting:
            self._node.spawn(self._test(served))

    async def _test(self, served: Served) -> None:
        """Rule 4."""
        client = served.client
        alive = await self._probe.answers(client.eio_sid)
        if self._served.get(served.pid) is not served or served.parting:
            return
        if alive:
            self.say(Refuse(served.pid, served.term))
            return
        await self._fanout.end(client)
        if not served.parting:  # its connect handler still runs
            self._part(served, over=False)

    def compare(self, session: Session | None) -> None:
        """A session that this node serves may have had another owner since."""
        served = None if session is None else self._served.get(session.keep.pid)
        if served is not None and session is not None and served.term < session.term:
            self._node.stats.sessions_taken += not served.parting
            if served in self._changed and not served.parting:
                self._keep(served)  # late, but who has it knows then that there was more
            self._drop(served)
            if served.pid in self._unsaid:
                self._try_again()
            self._node.spawn(self._fanout.end(served.client))

    def close(self) -> None:
        """The node has said bye: that frees all that it served."""
        self._closed = True
        for timer in (self._settling, self._again):
            if timer is not None:
                timer.cancel()
        for served in tuple(self._served.values()):
            self._drop(served)


def _lasting(client: Client) -> Served | None:
    """The session of a client, while what happens to the client changes it."""
    served: Served | None = client.session
    return None if served is None or served.parting else served
