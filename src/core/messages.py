"""What nodes say to one another: one struct for each kind of message, and its bytes.

Each struct is a msgpack array whose first item is the kind's number; newer versions only append fields. Unknown
trailing fields are ignored, unknown kinds and what does not fit are refused with a `WireError`.

Pure: no message knows a clock, a loop or a socket.
"""

from typing import Annotated, Any

import msgspec

from roomcast.core.errors import EncodeError, WireError
from roomcast.core.subjects import Room

NodeId = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,32}\Z")]  # it becomes part of a subject
Name = Annotated[str, msgspec.Meta(max_length=100_000)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Number = Annotated[int, msgspec.Meta(ge=1, le=2**62)]

KNOWN = 1000
"""Nodes that one `Hello` names at most."""

_NIL = msgspec.Raw(b"\xc0")


class Packet(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A Socket.IO packet as its publisher encoded it; opaque to the core.

    Attributes:
        codec: which serializer made it: "json", "msgpack", or the name of an application's packet class.
        text: the packet, when it is text; else empty.
        blobs: the packet, when it is bytes, or its binary attachments.
    """

    codec: str
    text: str
    blobs: tuple[bytes, ...] = ()

    @property
    def parts(self) -> tuple[str | bytes, ...]:
        """What Engine.IO carries, in this order."""
        return (self.text, *self.blobs) if self.text else self.blobs


class Selection(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Clients of a namespace: those in any of `rooms` (all of it when empty) and in none of `excluded`.

    A sid is the name of a room with one member, in both lists.
    """

    namespace: Name
    rooms: tuple[Room, ...] = ()
    excluded: tuple[Room, ...] = ()


class Emit(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    """Hand a packet to the clients of a `Selection`, spelled out here because this is the message that counts.

    Attributes:
        request: with one, their acknowledgements are wanted, under that number.
        volatile: a client for whom other packets wait does not get this one.
    """

    namespace: Name
    rooms: tuple[Room, ...]
    packet: Packet
    excluded: tuple[Room, ...] = ()
    request: Count = 0
    volatile: bool = False


class Expect(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """Answer to an `Emit` with a request: these clients were given the packet and may acknowledge it.

    Attributes:
        more: whether another `Expect` of this node follows.
    """

    request: Number
    sids: tuple[str, ...]
    more: bool = False


class Ack(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """A client acknowledged; `packet` is its ACK packet, or None when the client went away instead."""

    request: Number
    sid: str
    packet: Packet | None = None


class Join(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """Put clients into rooms; answered by a `Reply` once emits to the rooms reach them, with how many they were."""

    request: Number
    selection: Selection
    rooms: tuple[Room, ...]


class Leave(msgspec.Struct, array_like=True, tag=5, frozen=True):
    """Take clients out of rooms; answered by a `Reply` with how many they were."""

    request: Number
    selection: Selection
    rooms: tuple[Room, ...]


class Disconnect(msgspec.Struct, array_like=True, tag=6, frozen=True):
    """Disconnect clients, with `close` their connections too; answered by a `Reply` with how many they were."""

    request: Number
    selection: Selection
    close: bool = False


class CloseRoom(msgspec.Struct, array_like=True, tag=7, frozen=True):
    """Take everyone out of a room."""

    namespace: Name
    room: Room


class Reply(msgspec.Struct, array_like=True, tag=8, frozen=True):
    """The answer of one node to one request, or a part of it.

    Attributes:
        value: a number, when that is what was asked for.
        error: why it could not be done; empty when it was done.
        data: anything else, in msgpack.
        more: another part follows once it is asked for with `More`.
    """

    request: Number
    value: Count = 0
    error: str = ""
    data: msgspec.Raw = _NIL
    more: bool = False


class Hello(msgspec.Struct, array_like=True, tag=9, frozen=True):
    """A node introduces itself.

    Attributes:
        name: for people: host and process.
        started: seconds since 1970.
        partitions: its broker's `guarantees.partitions`, 0 for none; nodes that differ cannot hear one another.
        heartbeat: seconds between its heartbeats.
        answer: whether the hearers shall introduce themselves in turn, to its inbox.
        version: of roomcast.
        peers: ids of the nodes it knows, so that a newcomer knows when it has met all; at most `KNOWN` of them.
        window: seconds for which it can restore clients that come back; 0 when it cannot.
    """

    name: Annotated[str, msgspec.Meta(max_length=256)]
    started: float
    partitions: Count
    heartbeat: Annotated[float, msgspec.Meta(gt=0)]
    answer: bool
    version: Annotated[str, msgspec.Meta(max_length=64)] = ""
    peers: tuple[NodeId, ...] = ()
    window: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Heartbeat(msgspec.Struct, array_like=True, tag=10, frozen=True):
    """A node is alive, with so many clients and rooms."""

    clients: Count
    rooms: Count = 0


class Bye(msgspec.Struct, array_like=True, tag=11, frozen=True):
    """A node leaves for good."""


class CountClients(msgspec.Struct, array_like=True, tag=12, frozen=True):
    """How many clients are there? Answered by a `Reply`."""

    request: Number
    selection: Selection


class Fetch(msgspec.Struct, array_like=True, tag=13, frozen=True):
    """Describe the clients; answered by `Reply` in parts, `data` a list of `descriptions.Description`."""

    request: Number
    selection: Selection


class ListRooms(msgspec.Struct, array_like=True, tag=14, frozen=True):
    """Which rooms have members? Answered by `Reply` in parts, `data` a list of (room, members)."""

    request: Number
    namespace: Name


class More(msgspec.Struct, array_like=True, tag=15, frozen=True):
    """Send the next part of an answer, or, with `stop`, no more of it."""

    request: Number
    stop: bool = False


class ServerEvent(msgspec.Struct, array_like=True, tag=16, frozen=True):
    """An event for the application on the addressed nodes; with a request, answered by a `Reply`."""

    event: Name
    args: tuple[Any, ...]
    request: Count = 0


class Census(msgspec.Struct, array_like=True, tag=17, frozen=True):
    """Who is there? Asked by a process that is no node itself; answered by a `Hello` to its inbox."""


class Watch(msgspec.Struct, array_like=True, tag=18, frozen=True):
    """Tell who is in a room (None: in the namespace), and then who comes and goes; answered by `Members`.

    A watch is renewed with every heartbeat and ends when it is not.

    Attributes:
        number: its name, unique for the origin.
        again: tell the whole set, even if that was done.
    """

    number: Number
    namespace: Name
    room: Room | None
    again: bool = False


class Unwatch(msgspec.Struct, array_like=True, tag=19, frozen=True):
    """A watch is over."""

    number: Number


class Members(msgspec.Struct, array_like=True, tag=20, frozen=True):
    """What a watch is told by one node.

    Attributes:
        number: the watch.
        version: one more than in the message before, so that a hole is seen.
        joined, left: sids.
        whole: `joined` begins the whole set anew.
        more: the whole set goes on in the next message.
    """

    number: Number
    version: Count
    joined: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    whole: bool = False
    more: bool = False


class Claim(msgspec.Struct, array_like=True, tag=21, frozen=True):
    """A client claims a key; answered by `Reply` in parts, `data` a list of (clock, sid, held) of its rivals.

    Attributes:
        clock: with the sid, the claim's ticket: the lower one came first.
    """

    request: Number
    key: Name
    sid: str
    clock: Number


class Evict(msgspec.Struct, array_like=True, tag=22, frozen=True):
    """A claim has lost its place to a later one; answered by a `Reply` once its client is disconnected."""

    request: Number
    key: Name
    sid: str
    clock: Number


Pid = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Spot = Annotated[int, msgspec.Meta(ge=-1, le=2**62)]
"""The number of a place in the log (see `tail`)."""


class Stay(msgspec.Struct, array_like=True, frozen=True):
    """A client is, or was, in a room: it got what came after `joined`, up to `left`."""

    room: Room
    joined: Spot
    left: Spot | None = None


class Keep(msgspec.Struct, array_like=True, tag=23, frozen=True):
    """A client's session, as the node that serves it describes it (see `sessions`).

    Attributes:
        pid: names the session, and is known to its client alone.
        term: counts the nodes that have served it.
        data: what the application stored with it, in msgpack by name.
        epoch: of the log; all places are of it.
        born: where the client was admitted.
        last: the place of the last packet that it was given; 0 when it was given none, -1 while that is not known.
        upto: up to here nothing else was for it.
        identity: who the client is, as the application says; empty when it does not.
        floor: of stays that ended before it not all are named here.
        number: counts the descriptions in this term.
    """

    pid: Pid
    term: Count
    sid: str
    namespace: Name
    stays: tuple[Stay, ...]
    data: msgspec.Raw
    epoch: str
    born: Spot
    last: Spot
    upto: Spot
    identity: Name = ""
    floor: Spot = 0
    number: Count = 0


class Part(msgspec.Struct, array_like=True, tag=24, frozen=True):
    """A node serves a session no longer; with `over`, nobody ever will.

    Attributes:
        number: of its last description in this term, 0 when there was none.
        sent_away: with `over`, the application wants that, also when another node has resumed the session since.
    """

    pid: Pid
    term: Count
    over: bool = False
    number: Count = 0
    sent_away: bool = False


class Resume(msgspec.Struct, array_like=True, tag=25, frozen=True):
    """A client has come back to a node, which asks to serve its session."""

    request: Number
    pid: Pid


class Refuse(msgspec.Struct, array_like=True, tag=26, frozen=True):
    """The client of a session that is asked for is still there."""

    pid: Pid
    term: Count


class Seize(msgspec.Struct, array_like=True, tag=27, frozen=True):
    """The node that serves a session did not answer one that asks for it."""

    pid: Pid
    term: Count


class Lost(msgspec.Struct, array_like=True, tag=28, frozen=True):
    """A node has been silent for too long: what it served is free."""

    node: NodeId


class Echo(msgspec.Struct, array_like=True, tag=29, frozen=True):
    """Comes back to the node that sent it, behind what that sent before; it means nothing else."""


Message = (
    Emit
    | Expect
    | Ack
    | Join
    | Leave
    | Disconnect
    | CloseRoom
    | Reply
    | Hello
    | Heartbeat
    | Bye
    | CountClients
    | Fetch
    | ListRooms
    | More
    | ServerEvent
    | Census
    | Watch
    | Unwatch
    | Members
    | Claim
    | Evict
    | Keep
    | Part
    | Resume
    | Refuse
    | Seize
    | Lost
    | Echo
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)

DECODE_ERRORS = (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError)
"""What msgspec may raise about bytes of a stranger."""


def encode_message(message: Message) -> bytes:
    """One message as bytes, ready for an envelope.

    Raises:
        EncodeError: it holds what cannot be serialised: text that is not Unicode, a number that no wire carries.
    """
    try:
        return _encoder.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise EncodeError(f"The message cannot be encoded: {exc}.") from exc


def decode_message(raw: bytes | msgspec.Raw) -> Message:
    """The inverse of `encode_message`.

    Raises:
        WireError: "unknown" for a kind of message that this version does not know, else "malformed".
    """
    try:
        return _decoder.decode(raw)
    except DECODE_ERRORS as exc:
        kind = "unknown" if "Invalid value" in str(exc) and "$[0]" in str(exc) else "malformed"
        raise WireError(kind, f"A message could not be read: {exc}.") from exc
