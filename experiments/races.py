"""Races: each method at the best of the same few numbers, over the same seeds, and what they cost.

An experiment has a `Race`, whose `commands` are its own, and judges and draws its `curves`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from gradkit.report.palette import optimizer_looks
from gradkit.runner import compare, record
from gradkit.runner.document import values_in
from gradkit.runner.record import Record
from gradkit.runner.rows import Mean

Curve = dict[str, np.ndarray]
"""Of one run at its evaluations: `steps`, `seconds`, gradient-equivalents as `gradients`, and as
`passes` over the data, and every figure by its name."""


class Method(NamedTuple):
    """One that takes part.

    Attributes:
        optimizer: as in a config.
        words: what else the command line has.
        tuned: the key of the number that is chosen, below `optimizer`; None: there is none.
    """

    optimizer: Any
    words: str = ""
    tuned: str | None = "learning_rate"


class Race(NamedTuple):
    """Some methods on one config, each with the best of the same numbers.

    Attributes:
        config: its file. methods: by name. figure: by which the best is chosen, at seed 0.
        grid: the numbers. seeds: how many, of which 0 is that of the choice.
        words: what else every command line has.
    """

    config: str
    methods: dict[str, Method]
    figure: str
    grid: Sequence[float]
    seeds: int = 5
    words: str = ""

    def commands(self, out: Path) -> Iterator[str]:
        """The command lines, those of a choice before those that need it."""
        for name, method in self.methods.items():
            optimizer = shlex.quote(f"optimizer={json.dumps(method.optimizer)}")
            begin = " ".join(
                filter(None, (f"gradkit sweep {self.config}", self.words, method.words, optimizer))
            )
            if method.tuned is None:
                yield f"{begin} seed=0:{self.seeds} --out {out}/{name}/seeds"
                continue
            key, grid = f"optimizer.{method.tuned}", ",".join(map(str, self.grid))
            yield f"{begin} {key}={grid} --out {out}/{name}/tuning"
            chosen = f"{key}={self.chosen(out, name):g}"
            yield f"{begin} {chosen} seed=1:{self.seeds} --out {out}/{name}/seeds"

    def best(self, out: Path, name: str) -> Record:
        """The run of a method with the best figure at its end, of its grid."""
        return compare.best([f"{out}/{name}/tuning"], self.figure)

    def chosen(self, out: Path, name: str) -> float:
        """A method's number."""
        value = values_in(self.best(out, name).path / record.CONFIG)["optimizer"]
        for key in (self.methods[name].tuned or "").split("."):
            value = value[int(key) if key.isdigit() else key]
        return value

    def choices(self, out: Path) -> str:
        """The numbers of all methods, as text."""
        tuned = [name for name, method in self.methods.items() if method.tuned is not None]
        return ", ".join(f"{name} {self.chosen(out, name):g}" for name in tuned)

    def curves(self, out: Path) -> dict[str, list[Curve]]:
        """The curves of each method, of each seed."""
        found = {}
        for name, method in self.methods.items():
            runs = compare.open_all([f"{out}/{name}/seeds"])
            if method.tuned is not None:
                runs = [self.best(out, name), *runs]
            found[name] = [curve(run, self.figure) for run in runs]
        return found


def curve(run: Record, figure: str) -> Curve:
    """The figures of a run where it has this one."""
    config = values_in(run.path / record.CONFIG)
    lines = [line for line in run.metrics if line.get(figure) is not None]
    gradients = np.array([record.gradient_equivalents(line) for line in lines])
    costs = {
        "steps": np.array([line["step"] for line in lines]),
        "seconds": np.array([line["time"] for line in lines]),
        "gradients": gradients,
        "passes": gradients * config["batch_size"] / config["data"]["examples"],
    }
    names = [name for name in lines[0] if name.startswith(("train_", "test_"))]
    return costs | {name: np.array([line[name] for line in lines], float) for name in names}


def at(each: Sequence[Curve], cost: str, where: Any, figure: str) -> np.ndarray:
    """A figure of each seed where a cost is reached, on lines between evaluations; else NaN."""
    return np.array([np.interp(where, run[cost], run[figure], np.nan, np.nan) for run in each])


