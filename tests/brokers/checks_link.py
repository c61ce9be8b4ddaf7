"""Checks of what a broker does when its link breaks: rules 1, 2, 3, 5, 8, 11, 12, 13.

The faulty link is that of nodes made with `linked=True`; their peers have an undisturbed one. Every check
asserts that its fault really happened.
"""

import asyncio
import traceback
from collections.abc import Sequence

import pytest

from roomcast.core.broker import Gap, Subject
from roomcast.core.errors import (
    BrokerClosed,
    BrokerError,
    BrokerUnavailable,
    PublishRejected,
    PublishUnconfirmed,
)
from tests.brokers.checks_delivery import in_order, losses_are_told, outcome
from tests.brokers.cluster import Check, Cluster, Event, Node, gaps, payloads, send
from tests.waiting import until

HEARTBEAT = 0.6
SLACK = 2.0  # for a machine that is busy with other things


def now() -> float:
    return asyncio.get_running_loop().time()


async def lose_link(cluster: Cluster, *nodes: Node) -> list[Event]:
    """Refuse new connections, cut the present ones, and wait until the nodes know; what the first one heard."""
    cluster.link.refuse()
    assert await cluster.link.cut() >= len(nodes)
    heard = [await node.hear_gap("disconnected") for node in nodes]
    return heard[0] if heard else []


async def rule_01_start_raises_when_nothing_listens(cluster: Cluster) -> None:
    """Rule 1: `start` returns connected or raises `BrokerUnavailable` within `connect_timeout`."""
    cluster.link.refuse()
    node = cluster.unstarted(linked=True, connect_timeout=1.0)
    started = now()
    with pytest.raises(BrokerUnavailable) as caught:
        await node.broker.start()
    assert now() - started < 1.0 + SLACK
    assert caught.value.__cause__ is not None  # rule 13
    await node.broker.aclose()


async def rule_01_start_gives_up_on_a_silent_server(cluster: Cluster) -> None:
    """Rule 1: ... within `connect_timeout`, also when the server accepts the connection and says nothing."""
    cluster.link.stall()
    node = cluster.unstarted(linked=True, connect_timeout=0.7)
    started = now()
    with pytest.raises(BrokerUnavailable):
        await node.broker.start()
    assert now() - started < 0.7 + SLACK
    assert cluster.link.connections >= 1
    await node.broker.aclose()
    await until(lambda: cluster.link.open == 0, within=cluster.patience, what="a failed start leaves no connection")


async def rule_01_reconnects_and_restores_subjects(cluster: Cluster) -> None:
    """Rule 1: the broker reconnects by itself, for ever, first retry at once, and restores its subjects."""
    near, far = await cluster.node(linked=True), await cluster.node()
    subjects = cluster.subjects(20)
    await near.broker.subscribe(subjects)
    for number, fault in enumerate((cluster.link.cut, cluster.link.reset, cluster.link.cut)):
        started = now()
        assert await fault() >= 1
        await near.hear_gap("disconnected")
        await near.hear_gap("reconnected")
        assert now() - started < 1.5 + SLACK
        sent = [b"%d %s" % (number, subject.encode()) for subject in subjects]
        for subject, payload in zip(subjects, sent, strict=True):
            await far.broker.publish(subject, payload)
        (events,) = await cluster.finish(far, subjects, near)
        in_order(far.broker.guarantees.order, events, list(zip(subjects, sent, strict=True)))
        await near.broker.publish(subjects[0], b"back %d" % number)
        await near.hear_payload(b"back %d" % number)


async def rule_01_keeps_trying_with_back_off(cluster: Cluster) -> None:
    """Rule 1: it reconnects for ever, with jittered back-off: no storm of attempts, and no giving up."""
    near, far = await cluster.node(linked=True), await cluster.node()
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    cluster.link.hang_up = True
    before = cluster.link.connections
    assert await cluster.link.cut() >= 1
    await near.hear_gap("disconnected")
    await until(
        lambda: cluster.link.connections - before >= 4, within=cluster.patience, what="it tries again and again"
    )
    attempts, started = cluster.link.connections, now()
    await until(lambda: cluster.link.connections - attempts >= 3, within=cluster.patience, what="it does not give up")
    assert now() - started > 0.1, "attempts follow each other without a pause"
    with pytest.raises(BrokerUnavailable):
        await near.broker.publish(subject, b"while down")
    cluster.link.hang_up = False
    events = await near.hear_gap("reconnected")
    assert len(gaps(events)) == 1, "one loss is one pair of gaps, however many attempts it takes (rule 8)"
    await far.broker.publish(subject, b"after")
    (first,) = payloads(await near.hear_payload(b"after"))
    assert first == b"after"


