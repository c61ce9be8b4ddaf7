"""Checks of what a broker with a log promises beyond the others: `roomcast.core.broker`, rules 8 to 10, and `Log`.

Each is a plain async function of a cluster, like those of `checks_delivery.py`; `tamper` is what somebody else may do
to the log behind the nodes' back.
"""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from itertools import pairwise
from typing import Protocol

import pytest

from roomcast.core.broker import Delivery, Gap, Log, Position, Subject
from roomcast.core.errors import BrokerError, ConfigurationError, ReplayUnavailable
from tests.brokers.checks_delivery import in_order
from tests.brokers.cluster import Cluster, Event, Node, deliveries, gaps, payloads, send


class Tamper(Protocol):
    """What happens to a log that its nodes did not do."""

    async def poison(self, cluster: Cluster) -> None:
        """Append entries that are not of roomcast, of every kind that the broker lets in."""
        ...

    async def trim(self, cluster: Cluster, count: int) -> bool:
        """Remove so many of the oldest entries; False where the broker cannot remove single ones."""
        ...

    async def delete(self, cluster: Cluster) -> None:
        """Remove the log with everything that belongs to it."""
        ...


LogCheck = Callable[[Cluster, Tamper], Coroutine[None, None, None]]


def log_of(node: Node) -> Log:
    log = node.broker.log
    assert log is not None
    return log


def at(event: Event) -> Position:
    assert isinstance(event, Delivery)
    assert event.position is not None
    return event.position


def positions_grow(events: Sequence[Event]) -> None:
    """Rule 10: in one epoch positions only grow."""
    for one, other in pairwise(map(at, deliveries(events))):
        assert one.epoch != other.epoch or int(one.offset) < int(other.offset)


async def replayed(node: Node, seconds: float) -> list[list[Delivery]]:
    async with asyncio.timeout(node.patience):
        return [list(page) async for page in log_of(node).replay(seconds)]


async def patient(cluster: Cluster, call: Callable[[], Awaitable[object]]) -> None:
    """Make a call until it succeeds, as the outbox does."""
    async with asyncio.timeout(cluster.patience):
        while True:
            try:
                await call()
            except BrokerError:
                await asyncio.sleep(0.01)
            else:
                return


async def order_is_the_same_for_everybody(cluster: Cluster, schedule: Sequence[tuple[int, int, str]]) -> None:
    """Rule 9: one order for everybody, the publishers included, for a given schedule of three publishers."""
    subjects = cluster.subjects(4)
    if not cluster.nodes:
        for _ in range(3):
            await (await cluster.node()).broker.subscribe(subjects)
    calls: list[asyncio.Future[Position | None]] = []
    sent: dict[int, list[bytes]] = {0: [], 1: [], 2: []}
    for number, (who, where, then) in enumerate(schedule):
        payload = b"%d %d" % (who, number)
        sent[who].append(payload)
        calls.append(send(cluster.nodes[who].broker, subjects[where], payload))
        if then == "await":
            await calls[-1]
        elif then == "yield":
            await asyncio.sleep(0)
    await asyncio.gather(*calls)
    heard = await cluster.finish(cluster.nodes[0], subjects[:1], *cluster.nodes)
    for events in heard:
        assert not gaps(events)
        positions_grow(events)
        for who, mine in sent.items():
            assert [one for one in payloads(events) if one.startswith(b"%d " % who)] == mine
    assert heard[0] == heard[1] == heard[2], "two nodes saw different orders, or places"


async def every_delivery_has_a_place_that_its_publisher_knows(cluster: Cluster, tamper: Tamper) -> None:
    """Rule 10: positions are set and grow; a publish that resolves with one resolves with that of its delivery."""
    del tamper
    near, far = await cluster.node(), await cluster.node()
    subjects = cluster.subjects(3)
    await near.broker.subscribe(subjects)
    returned = await asyncio.gather(*(send(far.broker, subjects[n % 3], b"%d" % n) for n in range(100)))
    (events,) = await cluster.finish(far, subjects[:1], near)
    positions_grow(events)
    assert len({at(event).epoch for event in events}) == 1
    for place, event in zip(returned, events, strict=True):
        assert place in {None, at(event)}
    offsets = [int(at(event).offset) for event in events]
    assert offsets == list(range(offsets[0], offsets[0] + 100)), "one more with each entry"


async def a_replay_is_complete_and_meets_what_is_received(cluster: Cluster, tamper: Tamper) -> None:
    """`Log.replay`: everything before the start, on all subjects, oldest first, in pages, then `receive` begins."""
    del tamper
    far = await cluster.node()
    subjects = cluster.subjects(5)
    sent = [(subjects[number % 5], b"%d" % number) for number in range(1500)]
    await asyncio.gather(*(send(far.broker, *one) for one in sent))
    near = await cluster.node()
    await near.broker.subscribe(subjects)
    later = [(subjects[number % 5], b"later %d" % number) for number in range(50)]
    for one in later:
        await far.broker.publish(*one)
    pages = await replayed(near, 60.0)
    assert len(pages) > 1
    assert max(len(page) for page in pages) <= 1024
    (events,) = await cluster.finish(far, subjects[:1], near)
    everything = [*(one for page in pages for one in page), *events]
    in_order("total", everything, [*sent, *later])
    positions_grow(everything)
    again = [event for page in await replayed(near, 60.0) for event in page]
    assert again == everything[: len(again)], "a replay can be asked for again"
    assert len(again) == len(sent)
    assert [event for page in await replayed(far, 60.0) for event in page] == [], "it began before everything"