def needed(each: Sequence[Curve], cost: str, figure: str, level: Any) -> np.ndarray:
    """The cost of each seed to a level, of all or of each; infinite where it is not reached."""
    levels = np.broadcast_to(level, len(each))
    pairs = zip(each, levels, strict=True)
    return np.array([compare.crossing(run[cost], run[figure], goal) for run, goal in pairs])


def saved(found: dict[str, list[Curve]], name: str, cost: str, figure: str) -> np.ndarray:
    """AdamW's cost to its own last figure over that of a method, by seed; 0 if not reached."""
    goals = [run[figure][-1] for run in found["adamw"]]
    whole = np.array([run[cost][-1] for run in found["adamw"]])
    return whole / needed(found[name], cost, figure, goals)


def shares(found: dict[str, list[Curve]], cost: str, figure: str) -> str:
    """What methods take of AdamW's cost to AdamW's last figure, as text: those that get there."""
    ratios = {name: saved(found, name, cost, figure) for name in found if name != "adamw"}
    there = [f"{name} {np.mean(1 / r):.2f}" for name, r in ratios.items() if r.all()]
    others = [] if len(there) == len(ratios) else ["no other by all seeds"]
    return ", ".join(there + others)


def ranked(ends: dict[str, np.ndarray], form: str = ".3f") -> str:
    """The ends of each method with their standard errors, the lowest first, as text."""
    means = {name: Mean.of(values) for name, values in ends.items()}
    order = sorted(means, key=lambda name: means[name].value)
    return ", ".join(f"{n} {means[n].value:{form}} ± {means[n].stderr:{form}}" for n in order)


def drawn(
    found: dict[str, list[Curve]],
    panels: Sequence[tuple[str, str, str, str]],
    dashed: Sequence[str],
    dotted: Sequence[str] = (),
    budget: tuple[str, float] | None = None,
) -> Figure:
    """The mean over seeds of each method, within a standard error: one panel for each pair.

    Args:
        found: the curves.
        panels: of each the cost, the figure, and what their axes say.
        dashed, dotted: methods that are drawn so.
        budget: a cost and how much of it is shown.
    """
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    looks = optimizer_looks([*found])
    dashes = dict.fromkeys(dashed, (0, (4, 1.5))) | dict.fromkeys(dotted, (0, (1, 1.2)))
    for axes, (cost, name_of, label, height) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for name, each in found.items():
            least = max(run[cost][0] for run in each)
            most = min(run[cost][-1] for run in each)
            if budget and cost == budget[0]:
                most = min(most, budget[1])
            space = np.geomspace if cost == "seconds" else np.linspace
            grid = space(least, most, 60)
            values = at(each, cost, grid, name_of)
            mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / len(each) ** 0.5
            look = looks[name]
            style = {"color": look.color, "marker": look.marker, "markersize": 3.5}
            style["linestyle"] = dashes.get(name, "-")
            axes.plot(grid, mean, label=name, linewidth=1.2, markevery=12, **style)
            axes.fill_between(grid, mean - error, mean + error, color=look.color, alpha=0.2, lw=0)
        axes.set_xlabel(label)
        axes.set_ylabel(height)
        if cost == "seconds":
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        heights = np.concatenate([line.get_ydata() for line in axes.lines])
        axes.set_yscale("log" if heights.max() > 10 * heights.min() > 0 else "linear")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, columnspacing=1)
    return figure


def after(cost: float, form: str = ",.0f") -> str:
    """A median cost to a level, as text."""
    return f"after {cost:{form}}" if np.isfinite(cost) else "not there"


def ahead(found: dict[str, list[Curve]], names: Sequence[str], figure: str) -> tuple[str, Mean]:
    """Which of some methods saves most of AdamW's steps, and how many times fewer it takes."""
    steps = {name: Mean.of(saved(found, name, "steps", figure)) for name in names}
    name = max(steps, key=lambda name: steps[name].value)
    return name, steps[name]


def headed(figure: Figure, text: str) -> Figure:
    """The figure with what it shows above it."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=10)
    return figure
