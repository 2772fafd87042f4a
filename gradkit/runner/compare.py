"""Runs side by side: what differs in their configs, how they ended, and what a target cost them.

Runs whose configs differ in their names and seeds alone are one row, with the mean and its standard
error.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradkit.runner import record
from gradkit.runner.document import values_in
from gradkit.runner.errors import UserError
from gradkit.runner.record import Record
from gradkit.runner.rows import (
    Mean,
    Row,
    columns,
    costs,
    is_number,
    judge,
    more_is_better,
    ranked,
    short_names,
    shown,
)

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
        if found is None or not is_number(found):
            return False
        return found >= self.value if more_is_better(self.name) else found <= self.value


def compared(records: Sequence[Record], target: Target | None = None) -> list[Row]:
    """Returns a row for each config, in the order of the first run of each.

    Raises:
        UserError: no run has ever recorded the target's figure.
    """
    if target and not any(target.name in line for run in records for line in run.metrics):
        known = sorted({name for run in records for line in run.metrics for name in line})
        raise UserError(f"--target: no run records {target.name!r}; they have {', '.join(known)}")
    groups: dict[str, list[tuple[Record, Any]]] = {}
    configs: dict[str, dict[str, Any]] = {}
    for run in records:
        flat = dict(_flat(values_in(run.path / record.CONFIG)))
        flat.pop("name", None)
        seed = flat.pop("seed", None)
        key = json.dumps(flat, sort_keys=True)
        groups.setdefault(key, []).append((run, seed))
        configs[key] = flat
    names = dict.fromkeys(name for flat in configs.values() for name in flat)
    differing = [
        name for name in names if len({json.dumps(flat.get(name)) for flat in configs.values()}) > 1
    ]
    return [
        Row(
            settings={name: configs[key].get(name) for name in differing},
            records=tuple(run for run, _ in members),
            config=configs[key],
            seeds=tuple(seed for _, seed in members),
            target=None if target is None else _to_target([run for run, _ in members], target),
        )
        for key, members in groups.items()
    ]


def described(row: Row) -> dict[str, Any]:
    """Returns a row in JSON's types."""
    return {
        "settings": row.settings,
        "runs": row.runs,
        "seeds": row.seeds,
        "ended": row.ended,
        "figures": _plain(row.figures),
        "budget": _plain(row.budget),
        "target": None if row.target is None else _plain(row.target),
    }


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as a table for a terminal, the best marked.

    What is best in a run has a column where it is not the end.
    """
    names = short_names([*rows[0].settings])
    figures = columns(rows)
    costs = [f"{cost} to target" for cost in COSTS] if rows[0].target is not None else []
    lines = [[*names.values(), "runs", *figures, *costs, ""]]
    name = judge(rows)
    losses = [row.figures[name].value for row in ranked(rows)] if name and len(rows) > 1 else []
    for row in rows:
        cells = [shown(row.settings[name]) for name in names]
        cells += [_ended(row), *(_mean(row.figures.get(name)) for name in figures)]
        if row.target is not None:
            reached, count = row.target["reached"], len(row.runs)
            some = f" ({reached} of {count})" if 0 < reached < count else ""
            cells += [_mean(row.target[cost]) + some for cost in COSTS]
        best = losses and name in row.figures and row.figures[name].value == losses[0]
        lines.append([*cells, "← lowest" if best else ""])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown_lines = [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join(shown_lines)


def _to_target(runs: Sequence[Record], target: Target) -> dict[str, Any]:
    first = [next(filter(target.reached, run.metrics), None) for run in runs]
    lines = [line for line in first if line is not None]
    found = costs(lines)
    return {"reached": len(lines), **{cost: found.get(cost) for cost in COSTS}}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: dataclasses.asdict(value) if isinstance(value, Mean) else value
        for name, value in values.items()
    }


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


def best(folders: Sequence[str], figure: str) -> Record:
    """Returns the run with the best figure at its end, such as `train_loss`, of those that ended.

    Raises:
        UserError: no run has ended with that figure.
    """
    ends = [(run.summary or {}, run) for run in open_all(folders)]
    known = [(ended[figure], run) for ended, run in ends if is_number(ended.get(figure))]
    if not known:
        raise UserError(f"{', '.join(folders)}: no run has ended with a {figure}")
    choose = max if more_is_better(figure) else min
    return choose(known, key=lambda pair: pair[0])[1]


def crossing(costs: np.ndarray, figures: np.ndarray, level: float) -> float:
    """The cost at which a line through points first falls to a level; infinite if it never does."""
    below = np.flatnonzero(figures <= level)
    if not len(below) or not below[0]:
        return costs[0] if len(below) else np.inf
    ends = [below[0], below[0] - 1]
    return np.interp(level, figures[ends], costs[ends])


def open_all(folders: Sequence[str]) -> list[Record]:
    """The records of run folders, and of all run folders in a folder of runs, each once.

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
    return [*{run.path.resolve(): run for run in found}.values()]