async def rule_02_subscribe_is_a_barrier_on_a_slow_link(cluster: Cluster) -> None:
    """Rule 2: a barrier: also when the subscriber's link is slow and the publisher's is not."""
    near, far = await cluster.node(linked=True), await cluster.node()
    subjects = cluster.subjects(6)
    cluster.link.delay = 0.05
    for subject in subjects:
        await near.broker.subscribe([subject])
        await far.broker.publish(subject, subject.encode())
        assert payloads(await near.hear_payload(subject.encode())) == [subject.encode()]


async def rule_02_subscribe_takes_one_round_trip(cluster: Cluster) -> None:
    """Rule 2: it is plural, one round trip; none is needed with a log, of which everything is read anyway."""
    near, far = await cluster.node(linked=True), await cluster.node()
    subjects = cluster.subjects(20)
    cluster.link.delay = 0.06
    started = now()
    await near.broker.subscribe(subjects)
    took = now() - started
    assert took >= 0.1 or near.broker.log is not None, "it returned before the server can have answered"
    assert took < 0.12 * min(5, len(subjects) - 2), f"{took:.2f} s for {len(subjects)} subjects"
    await far.broker.publish(subjects[-1], b"last")
    await near.hear_payload(b"last")


async def rule_02_and_03_subjects_change_while_down(cluster: Cluster) -> None:
    """Rules 2 and 3: without a connection `subscribe` keeps the subjects and raises, `unsubscribe` forgets."""
    near, far = await cluster.node(linked=True), await cluster.node()
    kept, forgotten, added = cluster.subjects(3)
    await near.broker.subscribe([kept, forgotten])
    await lose_link(cluster, near)
    with pytest.raises(BrokerUnavailable):
        await near.broker.subscribe([added])
    await near.broker.unsubscribe([forgotten])
    await cluster.link.accept()
    await near.hear_gap("reconnected")
    for subject in (forgotten, added, kept):
        await far.broker.publish(subject, subject.encode())
    (events,) = await cluster.finish(far, [added, kept], near)
    sent = [(subject, subject.encode()) for subject in (added, kept)]
    in_order(far.broker.guarantees.order, events, sent)


async def rule_05_no_publish_while_down(cluster: Cluster) -> None:
    """Rule 5: `BrokerUnavailable` when there is no connection, at once; never by buffering for a later one."""
    near, far = await cluster.node(), await cluster.node(linked=True)
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    await lose_link(cluster, far)
    started = now()
    for number in range(5):
        with pytest.raises(BrokerUnavailable):
            await far.broker.publish(subject, b"late %d" % number)
    assert now() - started < SLACK
    await cluster.link.accept()
    await far.hear_gap("reconnected")
    (events,) = await cluster.finish(far, [subject], near)
    assert events == []


async def rule_05_every_outcome_is_true(cluster: Cluster) -> None:
    """Rule 5: accepted is delivered; definite failures are not; nothing twice; no `CancelledError` nobody sent."""
    near, far = await cluster.node(), await cluster.node(linked=True)
    subjects = cluster.subjects(4)
    await near.broker.subscribe(subjects)
    calls: dict[bytes, asyncio.Future[BaseException | None]] = {}

    async def publish(faults: int) -> None:
        number = 0
        while faults or number % 40:
            payload = b"%d" % number
            call = send(far.broker, subjects[number % len(subjects)], payload)
            calls[payload] = asyncio.ensure_future(outcome(cluster, call))
            number += 1
            if number % 8 == 0:
                await asyncio.sleep(0.001)
            if number % 300 == 0:
                faults -= 1
                assert await (cluster.link.reset() if faults % 2 else cluster.link.cut()) >= 1
                await far.hear_gap("reconnected")

    await publish(faults=4)
    outcomes = dict(zip(calls, await asyncio.gather(*calls.values()), strict=True))
    (events,) = await cluster.finish(far, subjects, near)
    assert not gaps(events)
    got = payloads(events)
    assert len(got) == len(set(got)), "a publish was repeated behind the caller's back"
    for _, mine in _orders(far, subjects, got):
        assert mine == sorted(mine, key=int)
    for payload, error in outcomes.items():
        if error is None:
            if far.broker.guarantees.confirmed:
                assert payload in got, f"{payload!r} was accepted and lost"
        elif isinstance(error, PublishRejected | BrokerUnavailable):
            assert payload not in got, f"{payload!r} failed definitely, and was delivered: {error!r}"
        else:
            assert isinstance(error, PublishUnconfirmed)
    assert sum(error is None for error in outcomes.values()) > len(outcomes) // 2
    assert any(outcomes.values()), "no publish met the fault"


