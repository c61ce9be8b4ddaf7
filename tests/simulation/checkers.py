"""What must hold in every history: one function for each promise, pure, each giving what it found broken, in words.

The promises are those of `docs/explanation/guarantees.md`; each function quotes its own. `check` puts all of them to a
history.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import cast

from tests.simulation.history import (
    Called,
    Change,
    Deaf,
    Dropped,
    Fault,
    Forgot,
    Got,
    Handed,
    History,
    Met,
    NodeUp,
    Seen,
    Size,
    Told,
    Watched,
)
from tests.simulation.story import NEVER, Life, Story

Checker = Callable[[Story], Iterator[str]]
_EMITS = ("emit", "ask")
_WAITED = 1.0  # seconds after an emit in which what is done to a client surely waits for it
_LEEWAY = 0.5  # seconds that a call may take longer than its deadline, besides the time its process stood still


def check(history: History) -> list[str]:
    """All that is wrong in a history; the head of each finding names the promise."""
    story = Story(history)
    return [f"{checker.__name__[:2].upper()}: {what}" for checker in CHECKERS for what in checker(story)]


def p1_each_publisher_in_order(story: Story) -> Iterator[str]:
    """Two emits of one process reach every client that gets both in the order of the calls, whatever the rooms.

    In the first second after a start, those that want acknowledgements wait until all other nodes are known.
    """
    last: dict[tuple[str, str], int] = {}
    young = _young(story)
    for event in story.history.events:
        if isinstance(event, Got) and event.call in story.calls:
            place, call = story.calls[event.call]
            if (call.local or call.op == "ask") and story.history.total:
                continue  # what is local takes no place in the log
            if call.call in young:
                continue
            key = event.client, call.node
            if place < last.get(key, -1):
                yield f"{event.client} got {call.call} of {call.node} after a later one"
            last[key] = max(place, last.get(key, -1))


def p1_moves_come_after_what_was_emitted(story: Story) -> Iterator[str]:
    """What a process does to a client of its own comes after what it has emitted before.

    With `order="total"` it waits for that, for a while.
    """
    excuses, moments = _Excuses(story), story.history.moments
    for called, move in story.calls.values():
        ended, outcome = story.end(move.call)
        life = story.clients.get(move.client)
        if move.op not in ("enter", "leave") or outcome != "returned" or life is None or life.roams:
            continue
        if life.node != move.node or life.leaving < ended:
            continue
        quiet = story.next_quiet(ended)
        for began, emit in story.calls.values():
            done, how = story.end(emit.call)
            if not done < called or how != "returned" or moments[ended] - moments[began] > _WAITED or emit.excluded:
                continue
            if (emit.op, emit.node, emit.namespace, emit.rooms) != ("emit", move.node, life.namespace, move.rooms):
                continue
            got = story.got[emit.call].get(life.name, [NEVER])[0]
            if move.op == "enter" and got != NEVER and not story.possibly(life, move.rooms[0], began, called):
                yield f"{life.name} got {emit.call} of {emit.node}, and came in after it, by {move.call}"
            if emit.volatile or (emit.local and story.history.total) or excuses.cover(began, emit, life, quiet):
                continue
            if move.op == "leave" and got > ended and story.surely(life, move.rooms[0], began, called):
                yield f"{life.name} did not get {emit.call} of {emit.node} before it was taken out, by {move.call}"


def p2_one_order_for_all(story: Story) -> Iterator[str]:
    """With `order="total"` the clients of all processes see the events of a room in the same order.

    What was under way when the log forgot its last entries may have a new place in it: that is told ("trimmed").
    """
    if not story.history.total:
        return
    forgets = [
        place for place, event in enumerate(story.history.events) if isinstance(event, Fault) and event.kind == "forget"
    ]
    orders: dict[str, list[int]] = defaultdict(list)
    for event in story.history.events:
        if isinstance(event, Got) and event.call in story.calls and not story.calls[event.call][1].local:
            called, last = story.calls[event.call][0], max(max(places) for places in story.got[event.call].values())
            if not any(called < forget < last for forget in forgets):
                orders[event.client].append(event.call)
    names = sorted(orders)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            both = set(orders[one]) & set(orders[other])
            first = list(dict.fromkeys(call for call in orders[one] if call in both))
            second = list(dict.fromkeys(call for call in orders[other] if call in both))
            if first != second:
                at = next(index for index, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
                yield f"{one} got {first[at]} where {other} got {second[at]}"


def p3_once_and_only_the_addressed(story: Story) -> Iterator[str]:
    """A client in several of the addressed rooms gets an event once. Nobody who was not addressed gets it."""
    for number, receivers in story.got.items():
        if number not in story.calls:
            yield f"an event {number} came that nobody sent"
            continue
        called, call = story.calls[number]
        for client, places in receivers.items():
            if len(places) > 1:
                yield f"{client} got {number} {len(places)} times"
            if not story.may_get(call, story.clients[client], called, places[0]):
                yield f"{client} got {number} to {call.rooms} but {call.excluded}, and is not addressed"


def p4_p5_nothing_is_lost_in_silence(story: Story) -> Iterator[str]:
    """When `enter_room` returns, an emit to that room that starts later reaches the client; a loss is told as a gap."""
    excuses = _Excuses(story)
    for called, call in story.calls.values():
        ended, outcome = story.end(call.call)
        quiet = story.next_quiet(ended if ended != NEVER else called)
        if call.op not in _EMITS or call.volatile or quiet == NEVER:
            continue
        happened = outcome == "returned" or (outcome == "unsure" and call.op == "ask")
        if outcome == "cancelled":  # P6: all or nothing
            happened = any(place < quiet for places in story.got[call.call].values() for place in places)
        if not happened:
            continue
        for life in story.owed(call, called, quiet):
            if life.roams and (call.local or call.op == "ask"):
                continue  # that is not kept for who comes back
            if life.name not in story.got[call.call] and not excuses.cover(called, call, life, quiet):
                yield f"{life.name} on {life.node} did not get {call.call} ({outcome}), and no gap tells"


def p5_holes_are_counted(story: Story) -> Iterator[str]:
    """A receiver that sees a hole counts it and tells it, even when the client library noticed nothing."""
    if story.history.log:
        return  # what the log hands on is not noted
    numbers, told = _Numbers(), Counter[tuple[str, str, str]]()
    for event in story.history.events:
        if isinstance(event, Handed) and event.node != event.origin:
            numbers.handed(event)
        elif isinstance(event, Forgot):
            numbers.paused.update(key for key in numbers.last if key[:2] == (event.node, event.subject))
        elif isinstance(event, Met) and event.why == "bye":
            numbers.forget(event.node, event.peer)
        elif isinstance(event, Told) and event.reason == "missed":
            told[event.node, event.subject, event.origin] += event.missed or 0
    for key in sorted(numbers.holes.keys() | told.keys()):
        if numbers.holes[key] != told[key]:
            yield f"{key[0]} told {told[key]} missing of {key[2]} on {key[1]}, and it was {numbers.holes[key]}"


def p5_deafness_shows(story: Story) -> Iterator[str]:
    """`health` is false while a process is deaf."""
    for place, event in enumerate(story.history.events):
        if isinstance(event, Deaf) and not event.told:
            yield f"{event.node} hears nothing, and its health is good, at {story.history.moments[place]:.1f}"


def p6_every_call_ends(story: Story) -> Iterator[str]:
    """Every call ends within its deadline: well, with an error that says what became of it, or cancelled.

    Without faults an emit is accepted.
    """
    moments = story.history.moments
    calm = story.calm
    for called, call in story.calls.values():
        ended, outcome = story.end(call.call)
        if ended == NEVER:
            if story.down.get(call.node, (0, "closed"))[1] != "killed":
                yield f"{call.op} {call.call} of {call.node} never ended"
            continue
        took = moments[ended] - moments[called]
        if took > call.within + _LEEWAY + _stood_still(story, call.node, ended):
            yield f"{call.op} {call.call} of {call.node} took {took:.1f} s, and {call.within} s were allowed"
        if calm and call.op == "emit" and outcome in ("failed", "unsure") and call.node not in story.stopping:
            yield f"{call.op} {call.call} failed, and nothing was wrong: {story.ends[call.call][1].error}"
        if outcome == "failed" and call.op in _EMITS and story.got.get(call.call):
            yield f"{call.op} {call.call} failed ({story.ends[call.call][1].error}), and clients got it"


def p7_memory_is_bounded(story: Story) -> Iterator[str]:
    """A stopped broker, a stopped peer or a slow client cannot grow a node without limit."""
    for event in story.history.events:
        if isinstance(event, Size) and event.size > event.bound:
            yield f"{event.node} holds {event.size} of {event.what}, and {event.bound} is the bound"


def p8_nothing_breaks(story: Story) -> Iterator[str]:
    """Whatever arrives, no loop ends, no handler fails, nothing is left behind."""
    for event in story.history.events:
        if isinstance(event, Seen):
            yield from (f"{event.node}: {what}" for what in event.broken)


def p9_local_clients_at_once(story: Story) -> Iterator[str]:
    """While the link is down, clients of one node still reach each other at once."""
    if story.history.total:
        return
    for called, call in story.calls.values():
        ended, outcome = story.end(call.call)
        if call.op == "emit" and outcome == "returned" and not call.volatile:
            for life in story.owed(call, called, ended):
                places = story.got[call.call].get(life.name)
                if life.node == call.node and (places is None or places[0] > ended):
                    yield f"{life.name} had to wait for {call.call}"


def membership_converges(story: Story) -> Iterator[str]:
    """When all is quiet, every node knows every other one, and was told of each coming and going, by turns."""
    known: dict[tuple[str, str], str] = {}
    up: set[str] = set()
    calm, moments = story.calm, story.history.moments
    for place, event in enumerate(story.history.events):
        match event:
            case NodeUp(node=node):
                up.add(node)
            case Seen(node=node, peers=peers) if node in up:
                there = {one for one in up if story.stopping.get(one, NEVER) > place}
                if set(peers) != there - {node}:
                    yield f"{node} knows {peers} when {sorted(there)} are there"
            case Met(node=node, peer=peer, kind=kind):
                if known.get((node, peer), "left") == kind:
                    yield f"{node} was told twice that {peer} {kind}"
                if kind == "left" and calm:
                    down = story.down.get(peer, (NEVER, "closed"))[0]
                    if down == NEVER:
                        yield f"{node} took {peer} for lost, and nothing was wrong"
                    elif moments[place] > moments[down] + _LEEWAY:
                        yield f"{node} did not hear the bye of {peer}"
                known[node, peer] = kind
            case _:
                pass


def presence_is_exact(story: Story) -> Iterator[str]:
    """What is copied from the present set is kept exact by the changes that follow."""
    for place, event in enumerate(story.history.events):
        match event:
            case Change(fits=False):
                yield f"{event.node} was told that {event.client} {event.kind} {event.room!r}, and that was so before"
            case Watched():
                truth = sorted(
                    life.name
                    for life in story.clients.values()
                    if life.up < place < life.gone
                    and life.namespace == event.namespace
                    and event.room in _rooms_at(story, place, life)
                )
                if list(event.present) != truth:
                    yield f"{event.node} sees {event.present} in {event.room!r} of {event.namespace}, and it is {truth}"
            case _:
                pass


def _rooms_at(story: Story, place: int, life: Life) -> tuple[str, ...]:
    """A client's rooms, as its node saw them around the last time all was quiet."""
    seen = story.looks(max(quiet for quiet in story.quiets if quiet <= place))
    rooms = [event.rooms for event in seen if isinstance(event, Seen) and event.node == life.home(place)]
    return dict(rooms[0]).get(life.name, ()) if rooms else ()


