"""The tables of docs/explanation/failure-model.md, out of the results; the prose around them is written there. Pure.

A table stands between `<!-- faults: NAME -->` and `<!-- end -->`; `fill` puts a new one there, and leaves all else.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.contestants import CONTESTANTS
from bench.goals import short
from bench.report import Result, Row

_TABLE = re.compile(r"(<!-- faults: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

PEERS: Mapping[str, Sequence[str]] = {
    "roomcast-redis": ("python-socketio-redis", "node-redis"),
    "roomcast-redis-streams": ("node-redis-streams",),
    "roomcast-amqp": ("python-socketio-amqp",),
}
"""Who is compared with whom: what is on the same broker, and of the same kind."""

_COMPARED = {
    "lost": "lost",
    "silent": "lost in silence",
    "doubled": "doubled",
    "late": "out of order",
    "near_lost": "lost to clients of A",
    "recovery": "seconds until events flow",
}
_HEAD = (
    "| | emitted | lost | in silence | doubled | out of order | lost to A's client | A was told | B was told "
    "| flows after |"
)
_KINDS = {
    "raised": "exceptions",
    "gap": "gaps",
    "error": "errors of the client",
    "unhandled": "unhandled rejections",
}


def fill(text: str, result: Result) -> str:
    """The page with its tables made anew.

    Raises:
        KeyError: a table has a name that there is none for.
    """
    tables: Mapping[str, Callable[[], Iterable[str]]] = {
        "run": lambda: _run(result),
        "summary": lambda: _summary(result),
        "peers": lambda: _peers(result),
    }

    def table(match: re.Match[str]) -> str:
        name = match[2]
        lines = tables[name]() if name in tables else _fault(result, name)
        return "\n".join([match[1], *lines, "", match[3]])

    return _TABLE.sub(table, text)


def _run(result: Result) -> Iterable[str]:
    machine, rounds = result.machine, max(_rounds(row) for row in result.rows)
    here = f"{machine['cores']} cores of {machine['processor']}, {machine['system']}, {machine['python']}"
    times = "once" if rounds == 1 else f"{rounds} times"
    minutes = f"{result.seconds / 60:.0f} minutes"
    yield f"`{result.command}`, on {result.began[:10]}: {minutes}, each case {times}, on {here}."
    yield ""
    yield " · ".join(f"{name} {version}" for name, version in result.versions.items()) + "."
    for name, why in result.skipped.items():
        yield f"\nNot measured: {name} ({why})."


def _rows(result: Result, fault: str) -> list[Row]:
    return [row for row in result.rows if row.case == {"fault": fault}]


def _rounds(row: Row) -> int:
    return len(row.figures["emitted"])


def _span(row: Row, figure: str) -> str:
    """The lowest and the highest round; one number where they are the same."""
    values = row.figures.get(figure, [])
    values = values + [0.0] * (_rounds(row) - len(values))
    low, high = short(min(values)), short(max(values))
    return low if low == high else f"{low} to {high}"


def _summary(result: Result) -> Iterable[str]:
    faults = list(dict.fromkeys(str(row.case["fault"]) for row in result.rows))
    yield "| | " + " | ".join(faults) + " |"
    yield "|---" + "|--:" * len(faults) + "|"
    present = {row.contestant for row in result.rows}
    for name in [name for name in CONTESTANTS if name in present]:
        cells: list[str] = []
        for fault in faults:
            row = result.row({"fault": fault}, name)
            cells.append("" if row is None else _losses(row))
        yield f"| {name} | {' | '.join(cells)} |"


def _losses(row: Row) -> str:
    """How many were lost, and how many of these were told, met no end of their emit, or neither."""
    lost, silent = _span(row, "lost"), _span(row, "silent")
    if lost == "0":
        return "0"
    if silent == lost:
        return f"**{lost}**"
    told = ["told"] if any(max(row.figures[figure]) for figure in row.figures if _tells(figure)) else []
    unended = ["no end"] if max(row.figures["pending"]) else []
    untold = [f"**{silent} untold**"] if silent != "0" else []
    return f"{lost}: {', '.join([*told, *unended, *untold])}"


def _tells(figure: str) -> bool:
    return figure == "refused" or figure.endswith(":events")


def _fault(result: Result, fault: str) -> Iterable[str]:
    rows = _rows(result, fault)
    if not rows:
        raise KeyError(fault)
    yield _HEAD
    yield "|---" + "|--:" * 6 + "|---|---|--:|"
    for row in rows:
        counts = [_span(row, figure) for figure in ("emitted", "lost", "silent", "doubled", "late")]
        near = _span(row, "near_lost") if "near_lost" in row.figures else ""
        cells = [row.contestant, *counts, near, _told(row, "a"), _told(row, "b"), _recovery(row)]
        yield "| " + " | ".join(cells) + " |"


def _told(row: Row, role: str) -> str:
    """What the application of a node was told, how often, and of how many events."""
    said: dict[str, list[str]] = {}
    for figure in row.figures:
        whose, _, rest = figure.partition(":")
        if role == "a" and whose == "raised":
            kind, what = whose, rest
        elif whose == role and not rest.endswith(":events"):
            kind, _, what = rest.partition(":")
        else:
            continue
        times, events = _span(row, figure), _span(row, f"{figure}:events")
        numbers = [f"{times} times"] if times != "1" else []
        numbers += [f"{events} events"] if events != "0" else []
        said.setdefault(kind, []).append(what + (f" ({', '.join(numbers)})" if numbers else ""))
    parts = [f"{_KINDS[kind]}: {', '.join(whats)}" for kind, whats in said.items()]
    if role == "a" and (pending := _span(row, "pending")) != "0":
        parts.append(f"{pending} emits without an end")
    return "; ".join(parts) or "nothing"


def _recovery(row: Row) -> str:
    never = _rounds(row) - len(row.figures.get("recovery", []))
    if never == _rounds(row):
        return "never"
    low, high = (f"{value:.2f}" for value in (min(row.figures["recovery"]), max(row.figures["recovery"])))
    span = low if low == high else f"{low} to {high}"
    return f"{span} s" + (f", never in {never}" if never else "")


@dataclass(frozen=True, slots=True)
class _Standing:
    """How a peer does in one figure: better, or as well."""

    figure: str
    better: bool
    words: str


def _peers(result: Result) -> Iterable[str]:
    yield "| fault | roomcast | peer | as well | better |"
    yield "|---|---|---|---|---|"
    for row in result.rows:
        for name in PEERS.get(row.contestant, ()):
            peer = result.row(row.case, name)
            found = [] if peer is None else list(_standings(row, peer))
            if found:
                words = [", ".join(one.words for one in found if one.better is better) for better in (False, True)]
                yield f"| {row.case['fault']} | {row.contestant} | {name} | {words[0]} | {words[1]} |"


def _standings(ours: Row, peer: Row) -> Iterable[_Standing]:
    for figure, words in _COMPARED.items():
        mine, theirs = _worst(ours, figure), _worst(peer, figure)
        if mine is None or theirs is None or theirs > mine:
            continue
        better = theirs < mine
        yield _Standing(figure, better, f"{words} ({short(theirs)} against {short(mine)})" if better else words)


def _worst(row: Row, figure: str) -> float | None:
    """The highest of all rounds; infinite where events did not flow again, None where it was not measured."""
    values = row.figures.get(figure, [])
    if figure == "recovery" and len(values) < _rounds(row):
        return float("inf")
    return max(values, default=None)
