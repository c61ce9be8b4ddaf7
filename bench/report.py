"""What a run leaves: one JSON file per part in build/bench, read by the page, the goals and whoever is curious.

A part is one program of measurements. Its file holds rows; a row is one contestant in one case, and holds every
round of every figure, not only the medians:

    {"part": "remote_fanout", "command": "python -m bench run remote_fanout", "quick": false, "rounds": 5, "scale": 1.0,
     "began": "2026-01-31T12:00:00+00:00", "seconds": 61.2, "machine": {...}, "versions": {...},
     "rows": [{"case": {"members": 100}, "contestant": "roomcast-redis",
               "figures": {"events_per_second": [51000.0, 52500.0], "receiver_us": [0.3, 0.29]}}],
     "skipped": {"node-redis": "no node on this machine"}}
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bench.measure import Summary, summary

RESULTS = Path(__file__).parent.parent / "build" / "bench"
"""Where the files are."""

Case = Mapping[str, str | int | float]
"""What is varied, such as {"members": 100}."""


@dataclass(slots=True)
class Row:
    """One contestant in one case: every round of every figure."""

    case: dict[str, str | int | float]
    contestant: str
    figures: dict[str, list[float]] = field(default_factory=dict)

    def summary(self, figure: str) -> Summary:
        """The median and the spread of one figure."""
        return summary(self.figures[figure])


@dataclass(slots=True)
class Result:
    """What one part measured."""

    part: str
    command: str = ""
    quick: bool = False
    rounds: int = 0
    scale: float = 1.0
    began: str = ""
    seconds: float = 0.0
    machine: dict[str, str | int | float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, case: Case, contestant: str, figures: Mapping[str, float]) -> None:
        """Add one round of a contestant in a case."""
        row = self.row(case, contestant)
        if row is None:
            row = Row(dict(case), contestant)
            self.rows.append(row)
        for name, value in figures.items():
            row.figures.setdefault(name, []).append(float(value))

    def row(self, case: Case, contestant: str) -> Row | None:
        """The row of a contestant in a case, if there is one."""
        return next((row for row in self.rows if row.case == dict(case) and row.contestant == contestant), None)

    def median(self, case: Case, contestant: str, figure: str) -> float | None:
        """The median of a figure; None if it was not measured."""
        row = self.row(case, contestant)
        return None if row is None or figure not in row.figures else row.summary(figure).median

    def save(self, directory: Path = RESULTS) -> Path:
        """Write the file of this part, and return its path."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.part}.json"
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path


def load(path: Path) -> Result:
    """Read the file of a part."""
    data = json.loads(path.read_text())
    return Result(**{**data, "rows": [Row(**row) for row in data["rows"]]})


def load_all(directory: Path = RESULTS) -> dict[str, Result]:
    """Every result in a directory, by the name of its part."""
    return {result.part: result for result in (load(path) for path in sorted(directory.glob("*.json")))}


def now() -> str:
    """This moment, as the files write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
