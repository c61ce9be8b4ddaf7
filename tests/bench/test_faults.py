"""The account of a stream through a fault, and the page that is made of accounts."""

from pathlib import Path

import pytest
from bench.contestants import CONTESTANTS
from bench.faults import FAULTS, case
from bench.faults.account import Account, Arrival, Journal, account
from bench.faults.case import new_server, run
from bench.faults.page import fill
from bench.report import Result, load

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "failure-model.md"


def journal(*lines: str) -> Journal:
    return Journal().read(f"{line}\n" for line in lines)


def arrivals(*numbers: int) -> list[Arrival]:
    """The first one at 100.0, a second between them."""
    return [Arrival(number, 100.0 + index) for index, number in enumerate(numbers)]


def emitted(count: int, *lines: str, pending: int = 0) -> Journal:
    """One each second from 0.0 on, of which the last ones have no end."""
    calls = [f"call {number} {number}.0" for number in range(count)]
    raised = {int(line.split()[1]) for line in lines if line.startswith("raised")}
    return journal(*calls, *lines, *(f"done {number}" for number in range(count - pending) if number not in raised))


def test_a_journal_is_read_up_to_the_line_that_the_end_of_its_process_cut_off() -> None:
    lines = ["call 0 1.5\n", "done 0\n", "call 1 1.6\n", "raised 1 Backpressure\n", "told gap:missed 3\n"]
    read = Journal().read([*lines, "told gap:missed 4\n", "call 2 1."])
    assert read.calls == {0: 1.5, 1: 1.6}
    assert (read.done, read.raised) == ({0}, {1: "Backpressure"})
    assert (read.told, read.events) == ({"gap:missed": 2}, {"gap:missed": 7})


def test_a_stream_that_arrived_whole_has_nothing_lost() -> None:
    assert account(emitted(3), Journal(), arrivals(0, 1, 2), over=1.5) == Account(3, 0, 0, 0, 0, 0, 102.0 - 1.5, 0)


@pytest.mark.parametrize(
    ("emitter", "receiver", "silent"),
    [
        ([], [], 3),
        (["raised 3 PublishRejected", "raised 1 PublishUnconfirmed"], [], 2),
        ([], ["told gap:missed 2"], 1),
        (["raised 3 PublishRejected"], ["told gap:missed 2"], 0),
        (["told gap:given_up 1"], ["told gap:missed 9"], 0),
        (["told gap:missed 3"], [], 3),  # which A missed of somebody else
    ],
)
def test_a_loss_is_silent_when_no_exception_and_no_number_tells_it(
    emitter: list[str], receiver: list[str], silent: int
) -> None:
    found = account(emitted(6, *emitter), journal(*receiver), arrivals(0, 1, 5), over=1.0)
    assert (found.lost, found.silent) == (3, silent)
    assert found.refused == sum("raised 3" in line for line in emitter)


def test_what_comes_again_is_doubled_and_what_was_overtaken_is_late() -> None:
    found = account(emitted(5), Journal(), arrivals(0, 2, 1, 2, 2, 4, 3), over=0.0)
    assert (found.lost, found.doubled, found.late) == (0, 2, 2)


def test_events_flow_again_with_the_first_that_was_emitted_since() -> None:
    late = account(emitted(9), Journal(), arrivals(0, 1, 2, 3, 7), over=4.5)
    assert late.recovery == 104.0 - 4.5
    assert account(emitted(9), Journal(), arrivals(0, 1, 2), over=4.5).recovery is None


def test_an_emit_that_neither_returned_nor_raised_is_pending_and_promised_nothing() -> None:
    found = account(emitted(4, "raised 1 Backpressure", pending=2), Journal(), arrivals(2), over=0.0)
    assert (found.pending, found.lost, found.refused, found.silent) == (2, 3, 1, 1)


WELL = ("lost", "refused", "silent", "doubled", "late", "pending", "near_lost")
FIGURES: dict[str, float] = {**dict.fromkeys(WELL, 0.0), "emitted": 600.0, "recovery": 0.5}


