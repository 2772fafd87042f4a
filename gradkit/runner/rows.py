"""Runs of one config as one row: means and standard errors over their seeds, and what they cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gradkit.runner.record import Record, gradient_equivalents

UNEQUAL = 1.1  # budgets further apart than by this factor are not equal work
_SETS = ("validation_", "test_")
_JUDGES = ("validation_loss", "test_loss", "train_loss")
_UNITS = {"gradients": "gradient-equivalents", "steps": "steps"}


@dataclass(frozen=True)
class Mean:
    """Of a figure over runs: its mean and the standard error, None for a single run."""

    value: float
    stderr: float | None
    runs: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Mean | None:
        """The mean of some values; None of none."""
        known = [*values]
        if not known:
            return None
        several = len(known) > 1
        error = statistics.stdev(known) / math.sqrt(len(known)) if several else None
        return cls(statistics.fmean(known), error, len(known))


@dataclass(frozen=True, eq=False)
class Row:
    """Runs of one config but for name and seed.

    Attributes:
        settings: what differs from other rows, by key path; None where a config has no such key.
        records: its runs.
        config: the values that the runs share, by key path.
        seeds: of the runs.
        target: what it took to reach a target, in each cost; `reached` of how many runs.
    """

    settings: dict[str, Any]
    records: tuple[Record, ...]
    config: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[Any, ...] = ()
    target: dict[str, Any] | None = None

    @property
    def runs(self) -> tuple[str, ...]:
        """The folders of its runs."""
        return tuple(str(run.path) for run in self.records)

    @property
    def finished(self) -> list[Record]:
        """The runs that have finished: those that means are of."""
        return [run for run in self.records if status(run) == "finished"]

    @property
    def ended(self) -> dict[str, int]:
        """How many have finished, diverged, or neither yet."""
        statuses = [status(run) for run in self.records]
        return {one: statuses.count(one) for one in dict.fromkeys(statuses)}

    @cached_property
    def figures(self) -> dict[str, Mean]:
        """What was evaluated, at the end, and as `best_…` at the best of all evaluations."""
        found = {}
        for name in evaluated(self.records):
            seen = [values for run in self.finished if (values := _values(run, name))]
            best = max if more_is_better(name) else min
            found[name] = Mean.of(values[-1] for values in seen)
            found[f"best_{name}"] = Mean.of(map(best, seen))
        return {name: mean for name, mean in found.items() if mean}

    @cached_property
    def budget(self) -> dict[str, Mean]:
        """What the runs that have finished took: `steps`, `seconds` and `gradients`."""
        return costs(run.metrics[-1] for run in self.finished if run.metrics)

    @property
    def label(self) -> str:
        """Such as `optimizer=adam learning_rate=0.01`; of a row alone the name of its runs."""
        words = label(self.settings)
        names = dict.fromkeys(run.name for run in self.records)
        return words or (next(iter(names)) if len(names) == 1 else f"{len(names)} runs")


def status(run: Record) -> str:
    """How a run ended; `unfinished` before it has."""
    return (run.summary or {}).get("status", "unfinished")


def evaluated(runs: Iterable[Record]) -> list[str]:
    """The figures that runs were evaluated in: the training loss, and all on data held out."""
    lines = [line for run in runs for line in run.metrics]
    names = dict.fromkeys(name for line in lines for name in line)
    names = sorted(names, key=lambda name: not name.endswith("_loss"))  # as they came, losses first
    held_out = [name for part in _SETS for name in names if name.startswith(part)]
    return [name for name in ("train_loss", *held_out) if name in names]


def more_is_better(name: str) -> bool:
    """Whether a figure is the better the larger it is: an accuracy is, all else is a loss."""
    return "accuracy" in name


def costs(lines: Iterable[dict[str, Any]]) -> dict[str, Mean]:
    """The means of what was spent up to a metrics line of each run, for what the lines count."""
    known = [*lines]
    found = {
        "steps": Mean.of(line["step"] for line in known),
        "seconds": Mean.of(line["time"] for line in known if is_number(line.get("time"))),
        "gradients": Mean.of(
            work for line in known if (work := gradient_equivalents(line)) is not None
        ),
    }
    return {cost: mean for cost, mean in found.items() if mean}


def columns(rows: Sequence[Row]) -> list[str]:
    """The figures that a table of the rows has; what is best in a run only where it differs."""
    names = evaluated(run for row in rows for run in row.records)
    return [
        name for end in names for name in (end, f"best_{end}") if _says_something(name, end, rows)
    ]


def judge(rows: Sequence[Row]) -> str | None:
    """The figure that says which row is best: the loss on validation, or else test, data."""
    return next((name for name in _JUDGES if any(name in row.figures for row in rows)), None)


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The rows that have the judging figure, the best first."""
    name = judge(rows)
    known = [row for row in rows if name in row.figures]
    return sorted(known, key=lambda row: row.figures[name].value if name else 0.0)


def budget_spread(rows: Sequence[Row]) -> tuple[str, float, float] | None:
    """The unit that budgets are counted in, the least and the most that a row's runs took.

    Gradient-equivalents where all count them, else steps; None when nothing has finished.
    """
    budgets = [row.budget for row in rows if row.budget]
    for cost, unit in _UNITS.items():
        if budgets and all(cost in budget for budget in budgets):
            spent = [budget[cost].value for budget in budgets]
            return unit, min(spent), max(spent)
    return None


def budget_words(rows: Sequence[Row]) -> str:
    """Whether the rows had equal budgets, in a sentence; empty when nothing has finished."""
    spread = budget_spread(rows)
    if spread is None:
        return ""
    unit, least, most = spread
    if not unequal(rows):
        about = "" if least == most else "about "
        return f"Budget: {about}{most:,.6g} {unit} a run."
    return (
        f"Unequal budgets: from {least:,.6g} to {most:,.6g} {unit} a run, so the ends are not "
        "compared at equal work."
    )


def unequal(rows: Sequence[Row]) -> bool:
    """Whether the budgets of rows are further apart than a tenth."""
    spread = budget_spread(rows)
    return spread is not None and spread[2] > UNEQUAL * spread[1]


def label(settings: dict[str, Any]) -> str:
    """Settings in short, without those that a config does not have."""
    names = short_names([*settings])
    return " ".join(
        f"{names[key]}={shown(value)}" for key, value in settings.items() if value is not None
    )


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The shortest ends of dotted keys that tell them apart; a thing's name is called by the thing.

    So `optimizer.name` is `optimizer`.
    """
    return shortest_ends({key: key.removesuffix(".name") for key in keys})


def shortest_ends(names: Mapping[str, str]) -> dict[str, str]:
    """For each key the shortest end of its dotted name that no other has; without one the key."""

    def end(key: str, parts: int) -> str:
        return ".".join(names[key].split(".")[-parts:])

    return {
        key: next(
            (
                end(key, parts)
                for parts in range(1, len(name.split(".")) + 1)
                if [end(other, parts) for other in names].count(end(key, parts)) == 1
            ),
            key,
        )
        for key, name in names.items()
    }


def shown(value: Any) -> str:
    """A setting's value as text."""
    return "–" if value is None else str(value)


def is_number(value: Any) -> bool:
    """Whether a recorded value is a finite number."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and math.isfinite(value)


def _says_something(name: str, end: str, rows: Sequence[Row]) -> bool:
    means = [row.figures[name] for row in rows if name in row.figures]
    ends = [row.figures[end] for row in rows if end in row.figures]
    return means != ends if name != end else bool(means)


def _values(run: Record, name: str) -> list[float]:
    return [line[name] for line in run.metrics if is_number(line.get(name))]
