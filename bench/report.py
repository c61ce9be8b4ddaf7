"""What a run leaves: one JSON file per part in build/bench, read by the page, the goals and whoever is curious.

A part is one program of measurements. Its file holds rows; a row is one contestant in one case, and holds every
round of every figure, not only the medians:

    {"part": "remote_fanout", "command": "python -m bench run remote_fanout", "quick": false, "rounds": 5,
     "began": "2026-01-31T12:00:00+00:00", "seconds": 61.2, "machine": {...}, "versions": {...},
     "rows": [{"case": {"members": 100}, "contestant": "roomcast-redis",
               "figures": {"events_per_second": [51000.0, 52500.0], "receiver_us": [0.3, 0.29]}}],
     "skipped": {"node-redis": "no node on this machine"}}
"""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.contestants import NODE
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


def machine() -> dict[str, str | int | float]:
    """What this machine is, without its name."""
    model = platform.processor() or platform.machine()
    memory = 0.0
    cpuinfo, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    if meminfo.exists():
        memory = round(int(meminfo.read_text().split(maxsplit=2)[1]) / 1024**2, 1)
    return {
        "processor": model,
        "cores": os.cpu_count() or 1,
        "memory_gib": memory,
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


_PACKAGES = (
    "roomcast", "python-socketio", "python-engineio", "redis", "hiredis", "nats-py", "aio-pika", "msgspec", "uvicorn",
    "websockets", "uvloop",
)  # fmt: skip
_NODE_PACKAGES = {
    "socket.io", "engine.io", "ws", "redis", "@socket.io/redis-adapter", "@socket.io/redis-streams-adapter",
}  # fmt: skip
_COMMANDS = {
    "node": ("node", "--version"),
    "redis-server": ("redis-server", "--version"),
    "nats-server": ("nats-server", "--version"),
}


def versions() -> dict[str, str]:
    """The versions of what takes part, by name; what is not there is left out."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    for name, command in _COMMANDS.items():
        try:
            said = subprocess.check_output(command, text=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            continue
        words = [word.strip("v=:") for word in said.replace("=", " ").split() if any(c.isdigit() for c in word)]
        found[name] = words[0] if words else said.strip()
    for manifest in sorted((NODE / "node_modules").glob("**/package.json")):
        name = manifest.parent.relative_to(NODE / "node_modules").as_posix()
        if name in _NODE_PACKAGES:
            found[f"{name} (npm)"] = str(json.loads(manifest.read_text())["version"])
    return found