def claims_are_exact(story: Story) -> Iterator[str]:
    """A key is held by no more clients than its limit, each of which was granted it, and has not given it back."""
    limits = {"k0": 1, "k1": 1, "k2": 2}
    granted: dict[tuple[str, str], int] = {}
    for number, (place, ended) in story.ends.items():
        call = story.calls[number][1]
        if call.op == "claim" and ended.outcome == "returned" and ended.value:
            granted[call.client, call.key] = place
    for quiet in story.quiets:
        holders: dict[str, list[str]] = defaultdict(list)
        for client, key in (hold for event in story.looks(quiet) if isinstance(event, Seen) for hold in event.holds):
            holders[key].append(client)
            if (client, key) not in granted:
                yield f"{client} holds {key}, and was never granted it"
            if story.clients[client].gone < quiet:
                yield f"{client} holds {key}, and is gone"
        for key, clients in holders.items():
            if len(clients) > limits[key]:
                yield f"{clients} hold {key}, and {limits[key]} may"


def answers_are_complete(story: Story) -> Iterator[str]:
    """With acknowledgements, every client that was reached is waited for, and answers once.

    Those of the nodes, that is, that were known when the event was sent.
    """
    for called, call in story.calls.values():
        place, ended = story.ends.get(call.call, (NEVER, None))
        if call.op != "ask" or ended is None or ended.outcome != "returned":
            continue
        answered = cast("tuple[str, ...]", ended.value)
        if len(set(answered)) < len(answered):
            yield f"somebody answered {call.call} twice: {answered}"
        for client in answered:
            if client not in story.got[call.call]:
                yield f"{client} answered {call.call} without having got it"
        for client, places in story.got[call.call].items():
            life = story.clients[client]
            if life.roams or not story.kept(call.node, life.node, called, story.soon_after(place)):
                continue  # it joined since, or was taken for lost
            if places[0] < place and life.leaving > place and client not in answered:
                yield f"{client} got {call.call}, is still there, and was not waited for"


