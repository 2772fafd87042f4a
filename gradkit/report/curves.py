"""Figures of the training: loss, accuracy, gradient norm and learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradkit.report.findings import first_not_finite
from gradkit.report.palette import AMBER, BLUE, GRAY, GREEN, PINK, RED
from gradkit.report.quantities import finite
from gradkit.report.scales import log_scale, plain_scale
from gradkit.report.svg import INK, drawing, envelope, to_svg
from gradkit.runner.record import Record, gradient_equivalents

_COLORS = {"batch": GRAY, "train": BLUE, "validation": AMBER, "test": RED}
_LABELS = {
    "batch": "training batch",
    "train": "full training set",
    "validation": "validation set",
    "test": "test set",
}
_MANY = 200

Getter = Callable[[dict[str, Any]], Any]
AGAINST: tuple[tuple[str, Getter], ...] = (
    ("step", lambda line: line["step"]),
    ("time [s]", lambda line: line.get("time")),
    ("work [gradient-equivalents]", gradient_equivalents),
)


def loss_figure(record: Record) -> str | None:
    """Loss against step, time and work; None when no loss is recorded."""
    keys = _keys("loss")
    values = _known(record, keys.values())
    if not values.size:
        return None
    with drawing("loss"):
        figure = Figure(figsize=(10, 3.1), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for axes, (label, getter) in zip(panels, AGAINST, strict=True):
            _draw_series(axes, record, keys, getter)
            axes.set_xlabel(label)
            axes.set_xlim(left=0)
            _plain_ticks(axes, whole=label == "step")
        if _spans_a_decade(values):
            log_scale(panels[0], values)
        panels[0].set_ylabel("loss")
        _mark_divergence(record, panels[:1])
        _legend(figure, panels[0])
        return to_svg(figure, "loss")


def metrics_of(record: Record) -> list[str]:
    """What a run was evaluated in besides its loss, by names without their data's."""
    names = dict.fromkeys(name for line in record.metrics for name in line)
    sets = [part for part in _LABELS if part != "batch"]
    found = [name.partition("_")[2] for name in names if name.partition("_")[0] in sets]
    return [name for name in dict.fromkeys(found) if name not in ("", "loss")]


def metric_figure(record: Record, metric: str, name: str) -> str | None:
    """A metric, such as the accuracy, against step; None when none is recorded.

    Args:
        record: the run.
        metric: without the name of its data, such as `accuracy`.
        name: of the figure.
    """
    keys = _keys(metric)
    values = _known(record, keys.values())
    if not values.size:
        return None
    with drawing(name):
        figure = Figure(figsize=(4.9, 3.2), layout="constrained")
        axes = figure.subplots()
        _draw_series(axes, record, keys, AGAINST[0][1])
        axes.set_xlabel("step")
        words = metric.replace("_", " ")
        axes.set_ylabel("accuracy [fraction]" if metric == "accuracy" else words)
        _plain_ticks(axes, whole=True)
        _mark_divergence(record, [axes])
        _legend(figure, axes)
        return to_svg(figure, name)


def _keys(metric: str) -> dict[str, str]:
    """The names that a metric is recorded under, by its data."""
    return {part: metric if part == "batch" else f"{part}_{metric}" for part in _LABELS}


def dynamics_figure(record: Record) -> str | None:
    """Gradient norm and learning rate against step, whichever are recorded."""
    rows = [
        (key, label, color)
        for key, label, color in (
            ("gradient_norm", "gradient norm [loss/param]", GREEN),
            ("learning_rate", "learning rate", PINK),
        )
        if _known(record, [key]).size
    ]
    if not rows:
        return None
    with drawing("dynamics"):
        figure = Figure(figsize=(4.9, 3.2), layout="constrained")
        panels = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (key, label, color) in zip(panels, rows, strict=True):
            x, y = _series(record, key, AGAINST[0][1])
            kept = envelope(y)
            axes.plot(x[kept], y[kept], color=color, linewidth=1.1, marker=_marker(x))
            axes.set_title(label, fontsize=9)
            _plain_ticks(axes, whole=True)
            if key == "gradient_norm" and np.nanmax(y) > 0:
                log_scale(axes, y)
            else:
                axes.set_ylim(bottom=min(0.0, np.nanmin(y)))
        panels[-1].set_xlabel("step")
        _mark_divergence(record, panels)
        return to_svg(figure, "dynamics")


def _draw_series(axes: Axes, record: Record, keys: dict[str, str], getter: Getter) -> None:
    for name, key in keys.items():
        x, y = _series(record, key, getter)
        if not len(x):
            continue
        light = name == "batch"
        kept = envelope(y)
        axes.plot(
            x[kept],
            y[kept],
            color=_COLORS[name],
            label=_LABELS[name],
            linewidth=0.8 if light else 1.3,
            alpha=0.75 if light else 1,
            marker=_marker(x) if light or len(x) > _MANY else "o",
            markersize=3,
        )


def _series(record: Record, key: str, getter: Getter) -> tuple[np.ndarray, np.ndarray]:
    """The lines that hold a key, as x and y; a value that is not finite becomes a gap."""
    pairs = [(finite(getter(line)), finite(line[key])) for line in record.metrics if key in line]
    pairs = [(x, math.nan if y is None else y) for x, y in pairs if x is not None]
    x, y = np.array(pairs, dtype=float).reshape(-1, 2).T
    return (x, y) if np.isfinite(y).any() else (x[:0], y[:0])


def _known(record: Record, keys: Any) -> np.ndarray:
    """All finite values under some keys."""
    found = [finite(line.get(key)) for line in record.metrics for key in keys]
    return np.array([value for value in found if value is not None], dtype=float)


def _marker(x: np.ndarray) -> str:
    return "o" if len(x) < 3 else ""


def _spans_a_decade(values: np.ndarray) -> bool:
    return values.min() > 0 and values.max() > 10 * values.min()


def _plain_ticks(axes: Axes, *, whole: bool = False) -> None:
    plain_scale(axes.xaxis, whole=whole)
    plain_scale(axes.yaxis)


def _mark_divergence(record: Record, panels: Any) -> None:
    """A dotted line where the loss stops being finite, in panels against step."""
    step = first_not_finite(record)
    if step is None:
        return
    for axes in panels:
        axes.axvline(step, color=INK, linewidth=0.9, linestyle=":", label="loss not finite")


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))
