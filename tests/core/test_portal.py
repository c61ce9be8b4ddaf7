"""Plain calls into a loop on a thread of its own."""

import asyncio
import signal
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from roomcast.core.portal import Portal, whole


class Over(Exception):
    """The portal is closed."""


class Events:
    """What happened on the loop, in order, and a way to wait for it."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._news = threading.Condition()

    def add(self, event: str) -> None:
        with self._news:
            self.seen.append(event)
            self._news.notify_all()

    def wait(self, event: str) -> None:
        with self._news:
            assert self._news.wait_for(lambda: event in self.seen, timeout=10), f"{event} did not happen: {self.seen}"


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def portal(events: Events) -> Generator[Portal]:
    async def farewell() -> None:
        events.add("farewell")

    portal = Portal(farewell, Over)
    yield portal
    portal.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "roomcast-portal"]


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def fail() -> None:
    await asyncio.sleep(0)
    raise LookupError("nothing there")


def test_a_portal_has_no_thread_before_its_first_call(portal: Portal, events: Events) -> None:
    before, idle = threading.active_count(), portal.idle
    portal.tell(fail)
    assert threading.active_count() == before
    assert portal.call(lambda: double(1)) == 2
    assert threading.active_count() == before + 1
    assert (idle, portal.idle) == (True, False)
    assert events.seen == []


def test_a_call_returns_or_raises_what_its_coroutine_does(portal: Portal) -> None:
    assert portal.call(lambda: double(21)) == 42
    with pytest.raises(LookupError, match="nothing there"):
        portal.call(fail)
    assert portal.call(lambda: double(1)) == 2


def test_any_number_of_threads_may_call_at_the_same_time(portal: Portal) -> None:
    together = threading.Barrier(16)

    def work(number: int) -> list[int]:
        together.wait(10)
        return [portal.call(partial(double, 1000 * number + n)) for n in range(20)]

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(work, range(16)))
    assert results == [[2 * (1000 * number + n) for n in range(20)] for number in range(16)]
    assert len([thread for thread in threading.enumerate() if thread.name == "roomcast-portal"]) == 1


def test_a_call_on_a_thread_that_runs_a_loop_blocks_that_loop_and_works(portal: Portal) -> None:
    async def program() -> int:
        return portal.call(lambda: double(2))

    assert asyncio.run(program()) == 4


def test_a_call_from_the_portals_own_thread_raises(portal: Portal) -> None:
    async def call_again() -> None:
        assert portal.inside
        portal.call(lambda: double(1))

    with pytest.raises(RuntimeError, match="own thread"):
        portal.call(call_again)
    assert not portal.inside


def test_an_interrupted_caller_cancels_what_it_asked_for(portal: Portal, events: Events) -> None:
    assert threading.current_thread() is threading.main_thread(), "only the main thread is interrupted"

    async def for_ever() -> None:
        events.add("waiting")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            events.add("cancelled")
            raise

    def interrupt() -> None:
        events.wait("waiting")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        portal.call(for_ever)
    interrupter.join()
    events.wait("cancelled")
    assert portal.call(lambda: double(1)) == 2


def test_close_runs_the_farewell_once_and_refuses_later_calls(portal: Portal, events: Events) -> None:
    portal.call(lambda: double(1))
    with ThreadPoolExecutor(4) as pool:
        for closing in [pool.submit(portal.close) for _ in range(4)]:
            closing.result(10)
    assert events.seen == ["farewell"]
    with pytest.raises(Over):
        portal.call(lambda: double(1))
    portal.tell(fail)


def test_a_portal_that_was_never_used_closes_without_a_thread(portal: Portal, events: Events) -> None:
    portal.close()
    with pytest.raises(Over):
        portal.call(lambda: double(1))
    assert events.seen == []


def test_a_call_under_way_at_the_close_may_end_by_itself(events: Events) -> None:
    freed = asyncio.Event()

    async def farewell() -> None:
        freed.set()

    async def wait_for_it() -> str:
        events.add("waiting")
        await freed.wait()
        return "done"

    portal = Portal(farewell, Over)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(lambda: portal.call(wait_for_it))
        events.wait("waiting")
        portal.close()
        assert call.result(10) == "done"


def test_a_call_that_does_not_end_is_told_that_the_portal_is_closed(portal: Portal, events: Events) -> None:
    async def for_ever() -> None:
        events.add("waiting")
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(lambda: portal.call(for_ever))
        events.wait("waiting")
        began = time.monotonic()
        portal.close()
        with pytest.raises(Over):
            call.result(10)
    assert time.monotonic() - began < 5


def test_callers_race_with_the_close_and_each_gets_an_answer_or_the_refusal(events: Events) -> None:
    for _ in range(30):
        portal = Portal(lambda: double_nothing(events), Over)
        portal.call(lambda: double(0))
        together = threading.Barrier(5)

        def work(portal: Portal = portal, together: threading.Barrier = together) -> bool:
            together.wait(10)
            try:
                while True:
                    assert portal.call(lambda: double(4)) == 8
            except Over:
                return True

        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(work) for _ in range(4)]
            together.wait(10)
            portal.close()
            assert [call.result(10) for call in calls] == [True] * 4


async def double_nothing(events: Events) -> None:
    events.add("farewell")


def test_what_is_told_runs_without_anybody_waiting(portal: Portal, events: Events) -> None:
    async def note() -> None:
        events.add("noted")

    portal.call(lambda: double(1))
    portal.tell(note)
    events.wait("noted")


def test_an_abandoned_portal_says_farewell_and_ends(portal: Portal, events: Events) -> None:
    portal.call(lambda: double(1))
    [thread] = [thread for thread in threading.enumerate() if thread.name == "roomcast-portal"]
    portal.abandon()
    thread.join(10)
    assert not thread.is_alive()
    assert events.seen == ["farewell"]


def test_a_fork_waits_until_what_it_must_not_cut_in_two_is_over(events: Events) -> None:
    def fork() -> None:
        whole.before()
        events.add("forks")
        whole.after_in_parent()

    forking = threading.Thread(target=fork)
    with whole, whole:
        forking.start()
        forking.join(0.2)
        events.add("over")
    forking.join(10)
    assert events.seen == ["over", "forks"]
    with whole:
        events.add("open again")
    assert events.seen[2:] == ["open again"]