class _Numbers:
    """What the numbers show that a node was handed, by node, subject and origin.

    A message that comes after a later one of its node is not handed on, to keep the order: it is missing, too.

    Attributes:
        last: epoch and number of the last message.
        paused: nobody has listened since.
        holes: how many messages are missing.
    """

    def __init__(self) -> None:
        self.last: dict[tuple[str, str, str], tuple[int, int]] = {}
        self.paused: set[tuple[str, str, str]] = set()
        self.holes = Counter[tuple[str, str, str]]()
        self._places: dict[tuple[str, str], int] = {}

    def forget(self, node: str, origin: str) -> None:
        """A node has said bye to another one."""
        for key in [key for key in self.last if key[0] == node and key[2] == origin]:
            del self.last[key]
        self._places.pop((node, origin), None)

    def handed(self, event: Handed) -> None:
        key = event.node, event.subject, event.origin
        late = self._is_late(event)
        if (known := self.last.get(key)) is not None:
            if (event.epoch, event.last) <= known:
                return
            expected = known[1] + 1 if event.epoch == known[0] else 1
            if key not in self.paused:
                self.holes[key] += max(0, event.first - expected)
                if late:
                    self.holes[key] += event.last + 1 - max(event.first, expected)
        self.paused.discard(key)
        self.last[key] = event.epoch, event.last

    def _is_late(self, event: Handed) -> bool:
        between = event.node, event.origin
        reached = self._places.get(between, 0)
        self._places[between] = max(reached, event.place + event.last - event.first if event.place else 0)
        return 0 < event.place <= reached


