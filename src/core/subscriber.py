"""The subscribing half of a node: asks the broker for what the interest table wants, and says when it is heard.

1. `hear` and `ignore` count the users of a subject and never wait.
2. Subscriptions asked for in one tick share one round trip; one call to the broker is under way at a time, so a
   subscribe and an unsubscribe of one subject cannot cross.
3. `heard` returns once what is published on the subject from now on arrives here. Without a link it returns too:
   the broker keeps the subject and restores it with the link, and the gap says what that means.
4. What the broker refuses is told to whoever waits for it, and asked for again a second later while it is wanted.
5. Once it is closed, it asks the broker for nothing more, and how a call under way ends is nobody's business.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine

from roomcast.core.broker import Broker, Subject
from roomcast.core.errors import BrokerError, BrokerUnavailable, ConfigurationError, RoomcastError
from roomcast.core.interest import Interest

logger = logging.getLogger("roomcast")

_AGAIN = 1.0  # seconds until what was refused is asked for again


class Subscriber:
    """Subscribes for one node.

    Args:
        linger: see `Interest`.
        dropped: told of the subjects that are not heard any more.
        fault: told of what the broker refuses.
        everything: the broker delivers every subject, wanted or not: what is wanted is heard at once.
    """

    def __init__(
        self,
        linger: float,
        *,
        dropped: Callable[[Collection[Subject]], None],
        fault: Callable[[str, BaseException], None],
        everything: bool = False,
    ) -> None:
        self._interest = Interest(linger)
        self._dropped = dropped
        self._fault = fault
        self._everything = everything
        self._barriers: dict[Subject, asyncio.Future[None]] = {}
        self._changed = asyncio.Event()
        self._running = False
        self._again: asyncio.TimerHandle | None = None

    def hear(self, subject: Subject) -> None:
        """One more user of a subject (rule 1)."""
        if not self._interest.acquire(subject):
            self._changed.set()

    def ignore(self, subject: Subject) -> None:
        """One user of a subject less (rule 1)."""
        self._interest.release(subject, time.monotonic())
        if not self._interest.wanted(subject):
            self._lift([subject], None)  # whoever still waits has left meanwhile
        self._changed.set()

    def active(self, subject: Subject) -> bool:
        """Whether what arrives on the subject is for us."""
        return self._interest.active(subject) or (self._everything and self._interest.wanted(subject))

    async def heard(self, subject: Subject) -> None:
        """Wait until the subject is heard (rule 3).

        Raises:
            ConfigurationError: the broker refuses the subscription.
        """
        if self._running and not self.active(subject):
            barrier = self._barriers.get(subject)
            if barrier is None:
                barrier = self._barriers[subject] = asyncio.get_running_loop().create_future()
            self._changed.set()
            await asyncio.shield(barrier)

    def run(self, broker: Broker) -> Coroutine[None, None, None]:
        """Keep the broker's subscriptions as the table wants them, until cancelled; barriers hold from the call on."""
        self._running = True
        self._changed.set()
        return self._run(broker)

    async def _run(self, broker: Broker) -> None:
        while self._running:
            deadline = self._interest.next_deadline()
            delay = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                async with asyncio.timeout(delay):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            await self._subscribe(broker)
            if self._running:
                await self._unsubscribe(broker)

    def close(self) -> None:
        """Nobody waits any longer."""
        self._running = False
        if self._again is not None:
            self._again.cancel()
        self._lift(list(self._barriers), None)

    async def _subscribe(self, broker: Broker) -> None:
        subjects = self._interest.to_subscribe()
        if not subjects or await self._ask(broker, subjects) or len(subjects) == 1:
            return
        for subject in subjects:  # one that is refused must not keep the others from being heard
            if self._interest.wanted(subject):
                await self._ask(broker, [subject])

    async def _ask(self, broker: Broker, subjects: list[Subject]) -> bool:
        """Ask the broker for some subjects; False when it refuses them."""
        try:
            await broker.subscribe(subjects)
        except BrokerUnavailable:
            pass  # the broker keeps them and restores them with the link
        except Exception as exc:  # noqa: BLE001 - rule 4; a foreign error must not end this loop either
            if not self._running:
                return True  # rule 5
            if len(subjects) == 1:
                self._fault(f"the broker refuses to subscribe to {subjects[0]}", exc)
                self._lift(subjects, exc if isinstance(exc, RoomcastError) else _foreign(exc))
                if self._again is None:
                    self._again = asyncio.get_running_loop().call_later(_AGAIN, self._try_again)
            return False
        self._interest.subscribed(subjects, time.monotonic())
        self._lift(subjects, None)
        return True

    def _try_again(self) -> None:
        self._again = None
        self._changed.set()

    async def _unsubscribe(self, broker: Broker) -> None:
        due = self._interest.to_unsubscribe(time.monotonic())
        if not due:
            return
        self._dropped(due)
        try:
            await broker.unsubscribe(due)
        except BrokerError as exc:
            logger.warning("roomcast: %s", exc)

    def _lift(self, subjects: list[Subject], error: RoomcastError | None) -> None:
        for subject in subjects:
            barrier = self._barriers.pop(subject, None)
            if barrier is None or barrier.done():
                continue
            if error is None:
                barrier.set_result(None)
            else:
                barrier.set_exception(error)


def _foreign(cause: Exception) -> RoomcastError:
    error = ConfigurationError(f"The broker cannot subscribe: {cause}")
    error.__cause__ = cause
    return error
