"""How much the end of training depends on each setting that was varied."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradkit.report.bands import BEST, legend
from gradkit.report.palette import Look, looks, optimizer_of
from gradkit.report.quantities import finite
from gradkit.report.scales import log_scale, plain_scale
from gradkit.report.svg import drawing, to_svg
from gradkit.runner.rows import Row, evaluated, judge, label, more_is_better, short_names, shown

_WIDE = 9.99  # values that span a decade are on a log axis


@dataclass(frozen=True)
class Swept:
    """A setting that was varied, with all others as they were.

    Attributes:
        key: its path.
        name: in short.
        values: of it, in order; texts and lists in the order of the rows.
        numeric: whether they have places on an axis of numbers.
        lines: rows that differ in this setting alone, each with what they have in common.
    """

    key: str
    name: str
    values: tuple[Any, ...]
    numeric: bool
    lines: tuple[tuple[str, tuple[Row, ...]], ...]


def swept(rows: Sequence[Row]) -> list[Swept]:
    """Every setting that was varied by itself."""
    keys = [*rows[0].settings] if rows else []
    names = short_names(keys)
    some = {key for key in keys if any(row.settings[key] is None for row in rows)}
    found = []
    for key in keys:
        # What an optimizer has and another has not, belongs to the choice between them.
        ignored = {key} | (some if key.endswith(".name") else set())
        groups: dict[str, list[Row]] = {}
        for row in rows:
            if row.settings[key] is not None:
                rest = {k: v for k, v in row.settings.items() if k not in ignored}
                groups.setdefault(json.dumps(rest), []).append(row)
        lines = [group for group in groups.values() if _varied(group, key)]
        if not lines:
            continue
        values = _distinct(row.settings[key] for group in lines for row in group)
        numeric = all(finite(value) is not None for value in values)
        found.append(
            Swept(
                key,
                names[key],
                tuple(sorted(values) if numeric else values),
                numeric,
                tuple((_common(group, ignored), tuple(group)) for group in lines),
            )
        )
    return found


def sensitivity_figures(rows: Sequence[Row]) -> dict[str, str]:
    """For each varied setting, the final loss, and accuracy where there is one, against it."""
    return {
        f"sensitivity-{place}": _draw(one, f"sensitivity-{place}", panels(rows))
        for place, one in enumerate(swept(rows))
        if panels(rows)
    }


def shown_lines(one: Swept, figure: str) -> list[tuple[str, tuple[Row, ...]]]:
    """The lines that are drawn: all, or of many the best in a figure."""
    if len(one.lines) <= BEST:
        return list(one.lines)

    def lowest(line: tuple[str, tuple[Row, ...]]) -> float:
        return min(
            [row.figures[figure].value for row in line[1] if figure in row.figures] or [np.inf]
        )

    best = sorted(one.lines, key=lowest)[:BEST]
    return [line for line in one.lines if line in best]


def best_values(one: Swept, figure: str) -> tuple[str, str]:
    """Where a loss is lowest, over all lines for a title, and on each line, in a sentence."""
    found = []
    for words, rows in shown_lines(one, figure):
        known = [row for row in rows if figure in row.figures]
        if known:
            best = min(known, key=lambda row: row.figures[figure].value)
            found.append((best.figures[figure].value, best.settings[one.key], words))
    if not found:
        return one.name, ""
    loss = figure.replace("_", " ")
    title = f"{one.name}: lowest {loss} at {_place(one, min(found, key=lambda end: end[0])[1])}"
    each = ", ".join(f"{_place(one, value)} ({words})" for _, value, words in found)
    return title, f"The {loss} is lowest at {each}."


def _place(one: Swept, value: Any) -> str:
    """A value, and whether it is the last that was tried on its side."""
    ends = {0: "the smallest tried", len(one.values) - 1: "the largest tried"}
    words = ends.get(one.values.index(value)) if one.numeric else None
    return f"{shown(value)}, {words}" if words else shown(value)


def panels(rows: Sequence[Row]) -> list[str]:
    """What is drawn against each setting: a loss, and an accuracy where there is one.

    The loss is that of the test, or else what rows are judged by.
    """
    judged = judge(rows)
    if judged is None:
        return []
    loss = "test_loss" if any("test_loss" in row.figures for row in rows) else judged
    part = loss.removesuffix("loss")
    accuracies = [
        name
        for name in evaluated(run for row in rows for run in row.records)
        if name.startswith(part) and more_is_better(name)
    ]
    return [loss, *accuracies[:1]]


def _draw(one: Swept, name: str, figures: list[str]) -> str:
    lines = shown_lines(one, figures[0])
    optimizers = [optimizer_of(rows[0].config) for _, rows in lines]
    by_optimizer = one.key.startswith("optimizer.") and one.key.endswith(".name")
    styles = looks([""] * len(lines) if by_optimizer else optimizers)
    with drawing(name):
        width = 5.0 * len(figures)
        figure = Figure(figsize=(width, 3.2), layout="constrained")
        grid = figure.subplots(1, len(figures), squeeze=False)[0]
        for axes, metric in zip(grid, figures, strict=True):
            for number, ((_, rows), look) in enumerate(zip(lines, styles, strict=True)):
                shift = 0.0 if one.numeric else 0.5 * ((number + 0.5) / len(lines) - 0.5)
                _draw_line(axes, one, rows, (metric, look, shift))
            _scale(axes, one, [rows for _, rows in lines], metric)
            axes.set_xlabel(one.name)
            axes.set_ylabel(f"final {metric.replace('_', ' ')}")
        legend(
            figure, [(words or "–", look) for (words, _), look in zip(lines, styles, strict=True)]
        )
        return to_svg(figure, name)


def _draw_line(axes: Axes, one: Swept, rows: Sequence[Row], how: tuple[str, Look, float]) -> None:
    metric, look, shift = how
    ordered = sorted(rows, key=lambda row: one.values.index(row.settings[one.key]))

    def place(row: Row) -> float:
        value = row.settings[one.key]
        return float(value) if one.numeric else one.values.index(value) + shift

    ends = [(place(row), row.figures[metric]) for row in ordered if metric in row.figures]
    axes.errorbar(
        [x for x, _ in ends],
        [mean.value for _, mean in ends],
        yerr=[mean.stderr or 0.0 for _, mean in ends],
        linestyle=look.dashes if one.numeric else "none",
        linewidth=1.2,
        elinewidth=1.0,
        capsize=2.5,
        markersize=5,
        **look.points,
    )
    edge = 0.02 if more_is_better(metric) else 0.98
    for row in ordered:
        if "diverged" in row.ended:
            style = {"color": look.color, "markersize": 6, "markeredgewidth": 1.5}
            at_edge = axes.get_xaxis_transform()
            axes.plot(place(row), edge, "x", transform=at_edge, clip_on=False, **style)


def _scale(axes: Axes, one: Swept, lines: Sequence[Sequence[Row]], metric: str) -> None:
    means = [row.figures[metric] for rows in lines for row in rows if metric in row.figures]
    ends = np.array([mean.value for mean in means])
    if ends.size and ends.min() > 0 and ends.max() >= _WIDE * ends.min():
        log_scale(axes, ends)
    else:
        plain_scale(axes.yaxis)
    axes.margins(y=0.15)
    if not one.numeric:
        axes.set_xticks(range(len(one.values)), [_cut(shown(value)) for value in one.values])
        axes.set_xlim(-0.5, len(one.values) - 0.5)
        return
    values = np.array(one.values, dtype=float)
    if values.min() > 0 and values.max() >= _WIDE * values.min():
        log_scale(axes, values, "x")
    else:
        plain_scale(axes.xaxis, whole=all(isinstance(value, int) for value in one.values))
    axes.margins(x=0.06)


def _varied(rows: Sequence[Row], key: str) -> bool:
    return len(_distinct(row.settings[key] for row in rows)) > 1


def _distinct(values: Any) -> list[Any]:
    return [*{json.dumps(value): value for value in values}.values()]


def _common(rows: Sequence[Row], without: set[str]) -> str:
    """What rows have in common and other lines may not."""
    settings = {key: value for key, value in rows[0].settings.items() if key not in without}
    return label(settings)


def _cut(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
