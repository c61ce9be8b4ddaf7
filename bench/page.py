"""The page of performance, docs/explanation/performance.md, out of the results. Pure: text in, text out."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from bench.contestants import CONTESTANTS
from bench.goals import GOALS, Ahead, Outcome, Results, ahead, judge, short
from bench.report import Case, Result, Row
from bench.sections import NOT_MEASURED, SECTIONS, Section

_ONE_RUN = timedelta(hours=2)
"""Parts that begin further apart than this are of several runs."""

HEAD = """# Performance

How fast roomcast is, and what it costs, beside python-socketio's own managers and beside Node's socket.io with its
Redis adapters: each section in one run, on one machine, over the same brokers. `make bench-page` writes this page from
the results of `make bench`; no figure in it is written by hand. Figures of another machine will differ; ratios much
less.
"""

HOW = """## How it was measured

- Every node is a process of its own, and so is every load. CPU is user and system time of a process by resource usage.
- Contestants take turns, forwards and backwards: A B C, C B A. A figure is the median of its rounds, with the lowest
  and the highest in brackets. Every round of every figure is in the files below.
- But for the last two parts, clients have no transport: an event has arrived when it waits in the queue of its
  Engine.IO socket (python-engineio's `AsyncSocket`, engine.io's `Socket`, both real), which nobody reads. So it is
  the adapters that are compared, and not the web servers.
- What each one promises differs, and is not in the figures. roomcast numbers every message, keeps what the broker has
  not confirmed, and tells losses; the others do not. The streams adapter writes to a log that outlasts a connection.
