"""Checks of the rules that hold while the link is up: 2 to 7, 9 to 11, and overflow (8).

Each is a plain async function of a cluster, so that the conformance suite can put it to every broker and the
teeth test to brokers with a bug. The rules are quoted from `roomcast.core.broker`.
"""

import asyncio
import random
from collections.abc import Awaitable, Sequence
from itertools import pairwise

import pytest

from roomcast.core.broker import Delivery, Gap, Order, Position, Subject
from roomcast.core.errors import BrokerClosed, BrokerError, BrokerUnavailable, PayloadTooLarge
from tests.brokers.cluster import Check, Cluster, Event, Node, deliveries, gaps, payloads, send

Sent = tuple[Subject, bytes]


def in_order(order: Order, events: Sequence[Event], sent: Sequence[Sent]) -> None:
    """All that was sent arrived, once, without a gap, in the order that the broker guarantees (rule 9)."""
    assert not gaps(events)
    got = [(delivery.subject, delivery.payload) for delivery in deliveries(events)]
    if order == "subject":
        got.sort(key=lambda one: one[0])  # sorting is stable: the order within a subject stays
        sent = sorted(sent, key=lambda one: one[0])
    for index, (one, other) in enumerate(zip(got, sent, strict=False)):
        assert one == other, f"message {index}: received {one}, sent {other}"
    assert len(got) == len(sent)


def losses_are_told(events: Sequence[Event], sent: Sequence[bytes]) -> list[int]:
    """No repeat, no disorder, a gap before the first delivery after each hole; returns the sizes of holes."""
    place = {payload: index for index, payload in enumerate(sent)}
    holes: list[int] = []
    expected, told = 0, False
    for event in events:
        if isinstance(event, Gap):
            told = True
            continue
        index = place[event.payload]
        assert index >= expected, f"{event.payload!r} came again, or late"
        if index > expected:
            assert told, f"{index - expected} lost before {event.payload!r} without a gap"
            holes.append(index - expected)
        expected, told = index + 1, False
    if expected < len(sent):
        assert told, f"the last {len(sent) - expected} were lost without a gap"
        holes.append(len(sent) - expected)
    return holes


async def outcome(cluster: Cluster, call: Awaitable[Position | None]) -> BaseException | None:
    """How a publish ended, within a bound; None when it was accepted."""
    try:
        async with asyncio.timeout(cluster.patience):
            await call
    except BrokerError as exc:
        return exc
    return None


async def rule_02_subscribe_is_a_barrier(cluster: Cluster) -> None:
    """Rule 2: once it returns, every publish that starts later, on any node, is delivered here."""
    near, far = await cluster.node(), await cluster.node()
    subjects = cluster.subjects(30)
    for subject in subjects:
        await near.broker.subscribe([subject])
        await far.broker.publish(subject, subject.encode())
        events = await near.hear_payload(subject.encode())
        assert [delivery.subject for delivery in deliveries(events)] == [subject]
        assert len(events) == 1


async def rule_02_subscribe_is_idempotent(cluster: Cluster) -> None:
    """Rule 2: it is idempotent."""
    near, far = await cluster.node(), await cluster.node()
    first, second = cluster.subjects(2)
    await near.broker.subscribe([first])
    await near.broker.subscribe([first, second, first])
    await near.broker.subscribe([])
    sent = [(subject, b"%d" % number) for number in range(3) for subject in (first, second)]
    for subject, payload in sent:
        await far.broker.publish(subject, payload)
    (events,) = await cluster.finish(far, [first, second], near)
    in_order(far.broker.guarantees.order, events, sent)
    await near.broker.unsubscribe([first])
    await _is_not_heard(cluster, first, second)


async def rule_02_subscribe_is_plural(cluster: Cluster) -> None:
    """Rule 2: it is plural: many subjects at once, and many calls at once."""
    near, far = await cluster.node(), await cluster.node()
    subjects = cluster.subjects(300)
    parts = [subjects[start::5] for start in range(5)]
    await asyncio.gather(*(near.broker.subscribe(part) for part in parts))
    sent = [(subject, subject.encode()) for subject in subjects]
    await asyncio.gather(*(send(far.broker, subject, payload) for subject, payload in sent))
    (events,) = await cluster.finish(far, subjects, near)
    in_order(far.broker.guarantees.order, events, sent)