class _Excuses:
    """Why a client may lack an event."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._gaps: dict[str, list[tuple[int, Told]]] = defaultdict(list)
        self._dropped: set[tuple[str, int]] = set()
        self._forgets: list[int] = []
        for place, event in enumerate(story.history.events):
            if isinstance(event, Told):
                self._gaps[event.node].append((place, event))
            elif isinstance(event, Dropped):
                self._dropped.update((event.node, call) for call in event.calls)
            elif isinstance(event, Fault) and event.kind in ("forget", "trim"):
                self._forgets.append(place)

    def cover(self, called: int, call: Called, life: Life, until: int) -> bool:
        """Whether something told of a loss; a hole that the numbers show is the business of another check."""
        story = self._story
        if (life.node, call.call) in self._dropped:
            return True
        killed, how = story.down.get(call.node, (NEVER, "closed"))
        sent = story.history.log and story.end(call.call)[1] == "returned"
        if how == "killed" and called < killed < until and not sent:
            return True  # what it had not sent yet died with it
        at_home = {gap.reason for place, gap in self._gaps[call.node] if called < place <= until}
        there = {gap.reason for place, gap in self._gaps[life.node] if called < place <= until}
        if "given_up" in at_home or "trimmed" in there:
            return True
        return not story.history.log and bool(there & {"disconnected", "reconnected", "overflow"})


def _young(story: Story) -> set[int]:
    """The calls that want acknowledgements in the first second of their node."""
    moments = story.history.moments
    up = {event.node: moments[place] for place, event in enumerate(story.history.events) if isinstance(event, NodeUp)}
    return {
        number
        for number, (place, call) in story.calls.items()
        if call.op == "ask" and moments[place] < up.get(call.node, 0.0) + 1.2 + _stood_still(story, call.node, place)
    }


def _stood_still(story: Story, node: str, until: int) -> float:
    """Seconds that a process stood still, at most, during a call; the pauses of its own included."""
    events = story.history.events
    stops = sum(
        event.seconds
        for event in events[:until]
        if isinstance(event, Fault) and event.kind == "freeze" and event.node == node
    )
    return stops + 0.1


CHECKERS: tuple[Checker, ...] = (
    p1_each_publisher_in_order,
    p1_moves_come_after_what_was_emitted,
    p2_one_order_for_all,
    p3_once_and_only_the_addressed,
    p4_p5_nothing_is_lost_in_silence,
    p5_holes_are_counted,
    p5_deafness_shows,
    p6_every_call_ends,
    p7_memory_is_bounded,
    p8_nothing_breaks,
    p9_local_clients_at_once,
    membership_converges,
    presence_is_exact,
    claims_are_exact,
    answers_are_complete,
)