- The programs are in `bench/`: `python -m bench list` names them, and each can be run alone.
"""


_AHEAD = """\
Every figure of every case in which a peer's median is better than that of roomcast on the same broker; on NATS, which
no peer uses, than roomcast's on NATS. Where the rounds of both overlap, it says so.
"""


def page(results: Results) -> str:
    """The whole page, as Markdown."""
    parts = [
        HEAD,
        _machine(results),
        _goals([judge(goal, results) for goal in GOALS]),
        _peers_ahead(ahead(results, {section.part: section.compared for section in SECTIONS})),
        HOW,
        _contestants(results),
        *(_section(section, results[section.part]) for section in SECTIONS if section.part in results),
        _not_measured(results),
    ]
    return "\n".join(parts)


def _machine(results: Results) -> str:
    some = next(iter(results.values()), None)
    if some is None:
        return "Nothing has been measured yet.\n"
    began = min(result.began for result in results.values())
    minutes = sum(result.seconds for result in results.values()) / 60
    machine, versions = some.machine, " · ".join(f"{name} {version}" for name, version in some.versions.items())
    here = f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB"
    here += f", {machine['system']}, {machine['python']}"
    lines = [f"Measured on {began[:10]}, in {minutes:.0f} minutes, on {here}.", "", versions + ".", ""]
    if any(result.scale < 1 for result in results.values()):
        lines += ["Some of it is of a shortened run (`--scale`), on a machine that others used as well.", ""]
    if apart := _apart(results):
        lines += [f"{apart} Compare figures within a section: the machine is not always as fast.", ""]
    return "\n".join(lines)


def _apart(results: Results) -> str:
    """When each part began, where the parts are not of one run."""
    began = {name: datetime.fromisoformat(result.began) for name, result in results.items()}
    if not began or max(began.values()) - min(began.values()) < _ONE_RUN:
        return ""
    first = min(began.values())
    later = [f"{name} at {when:%H:%M} on {when:%Y-%m-%d}" for name, when in began.items() if when - first >= _ONE_RUN]
    return f"Most parts began from {first:%H:%M} UTC on, {', '.join(later)}."


def _goals(outcomes: Sequence[Outcome]) -> str:
    measured = [outcome for outcome in outcomes if outcome.met is not None]
    met = sum(outcome.met is True for outcome in measured)
    lines = ["## Goals", "", f"{met} of {len(measured)} goals that were measured are met.", ""]
    lines += ["| goal | bound | measured | |", "|---|---|---|---|"]
    for outcome in outcomes:
        times = "" if outcome.goal.than is None else " times"
        value = "not measured" if outcome.value is None else short(outcome.value) + times
        word = {True: "met", False: "**missed**", None: ""}[outcome.met]
        lines.append(f"| {outcome.goal.about} | {outcome.goal.bound} | {value} | {word} |")
    return "\n".join([*lines, ""])


def _peers_ahead(found: Sequence[Ahead]) -> str:
    lines = ["## Where a peer is ahead", ""]
    if not found:
        return "\n".join([*lines, "Nowhere in what was measured.", ""])
    lines += [
        _AHEAD,
        "| figure | roomcast | peer | ahead by |",
        "|---|---|---|---|",
    ]
    sections = {section.part: section for section in SECTIONS}
    for one in found:
        section = sections[one.part]
        case = case_text(section, one.case)
        figure = f"{section.title}{', ' + case if case else ''}, {section.figures[one.figure]}"
        overlap = "" if one.surely else ", rounds overlap"
        lines.append(f"| {figure} | {one.ours} | {one.peer} | {short(one.times)} times{overlap} |")
    return "\n".join([*lines, ""])


def _contestants(results: Results) -> str:
    present = {row.contestant for result in results.values() for row in result.rows}
    skipped = {name: why for result in results.values() for name, why in result.skipped.items()}
    lines = ["## Contestants", "", "| name | what it is |", "|---|---|"]
    lines += [f"| {one.name} | {one.about} |" for one in CONTESTANTS.values() if one.name in present]
    lines += [f"| {name} | skipped: {why} |" for name, why in skipped.items() if name not in present]
    return "\n".join([*lines, ""])


def _section(section: Section, result: Result) -> str:
    rounds = max((len(values) for row in result.rows for values in row.figures.values()), default=0)
    lines = [f"## {section.title}", "", section.text, ""]
    if section.plot:
        lines += [f"![{section.title}](performance/{section.plot}.svg)", ""]
    lines += list(_table(section, result.rows))
    took = f"up to {rounds} rounds, {result.seconds:.0f} s; [all rounds](performance/{result.part}.json)"
    return "\n".join([*lines, "", f"`{result.command}`: {took}.", ""])


def _table(section: Section, rows: Sequence[Row]) -> Iterable[str]:
    figures = {name: head for name, head in section.figures.items() if any(name in row.figures for row in rows)}
    first = ["case", "contestant"] if section.case else ["contestant"]
    yield "| " + " | ".join([*first, *figures.values()]) + " |"
    yield "|---" * len(first) + "|--:" * len(figures) + "|"
    last = ""
    for row in rows:
        case = case_text(section, row.case)
        shown = [case if case != last else "", row.contestant] if section.case else [row.contestant]
        last = case
        cells = [_cell(row, name) for name in figures]
        yield "| " + " | ".join([*shown, *cells]) + " |"


def _cell(row: Row, figure: str) -> str:
    if figure not in row.figures:
        return ""
    of = row.summary(figure)
    return short(of.median) if of.rounds == 1 else f"{short(of.median)} ({short(of.low)} to {short(of.high)})"


def case_text(section: Section, case: Case) -> str:
    """A case in words, such as "100 members"; what the section does not name is added as it is."""
    values = {name: f"{value:,}" if isinstance(value, int) else str(value) for name, value in case.items()}
    named: Mapping[str, str] = {name: value for name, value in values.items() if "{" + name + "}" in section.case}
    text = section.case.format(**named) if section.case else ""
    if section.case:
        text = "".join([text, *(f", {name} {value}" for name, value in values.items() if name not in named)])
    return text


def _not_measured(results: Results) -> str:
    lines = ["## What was not measured", "", NOT_MEASURED.rstrip()]
    missing = [section.title for section in SECTIONS if section.part not in results]
    if missing:
        lines.append(f"- In this run: {'; '.join(missing)}.")
    return "\n".join([*lines, ""])