async def rule_05_lost_replies_end_unconfirmed(cluster: Cluster) -> None:
    """Rule 5: it fails indefinitely (`PublishUnconfirmed`) when the answer is lost, and is not sent again."""
    near, far = await cluster.node(), await cluster.node(linked=True, heartbeat=HEARTBEAT)
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    cluster.link.drop_replies()
    call = send(far.broker, subject, b"once")
    await near.hear_payload(b"once")
    assert await cluster.link.cut() >= 1
    cluster.link.resume()
    error = await outcome(cluster, call)
    if far.broker.guarantees.confirmed:
        assert isinstance(error, PublishUnconfirmed), error
    await far.hear_gap("reconnected")
    (events,) = await cluster.finish(far, [subject], near)
    assert events == []


def _orders(
    node: Node, subjects: Sequence[Subject], numbers: Sequence[bytes]
) -> list[tuple[Sequence[Subject], list[bytes]]]:
    """What is in one order, as `guarantees.order` says: subjects, and numbers; number n was sent on subject n."""
    if node.broker.guarantees.order != "subject":
        return [(subjects, list(numbers))]
    count = len(subjects)
    return [
        ([subject], [number for number in numbers if int(number) % count == index])
        for index, subject in enumerate(subjects)
    ]


async def rule_08_every_loss_is_told(cluster: Cluster) -> None:
    """Rule 8: nothing is lost without a `Gap`, in line, before the first delivery after the loss."""
    near, far = await cluster.node(linked=True), await cluster.node()
    subjects = cluster.subjects(4)
    await near.broker.subscribe(subjects)
    sent: list[bytes] = []
    stop = asyncio.Event()

    async def publish() -> None:
        while not stop.is_set():
            subject = subjects[len(sent) % len(subjects)]
            sent.append(b"%d" % len(sent))
            await far.broker.publish(subject, sent[-1])
            await asyncio.sleep(0.001)

    events: list[Event] = []
    publishing = asyncio.create_task(publish())
    try:
        for fault in (cluster.link.cut, cluster.link.reset, cluster.link.cut):
            mark = len(sent) + 50
            await until(lambda: len(sent) >= mark, within=cluster.patience)  # noqa: B023 - waited for within the iteration
            assert await fault() >= 1
            events += await near.hear_gap("reconnected")
    finally:
        stop.set()
        await publishing
    (rest,) = await cluster.finish(far, subjects, near)
    heard = [*events, *rest]
    holes: list[int] = []
    for mine, theirs in _orders(near, subjects, sent):
        holes += losses_are_told([one for one in heard if isinstance(one, Gap) or one.subject in mine], theirs)
    assert not holes or near.broker.log is None, "nothing is lost with a log"
    told = [(gap.reason, gap.ongoing) for gap in gaps(heard)]
    assert told == [("disconnected", True), ("reconnected", False)] * 3


