"""Runs side by side: what differs in their configs, how they ended, and what a target cost them.

Runs whose configs differ in their names and seeds alone are one row, with the mean and its standard
error.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradkit.runner import record
from gradkit.runner.document import values_in
from gradkit.runner.errors import UserError

FIGURES = ("train_loss", "test_loss", "test_accuracy")
COSTS = ("steps", "seconds", "gradients")


@dataclass(frozen=True)
class Target:
    """A figure to reach: of an accuracy from below, of all else from above."""

    name: str
    value: float

    @classmethod
    def of(cls, text: str) -> Target:
        """The target written as `train_loss=0.1`.

        Raises:
            UserError: it is not written so.
        """
        name, equals, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not equals or not name or not math.isfinite(number):
            raise UserError(f"--target: expected such as train_loss=0.1, got {text!r}")
        return cls(name, number)

    def reached(self, line: dict[str, Any]) -> bool:
        """Whether a metrics line reaches it."""
        found = line.get(self.name)
        if not isinstance(found, int | float):
            return False
        return found >= self.value if "accuracy" in self.name else found <= self.value


@dataclass(frozen=True)
class Mean:
    """Of a figure over runs: its mean and the standard error, None for a single run."""

    value: float
    stderr: float | None
    runs: int


@dataclass(frozen=True)
class Row:
    """Runs of one config but for name and seed.

    Attributes:
        settings: what differs from other rows, by key path.
        runs: their folders.
        ended: how many have finished, and how many diverged.
        figures: at the end, and as `best_…` at the best of all evaluations.
        target: what it took to reach the target, in each cost; `reached` of how many runs.
    """

    settings: dict[str, Any]
    runs: tuple[str, ...]
    ended: dict[str, int]
    figures: dict[str, Mean]
    target: dict[str, Any] | None


def compared(records: Sequence[record.Record], target: Target | None = None) -> list[Row]:
    """Returns a row for each config, in the order of the first run of each.

    Raises:
        UserError: no run has ever recorded the target's figure.
    """
    if target and not any(target.name in line for run in records for line in run.metrics):
        known = sorted({name for run in records for line in run.metrics for name in line})
        raise UserError(f"--target: no run records {target.name!r}; they have {', '.join(known)}")
    groups: dict[str, list[record.Record]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for run in records:
        flat = dict(_flat(values_in(run.path / record.CONFIG)))
        for name in ("name", "seed"):
            flat.pop(name, None)
        key = json.dumps(flat, sort_keys=True)
        groups.setdefault(key, []).append(run)
        settings[key] = flat
    names = dict.fromkeys(name for flat in settings.values() for name in flat)
    differing = [
        name
        for name in names
        if len({json.dumps(flat.get(name)) for flat in settings.values()}) > 1
    ]
    return [
        _row({name: settings[key].get(name) for name in differing}, runs, target)
        for key, runs in groups.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as a table for a terminal, the lowest test loss at the end marked.

    What is best in a run has a column where it is not the end.
    """
    settings = list(rows[0].settings)
    figures = [name for name in _columns() if _says_something(name, rows)]
    header = [*(_end(name, settings) for name in settings), "runs", *figures]
    costs = [f"{cost} to target" for cost in COSTS] if rows[0].target is not None else []
    lines = [[*header, *costs, ""]]
    losses = [row.figures["test_loss"].value for row in rows if "test_loss" in row.figures]
    for row in rows:
        cells = [_shown(row.settings[name]) for name in settings]
        cells += [_ended(row), *(_mean(row.figures.get(name)) for name in figures)]
        if row.target is not None:
            reached, count = row.target["reached"], len(row.runs)
            some = f" ({reached} of {count})" if 0 < reached < count else ""
            cells += [_mean(row.target[cost]) + some for cost in COSTS]
        best = len(rows) > 1 and "test_loss" in row.figures
        best = best and row.figures["test_loss"].value == min(losses)
        lines.append([*cells, "← lowest" if best else ""])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join(shown)


def _row(settings: dict[str, Any], runs: list[record.Record], target: Target | None) -> Row:
    statuses = [(run.summary or {}).get("status", "unfinished") for run in runs]
    figures = {}
    for name in FIGURES:
        seen = [[line[name] for line in run.metrics if _number(line.get(name))] for run in runs]
        best = max if "accuracy" in name else min
        whole = [s for s, status in zip(seen, statuses, strict=True) if s and status == "finished"]
        figures |= _means({name: [s[-1] for s in whole], f"best_{name}": map(best, whole)})
    return Row(
        settings=settings,
        runs=tuple(str(run.path) for run in runs),
        ended={status: statuses.count(status) for status in dict.fromkeys(statuses)},
        figures=figures,
        target=None if target is None else _to_target(runs, target),
    )


def _to_target(runs: list[record.Record], target: Target) -> dict[str, Any]:
    first = [next(filter(target.reached, run.metrics), None) for run in runs]
    lines = [line for line in first if line is not None]
    found = _means(
        {
            "steps": [line["step"] for line in lines],
            "seconds": [line["time"] for line in lines if _number(line.get("time"))],
            "gradients": [n for n in map(record.gradient_equivalents, lines) if n is not None],
        }
    )
    return {"reached": len(lines), **{cost: found.get(cost) for cost in COSTS}}


def _means(columns: dict[str, Iterable[float]]) -> dict[str, Mean]:
    return {name: mean for name, values in columns.items() if (mean := _mean_of([*values]))}


def _mean_of(values: list[float]) -> Mean | None:
    if not values:
        return None
    several = len(values) > 1
    error = statistics.stdev(values) / math.sqrt(len(values)) if several else None
    return Mean(statistics.fmean(values), error, len(values))


def _columns() -> list[str]:
    return [name for figure in FIGURES for name in (figure, f"best_{figure}")]


def _says_something(name: str, rows: Sequence[Row]) -> bool:
    end = name.removeprefix("best_")
    means = [row.figures[name] for row in rows if name in row.figures]
    ends = [row.figures[end] for row in rows if end in row.figures]
    return means != ends if name != end else bool(means)


def _flat(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """The leaves of nested mappings and lists by dotted path; lists of plain values are leaves."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = list(enumerate(value))
    else:
        yield path, value
        return
    for key, inner in items:
        yield from _flat(inner, f"{path}.{key}" if path else str(key))


def _end(name: str, names: Sequence[str]) -> str:
    """The last part of a dotted name, or all of it where another ends like it."""
    end = name.rpartition(".")[2]
    return end if [other.rpartition(".")[2] for other in names].count(end) == 1 else name


def _ended(row: Row) -> str:
    finished = row.ended.get("finished", 0)
    others = [f"{count} {status}" for status, count in row.ended.items() if status != "finished"]
    return ", ".join([str(finished), *others])


def _mean(mean: Mean | None) -> str:
    if mean is None:
        return "–"
    if mean.stderr is None or not mean.stderr > 0:
        return f"{mean.value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(mean.stderr)))
    return f"{mean.value:.{digits}f} ± {mean.stderr:.{digits}f}"


def _shown(value: Any) -> str:
    return "–" if value is None else str(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def open_all(folders: Sequence[str]) -> list[record.Record]:
    """The records of run folders, and of all run folders in a folder of runs.

    Raises:
        UserError: a folder is neither.
    """
    found = []
    for folder in map(Path, folders):
        inner = sorted(child for child in folder.glob("*") if (child / record.CONFIG).is_file())
        if inner and not (folder / record.CONFIG).is_file():
            found += [record.open_record(child) for child in inner]
        else:
            found.append(record.open_record(folder))
    return found
