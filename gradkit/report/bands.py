"""Losses of several configs against step, time and work: means over seeds with their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradkit.report.curves import AGAINST, Getter
from gradkit.report.palette import Look, looks, optimizer_of
from gradkit.report.quantities import finite
from gradkit.report.scales import log_scale, plain_scale
from gradkit.report.svg import drawing, envelope, to_svg
from gradkit.runner.record import Record
from gradkit.runner.rows import Row, ranked, status

MOST = 12  # rows that are all drawn
BEST = 8  # of more rows, so many are
_BINS = 60  # of a curve, each with its lowest and its highest point
_ALL = 1600  # bins of all curves
_TITLES = {
    "train_loss": "full training set",
    "loss": "training batches",
    "validation_loss": "validation set",
    "test_loss": "test set",
}


@dataclass(frozen=True)
class Band:
    """A figure over the runs of a row, at the steps that all of them share.

    Attributes:
        x: the mean place of each step on the axis.
        mean: the mean over the runs.
        stderr: its standard error; None for a single run.
    """

    x: np.ndarray
    mean: np.ndarray
    stderr: np.ndarray | None


def band(runs: Sequence[Record], key: str, getter: Getter) -> Band | None:
    """The band of some runs; None when they share no step."""
    curves = [curve for run in runs if (curve := _curve(run, key, getter))]
    if not curves:
        return None
    steps = sorted(set.intersection(*map(set, curves)))
    if not steps:
        return None
    x, y = np.array([[curve[step] for step in steps] for curve in curves]).transpose(2, 0, 1)
    several = len(curves) > 1
    error = y.std(axis=0, ddof=1) / math.sqrt(len(curves)) if several else None
    return Band(x.mean(axis=0), y.mean(axis=0), error)


def drawn_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows that curves are drawn of: all of a few, of many the best, in their own order."""
    if len(rows) <= MOST:
        return list(rows)
    best = [*ranked(rows), *rows][:BEST]
    return [row for row in rows if any(row is one for one in best)]


def row_looks(rows: Sequence[Row]) -> dict[Row, Look]:
    """How each row is drawn."""
    optimizers = [optimizer_of(row.config) for row in rows]
    return dict(zip(rows, looks(optimizers), strict=True))


def losses(rows: Sequence[Row]) -> list[str]:
    """The losses that are recorded, a panel each: in training, and on data held out."""
    names = {name for row in rows for run in row.records for line in run.metrics for name in line}
    training = [name for name in ("train_loss", "loss") if name in names][:1]
    return [*training, *(name for name in ("validation_loss", "test_loss") if name in names)]


def bands_figure(rows: Sequence[Row], name: str = "curves") -> str | None:
    """Losses against step, time and work, a band for each row; None when nothing is recorded."""
    rows, keys = drawn_rows(rows), losses(rows)
    styles = row_looks(rows)
    runs = [run for row in rows for run in row.records]
    if not any(_curve(run, key, AGAINST[0][1]) for run in runs for key in keys):
        return None
    bins = min(_BINS, _ALL // (3 * len(keys) * len(rows)))
    with drawing(name):
        figure = Figure(figsize=(10, 0.6 + 2.7 * len(keys)), layout="constrained")
        grid = figure.subplots(len(keys), 3, sharey="row", sharex="col", squeeze=False)
        for panels, key in zip(grid, keys, strict=True):
            for axes, (_, getter) in zip(panels, AGAINST, strict=True):
                for row in rows:
                    _draw(axes, row, (key, getter, bins), styles[row])
            _scale(panels, rows, key)
            panels[0].set_ylabel(f"loss, {_TITLES[key]}")
        for axes, (label, _) in zip(grid[-1], AGAINST, strict=True):
            axes.set_xlabel(label)
            axes.set_xlim(left=0)
            plain_scale(axes.xaxis, whole=label == "step")
        legend(figure, [(row.label, styles[row]) for row in rows])
        return to_svg(figure, name)


def legend(figure: Figure, entries: Sequence[tuple[str, Look]]) -> None:
    """A legend above a figure, in as many columns as fit."""
    if len(entries) < 2:
        return
    names = [_cut(name) for name, _ in entries]
    handles = [
        Line2D([], [], linestyle=look.dashes, markersize=5, **look.points) for _, look in entries
    ]
    room = int(15 * figure.get_figwidth()) // (max(map(len, names)) + 8)
    columns = max(1, min(len(names), room))
    figure.legend(handles, names, loc="outside upper left", ncols=columns, handlelength=2.6)


def alone(row: Row) -> tuple[list[Record], list[Record]]:
    """The runs of a row that its mean is of, and those drawn by themselves.

    The mean is of those that have finished; when none has, of those that may still do.
    """
    others = [run for run in row.records if status(run) != "finished"]
    going = [run for run in others if status(run) != "diverged"]
    if row.finished or not going:
        return row.finished, others
    return going, [run for run in others if status(run) == "diverged"]


def _draw(axes: Axes, row: Row, what: tuple[str, Getter, int], look: Look) -> None:
    key, getter, bins = what
    together, single = alone(row)
    found = band(together, key, getter)
    if found is None:
        single = [*together, *single]
    else:
        kept = envelope(found.mean, bins)
        x, y = found.x[kept], found.mean[kept]
        if found.stderr is not None:
            error = found.stderr[kept]
            low = np.maximum(y - error, np.where(y > 0, 1e-3 * y, -np.inf))  # for log axes
            axes.fill_between(x, low, y + error, color=look.color, alpha=0.2, linewidth=0)
        every = max(1, len(x) // 6)
        style: dict[str, Any] = {"linestyle": look.dashes, "linewidth": 1.4, "markersize": 4.5}
        axes.plot(x, y, markevery=every, **style, **look.points)
    for run in single[: max(1, min(3, bins // 10))]:  # the page must stay small
        curve = _curve(run, key, getter)
        x, y = np.array([*curve.values()]).reshape(-1, 2).T
        kept = envelope(y, max(6, bins // 3))
        color, diverged = look.color, status(run) == "diverged"
        axes.plot(x[kept], y[kept], color=color, linewidth=0.9, linestyle=":" if diverged else "--")
        if diverged:
            axes.plot(x[-1:], y[-1:], "x", color=color, markersize=6, markeredgewidth=1.5)


def _scale(panels: Sequence[Axes], rows: Sequence[Row], key: str) -> None:
    """A log axis where the means span a decade; curves that blow up leave it at the top."""
    getter = AGAINST[0][1]
    bands = [found for row in rows if (found := band(alone(row)[0], key, getter))]
    runs = [run for row in rows for run in row.records]
    single = [y for run in runs for _, y in _curve(run, key, getter).values()]
    values = np.concatenate([one.mean for one in bands]) if bands else np.array(single)
    if not values.size:
        plain_scale(panels[0].yaxis)
        return
    low, high = float(values.min()), float(values.max())
    if low > 0 and high > 10 * low:
        log_scale(panels[0], values)
        panels[0].set_ylim(low / 1.3, high * 1.6)
    else:
        plain_scale(panels[0].yaxis)
        margin = 0.08 * (high - low or abs(high) or 1.0)
        panels[0].set_ylim(low - margin, high + margin)


def _curve(run: Record, key: str, getter: Getter) -> dict[int, tuple[float, float]]:
    """Place and value at each step that has both."""
    found = {}
    for line in run.metrics:
        x, y = finite(getter(line)), finite(line.get(key))
        if x is not None and y is not None:
            found[line["step"]] = (x, y)
    return found


def _cut(text: str, most: int = 70) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