async def rule_08_a_loss_is_told_once(cluster: Cluster) -> None:
    """Rule 8: one `Gap("disconnected", ongoing=True)` when noticed, one `Gap("reconnected")` when all is heard."""
    near, far = await cluster.node(linked=True), await cluster.node()
    first, second = cluster.subjects(2)
    await near.broker.subscribe([first, second])
    await far.broker.publish(first, b"before")
    await near.hear_payload(b"before")
    heard = await lose_link(cluster, near)
    assert heard == [Gap("disconnected", ongoing=True)]
    await far.broker.publish(first, b"lost")
    await cluster.link.accept()
    logged = near.broker.log is not None
    heard = await near.hear_gap("reconnected")
    assert heard == [Gap("reconnected", missed=0 if logged else None)]
    (events,) = await cluster.finish(far, [first, second], near)
    assert not gaps(events)
    assert payloads(events) == ([b"lost"] if logged else []), "with a log it is only late"


async def rule_11_aclose_on_a_dead_link(cluster: Cluster) -> None:
    """Rule 11: it works, within a bound, while the link is stalled and calls are blocked on it."""
    near = await cluster.node(linked=True, heartbeat=30.0)
    first, second = cluster.subjects(2)
    await near.broker.subscribe([first])
    cluster.link.stall()
    publishing = send(near.broker, first, b"blocked")
    subscribing = asyncio.create_task(near.broker.subscribe([second]))
    receiving = asyncio.create_task(near.broker.receive())
    await asyncio.sleep(0.05)
    started = now()
    await near.broker.aclose()
    assert now() - started < 3.0 + SLACK
    async with asyncio.timeout(1):
        ended = await asyncio.gather(publishing, subscribing, receiving, return_exceptions=True)
    assert isinstance(ended[0], BrokerClosed | PublishUnconfirmed) or not near.broker.guarantees.confirmed
    assert isinstance(ended[1], BrokerClosed) or near.broker.log is not None  # which needs no answer to subscribe
    assert isinstance(ended[2], BrokerClosed)
    await until(lambda: cluster.link.open == 0, within=cluster.patience, what="no connection stays open")


async def rule_11_aclose_leaves_nothing(cluster: Cluster) -> None:
    """Rule 11: it leaves no task and no socket behind, whatever the state of the link."""
    mine = asyncio.all_tasks()

    def left() -> list[str]:
        return [str(task) for task in asyncio.all_tasks() - mine if "TcpProxy." not in str(task)]

    first, second = [Subject(f"{cluster.prefix}.room.{number}") for number in range(2)]
    for state in ("up", "down", "trying", "silent", "never up"):
        near = cluster.unstarted(linked=True, connect_timeout=1.0)
        if state == "never up":
            cluster.link.refuse()
            with pytest.raises(BrokerUnavailable):
                await near.broker.start()
        else:
            await near.broker.start()
            await near.broker.subscribe([first, second])
            await near.broker.publish(first, b"x")
        if state in {"down", "trying"}:
            cluster.link.hang_up = state == "trying"
            if state == "down":
                cluster.link.refuse()
            assert await cluster.link.cut() >= 1
            await near.hear_gap("disconnected")
        if state == "silent":
            cluster.link.stall()
        async with asyncio.timeout(5):
            await near.broker.aclose()
        await until(lambda: cluster.link.open == 0, within=cluster.patience, what=f"no connection stays open ({state})")
        await until(lambda: not left(), within=1.0, what=f"no task is left ({state})")
        cluster.link.resume()
        cluster.link.hang_up = False
        await cluster.link.accept()


async def rule_11_a_cancelled_start_leaves_nothing(cluster: Cluster) -> None:
    """Rule 11: a `start` that is cancelled leaves nothing either, once the broker is closed."""
    mine = asyncio.all_tasks()
    cluster.link.stall()
    near = cluster.unstarted(linked=True, connect_timeout=30.0)
    starting = asyncio.create_task(near.broker.start())
    await until(lambda: cluster.link.connections >= 1, within=cluster.patience)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await near.broker.aclose()
    await until(lambda: cluster.link.open == 0, within=cluster.patience, what="no connection stays open")
    left = [task for task in asyncio.all_tasks() - mine if "TcpProxy." not in str(task)]
    assert not left


async def rule_12_a_black_hole_is_noticed(cluster: Cluster) -> None:
    """Rule 12: a connection that carries nothing any more is declared lost within two `heartbeat` periods."""
    near, far = await cluster.node(linked=True, heartbeat=HEARTBEAT), await cluster.node()
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    for fault in (cluster.link.stall, cluster.link.drop_replies):
        fault()
        started = now()
        await near.hear_gap("disconnected")
        assert now() - started < 2 * HEARTBEAT + SLACK
        with pytest.raises(BrokerUnavailable):
            await near.broker.publish(subject, b"while deaf")
        cluster.link.resume()
        await near.hear_gap("reconnected")
        await far.broker.publish(subject, b"heard")
        assert payloads(await near.hear_payload(b"heard")) == [b"heard"]