async def rule_03_unsubscribe_is_idempotent(cluster: Cluster) -> None:
    """Rule 3: `unsubscribe` is idempotent; later the subject is not heard, and can be subscribed again."""
    near, far = await cluster.node(), await cluster.node()
    first, second, third = cluster.subjects(3)
    await near.broker.unsubscribe([third])
    await near.broker.subscribe([first, second])
    for _ in range(2):
        await near.broker.unsubscribe([first, third])
        await near.broker.unsubscribe([])
        await near.broker.unsubscribe([first])
        await _is_not_heard(cluster, first, second)
        await near.broker.subscribe([first])
        await far.broker.publish(first, b"again")
        await near.hear_payload(b"again")


async def _is_not_heard(cluster: Cluster, subject: Subject, other: Subject) -> None:
    """The first node comes to hear `other` alone: what is in flight may still arrive (rule 3)."""
    near, far = cluster.nodes[:2]
    for attempt in range(20):
        await far.broker.publish(subject, b"unheard %d" % attempt)
        (events,) = await cluster.finish(far, [other], near)
        if not events:
            return
    raise AssertionError(f"{subject} is still heard, 20 round trips after unsubscribe")


async def rule_04_the_call_fixes_the_order(cluster: Cluster) -> None:
    """Rule 4: calls made one after the other are delivered in that order, awaited one by one or not."""
    near, far = await cluster.node(), await cluster.node()
    subjects = cluster.subjects(50)
    await near.broker.subscribe(subjects)
    await far.broker.subscribe(subjects)
    pick = random.Random(4)
    sent: list[Sent] = []
    waiting: list[asyncio.Future[Position | None]] = []
    for number in range(int(2000 * cluster.scale)):
        subject, payload = pick.choice(subjects), b"%d " % number + bytes(pick.randrange(300))
        sent.append((subject, payload))
        future = send(far.broker, subject, payload)
        choice = pick.random()
        if choice < 0.02:
            await future
        elif choice < 0.1:
            await asyncio.sleep(0)
            waiting.append(future)
        else:
            waiting.append(future)
    await asyncio.gather(*waiting)
    heard = await cluster.finish(far, subjects, near, *([far] if far.broker.guarantees.echo else []))
    for events in heard:
        in_order(far.broker.guarantees.order, events, sent)


async def rule_04_other_calls_do_not_disturb_the_order(cluster: Cluster) -> None:
    """Rule 4: the order holds while subjects come and go at both ends, and around cancelled calls."""
    near, far = await cluster.node(), await cluster.node()
    first, second, *others = cluster.subjects(8)
    await near.broker.subscribe([first, second])
    sent: list[Sent] = []
    calls: list[asyncio.Future[Position | None]] = []
    async with asyncio.TaskGroup() as group:
        for number in range(int(400 * cluster.scale)):
            if number % 20 == 0:
                for node in (near, far):
                    group.create_task(node.broker.subscribe(others))
                send(far.broker, others[0], b"nobody waits for this").cancel()
            subject = (first, second)[number % 2]
            sent.append((subject, b"%d" % number))
            calls.append(send(far.broker, *sent[-1]))
            if number % 7 == 0:
                await asyncio.sleep(0)
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert not [one for one in outcomes if isinstance(one, BaseException)]
    (events,) = await cluster.finish(far, [first, second], near)
    mine = [one for one in events if isinstance(one, Gap) or one.subject in {first, second}]
    in_order(far.broker.guarantees.order, mine, sent)


async def any_schedule_of_publishes_is_in_order(cluster: Cluster, schedule: Sequence[tuple[int, str]]) -> None:
    """Rule 4, for a given schedule: which subject, and whether the publish is awaited before the next one."""
    if not cluster.nodes:
        near, far = await cluster.node(), await cluster.node()
        await near.broker.subscribe(cluster.subjects(8))
    near, far = cluster.nodes
    subjects = cluster.subjects(8)
    sent = [(subjects[which], b"%d" % number) for number, (which, _) in enumerate(schedule)]
    calls: list[asyncio.Future[Position | None]] = []
    for (subject, payload), (_, then) in zip(sent, schedule, strict=True):
        calls.append(send(far.broker, subject, payload))
        if then == "await":
            await calls[-1]
        elif then == "yield":
            await asyncio.sleep(0)
    await asyncio.gather(*calls)
    (events,) = await cluster.finish(far, subjects, near)
    in_order(far.broker.guarantees.order, events, sent)


