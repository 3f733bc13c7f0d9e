"""Pictures of a report for papers, each as PNG and PDF: learning curves, and a metric against FLOPs and latency.

Needs the extra ``figures`` (matplotlib).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.storage import replace_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOWER_IS_BETTER = r"loss|error|perplexity|distance|divergence|regret|seconds|latency|flops|params"
COLOURS = ("#0b65b8", "#c44a00", "#00795a", "#8546b8", "#946300", "#c2316f", "#107f99", "#555b66")
DASHES = ("-", "--", ":", "-.")
MARKERS = "os^Dv*XP"
LEGEND_ENTRIES = 16
STYLE = {"pdf.fonttype": 42, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "grid.alpha": 0.3, "savefig.dpi": 200, "savefig.bbox": "tight"}  # fmt: skip

Run = dict[str, Any]


def write_figures(values: dict[str, Any], folder: Path) -> list[Path]:
    """Writes the pictures of a page's values (``runner.report.collect``) to ``folder``; returns their paths.

    A picture holds the runs of one data set and scale, both in its title; latencies those of one machine too.
    """
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        for name, figure in _figures(values["runs"]):
            for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
                path = folder / f"{re.sub(r'[^A-Za-z0-9_.=-]+', '_', name)}.{kind}"
                replace_atomic(path, _saver(figure, kind, metadata))
                written.append(path)
    return written


def _saver(figure: Figure, kind: str, metadata: dict) -> Callable[[Path], None]:
    return lambda path: figure.savefig(path, format=kind, metadata=metadata)


def _figures(runs: list[Run]) -> Iterator[tuple[str, Figure]]:
    def place(run: Run) -> tuple[str, str]:
        return str(run.get("dataset")), str(run.get("scale"))

    for (dataset, scale), group in groupby(sorted(runs, key=place), key=place):
        members, where = list(group), f"{dataset}-{scale}"
        note = "" if scale == "paper" else ": a demonstration, not the paper's protocol"
        title = f"{dataset}, scale={scale}{note}"
        metrics = sorted({curve["metric"] for run in members for curve in run["curves"] if len(curve["values"]) > 1})
        for metric in metrics:
            yield f"curves-{metric}-{where}", _curves(members, metric, title)
        yield from _pareto(members, where, title)


def _curves(runs: list[Run], metric: str, title: str) -> Figure:
    from matplotlib.figure import Figure

    drawn = [(run, curve) for run in runs for curve in run["curves"] if curve["metric"] == metric]
    phases = list(dict.fromkeys(curve["phase"] for _, curve in drawn))
    labels = list(dict.fromkeys(_label(run) for run, _ in drawn))
    columns = min(3, len(phases))
    lines = math.ceil(len(phases) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.6 * lines), layout="constrained")
    for axes, phase in zip(figure.subplots(lines, columns, squeeze=False).flat, phases, strict=False):
        for run, curve in drawn:
            if curve["phase"] == phase:
                index = labels.index(_label(run))
                values = [math.nan if value is None else value for value in curve["values"]]
                marker = "." if len(values) == 1 else ""
                axes.plot(curve["steps"], values, DASHES[index // len(COLOURS) % len(DASHES)], marker=marker,
                          color=COLOURS[index % len(COLOURS)], linewidth=1, label=_plain(labels[index]))  # fmt: skip
        axes.set(title=_plain(phase), xlabel="step", ylabel=_plain(metric))
    for axes in figure.axes[len(phases) :]:
        axes.remove()
    return _finish(figure, title)


def _pareto(runs: list[Run], where: str, title: str) -> Iterator[tuple[str, Figure]]:
    measured = [
        run for run in runs if run["state"] == "done" and run.get("metrics") and "final" in run.get("profile", {})
    ]
    counts = Counter(name for run in measured for name in run["metrics"])
    if not counts:
        return
    metric = "accuracy" if "accuracy" in counts else counts.most_common(1)[0][0]
    costs = sorted({name for run in measured for name in run["profile"]["final"] if name.startswith("latency_ms.")})
    for cost in ("flops", *costs):
        with_both = [run for run in measured if metric in run["metrics"] and cost in run["profile"]["final"]]
        machines = [None] if cost == "flops" else sorted({str(run.get("latency_machine")) for run in with_both})
        for machine in machines if with_both else ():
            chosen = [run for run in with_both if machine in (None, str(run.get("latency_machine")))]
            batch = cost.rpartition(".")[2]
            axis = "FLOPs" if cost == "flops" else f"latency, batch {batch} (ms)"
            name = f"{metric}-flops-{where}" if machine is None else f"{metric}-latency_{batch}-{where}-{machine}"
            text = title if machine is None else f"{title}\n{machine}"
            yield f"against-{name}", _scatter(chosen, metric, cost, axis, text)


def _scatter(runs: list[Run], metric: str, cost: str, axis: str, title: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes: Axes = figure.subplots()
    points = [(run["profile"]["final"][cost], run["metrics"][metric]) for run in runs]
    sign = -1 if re.search(LOWER_IS_BETTER, metric) else 1
    best = front(points, sign)
    axes.step(*zip(*best, strict=True), where="post", color="black", linewidth=1, linestyle="--", zorder=1)
    labels = list(dict.fromkeys(_label(run) for run in runs))
    for run, point in zip(runs, points, strict=True):
        index = labels.index(_label(run))
        marker = MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(*point, marker, color=colour, markersize=5, label=_plain(labels[index]))
    axes.set(xlabel=axis, ylabel=_plain(metric))
    if cost == "flops":
        axes.xaxis.set_major_formatter(EngFormatter())
    return _finish(figure, title)


def front(points: list[tuple[float, float]], sign: int) -> list[tuple[float, float]]:
    """The (cost, value) points that no other point matches or beats in both, cheapest first; equal points once.

    ``sign``: 1 where a higher value is better, -1 where a lower one is.
    """
    found: list[tuple[float, float]] = []
    for cost, value in sorted(set(points), key=lambda point: (point[0], -sign * point[1])):
        if not found or sign * (value - found[-1][1]) > 0:
            found.append((cost, value))
    return found


def _finish(figure: Figure, title: str) -> Figure:
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    shown = dict(list(entries.items())[:LEGEND_ENTRIES])
    more = len(entries) - len(shown)
    columns = 2 if figure.get_figwidth() > 6 and len(shown) > 3 else 1
    # the legend's room is added, not taken from the plots
    figure.set_figheight(figure.get_figheight() + 0.3 + 0.18 * (math.ceil(len(shown) / columns) + bool(more)))
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", frameon=False, fontsize=8, ncols=columns,
                  title=f"and {more} more" if more else None)  # fmt: skip
    figure.suptitle(_plain(title), fontsize=9)
    return figure


def _label(run: Run) -> str:
    """What runs have in common that differ in their seeds alone."""
    settings = [one for one in run.get("settings") or [] if not re.match(r"(\w+\.)?seeds?[.=]", one)]
    text = " ".join([f"{run.get('method')}, {run.get('model')}", *settings])
    return text if len(text) <= 90 else f"{text[:89]}…"


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics or as a hidden label."""
    return re.sub(r"^_", " _", str(text)).replace("$", r"\$")