async def a_replay_goes_back_as_far_as_asked(cluster: Cluster, tamper: Tamper) -> None:
    """`Log.replay`: what was published in the last `seconds` before `start`."""
    del tamper
    far = await cluster.node()
    (subject,) = cluster.subjects(1)
    loop, pause = asyncio.get_running_loop(), 1.0
    while True:
        await far.broker.publish(subject, b"old")
        await asyncio.sleep(pause)
        began = loop.time()
        await far.broker.publish(subject, b"new")
        near = await cluster.node()
        seconds = loop.time() - began + 0.2
        if seconds < pause - 0.2:  # else this machine was busy, and "old" might be young enough
            break
        pause *= 2
    got = [event for page in await replayed(near, seconds) for event in page]
    assert payloads(got) == [b"new"]


async def a_trimmed_replay_is_refused(cluster: Cluster, tamper: Tamper) -> None:
    """`Log.replay`: `ReplayUnavailable("trimmed")` when the log does not hold all of it any more."""
    parameters = {"retention": "1s"}
    far = await cluster.node(parameters=parameters)
    (subject,) = cluster.subjects(1)
    for number in range(300):
        send(far.broker, subject, b"%d" % number)
    await far.broker.publish(subject, b"last")
    if not await tamper.trim(cluster, 150):
        return
    near = await cluster.node(parameters=parameters)
    with pytest.raises(ReplayUnavailable) as caught:
        await replayed(near, 60.0)
    assert caught.value.reason == "trimmed"


async def nothing_is_skipped_while_a_reader_starts(cluster: Cluster, tamper: Tamper) -> None:
    """The end is determined before the reading begins: replay and receive meet, while others go on publishing."""
    del tamper
    far = await cluster.node()
    subjects = cluster.subjects(3)
    sent: list[tuple[Subject, bytes]] = []
    stop = False

    async def publish() -> None:
        while not stop:
            batch = [(subjects[number % 3], b"%d" % number) for number in range(len(sent), len(sent) + 10)]
            sent.extend(batch)
            await asyncio.gather(*(send(far.broker, *one) for one in batch))
            await asyncio.sleep(0.001)

    publishing = asyncio.create_task(publish())
    started: list[tuple[Node, int]] = []
    try:
        for _ in range(5):
            node = await cluster.node(everything=True)
            started.append((node, len(sent)))
    finally:
        stop = True
        await publishing
    for node, already in started:
        before = [event for page in await replayed(node, 60.0) for event in page]
        (after,) = await cluster.finish(far, subjects[:1], node)
        after = [event for event in after if isinstance(event, Gap) or not event.payload.startswith(b"end")]
        assert int(payloads(after)[0] if after else b"0") <= already, "what came after start is received"
        assert len(before) <= already
        in_order("total", [*before, *after], sent)


async def foreign_entries_are_passed_over_once(cluster: Cluster, tamper: Tamper) -> None:
    """What is not of roomcast stops nobody, and is not read again after a restart of the reader."""
    near, far = await cluster.node(everything=True), await cluster.node()
    (subject,) = cluster.subjects(1)
    await far.broker.publish(subject, b"before")
    await tamper.poison(cluster)
    await far.broker.publish(subject, b"after")
    events = await near.hear_payload(b"after")
    assert payloads(events) == [b"before", b"after"]
    assert not gaps(events)
    late = await cluster.node()
    assert payloads(event for page in await replayed(late, 60.0) for event in page) == [b"before", b"after"]


async def a_log_that_is_made_anew_is_told(cluster: Cluster, tamper: Tamper) -> None:
    """Rule 8: a deleted log is `Gap("trimmed")` and another epoch, at every node; then everything goes on."""
    nodes = [await cluster.node() for _ in range(3)]
    (subject,) = cluster.subjects(1)
    for node in nodes:
        await node.broker.subscribe([subject])
    await nodes[0].broker.publish(subject, b"before")
    before = [await node.hear_payload(b"before") for node in nodes]
    epochs = {at(events[-1]).epoch for events in before}
    assert len(epochs) == 1
    await tamper.delete(cluster)
    await patient(cluster, lambda: nodes[0].broker.publish(subject, b"after"))
    for node in nodes:
        events = await node.hear_payload(b"after")
        assert Gap("trimmed") in gaps(events), "the loss was not told"
        assert payloads(events) == [b"after"]
        epochs.add(at(events[-1]).epoch)
    assert len(epochs) == 2, "all nodes see one new life"
    await patient(cluster, lambda: nodes[1].broker.publish(subject, b"end"))
    for node in nodes:
        assert payloads(await node.hear_payload(b"end"))[-1] == b"end"