async def rule_05_a_large_payload_is_refused_before_the_wire(cluster: Cluster) -> None:
    """Rule 5: it fails definitely (`PayloadTooLarge`), and carries what is within its limit byte for byte."""
    near, far = await cluster.node(), await cluster.node(max_payload=10_000)
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    limit = far.broker.guarantees.max_payload
    assert limit == 10_000
    with pytest.raises(PayloadTooLarge) as caught:
        await far.broker.publish(subject, b"x" * (limit + 1))
    assert (caught.value.size, caught.value.limit) == (limit + 1, limit)
    largest = (bytes(range(256)) * 40)[:limit]
    contents = [b"", b"\r\n", b"\x00", largest, b"after"]
    for payload in contents:
        await far.broker.publish(subject, payload)
    (events,) = await cluster.finish(far, [subject], near)
    assert payloads(events) == contents
    assert all(type(payload) is bytes for payload in payloads(events))


async def rule_05_any_subject_is_carried(cluster: Cluster) -> None:
    """Rule 5, with `Subject`: tokens of `A-Za-z0-9_-`, up to 200 characters; near misses stay apart."""
    near, far = await cluster.node(), await cluster.node()
    head = f"{cluster.prefix}."
    long = head + "x" * (200 - len(head))
    tokens = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
    heard = [Subject(name) for name in (long, head + tokens, head + "a", head + "a.b")]
    unheard = [Subject(name) for name in (long[:-1], head + "A", head + "a.b.c", head + "a.c", head + "ab")]
    await near.broker.subscribe(heard)
    for subject in (*unheard, *heard):
        await far.broker.publish(subject, subject.encode())
    (events,) = await cluster.finish(far, heard, near)
    got = {delivery.subject: delivery.payload for delivery in deliveries(events)}
    assert got == {subject: subject.encode() for subject in heard}


async def rule_05_a_node_that_is_not_started_cannot_publish(cluster: Cluster) -> None:
    """Rule 5: `BrokerUnavailable` when there is no connection: nothing was sent."""
    near, cold = await cluster.node(), cluster.unstarted()
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    with pytest.raises(BrokerUnavailable):
        await cold.broker.publish(subject, b"early")
    await cold.broker.start()
    (events,) = await cluster.finish(cold, [subject], near)
    assert events == []


