"""What a client that has come back has missed, rule by rule."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import socketio

from roomcast.core.broker import Subject
from roomcast.core.frames import Frame
from roomcast.core.messages import Emit, Packet
from roomcast.core.packets import Packets
from roomcast.core.replay import Replays
from roomcast.core.stats import Stats
from roomcast.core.tail import Kept


def packets(count: int) -> list[Kept]:
    return [
        Kept(number, 0.0, 0, Subject("s"), Emit("/", (), Packet("json", f'2["n",{number}]')))
        for number in range(1, count + 1)
    ]


def replays(size: int = 1 << 20) -> tuple[Replays, Stats]:
    stats = Stats()
    return Replays(Packets(cast("Any", socketio).AsyncServer().packet_class), size, stats), stats


def texts(frames: Iterable[Frame | None]) -> list[Any]:
    return [frame and frame.packets[0] and frame.packets[0].data for frame in frames]


def odd(kept: Kept) -> bool:
    return kept.number % 2 == 1


def played(one: Replays, kept: Iterable[Kept], wanted: Callable[[Kept], bool]) -> tuple[list[Frame], list[int]]:
    """The frames, and what was told at the end."""
    ends: list[int] = []
    return [frame for frame in one.frames(kept, wanted, "e", ends.append) if frame is not None], ends


def test_it_gives_what_is_wanted_with_its_place_and_tells_what_was_the_last() -> None:
    one, stats = replays()
    ends: list[int] = []
    assert texts(one.frames(packets(4), odd, "e", ends.append)) == ['2["n",1,"e.0.1"]', '2["n",3,"e.0.3"]']
    assert ends == [3]
    assert stats.deliveries == 2
    assert played(one, packets(4), lambda _: False) == ([], [0])


def test_rule_2_the_loop_runs_after_each_slice_wanted_or_not() -> None:
    """ "After each `_SLICE` packets that were looked at comes a None" """
    one, _ = replays()
    frames = list(one.frames(packets(1000), lambda kept: kept.number > 900, "e", lambda _: None))
    assert [frame is None for frame in frames[:4]] == [True] * 4
    assert (frames.count(None), len(frames)) == (20, 120)


def test_rule_3_a_frame_is_made_once_within_a_bound() -> None:
    """ "When all of them take more than a bound, those that were made first are forgotten" """
    one, _ = replays(size=10 * 541)
    few, many = packets(5), packets(100)
    assert played(one, few, odd)[0] == played(one, few, odd)[0]
    first, _ = played(one, many, odd)
    assert 0 < sum(kept.frame is not None for kept in (*few, *many)) <= 10
    assert many[-2].frame is first[-1]
    again, _ = played(one, many, odd)
    assert texts(again) == texts(first)