async def rule_12_a_publish_into_a_black_hole_ends(cluster: Cluster) -> None:
    """Rules 5 and 12: what is in flight on a link that is declared lost ends, indefinitely, with it."""
    near = await cluster.node(linked=True, heartbeat=HEARTBEAT)
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    cluster.link.stall()
    started = now()
    calls = [send(near.broker, subject, b"%d" % number) for number in range(20)]
    subscribing = asyncio.create_task(near.broker.subscribe(cluster.subjects(2)))
    errors = [await outcome(cluster, call) for call in calls]
    assert now() - started < 2 * HEARTBEAT + SLACK
    if near.broker.guarantees.confirmed:
        assert all(isinstance(error, PublishUnconfirmed | BrokerUnavailable) for error in errors), errors
        assert any(isinstance(error, PublishUnconfirmed) for error in errors), errors
    if near.broker.log is None:
        with pytest.raises(BrokerUnavailable):
            await subscribing
    else:
        await subscribing
    cluster.link.resume()
    await near.hear_gap("reconnected")


async def rule_12_a_quiet_link_is_not_lost(cluster: Cluster) -> None:
    """Rule 12, the other way: a healthy connection that carries signs of life alone, for many heartbeats, is kept."""
    near, far = await cluster.node(linked=True, heartbeat=0.2), await cluster.node()
    (subject,) = cluster.subjects(1)
    await near.broker.subscribe([subject])
    connections = cluster.link.connections
    for _ in range(24):  # two lines at most are asked for a sign of life every half of a heartbeat
        carried = cluster.link.bytes_down
        await until(
            lambda: cluster.link.bytes_down > carried or cluster.link.connections > connections,  # noqa: B023
            within=cluster.patience,
            what="a sign of life",
        )
    (events,) = await cluster.finish(far, [subject], near)
    assert events == []
    assert cluster.link.connections == connections


async def rule_13_errors_are_ours_and_tell_no_secret(cluster: Cluster) -> None:
    """Rule 13: what leaves a broker is from `roomcast.core.errors`, with no credentials in its text."""
    user, secret = "mallory", "s3cr3t-w0rd"
    scheme, _, rest = cluster.link.url.partition("://")
    url = f"{scheme}://{user}:{secret}@{rest.rpartition('@')[2]}"
    cluster.link.hang_up = True
    node = cluster.unstarted(url=url, connect_timeout=1.0)
    with pytest.raises(BrokerError) as caught:
        await node.broker.start()
    assert cluster.link.connections
    text = "".join(traceback.format_exception(caught.value))
    shown = [text, str(caught.value), repr(caught.value), repr(node.broker), str(node.broker)]
    assert not [line for line in shown if secret in line]
    assert isinstance(caught.value.__cause__, Exception)
    assert caught.value.broker


CHECKS: tuple[Check, ...] = (
    rule_01_start_raises_when_nothing_listens,
    rule_01_start_gives_up_on_a_silent_server,
    rule_01_reconnects_and_restores_subjects,
    rule_01_keeps_trying_with_back_off,
    rule_02_subscribe_is_a_barrier_on_a_slow_link,
    rule_02_subscribe_takes_one_round_trip,
    rule_02_and_03_subjects_change_while_down,
    rule_05_no_publish_while_down,
    rule_05_every_outcome_is_true,
    rule_05_lost_replies_end_unconfirmed,
    rule_08_every_loss_is_told,
    rule_08_a_loss_is_told_once,
    rule_11_aclose_on_a_dead_link,
    rule_11_aclose_leaves_nothing,
    rule_11_a_cancelled_start_leaves_nothing,
    rule_12_a_black_hole_is_noticed,
    rule_12_a_publish_into_a_black_hole_ends,
    rule_12_a_quiet_link_is_not_lost,
    rule_13_errors_are_ours_and_tell_no_secret,
)