async def rule_05_a_cancelled_publish_harms_no_other(cluster: Cluster) -> None:
    """Rule 5: never with a `CancelledError` nobody sent: a cancelled call does not cancel its neighbours."""
    near, far = await cluster.node(), await cluster.node()
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    for step in range(4):  # cancelled at once, and at later stages of being sent
        calls = [send(far.broker, subject, b"%d %d" % (step, number)) for number in range(20)]
        for _ in range(step):
            await asyncio.sleep(0)
        calls[7].cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        del outcomes[7]
        assert not [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        (events,) = await cluster.finish(far, [subject], near)
        got = [payload for payload in payloads(events) if payload != b"%d 7" % step]
        assert got == [b"%d %d" % (step, number) for number in range(20) if number != 7]


async def rule_06_a_node_hears_itself(cluster: Cluster) -> None:
    """Rule 6: a subscribed node receives its own publications, or `guarantees.echo` says that it does not."""
    near, far = await cluster.node(), await cluster.node()
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    await near.broker.publish(subject, b"mine")
    await far.broker.publish(subject, b"yours")
    events = await near.hear_payload(b"yours")
    assert payloads(events) == ([b"mine", b"yours"] if near.broker.guarantees.echo else [b"yours"])


async def rule_07_receive_waits_and_returns_all_that_is_ready(cluster: Cluster) -> None:
    """Rule 7: `receive` waits for at least one event and returns all that are ready, in order."""
    near, far = await cluster.node(), await cluster.node()
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    waiting = asyncio.create_task(near.broker.receive())
    await asyncio.sleep(0)
    await far.broker.publish(cluster.subjects(2)[1], b"for nobody")
    assert not waiting.done()
    await far.broker.publish(subject, b"first")
    async with asyncio.timeout(cluster.patience):
        (event,) = await waiting
    assert isinstance(event, Delivery)
    assert event.payload == b"first"
    count = int(500 * cluster.scale)
    await asyncio.gather(*(send(far.broker, subject, b"%d" % number) for number in range(count)))
    got: list[Event] = []
    batches = 0
    async with asyncio.timeout(cluster.patience):
        while len(got) < count:
            batch = await near.broker.receive()
            assert batch
            got += batch
            batches += 1
    assert payloads(got) == [b"%d" % number for number in range(count)]
    assert batches <= count // 2


async def rule_07_cancelling_receive_loses_nothing(cluster: Cluster) -> None:
    """Rule 7: cancelling it loses nothing."""
    near, far = await cluster.node(), await cluster.node()
    subjects = cluster.subjects(5)
    await near.broker.subscribe(subjects)
    pick = random.Random(7)
    sent = [(subjects[number % len(subjects)], b"%d" % number) for number in range(int(500 * cluster.scale))]

    async def publish() -> None:
        for subject, payload in sent:
            await far.broker.publish(subject, payload)
            await asyncio.sleep(0)

    publishing = asyncio.create_task(publish())
    heard: list[Event] = []
    cancelled = 0
    async with asyncio.timeout(cluster.patience):
        while len(heard) < len(sent):
            receiving = asyncio.create_task(near.broker.receive())
            for _ in range(pick.randrange(4)):
                await asyncio.sleep(0)
            receiving.cancel()
            await asyncio.wait({receiving})  # not awaited itself: the deadline's own cancellation must end this loop
            if receiving.cancelled():
                cancelled += 1
            else:
                heard += receiving.result()
    await publishing
    assert cancelled
    in_order(far.broker.guarantees.order, heard, sent)


async def rule_08_overflow_is_bounded_and_told(cluster: Cluster) -> None:
    """Rules 7 and 8: the buffer is bounded by `BrokerConfig.buffer`; what overflows it is a `Gap` in line."""
    buffer = 16
    near, far = await cluster.node(buffer=buffer), await cluster.node()
    first, second = cluster.subjects(2)
    await near.broker.subscribe([first])
    sent = [b"%d" % number for number in range(int(2000 * cluster.scale))]
    await asyncio.gather(*(send(far.broker, first, payload) for payload in sent))
    if near.broker.log is not None:
        await _nothing_overflows(cluster, near, first, sent, buffer)
        return
    await near.broker.subscribe([first, second])  # a round trip on the same link: by now the buffer is full
    events = list(await near.broker.receive())
    events += await _hear_through_overflow(near, far, second)
    told = gaps(events)
    assert {gap.reason for gap in told} == {"overflow"}
    before = events[: events.index(told[0])]
    assert len(before) <= buffer, "more was kept than the buffer may hold"
    mine = [one for one in events if isinstance(one, Gap) or one.subject == first]
    lost = sum(losses_are_told(mine, sent))
    assert lost
    counted = [gap.missed for gap in told if gap.missed is not None]
    assert len(counted) < len(told) or sum(counted) >= lost


async def _nothing_overflows(cluster: Cluster, near: Node, subject: Subject, sent: list[bytes], buffer: int) -> None:
    """Rule 8, with a log: a full buffer makes the node read later; each batch is within the bound."""
    events: list[Event] = []
    async with asyncio.timeout(cluster.patience):
        while len(events) < len(sent):
            batch = await near.broker.receive()
            assert len(batch) <= buffer, "more was kept than the buffer may hold"
            events += batch
    in_order("total", events, [(subject, payload) for payload in sent])


async def _hear_through_overflow(near: Node, far: Node, subject: Subject) -> list[Event]:
    """Every event up to a mark; the mark is sent again until one of them finds a place in the buffer."""
    events: list[Event] = []
    for _ in range(50):
        await far.broker.publish(subject, b"mark")
        try:
            async with asyncio.timeout(0.3):
                while b"mark" not in payloads(events):
                    events += await near.broker.receive()
        except TimeoutError:
            continue
        return events
    raise AssertionError(f"{near.config.node} hears nothing any more after an overflow")


async def rule_09_order_is_fifo_per_publisher(cluster: Cluster) -> None:
    """Rule 9: order is FIFO per publishing node across all its subjects, or as `guarantees.order` says."""
    nodes = [await cluster.node() for _ in range(3)]
    subjects = cluster.subjects(10)
    for node in nodes:
        await node.broker.subscribe(subjects)
    count = int(300 * cluster.scale)
    sent = {
        publisher: [(subjects[number % len(subjects)], b"%d %d" % (publisher, number)) for number in range(count)]
        for publisher in (0, 1)
    }

    async def publish(publisher: int) -> None:
        calls: list[asyncio.Future[Position | None]] = []
        for subject, payload in sent[publisher]:
            calls.append(send(nodes[publisher].broker, subject, payload))
            if len(calls) % 10 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*calls)

    await asyncio.gather(publish(0), publish(1))
    guarantees = nodes[0].broker.guarantees
    receivers = nodes if guarantees.echo else nodes[2:]
    heard = [await cluster.finish(publisher, subjects, *receivers) for publisher in nodes[:2]]
    observed = [[*first, *second] for first, second in zip(*heard, strict=True)]
    for events in observed:
        for publisher in (0, 1):
            mine = [one for one in events if isinstance(one, Gap) or one.payload.startswith(b"%d " % publisher)]
            in_order(guarantees.order, mine, sent[publisher])
    if guarantees.order == "total":
        assert all(payloads(one) == payloads(other) for one, other in pairwise(observed))


