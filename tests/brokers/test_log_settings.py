"""What stands in the URL of a log, and which stream a subject belongs to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.brokers.log_settings import LogSettings, log_settings, stream_of
from roomcast.core.errors import ConfigurationError


def test_without_parameters_a_log_keeps_five_minutes_and_256_megabytes_in_one_stream() -> None:
    assert log_settings({}) == LogSettings(retention=300.0, max_bytes=256 * 1024**2, streams=1)


@pytest.mark.parametrize(
    ("text", "seconds"), [("1s", 1), ("90s", 90), ("2m", 120), ("1.5h", 5400), ("1d", 86400), ("2500ms", 2.5)]
)
def test_a_retention_is_a_time(text: str, seconds: float) -> None:
    assert log_settings({"retention": text}).retention == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("64mb", 64 * 1024**2), ("2GB", 2 * 1024**3), ("1048576", 1024**2), ("4096kb", 4096 * 1024)]
)
def test_max_bytes_is_a_size(text: str, size: int) -> None:
    assert log_settings({"max_bytes": text}).max_bytes == size


@pytest.mark.parametrize(
    "parameters",
    [
        *({"retention": text} for text in ("", "5", "5 m", "-5m", "0s", "10ms", "5w", "m", "1e3s", "٣m")),
        *({"max_bytes": text} for text in ("", "64 mb", "-1mb", "100", "1kb", "64tb", "0")),
        *({"streams": text} for text in ("", "0", "-1", "65", "two", "1.5", "٣")),
    ],
)
def test_what_cannot_work_is_refused_and_named(parameters: dict[str, str]) -> None:
    (name,) = parameters
    with pytest.raises(ConfigurationError, match=name):
        log_settings(parameters)


def test_every_difference_is_named_with_both_values_and_the_remedy() -> None:
    ours = LogSettings(retention=120, max_bytes=64 * 1024**2, streams=2)
    theirs = LogSettings(retention=300, max_bytes=64 * 1024**2, streams=1).written
    with pytest.raises(ConfigurationError) as caught:
        ours.differs("The log x", theirs, remedy="DEL x")
    text = str(caught.value)
    assert "retention is 300s there and 120s here" in text
    assert "streams is 1 there and 2 here" in text
    assert "max_bytes" not in text
    assert "DEL x" in text
    ours.differs("The log x", ours.written, remedy="DEL x")
    ours.differs("The log x", {}, remedy="DEL x")


@given(subject=st.text(min_size=1, max_size=50), streams=st.integers(1, 64))
def test_every_subject_has_one_stream_that_exists(subject: str, streams: int) -> None:
    assert 0 <= stream_of(subject, streams) < streams
    assert stream_of(subject, streams) == stream_of(subject, streams)


def test_the_streams_of_subjects_never_change_between_versions() -> None:
    """Nodes of two versions in one cluster must agree."""
    assert [stream_of(f"roomcast.room.s{number}", 4) for number in range(12)] == EXPECTED


def test_subjects_spread_evenly() -> None:
    counts = [0] * 8
    for number in range(8000):
        counts[stream_of(f"roomcast.room.{number}", 8)] += 1
    assert min(counts) > 850
    assert max(counts) < 1150


EXPECTED = [2, 1, 3, 0, 1, 2, 0, 1, 2, 1, 1, 0]
