"""How it is measured: CPU per process, turns that interleave, medians with spread. Pure, but for `cpu` and `memory`."""

import resource
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


def cpu() -> float:
    """Seconds of CPU that this process has used, in user and system mode."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True, slots=True)
class Summary:
    """What the rounds of one figure say: the median, and between what it moved."""

    median: float
    low: float
    high: float
    rounds: int


def summary(values: Sequence[float]) -> Summary:
    """The median and the spread of a figure over its rounds.

    Raises:
        ValueError: there was no round.
    """
    if not values:
        raise ValueError("A figure without a round has no median.")
    return Summary(statistics.median(values), min(values), max(values), len(values))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least `share` (0 to 1) of them do not exceed.

    Raises:
        ValueError: there are no values, or the share is not one.
    """
    if not values or not 0 < share <= 1:
        raise ValueError("A percentile needs values, and a share above 0 and up to 1.")
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def interleave(items: Sequence[Item], rounds: int) -> Iterator[tuple[int, Item]]:
    """Each item once in every round, forwards and backwards by turns: A B C, C B A, A B C.

    What the machine does meanwhile, such as warming up, falls on all of them alike.
    """
    for number in range(rounds):
        for item in items if number % 2 == 0 else reversed(items):
            yield number, item
