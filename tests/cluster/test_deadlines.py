"""What arrives in the very turn of the loop in which its deadline passes has arrived."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from roomcast.core.broadcast import Answer, Collector
from roomcast.core.messages import Reply
from roomcast.core.requests import Requests
from roomcast.core.surveys import Survey, Surveys

T = TypeVar("T")
SOON = 0.05


async def in_the_turn_of_the_deadline(
    wait: Callable[[float], Coroutine[Any, Any, T]], arrive: Callable[[], object]
) -> T:
    """What `wait` gives when the loop is held up until its deadline has passed and `arrive` is due as well."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SOON
    waiting = asyncio.ensure_future(wait(deadline))
    await asyncio.sleep(0)
    loop.call_at(deadline + SOON / 10, arrive)
    while loop.time() < deadline + SOON:
        time.sleep(SOON / 10)  # noqa: ASYNC251 - a loop that is held up is what this is about
    return await waiting


async def test_an_acknowledgement_is_given() -> None:
    collector, answer = Collector(), Answer("sid", "node", ())
    assert await in_the_turn_of_the_deadline(collector.next, lambda: collector.take(answer)) is answer


async def test_the_end_of_the_acknowledgements_is_the_end() -> None:
    collector = Collector()
    assert await in_the_turn_of_the_deadline(collector.next, lambda: collector.finish(frozenset())) is None


async def test_a_reply_is_given() -> None:
    requests = Requests()
    request = requests.begin({"other"})
    surveys = cast("Surveys", SimpleNamespace(node=SimpleNamespace(check_open=lambda: None)))
    survey, reply = Survey(surveys, request), Reply(request.number)

    def arrive() -> None:
        requests.reply("other", reply)
        survey.wake()

    assert await in_the_turn_of_the_deadline(survey.next, arrive) == ("other", reply)
