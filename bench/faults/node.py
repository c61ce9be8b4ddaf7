"""One server process of a case: that of the end-to-end measurements, with a journal (`account`, rule 1).

    python -m bench.faults.node CONTESTANT CHANNEL SIZE JOURNAL

Run by the measurements, not by hand. Besides the commands of `bench.end_to_end_node` it knows:

- `probe`: emit one event that does not count.
- `stream`: from now on emit an event `rate` times a second, from number `first` on. Each comes from a task of its own,
  as those of an application come from a handler each: none waits for the one before.
- `end`: end the stream, and answer when every emit has ended, or after `within` seconds.

bench/node/serve.mjs is the same in Node.js.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import time
from typing import Any

from bench.contestants import CONTESTANTS, Contestant
from bench.end_to_end_node import ROOM, Node

_LIFETIME = 120


class FaultNode(Node):
    """A server that emits a numbered stream, and notes what it is told.

    Args:
        contestant: whose.
        channel: the prefix, or channel, on the broker.
        size: characters of a payload.
        journal: path of the journal.
    """

    def __init__(self, contestant: Contestant, channel: str, size: int, journal: str) -> None:
        super().__init__(contestant, channel, size, "auto")
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._room = (f"{channel}.room.", f"{channel}.part.")
        self._streaming: asyncio.Task[None] | None = None
        self._emits: set[asyncio.Task[None]] = set()
        if contestant.library == "roomcast":
            self._sio.manager.on_gap(self._on_gap)

    def _write(self, *words: object) -> None:
        os.write(self._journal, (" ".join(map(str, words)) + "\n").encode())

    def _on_gap(self, gap: Any) -> None:
        here = gap.subject is None or gap.subject.startswith(self._room)
        self._write("told", f"gap:{gap.reason}", (gap.missed or 0) if here else 0)

    async def _do_probe(self) -> dict[str, Any]:
        with contextlib.suppress(Exception):  # a probe is emitted until one arrives
            await self._sio.emit("probe", room=ROOM)
        return {}

    async def _do_stream(self, first: int, rate: float) -> dict[str, Any]:
        self._streaming = asyncio.create_task(self._stream(first, rate))
        return {}

    async def _do_end(self, within: float) -> dict[str, Any]:
        if self._streaming is not None:
            self._streaming.cancel()
            await asyncio.gather(self._streaming, return_exceptions=True)
        if self._emits:
            await asyncio.wait(self._emits, timeout=within)
        return {}

    async def _stream(self, first: int, rate: float) -> None:
        began, number = time.monotonic(), first
        while True:
            due = first + (time.monotonic() - began) * rate
            while number <= due:
                emit = asyncio.create_task(self._emit_noted(number))
                self._emits.add(emit)
                emit.add_done_callback(self._emits.discard)
                number += 1
            await asyncio.sleep(1 / rate)

    async def _emit_noted(self, number: int) -> None:
        self._write("call", number, time.monotonic())
        try:
            await self._emit(number)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._write("raised", number, "CancelledError")  # which nobody sent
        except Exception as exc:  # noqa: BLE001 - that is what the application is told
            self._write("raised", number, type(exc).__name__)
        else:
            self._write("done", number)


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("channel")
    parser.add_argument("size", type=int)
    parser.add_argument("journal")
    options = parser.parse_args()
    signal.alarm(_LIFETIME)

    async def serve() -> None:
        await FaultNode(CONTESTANTS[options.contestant], options.channel, options.size, options.journal).serve()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