async def rule_10_a_position_is_set_exactly_with_a_log(cluster: Cluster) -> None:
    """Rule 10: a delivery has a `position` exactly when `log` is set."""
    near, far = await cluster.node(), await cluster.node()
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    returned = await far.broker.publish(subject, b"one")
    (event,) = await near.hear_payload(b"one")
    assert isinstance(event, Delivery)
    assert (event.position is not None) is (near.broker.log is not None)
    assert returned in {None, event.position}


async def rule_11_aclose_is_idempotent(cluster: Cluster) -> None:
    """Rule 11: `aclose` is idempotent; what is called afterwards raises `BrokerClosed`."""
    near, cold = await cluster.node(), cluster.unstarted()
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    await asyncio.gather(near.broker.aclose(), near.broker.aclose())
    await near.broker.aclose()
    await cold.broker.aclose()
    for node in (near, cold):
        for call in (
            node.broker.start,
            node.broker.receive,
            lambda node=node: node.broker.subscribe([subject]),
            lambda node=node: node.broker.publish(subject, b"after"),
        ):
            with pytest.raises(BrokerClosed):
                await call()


async def rule_11_aclose_frees_blocked_calls(cluster: Cluster) -> None:
    """Rule 11: it works while calls are blocked (they raise `BrokerClosed`)."""
    near = await cluster.node()
    receiving = asyncio.create_task(near.broker.receive())
    await asyncio.sleep(0)
    await near.broker.aclose()
    with pytest.raises(BrokerClosed):
        async with asyncio.timeout(2):
            await receiving


async def rule_11_aclose_flushes(cluster: Cluster) -> None:
    """Rule 11: it flushes accepted publishes, within a bound."""
    near, far = await cluster.node(), await cluster.node()
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    calls = {b"%d" % number: send(far.broker, subject, b"%d" % number) for number in range(200)}
    await asyncio.sleep(0)  # those that are coroutines begin
    await far.broker.aclose()
    assert [await outcome(cluster, call) for call in calls.values()] == [None] * 200
    (events,) = await cluster.finish(near, [subject], near) if near.broker.guarantees.echo else ([],)
    if near.broker.guarantees.echo:
        assert payloads(events) == list(calls)


CHECKS: tuple[Check, ...] = (
    rule_02_subscribe_is_a_barrier,
    rule_02_subscribe_is_idempotent,
    rule_02_subscribe_is_plural,
    rule_03_unsubscribe_is_idempotent,
    rule_04_the_call_fixes_the_order,
    rule_04_other_calls_do_not_disturb_the_order,
    rule_05_a_large_payload_is_refused_before_the_wire,
    rule_05_any_subject_is_carried,
    rule_05_a_node_that_is_not_started_cannot_publish,
    rule_05_a_cancelled_publish_harms_no_other,
    rule_06_a_node_hears_itself,
    rule_07_receive_waits_and_returns_all_that_is_ready,
    rule_07_cancelling_receive_loses_nothing,
    rule_08_overflow_is_bounded_and_told,
    rule_09_order_is_fifo_per_publisher,
    rule_10_a_position_is_set_exactly_with_a_log,
    rule_11_aclose_is_idempotent,
    rule_11_aclose_frees_blocked_calls,
    rule_11_aclose_flushes,
)
