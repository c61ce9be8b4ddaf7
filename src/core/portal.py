"""An event loop on a thread of its own, and plain calls into it from any other thread.

1. The thread starts with the first call, so making a portal is safe anywhere, before a fork too.
2. `call` runs a coroutine on the loop, waits, and gives what it returns or raises. Any number of threads may call at
   the same time. A caller that is interrupted while it waits (KeyboardInterrupt) cancels what it asked for.
3. A call from the portal's own thread would wait for itself: it raises RuntimeError.
4. `close` refuses new calls, lets the farewell run on the loop, and waits for the thread's end. Calls that are still
   under way then end by themselves, or are told that the portal is closed.
5. A portal belongs to the process that made it. In a forked one it raises RuntimeError, and what it holds there is
   neither used nor finalised: the sockets, and the kernel's list of what the loop watches, are shared with the parent.
6. The interpreter closes every portal as it exits.
7. A fork waits, at most `_PATIENCE` seconds, until no thread is in `with whole`: a module half imported there, or a
   file descriptor just opened and not noted yet, would stay so in the child for ever.
"""

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

_GRACE = 1.0  # seconds in which calls may end by themselves once the farewell is over

_PATIENCE = 5.0  # seconds for which a fork waits

_open: "set[Portal]" = set()  # those of this process that have a thread
_inherited: "list[Portal]" = []  # those of the parents, kept from the garbage collector (rule 5)
_forks: list[int] = []  # the parents


def process() -> tuple[int, int]:
    """Names this process, among all that it was forked from and will fork, also when a process id is used again."""
    return os.getpid(), len(_forks)


class _Wholes:
    """How many threads are in what a fork must not cut in two (rule 7)."""

    def __init__(self) -> None:
        self.after_in_child()

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(self, *_exc: object) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def before(self) -> None:
        """A fork is about to happen: wait, and then keep everyone out."""
        self._changed.acquire()
        self._changed.wait_for(lambda: not self._count, timeout=_PATIENCE)

    def after_in_parent(self) -> None:
        """It has happened."""
        self._changed.release()

    def after_in_child(self) -> None:
        """The other threads are not in this process."""
        self._changed = threading.Condition()
        self._count = 0


whole = _Wholes()
"""`with whole:` keeps a fork by another thread from cutting in two what it surrounds (rule 7)."""


class Portal:
    """Calls into one loop.

    Args:
        farewell: run on the loop before it ends.
        closed: makes the error for those who call too late.
    """

    def __init__(self, farewell: Callable[[], Coroutine[Any, Any, None]], closed: Callable[[], Exception]) -> None:
        self._process = process()
        self._farewell = farewell
        self._closed_error = closed
        self._lock = threading.RLock()  # a signal handler may call while its thread is in here
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def here(self) -> bool:
        """Whether it belongs to this process."""
        return self._process == process()

    @property
    def idle(self) -> bool:
        """Whether nothing can run on the loop now: it has not begun, or it is being closed."""
        return self._loop is None or self._closing

    @property
    def inside(self) -> bool:
        """Whether the caller is the portal's own thread."""
        return self._thread is threading.current_thread()

    def call(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What a coroutine returns that is made and run on the loop (rule 2).

        Raises:
            RuntimeError: rules 3 and 5.
            Exception: what the coroutine raises, or that the portal is closed.
        """
        self._check()
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        try:
            with self._lock:
                self._started().call_soon_threadsafe(self._begin, make, future)
            return future.result()
        except concurrent.futures.CancelledError:
            raise self._closed_error() from None
        finally:
            future.cancel()  # changes nothing unless this thread was interrupted, wherever that was

    def tell(self, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have a coroutine made and run on the loop without waiting for it; nothing happens where there is no loop."""
        self._soon(lambda: self._begin(make, concurrent.futures.Future()))

    def close(self) -> None:
        """End the loop and its thread (rule 4); idempotent. Without effect in a forked process."""
        if not self.here:
            return
        with self._lock:
            self._closing = True
            thread = self._thread
        self._soon(self._stop.set)
        if thread is not None and not self.inside:
            thread.join()

    def abandon(self) -> None:
        """Close without waiting, and without a lock: for finalisers, which run on any thread at any time."""
        self._closing = True
        self._soon(self._stop.set)

    def _check(self) -> None:
        """Rules 3 and 5, before the lock: a parent's may be locked for ever here."""
        if not self.here:
            raise RuntimeError("This was begun before a fork, in the parent process: begin anew in this one.")
        if self.inside:
            raise RuntimeError("A call from the loop's own thread would wait for itself: use another thread.")

    def _started(self) -> asyncio.AbstractEventLoop:
        """The loop (rule 1)."""
        if self._closing:
            raise self._closed_error()
        if self._loop is None:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=self._live, args=(loop,), name="roomcast-portal", daemon=True)
            try:
                thread.start()
            except BaseException:
                loop.close()
                raise
            self._loop, self._thread = loop, thread
            _open.add(self)
        return self._loop

    def _live(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(self._main())
        finally:
            self._closing = True
            _open.discard(self)

    async def _main(self) -> None:
        await self._stop.wait()
        await self._farewell()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_GRACE)

    def _begin(self, make: Callable[[], Coroutine[Any, Any, T]], future: "concurrent.futures.Future[T]") -> None:
        """On the loop: a task whose end the future is told, and which ends when the future is cancelled."""
        if future.cancelled():
            return
        task = asyncio.ensure_future(_made(make))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(partial(_tell, future))
        future.add_done_callback(partial(self._cancel, task))

    def _cancel(self, task: asyncio.Task[Any], future: "concurrent.futures.Future[Any]") -> None:
        if future.cancelled():
            self._soon(task.cancel)

    def _soon(self, function: Callable[[], object]) -> None:
        if self.here and self._loop is not None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # closed since
                self._loop.call_soon_threadsafe(function)


async def _made(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return await make()


def _tell(future: "concurrent.futures.Future[T]", task: asyncio.Task[T]) -> None:
    if task.cancelled():
        future.cancel()
    if not future.set_running_or_notify_cancel():
        return  # nobody waits
    if (error := task.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


def _close_all() -> None:
    """Rule 6."""
    for portal in tuple(_open):
        portal.close()


def _in_child() -> None:
    """Rules 5 and 7."""
    whole.after_in_child()
    _forks.append(os.getppid())
    _inherited.extend(_open)
    _open.clear()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=whole.before, after_in_parent=whole.after_in_parent, after_in_child=_in_child)
