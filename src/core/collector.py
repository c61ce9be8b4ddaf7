"""Python's cyclic garbage collector, held back while an event goes to very many clients.

With ten thousand connections there are millions of objects, and a pass over a part of them stops the loop for tens of
milliseconds. It can wait until the clients have their event:

1. While a `Hold` exists, no pass begins by itself. What reference counting frees is freed as ever.
2. It ends when it is dropped: by who holds it, or with the callback that holds it when the loop is closed. So the
   collector is never left switched off, however a fan-out ends.
3. It is `over` after `LIMIT` seconds, and who holds it lets go of it then: between two of them passes are made.
4. A collector that the application has switched off stays off.
"""

import gc
import time

LIMIT = 1.0
"""Seconds that one hold may last."""


class Hold:
    """Holds the collector back from now on (rule 1)."""

    __slots__ = ("_mine", "_until")

    def __init__(self) -> None:
        self._until = time.monotonic() + LIMIT
        self._mine = gc.isenabled()
        gc.disable()

    def __del__(self) -> None:
        if self._mine:
            gc.enable()

    @property
    def over(self) -> bool:
        """Whether it has lasted long enough (rule 3)."""
        return time.monotonic() >= self._until