async def a_hole_is_told_with_how_many(cluster: Cluster, tamper: Tamper) -> None:
    """Rule 8: what is trimmed before a node has read it is a gap in line, with how many."""
    near, far = await cluster.node(buffer=4), await cluster.node()
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    sent = [b"%d" % number for number in range(600)]
    await asyncio.gather(*(send(far.broker, subject, payload) for payload in sent))
    if not await tamper.trim(cluster, 300):
        return
    (events,) = await cluster.finish(far, [subject], near)
    got, expected = payloads(events), 0
    told = gaps(events)
    assert {gap.reason for gap in told} == {"trimmed"}
    for event in events:
        if isinstance(event, Gap):
            assert event.missed
            expected += event.missed
        else:
            assert event.payload == b"%d" % expected
            expected += 1
    assert expected == len(sent)
    assert len(got) < len(sent)


async def a_log_with_other_settings_is_refused(cluster: Cluster, tamper: Tamper) -> None:
    """An existing log with other settings is a `ConfigurationError` that names the difference."""
    del tamper
    first = await cluster.node(parameters={"retention": "5m", "max_bytes": "64mb"})
    (subject,) = cluster.subjects(1)
    await first.broker.subscribe([subject])
    for parameters, name in (
        ({"retention": "2m", "max_bytes": "64mb"}, "retention is 300s there and 120s here"),
        ({"retention": "5m", "max_bytes": "32mb"}, "max_bytes is 67108864 there and 33554432 here"),
        ({"retention": "5m", "max_bytes": "64mb", "streams": "3"}, "streams is 1 there and 3 here"),
    ):
        other = cluster.unstarted(parameters=parameters)
        with pytest.raises(ConfigurationError, match=name):
            await other.broker.start()
        await other.broker.aclose()
    same = await cluster.node(parameters={"retention": "300s", "max_bytes": "65536kb"})
    await same.broker.publish(subject, b"hello")
    await first.hear_payload(b"hello")


async def every_subject_of_many_streams_is_read_everywhere(cluster: Cluster, tamper: Tamper) -> None:
    """`streams=N`: every subject has one stream, and every node reads all of them."""
    del tamper
    parameters = {"streams": "3"}
    nodes = [await cluster.node(parameters=parameters) for _ in range(3)]
    assert nodes[0].broker.guarantees.order == "subject"
    subjects = [Subject(f"{cluster.prefix}.room.{number}") for number in range(24)]
    for node in nodes:
        await node.broker.subscribe(subjects)
    sent = [(subjects[number % 24], b"%d" % number) for number in range(240)]
    for number, one in enumerate(sent):
        send(nodes[number % 3].broker, *one)
    heard = [await cluster.finish(node, subjects, *nodes) for node in nodes]
    observed = [[event for part in parts for event in part] for parts in zip(*heard, strict=True)]
    for mine in observed:
        assert not gaps(mine)
        assert sorted(payloads(mine), key=int) == [payload for _, payload in sent]
    assert len({at(event).epoch for event in observed[0]}) == 3, "a stream has positions of its own"
    for subject in subjects:
        orders = [[one.payload for one in deliveries(mine) if one.subject == subject] for mine in observed]
        assert orders[0] == orders[1] == orders[2]
    late = await cluster.node(parameters=parameters)
    pages = await replayed(late, 60.0)
    again = [event for page in pages for event in page if not event.payload.startswith(b"end")]
    assert sorted(payloads(again), key=int) == [payload for _, payload in sent]


async def a_reader_that_does_not_receive_is_waited_for(cluster: Cluster, tamper: Tamper) -> None:
    """Rules 7 and 8: nothing overflows, however long nobody receives, and little is held meanwhile."""
    del tamper
    buffer = 512
    near, far = await cluster.node(buffer=buffer), await cluster.node()
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    count = 24 * buffer
    for number in range(0, count, 8 * buffer):
        await asyncio.gather(*(send(far.broker, subject, b"%d" % one) for one in range(number, number + 8 * buffer)))
    held = sum(isinstance(one, Delivery) for one in gc.get_objects())
    assert held <= 8 * buffer, f"{held} deliveries are held"
    expected = 0
    async with asyncio.timeout(6 * cluster.patience):
        while expected < count:
            for event in await near.broker.receive():
                assert isinstance(event, Delivery), event
                assert event.payload == b"%d" % expected
                expected += 1


CHECKS: tuple[LogCheck, ...] = (
    every_delivery_has_a_place_that_its_publisher_knows,
    a_replay_is_complete_and_meets_what_is_received,
    a_replay_goes_back_as_far_as_asked,
    a_trimmed_replay_is_refused,
    nothing_is_skipped_while_a_reader_starts,
    foreign_entries_are_passed_over_once,
    a_log_that_is_made_anew_is_told,
    a_hole_is_told_with_how_many,
    a_log_with_other_settings_is_refused,
    every_subject_of_many_streams_is_read_everywhere,
    a_reader_that_does_not_receive_is_waited_for,
)
