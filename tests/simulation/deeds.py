"""What applications, their clients and operators do to a simulated cluster: one function for each kind of step."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from roomcast.core.errors import (
    Backpressure,
    BrokerClosed,
    BrokerUnavailable,
    EncodeError,
    PayloadTooLarge,
    RoomcastError,
)
from roomcast.core.wire import Envelope
from tests.simulation.faults import FAULTS_BY_KIND
from tests.simulation.history import Change, ClientLeaving, Outcome
from tests.simulation.parties import BURST, NAMESPACES, ROOMS, SETTINGS, Member, SimProcess
from tests.simulation.world import World

Deed = Callable[[World, random.Random], None]

EMIT = 2 * SETTINGS["emit_timeout"]
"""Seconds in which an emit ends: a place, then a confirm."""
ASK = SETTINGS["request_timeout"]
CLAIMED = {"k0": (1, "refuse"), "k1": (1, "evict_oldest"), "k2": (2, "refuse")}
"""Keys, how many may hold each, and what happens to one too many."""
_NOTHING_HAPPENED = (Backpressure, PayloadTooLarge, EncodeError, BrokerUnavailable)


def _do(
    world: World,
    node: SimProcess,
    call: Callable[[], int],
    deed: Callable[[], Coroutine[Any, Any, Any]],
    *,
    closed: Outcome = "unsure",
    then: Callable[[], None] = lambda: None,
) -> None:
    """Run an application's call to its end, and note both; `then` what it does when that was well.

    The call begins as soon as its process has its turn.
    """

    async def run() -> None:
        number = call()
        task = asyncio.current_task()
        assert task is not None
        world.calls[number] = node, task
        try:
            value = await deed()
        except asyncio.CancelledError as exc:
            world.ended(number, "cancelled", exc)
        except _NOTHING_HAPPENED as exc:
            world.ended(number, "failed", exc)
        except BrokerClosed as exc:  # of a request it may mean that nobody waits for the answer any more
            world.ended(number, closed, exc)
        except (RoomcastError, ValueError, ConnectionError) as exc:
            world.ended(number, "unsure", exc)
        else:
            world.ended(number, "returned", value=value)
            then()
        finally:
            del world.calls[number]

    world.spawn(node, run())


def _node(world: World, draw: random.Random) -> SimProcess | None:
    return draw.choice(running) if (running := world.running) else None


def _member(world: World, draw: random.Random) -> Member | None:
    members = [client for client in world.members if client.sid and not client.at.stopping]
    return draw.choice(members) if members else None


def _room(draw: random.Random) -> str:
    return draw.choice((*ROOMS, ROOMS[0], ROOMS[0]))


# Clients


def connect(world: World, draw: random.Random, node: SimProcess | None = None) -> None:
    node = node or _node(world, draw)
    if node is None or len(world.clients) > 40:
        return
    at, namespace = node, draw.choice((NAMESPACES[0], *NAMESPACES))
    rooms = draw.sample(ROOMS, draw.randint(0, 2))

    async def arrive() -> None:
        try:
            client = await world.connect(at, namespace)
        except ConnectionError:
            return
        for room in rooms:
            _enter(world, at, client, room)

    world.spawn(node, arrive())


def disconnect(world: World, draw: random.Random) -> None:
    if (client := _member(world, draw)) is None:
        return
    world.note(ClientLeaving(client.name))

    async def leave() -> None:
        await client.leave()
        if not (client.gone or client.lost):  # a connection that was lost first says nothing of leaving
            world.gone(client)

    world.spawn(client.at, leave())


def drop(world: World, draw: random.Random) -> None:
    """A connection is lost, and its client comes back."""
    if world.recovering and (client := _member(world, draw)) is not None:
        world.lose(client)
        world.spawn(client.at, client.lose())


# Rooms


def _move(
    world: World, by: SimProcess, verb: str, client: Member, room: str, deed: Callable[[], Coroutine[Any, Any, Any]]
) -> None:
    about: dict[str, Any] = {"client": client.name, "namespace": client.namespace, "rooms": (room,)}
    _do(world, by, lambda: world.call(by, verb, 3 * ASK, **about), deed)


def _enter(world: World, by: SimProcess, client: Member, room: str) -> None:
    _move(world, by, "enter", client, room, lambda: by.server.enter_room(client.sid, room, namespace=client.namespace))


def enter(world: World, draw: random.Random) -> None:
    if (client := _member(world, draw)) is not None:
        _enter(world, client.at, client, _room(draw))


def enter_elsewhere(world: World, draw: random.Random) -> None:
    if (client := _member(world, draw)) is not None and (by := _node(world, draw)) is not None:
        _enter(world, by, client, _room(draw))


def meet(world: World, draw: random.Random) -> None:
    """A client enters a room, and as soon as that is done somebody elsewhere emits to it."""
    client, node = _member(world, draw), _node(world, draw)
    if client is None or node is None:
        return
    room, at = _room(draw), client.at

    async def enter() -> None:
        await at.server.enter_room(client.sid, room, namespace=client.namespace)
        if node in world.running:
            world.loop.call_soon(_emit_later, context=node.context)

    def _emit_later() -> None:
        _emit(world, node, (room,), namespace=client.namespace)

    _move(world, at, "enter", client, room, enter)


def _leave(world: World, by: SimProcess, client: Member, room: str) -> None:
    _move(world, by, "leave", client, room, lambda: by.server.leave_room(client.sid, room, namespace=client.namespace))


def leave(world: World, draw: random.Random) -> None:
    """Half of those who are taken out of a room are told something there first."""
    if (client := _member(world, draw)) is None:
        return
    room, at = _room(draw), client.at
    if draw.random() < 0.5:
        _leave(world, at, client, room)
    else:
        _emit(world, at, (room,), namespace=client.namespace, then=lambda: _leave(world, at, client, room))


def leave_elsewhere(world: World, draw: random.Random) -> None:
    if (client := _member(world, draw)) is not None and (by := _node(world, draw)) is not None:
        _leave(world, by, client, _room(draw))


def close(world: World, draw: random.Random) -> None:
    if (node := _node(world, draw)) is None:
        return
    room, namespace = _room(draw), draw.choice(NAMESPACES)
    _do(
        world,
        node,
        lambda: world.call(node, "close", EMIT + ASK, namespace=namespace, rooms=(room,)),
        lambda: node.server.close_room(room, namespace=namespace),
    )


# Emits


def _emit(
    world: World, node: SimProcess, rooms: tuple[str, ...], excluded: tuple[str, ...] = (), **details: Any
) -> None:
    """Rooms are named as in the history: "@c0" is the room of a sid."""
    number = 0
    op, then = details.pop("op", "emit"), details.pop("then", lambda: None)

    def call() -> int:
        nonlocal number
        within = EMIT + (ASK + 1.0 if op == "ask" else 0.0)
        number = world.call(node, op, within, rooms=rooms, excluded=excluded, **details)
        return number

    async def emit() -> Any:
        operator = node.adapter.namespace(details.get("namespace", "/"))
        operator = operator.to(*_real(world, rooms)) if rooms else operator
        operator = operator.except_(*_real(world, excluded)) if excluded else operator
        operator = operator.volatile if details.get("volatile") else operator
        operator = operator.local if details.get("local") else operator
        if op == "ask":
            return tuple(sorted(world.name(answer.sid) for answer in await operator.emit_with_ack("e", number)))
        return await operator.emit("e", number)

    _do(world, node, call, emit, closed="failed" if op == "emit" else "unsure", then=then)


def _real(world: World, rooms: tuple[str, ...]) -> list[str]:
    sids = {f"@{client.name}": client.sid for client in world.clients}
    return [sids.get(room, room) for room in rooms]


def _target(world: World, draw: random.Random) -> tuple[str, ...]:
    kind = draw.random()
    if kind < 0.55:
        return (_room(draw),)
    if kind < 0.7 and (client := _member(world, draw)) is not None:
        return (f"@{client.name}",)
    return () if kind < 0.85 else tuple(draw.sample(ROOMS, 2))


def emit(world: World, draw: random.Random, *, op: str = "emit") -> None:
    if (node := _node(world, draw)) is None:
        return
    excluded: tuple[str, ...] = ()
    if draw.random() < 0.3:
        one = _member(world, draw)
        excluded = (f"@{one.name}",) if one is not None and draw.random() < 0.5 else (_room(draw),)
    details = {"volatile": draw.random() < 0.1, "local": draw.random() < 0.05} if op == "emit" else {}
    namespace = draw.choice((NAMESPACES[0], *NAMESPACES))
    _emit(world, node, _target(world, draw), excluded, op=op, namespace=namespace, **details)


def burst(world: World, draw: random.Random) -> None:
    if (node := _node(world, draw)) is not None:
        for _ in range(draw.randint(2, BURST)):
            _emit(world, node, _target(world, draw))


def ask(world: World, draw: random.Random) -> None:
    emit(world, draw, op="ask")


def cancel(world: World, draw: random.Random) -> None:
    """Somebody does not want to wait any longer, after any callback."""
    if (node := _node(world, draw)) is None:
        return

    def now() -> None:
        waiting = [task for at, task in world.calls.values() if at is node]
        if waiting and node.alive:
            draw.choice(waiting).cancel()

    world.loop.after_turns(node.name, draw.randint(1, 12), now)


# Requests


def claim(world: World, draw: random.Random) -> None:
    if (client := _member(world, draw)) is None:
        return
    key = draw.choice(tuple(CLAIMED))
    limit, policy = CLAIMED[key]
    node = client.at
    _do(
        world,
        node,
        lambda: world.call(node, "claim", 4 * ASK + 2.0, client=client.name, key=key),
        lambda: _granted(node.adapter.claim(client.sid, key, limit, policy, client.namespace)),
    )


async def _granted(claim: Coroutine[Any, Any, Any]) -> bool:
    return bool(await claim)


def release(world: World, draw: random.Random) -> None:
    if (client := _member(world, draw)) is not None:
        key, node = draw.choice(tuple(CLAIMED)), client.at
        _do(
            world,
            node,
            lambda: world.call(node, "release", 0.1, client=client.name, key=key),
            lambda: node.adapter.release(client.sid, key),
        )


def watch(world: World, draw: random.Random) -> None:
    """Somebody watches who is in a room, and keeps a copy, until the node ends."""
    if (node := _node(world, draw)) is None or len(node.watches) > 3:
        return
    room, namespace = _room(draw), draw.choice((NAMESPACES[0], *NAMESPACES))
    watch = node.adapter.presence(room, namespace)

    async def follow(copy: dict[str, str]) -> None:
        try:
            async for change in watch:
                fits = (change.sid not in copy) if change.kind == "joined" else change.sid in copy
                world.note(Change(node.name, room, change.kind, world.name(change.sid), fits))
                if change.kind == "joined":
                    copy[change.sid] = change.node
                else:
                    copy.pop(change.sid, None)
        except BrokerClosed:
            pass

    async def begin() -> None:
        await watch.__aenter__()  # it is watched to the end
        copy = dict(watch.present)
        node.watches.append((namespace, room, copy))
        world.spawn(node, follow(copy))

    _do(world, node, lambda: world.call(node, "watch", EMIT + ASK + 1.0, rooms=(room,), namespace=namespace), begin)


def survey(world: World, draw: random.Random) -> None:
    if (node := _node(world, draw)) is None:
        return
    room, kind = _room(draw), draw.choice(("count", "all_rooms", "fetch"))

    async def ask() -> None:
        if kind == "count":
            await node.adapter.to(room).count()
        elif kind == "all_rooms":
            await node.adapter.all_rooms()
        else:
            await node.adapter.to(room).fetch_sockets()

    _do(world, node, lambda: world.call(node, "survey", EMIT + ASK + 1.0, rooms=(room,)), ask)


# Nodes and strangers


def start(world: World, draw: random.Random) -> None:
    if len(world.nodes) < 7:

        async def grow() -> None:
            await world.start_node()
            for _ in range(2):
                connect(world, draw, world.nodes[-1] if world.nodes[-1] in world.running else None)

        world.loop.create_task(grow())


def stop(world: World, draw: random.Random) -> None:
    if len(world.running) > 2 and (node := _node(world, draw)) is not None:
        world.loop.create_task(world.stop_node(node))


def garbage(world: World, draw: random.Random) -> None:
    if (node := _node(world, draw)) is None:
        return
    subjects = node.sim.core.subjects
    subject = draw.choice(
        (subjects.control, subjects.inbox(node.sim.id), subjects.namespace("/"), subjects.room("/", _room(draw)))
    )
    tail = draw.randbytes(draw.randint(0, 20))
    raw = msgspec.Raw(b"\x91" + tail)
    payload = draw.choice((tail, b"\1\0" + tail, b"\1\0" + msgspec.msgpack.encode(Envelope("strngr", 1, 0, 1, [raw]))))
    world.servers.publish(subject, payload)


def begin(world: World, draw: random.Random) -> None:
    """Some clients on each node."""
    for node in world.nodes:
        for _ in range(draw.randint(1, 3)):
            connect(world, draw, node)


async def last_words(world: World) -> None:
    """An event on every subject shows every hole; then the last look."""
    for node in world.running:
        for namespace in NAMESPACES:
            for rooms in (*((room,) for room in ROOMS), (), *((f"@{client.name}",) for client in world.members)):
                _emit(world, node, rooms, namespace=namespace)
                await asyncio.sleep(0.01)
    await asyncio.sleep(3.0)
    await world.still()
    world.look()


DEEDS_BY_KIND: dict[str, Deed] = {
    deed.__name__: deed
    for deed in (
        *(connect, disconnect, drop, enter, meet, enter_elsewhere, leave, leave_elsewhere, close),
        *(emit, burst, ask, cancel, claim, release, watch, survey, start, stop, garbage),
    )
} | FAULTS_BY_KIND
