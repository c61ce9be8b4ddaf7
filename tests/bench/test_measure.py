"""The pure half of measuring: medians with spread, percentiles, turns."""

import pytest
from bench.measure import Summary, interleave, percentile, summary


def test_a_summary_is_the_median_and_between_what_the_rounds_moved() -> None:
    assert summary([3.0, 1.0, 2.0]) == Summary(2.0, 1.0, 3.0, 3)
    assert summary([4.0, 1.0, 2.0, 3.0]) == Summary(2.5, 1.0, 4.0, 4)


def test_a_figure_without_a_round_has_no_median() -> None:
    with pytest.raises(ValueError, match="without a round"):
        summary([])


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50.0), (0.99, 99.0), (0.991, 100.0), (1.0, 100.0), (0.01, 1.0), (0.001, 1.0)]
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected


def test_a_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7.0], 0.5) == percentile([7.0], 0.99) == 7.0


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
def test_a_percentile_needs_values_and_a_share(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, share)


def test_turns_go_forwards_and_backwards() -> None:
    assert list(interleave("abc", 3)) == [
        (0, "a"), (0, "b"), (0, "c"), (1, "c"), (1, "b"), (1, "a"), (2, "a"), (2, "b"), (2, "c"),
    ]  # fmt: skip
