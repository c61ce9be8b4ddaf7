"""Bugs in the brokers and their links that the simulation with real client libraries must find."""

import asyncio
from typing import Any

# pyright: reportPrivateUsage=false


def subjects_are_not_restored(_real: Any) -> Any:
    """A new link to Redis hears nothing that the old one heard."""

    async def restore(_self: Any, _link: Any) -> None:
        """Nothing."""

    return restore


def a_lost_link_is_kept_secret(_real: Any) -> Any:
    def lost(self: Any, link: Any, _cause: Exception) -> None:
        if self._life.link is link:
            self._life.link = None

    return lost


def a_new_link_to_redis_is_told_too_early(real: Any) -> Any:
    """Before its subjects are heard again."""

    async def restore(self: Any, link: Any) -> None:
        self._life.use(link)
        await real(self, link)

    return restore


def replies_are_those_of_the_command_before(real: Any) -> Any:
    """A PING that is answered is forgotten, and its answer taken for that of the next command."""

    def ping(self: Any) -> None:
        self._transport.write(b"*1\r\n$4\r\nPING\r\n")

    del real
    return ping


def a_publish_counts_when_it_is_written(real: Any) -> Any:
    def publish(self: Any, channel: bytes, payload: bytes) -> asyncio.Future[None]:
        real(self, channel, payload).cancel()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    return publish


def a_silent_redis_is_waited_for(_real: Any) -> Any:
    async def watch(_self: Any, _beat: float) -> None:
        """For ever."""

    return watch


def what_is_cut_by_a_read_is_lost(real: Any) -> Any:
    """Each read begins anew, as if Redis sent whole replies."""

    def read(self: Any, data: bytes) -> None:
        real(self, data)
        self._replies = type(self._replies)(replyError=self._connection._parser.parse_error, notEnoughData=_nothing())

    return read


def _nothing() -> object:
    from roomcast.brokers import redis_link  # noqa: PLC0415

    return redis_link._NO_MORE


def a_subscription_to_redis_is_not_waited_for(real: Any) -> Any:
    async def tell(self: Any, verb: bytes, channels: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(real(self, verb, channels))
        task.add_done_callback(_seen)
        await asyncio.sleep(0)

    return tell


def _seen(done: asyncio.Task[None]) -> None:
    if not done.cancelled():
        done.exception()


def subscriptions_are_not_restored(real: Any) -> Any:
    """A new link to NATS hears nothing that the old one heard."""

    async def open_(self: Any, timeout: float) -> Any:
        subjects, self._subjects = self._subjects, dict[Any, None]()
        try:
            return await real(self, timeout)
        finally:
            self._subjects = subjects | self._subjects

    return open_


def a_barrier_is_no_barrier(_real: Any) -> Any:
    async def barrier(_self: Any) -> None:
        """At once."""

    return barrier


def a_silent_nats_is_waited_for(_real: Any) -> Any:
    async def beat(_self: Any) -> None:
        """For ever."""

    return beat