@pytest.fixture
def result() -> Result:
    machine: dict[str, str | int | float] = {"processor": "abacus", "cores": 2, "system": "Linux 6", "python": "Py 3"}
    result = Result("faults", "python -m bench run faults", began="2026-01-31T12:00:00", seconds=600, machine=machine)
    for lost in (0.0, 7.0):
        told = {"b:gap:missed": 1.0, "b:gap:missed:events": 7.0} if lost else {}
        result.add({"fault": "kill"}, "roomcast-redis", {**FIGURES, "lost": lost, **told})
    peer = {**FIGURES, "lost": 5, "silent": 5, "recovery": 0.1, "raised:CancelledError": 3, "pending": 2}
    result.add({"fault": "kill"}, "node-redis", peer)
    return result


def table(result: Result, name: str) -> list[str]:
    text = fill(f"before\n<!-- faults: {name} -->\nstale\n<!-- end -->\nafter\n", result)
    assert fill(text, result) == text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    return [line for line in text.splitlines() if line.startswith("| ") and "| --" not in line][1:]


def test_a_table_says_what_was_lost_and_who_was_told(result: Result) -> None:
    ours, peer = table(result, "kill")
    told = "gaps: missed (0 to 1 times, 0 to 7 events)"
    assert ours == f"| roomcast-redis | 600 | 0 to 7 | 0 | 0 | 0 | 0 | nothing | {told} | 0.50 s |"
    told = "exceptions: CancelledError (3 times); 2 emits without an end"
    assert peer == f"| node-redis | 600 | 5 | 5 | 0 | 0 | 0 | {told} | nothing | 0.10 s |"


def test_the_summary_tells_what_became_of_losses(result: Result) -> None:
    for name, figures in {
        "roomcast-nats": {"lost": 1, "pending": 1},
        "roomcast-amqp": {"lost": 4, "refused": 3, "pending": 1},
        "python-socketio-redis": {"lost": 9, "refused": 3, "silent": 2},
    }.items():
        result.add({"fault": "kill"}, name, {**FIGURES, **figures})
    assert table(result, "summary") == [
        "| roomcast-redis | 0 to 7: told |",
        "| roomcast-nats | 1: no end |",
        "| roomcast-amqp | 4: told, no end |",
        "| python-socketio-redis | 9: told, **2 untold** |",
        "| node-redis | **5** |",
    ]


def test_every_figure_is_named_in_which_a_peer_does_as_well_or_better(result: Result) -> None:
    (line,) = table(result, "peers")
    assert line == (
        "| kill | roomcast-redis | node-redis | doubled, out of order, lost to clients of A "
        "| lost (5 against 7), seconds until events flow (0.1 against 0.5) |"
    )


def test_events_that_never_flowed_are_not_as_good_as_any(result: Result) -> None:
    for row in result.rows:
        row.figures.pop("recovery")
    assert all(line.endswith("| never |") for line in table(result, "kill"))


def test_a_table_that_there_is_not_is_refused(result: Result) -> None:
    with pytest.raises(KeyError):
        table(result, "flood")


def test_the_committed_page_is_of_the_committed_results() -> None:
    """Whoever edits a table by hand hears of it: `python -m bench page`."""
    text = PAGE.read_text()
    assert fill(text, load(PAGE.with_suffix("") / "faults.json")) == text


@pytest.mark.fault
@pytest.mark.timeout(120)  # two processes start, which takes long on a machine that is busy
async def test_a_case_breaks_the_link_and_counts_what_came_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case, "BEFORE", 0.2)
    monkeypatch.setattr(case, "AFTER", 0.1)
    async with new_server("redis") as server:
        figures = await run(CONTESTANTS["roomcast-redis"], FAULTS["reset"], server)
    assert figures["emitted"] > 20
    assert (figures["silent"], figures["doubled"], figures["late"], figures["near_lost"]) == (0, 0, 0, 0)
    assert figures["a:gap:disconnected"] == figures["b:gap:disconnected"] == 1
    assert figures["recovery"] > 0
