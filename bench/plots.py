"""The plots of the page, as SVG, drawn by matplotlib (`uv sync --group bench`)."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.goals import Results
from bench.report import Case, Result

COLOURS = {
    "roomcast-redis": "#1f5fbf",
    "roomcast-redis-confirm": "#5b8fd9",
    "roomcast-nats": "#17a2b8",
    "roomcast-amqp": "#6f42c1",
    "python-socketio-redis": "#e07b00",
    "python-socketio-amqp": "#b35900",
    "node-redis": "#3c873a",
    "node-redis-sharded": "#7fb77e",
    "node-redis-streams": "#9aa83a",
}
"""One colour for each contestant, the same in every plot."""


def draw(results: Results, directory: Path) -> list[Path]:
    """Draw a plot of each part that has one and was measured; returns their paths.

    Raises:
        SystemExit: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - of the group bench, which most people do without
    except ImportError:
        raise SystemExit("The plots need matplotlib: uv sync --group bench.") from None
    mpl.use("svg")
    mpl.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "roomcast", "font.family": "sans-serif", "font.size": 9}
    )
    directory.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for part, plot in PLOTS.items():
        if part in results and results[part].rows:
            figure = plot(results[part])
            path = directory / f"{part}.svg"
            figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
            path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
            paths.append(path)
    return paths


def _subplots(titles: Sequence[str], columns: int) -> tuple[Any, list[Any]]:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    rows = -(-len(titles) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(9, 3.2 * rows), squeeze=False, layout="constrained")
    flat = list(axes.flat)
    for axis, title in zip(flat, titles, strict=False):
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in flat[len(titles) :]:
        axis.set_visible(False)
    return figure, flat


def _plain(value: float, _place: int | None) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _bars(panels: Mapping[str, tuple[Case, str]], columns: int) -> Callable[[Result], Any]:
    """A panel of horizontal bars for each case and figure: the median, and the spread as a line."""

    def plot(result: Result) -> Any:
        from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

        figure, axes = _subplots(list(panels), columns)
        for axis, (case, name) in zip(axes, panels.values(), strict=False):
            rows = [row for row in result.rows if row.case == case and name in row.figures][::-1]
            for place, row in enumerate(rows):
                of = row.summary(name)
                spread = [[of.median - of.low], [of.high - of.median]]
                axis.barh(place, of.median, color=COLOURS.get(row.contestant, "#888888"), height=0.7)
                axis.errorbar(of.median, place, xerr=spread, color="#222222", linewidth=0.8, capsize=2)
            axis.set_yticks(range(len(rows)), [row.contestant for row in rows])
            axis.set_xlim(left=0)
            axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.xaxis.set_major_formatter(_plain)
        return figure

    return plot


def _curves(result: Result) -> Any:
    from matplotlib.ticker import NullFormatter  # noqa: PLC0415

    titles = {
        "rooms": "rooms on the node",
        "nodes": "nodes with members",
        "members": "members of the room",
        "payload": "bytes in the event",
    }
    figure, axes = _subplots([f"us per delivery, by {title}" for title in titles.values()], 2)
    for axis, curve in zip(axes, titles, strict=False):
        rows = [row for row in result.rows if row.case["curve"] == curve]
        for name in dict.fromkeys(row.contestant for row in rows):
            own = sorted((row for row in rows if row.contestant == name), key=lambda row: float(row.case["point"]))
            points = [float(row.case["point"]) for row in own]
            medians = [row.summary("receiver_us_per_delivery").median for row in own]
            axis.plot(points, medians, marker="o", markersize=3, color=COLOURS.get(name), label=name)
        axis.set_xscale("log")
        axis.set_yscale("log")
        lowest, highest = axis.dataLim.intervaly
        axis.set_ylim(10 ** math.floor(math.log10(lowest)), 10 ** math.ceil(math.log10(highest)))
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter(_plain)
            side.set_minor_formatter(NullFormatter())
        axis.grid(visible=True, which="major", color="#dddddd", linewidth=0.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


PLOTS: Mapping[str, Callable[[Result], Any]] = {
    "remote_fanout": _bars(
        {
            "events/s, 1 member": ({"members": 1}, "events_per_second"),
            "deliveries/s, 100 members": ({"members": 100}, "deliveries_per_second"),
            "deliveries/s, 1000 members": ({"members": 1000}, "deliveries_per_second"),
            "B: CPU us per delivery, 1 member": ({"members": 1}, "receiver_us_per_delivery"),
        },
        2,
    ),
    "emits": _bars({"CPU us per emit, 64 in flight": ({"in_flight": 64}, "us_per_emit")}, 1),
    "latency": _bars(
        {"p50, us": ({"per_second": 200}, "p50_us"), "p99, us": ({"per_second": 200}, "p99_us")},
        2,
    ),
    "curves": _curves,
    "end_to_end": _bars(
        {
            "servers: CPU us per delivery, burst": ({"mode": "burst"}, "server_us_per_delivery"),
            "servers: CPU us per delivery, paced": ({"mode": "paced"}, "server_us_per_delivery"),
        },
        2,
    ),
}
"""What is drawn of each part."""
