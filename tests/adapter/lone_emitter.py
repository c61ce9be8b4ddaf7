"""A program that uses a `SyncEmitter`: `python -m tests.adapter.lone_emitter SCENARIO URL PREFIX`.

The emitter is made when this module is imported. Each function below is a scenario; what it prints, a line at a time,
is what a test looks at.
"""

import faulthandler
import gc
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

if __name__ == "__main__":  # as where one extra is installed: python-socketio imports every client that it finds
    _needed = {"redis": "redis", "nats": "nats", "embedded": "nats", "amqp": "aio_pika"}[sys.argv[2].partition(":")[0]]
    sys.modules.update(dict.fromkeys({"redis", "nats", "aio_pika", "aiohttp"} - {_needed}))  # type: ignore[arg-type]

import roomcast

SCENARIO, URL, PREFIX = sys.argv[1:4] if len(sys.argv) > 3 else ("", "redis://127.0.0.1:1", "unused")
CONFIRM = "unconfirmed" not in SCENARIO

emitter = roomcast.SyncEmitter(URL, prefix=PREFIX, confirm=CONFIRM, connect_timeout=10.0)


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 - for the test that started this


def in_a_child(work: Callable[[], None], *, finalised: bool) -> int:
    """Fork, do the work in the child, and wait for its end; its exit code."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    faulthandler.dump_traceback_later(20, exit=True)  # whoever hangs says where, and ends
    try:
        work()
    except BaseException:  # noqa: BLE001 - it must not return into the parent's code
        traceback.print_exc()
        os._exit(1)
    if finalised:
        sys.exit(0)
    os._exit(0)


def use(number: int) -> None:
    """Emit, and ask."""
    emitter.to("red").emit("event", number)
    say("counted", number, emitter.count("red"))


# Scenarios


def exit_unconfirmed() -> None:
    for number in range(500):
        emitter.to("red").emit("event", number)


def exit_beside_a_thread_that_emits() -> None:
    begun = threading.Event()

    def work() -> None:
        number = 0
        while True:
            emitter.to("red").emit("event", number)
            say("emitted", number)
            number += 1
            if number > 20:
                begun.set()

    threading.Thread(target=work, daemon=True).start()
    begun.wait()


def exit_beside_a_question() -> None:
    asked = threading.Event()

    def work() -> None:
        answers = emitter.to("red").timeout(60).acks("silence")
        asked.set()
        next(answers)

    threading.Thread(target=work, daemon=True).start()
    asked.wait()
    emitter.count()


def interrupted() -> None:
    say("ready", emitter.count("red"))
    try:
        emitter.to("red").timeout(60).emit_with_ack("silence")
    except KeyboardInterrupt:
        say("interrupted")
    use(1)
    broadcast = emitter._current().emitter._broadcast  # pyright: ignore[reportPrivateUsage]
    say("waiting", len(broadcast.acks))


def fork_before_use() -> None:
    say("child ended", in_a_child(lambda: use(1), finalised=True))
    use(2)


def fork_after_use() -> None:
    use(0)
    for number, finalised in ((1, True), (2, False)):

        def work(number: int = number) -> None:
            sockets = emitter.fetch_sockets()
            use(number)
            gc.collect()
            say("child knows", len(sockets), emitter.stats()["disconnects"])

        say("child ended", in_a_child(work, finalised=finalised))
    gc.collect()
    use(3)
    say("parent", emitter.stats()["disconnects"], bool(emitter.health()))


def fork_with_an_iterator() -> None:
    sockets = emitter.iter_sockets()
    say("first", next(sockets).rooms[1])

    def work() -> None:
        try:
            next(sockets)
        except RuntimeError as exc:
            say("child told", exc)
        sockets.close()
        emitter.close()

    say("child ended", in_a_child(work, finalised=True))
    say("rest", len(list(sockets)))
    use(1)


def fork_beside_threads_that_emit() -> None:
    done = threading.Event()
    numbers = iter(range(1_000_000))

    def work() -> None:
        while not done.is_set():
            emitter.to("red").emit("event", next(numbers))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    codes = [in_a_child(lambda: emitter.to("red").emit("event", -1), finalised=n % 2 == 0) for n in range(4)]
    done.set()
    for thread in threads:
        thread.join()
    say("children ended", *codes)
    use(0)
    say("parent", emitter.stats()["disconnects"])


def _task(number: int) -> int:
    emitter.to("red").emit("event", number)
    return emitter.count("red")


def pool() -> None:
    """As Celery does it: workers are forked from a process that has used the emitter."""
    use(0)
    with multiprocessing.get_context("fork").Pool(3) as workers:
        say("counts", *sorted(set(workers.map(_task, range(1, 31), chunksize=1))))
    use(31)


def closed() -> None:
    began = time.monotonic()
    with emitter:
        emitter.emit("event", 0)
    emitter.close()
    say("closed", time.monotonic() - began < 10, threading.active_count())

    def work() -> None:
        try:
            emitter.emit("event", 1)
        except roomcast.BrokerClosed as exc:
            say("child told", exc)

    say("child ended", in_a_child(work, finalised=True))


if __name__ == "__main__":
    globals()[SCENARIO]()
