"""The page is made of the results alone, and the committed page is of the committed results."""

from dataclasses import replace
from pathlib import Path

import pytest
from bench.page import case_text, page
from bench.report import Result, load, load_all
from bench.sections import SECTIONS

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "performance.md"


@pytest.fixture
def result() -> Result:
    result = Result(
        "remote_fanout",
        command="python -m bench run remote_fanout",
        rounds=2,
        began="2026-01-31T12:00:00+00:00",
        seconds=90.0,
        machine={"processor": "abacus", "cores": 2, "memory_gib": 4.0, "system": "Linux 6", "python": "CPython 3.11"},
        versions={"roomcast": "0.1.0"},
        skipped={"node-redis": "no node on this machine"},
    )
    for rate in (9000.0, 11000.0):
        result.add({"members": 1}, "roomcast-redis", {"events_per_second": rate, "sender_us_per_event": 10.0})
        result.add({"members": 1}, "python-socketio-redis", {"events_per_second": 2 * rate})
    return result


def test_a_result_is_read_as_it_was_written(result: Result, tmp_path: Path) -> None:
    path = result.save(tmp_path)
    assert path.name == "remote_fanout.json"
    assert load(path) == result
    assert load_all(tmp_path) == {"remote_fanout": result}


def test_rounds_of_a_case_gather_in_one_row(result: Result) -> None:
    row = result.row({"members": 1}, "roomcast-redis")
    assert row is not None
    assert row.figures["events_per_second"] == [9000.0, 11000.0]
    assert result.median({"members": 1}, "roomcast-redis", "events_per_second") == 10000.0
    assert result.median({"members": 2}, "roomcast-redis", "events_per_second") is None
    assert result.median({"members": 1}, "roomcast-redis", "bytes") is None


def test_the_page_has_medians_with_their_spread_and_the_command(result: Result) -> None:
    text = page({"remote_fanout": result})
    assert "| 1 members | roomcast-redis | 10,000 (9,000 to 11,000) | 10 (10 to 10) |" in text
    assert "|  | python-socketio-redis | 20,000 (18,000 to 22,000) |  |" in text
    assert "`python -m bench run remote_fanout`" in text
    assert "Measured on 2026-01-31, in 2 minutes, on 2 cores of abacus" in text
    assert "roomcast 0.1.0." in text
    assert "shortened run" not in text


def test_the_page_says_which_parts_are_of_another_run(result: Result) -> None:
    later = replace(result, part="curves", rows=[], began="2026-02-01T09:30:00+00:00")
    assert "Compare figures within a section" not in page({"remote_fanout": result})
    text = page({"remote_fanout": result, "curves": later})
    assert "UTC on, curves at 09:30 on 2026-02-01. Compare figures within a section" in text


def test_the_page_says_what_is_missed_who_is_ahead_and_what_was_not_measured(result: Result) -> None:
    text = page({"remote_fanout": result})
    about = "events/s to 1 remote member: roomcast-redis against"
    assert f"| {about} python-socketio-redis | at least 6 times | 0.5 times | **missed** |" in text
    assert f"| {about} node-redis | at least 2 times | not measured |  |" in text
    assert "| Fan-out to another node, 1 members, events/s | roomcast-redis | python-socketio-redis | 2 times |" in text
    assert "| node-redis | skipped: no node on this machine |" in text
    assert "- In this run: Emits, 64 in flight;" in text


def test_a_shortened_run_is_called_one(result: Result) -> None:
    result.scale = 0.1
    assert "shortened run" in page({"remote_fanout": result})


def test_a_case_names_what_its_section_does_not() -> None:
    sections = {section.part: section for section in SECTIONS}
    assert case_text(sections["curves"], {"curve": "rooms", "point": 100_000}) == "100,000 rooms"
    assert case_text(sections["end_to_end"], {"mode": "burst", "ws": "wsproto"}) == "burst, ws wsproto"
    assert case_text(sections["emits"], {"in_flight": 64}) == ""


def test_the_committed_page_is_of_the_committed_results() -> None:
    """Whoever edits the page by hand, or its program without running it, hears of it: `make bench-page`."""
    results = load_all(PAGE.with_suffix(""))
    assert results
    assert PAGE.read_text() == page(results)
