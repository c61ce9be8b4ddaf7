"""Bugs to plant in the core: each is a function that gives a method with one realistic mistake, given the real one."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from roomcast.core.broker import Gap
from roomcast.core.messages import encode_message
from roomcast.core.outbox import Entry
from roomcast.core.sequences import Reading

# pyright: reportPrivateUsage=false

Plant = Callable[[Any], Callable[..., Any]]


def holes_are_ignored(real: Any) -> Any:
    def read(*args: Any) -> Reading:
        return Reading(repeats=real(*args).repeats)

    return read


def repeats_are_kept(real: Any) -> Any:
    def read(*args: Any) -> Reading:
        return Reading(missed=real(*args).missed)

    return read


def batches_gather_from_afar(_real: Any) -> Any:
    def neighbours(self: Any) -> list[Entry]:
        first = self._queue[0]
        gathered = [entry for entry in self._queue if entry.subject == first.subject and entry.epoch == first.epoch]
        for entry in gathered:
            self._queue.remove(entry)
        return gathered

    return neighbours


def what_came_back_goes_last(real: Any) -> Any:
    def take(self: Any) -> Any:
        returned, self._returned = self._returned, []
        batch = real(self)
        self._returned = returned
        return batch if batch is not None else real(self)

    return take


def confirms_free_nothing(_real: Any) -> Any:
    def confirm(self: Any, batch: Any) -> None:
        self._flying.pop(batch.index, None)

    return confirm


def joins_do_not_wait(_real: Any) -> Any:
    async def heard(_self: Any, _subject: Any) -> None:
        await asyncio.sleep(0)

    return heard


def the_linger_is_not_checked_again(real: Any) -> Any:
    def acquire(self: Any, subject: Any) -> Any:
        deadline = self._lingering.get(subject)
        active = real(self, subject)
        if deadline is not None:
            self._lingering[subject] = deadline
        return active

    return acquire


def local_clients_come_before_the_place(real: Any) -> Any:
    async def send(self: Any, emit: Any, subject: Any) -> Any:
        if subject is None:
            return await real(self, emit, subject)
        message = encode_message(emit)
        self._deliver(emit)
        await self._node.publisher.reserve(len(message))
        return self._node.publisher.put(subject, message)

    return send


def an_emit_suspends_half_way(real: Any) -> Any:
    async def send(self: Any, emit: Any, subject: Any) -> Any:
        if subject is None:
            return await real(self, emit, subject)
        message = encode_message(emit)
        await self._node.publisher.reserve(len(message))
        self._deliver(emit)
        try:
            for _ in range(5):  # turns of the loop, in any of which the emit may be cancelled
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._node.publisher.release_place(len(message))
            raise
        return self._node.publisher.put(subject, message)

    return send


def local_clients_wait_for_the_broker(real: Any) -> Any:
    def deliver(self: Any, origin: str, *rest: Any) -> None:
        if origin == self._node.id:
            asyncio.get_running_loop().call_later(0.0001, real, self, origin, *rest)
        else:
            real(self, origin, *rest)

    return deliver


def skip_is_ignored_elsewhere(real: Any) -> Any:
    def deliver(self: Any, origin: str, emit: Any, *rest: Any) -> None:
        real(self, origin, emit if origin == self._node.id else msgspec.structs.replace(emit, excluded=()), *rest)

    return deliver


def each_room_is_served_apart(_real: Any) -> Any:
    def select(self: Any, namespace: str, rooms: Any, skip: Any = ()) -> Any:
        chosen = [client for room in (rooms or (None,)) for client in self.members(namespace, room)]
        return [client for client in chosen if client.sid not in skip]

    return select


def who_leaves_still_hears(_real: Any) -> Any:
    async def leave_room(*_args: Any) -> None:
        await asyncio.sleep(0)

    return leave_room


def the_last_to_wait_is_let_in_first(real: Any) -> Any:
    def admit(self: Any) -> None:
        self._queue.reverse()
        real(self)

    return admit


def a_lost_link_is_not_told(real: Any) -> Any:
    def tell(self: Any, gap: Gap) -> None:
        if gap.reason not in ("disconnected", "reconnected"):
            real(self, gap)

    return tell


def what_is_given_up_is_not_told(real: Any) -> Any:
    def tell(self: Any, gap: Gap) -> None:
        if gap.reason != "given_up":
            real(self, gap)

    return tell


def garbage_ends_the_loop(_real: Any) -> Any:
    def refuse(_self: Any, error: Exception) -> None:
        raise error

    return refuse


def resends_wait_for_nobody(real: Any) -> Any:
    def hold(self: Any, *, link_down: bool) -> None:
        real(self, link_down=link_down)
        if not link_down:
            self._outbox.clear()

    return hold
