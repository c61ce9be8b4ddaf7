"""What a client that has come back has missed, one frame after the other.

1. Nothing is held for a client but how far it is: what it has missed stays in the tail, which is bounded. What the tail
   forgets before the client was given it ends the replay with `ReplayUnavailable`.
2. After each `_SLICE` packets that were looked at comes a None: the loop shall run.
3. A frame is made once for all who have missed the packet. When all of them take more than a bound, those that were
   made first are forgotten, and made again for who comes later.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from roomcast.core.frames import Frame
from roomcast.core.packets import Packets
from roomcast.core.stats import Stats
from roomcast.core.tail import Kept, place_text

Missed = Iterator[Frame | None]

_SLICE = 50  # some of 5 us each
_OVERHEAD = 500  # bytes that a frame takes besides its text, which it has in two forms


class Replays:
    """The replays of one node.

    Args:
        packets: puts places into packets.
        size: bytes that frames may take (rule 3).
        stats: where to count.
    """

    def __init__(self, packets: Packets, size: int, stats: Stats) -> None:
        self._packets = packets
        self._size = size
        self._stats = stats
        self._bytes = 0
        self._framed: deque[tuple[Kept, int]] = deque()

    def frames(
        self, kept: Iterable[Kept], wanted: Callable[[Kept], bool], epoch: str, done: Callable[[int], None]
    ) -> Missed:
        """Those of the packets that a client has missed (rules 1 and 2).

        Args:
            kept: what was sent meanwhile.
            wanted: whether one of them was for the client.
            epoch: of the log that they were in.
            done: called at the end with the number of the last one; 0 when there was none.

        Raises:
            ReplayUnavailable: the rest is not held any more.
        """
        last = 0
        for looked, one in enumerate(kept, 1):
            if wanted(one):
                last = one.number
                self._stats.deliveries += 1
                yield self._frame(one, epoch)
            if looked % _SLICE == 0:
                yield None
        done(last)

    def _frame(self, kept: Kept, epoch: str) -> Frame:
        """The packet with its place (rule 3)."""
        frame: Frame | None = kept.frame
        if frame is None:
            emit = kept.emit
            parts = self._packets.accept(emit.packet, emit.namespace)
            place = place_text(epoch, kept.number)
            frame = kept.frame = Frame(self._packets.with_place(parts, emit.namespace, place))
            size = 2 * frame.size + _OVERHEAD
            self._framed.append((kept, size))
            self._bytes += size
            while self._bytes > self._size:
                first, size = self._framed.popleft()
                first.frame = None
                self._bytes -= size
        return frame
