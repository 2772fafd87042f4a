"""Stopping early is as good as knowing the best step.

A network of 67,074 parameters learns from 100 points of two classes that overlap; 100 others are
for validation. Its test error falls and rises again as it learns the noise. With patience a run
ends after 20 epochs without a better validation accuracy, and the checkpoint of the best is kept.
"""

import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import BLUE, GREEN, RED
from gradkit.runner.compare import compared, open_all
from gradkit.runner.rows import Mean

REFERENCE = (
    "test error U-shaped in training time; stopping ends within a standard error of its least"
)
MINUTES = 0.9
SEEDS = 6


def commands(out):
    """The command lines, one after the other."""
    yield (
        "gradkit sweep configs/early_stopping.yaml best.patience=null,20 "
        f"data.source.seed=0:{SEEDS} --out {out}"
    )


def runs(out):
    """The runs of full length and those stopped, each in the order of the data's seeds."""
    rows = compared(open_all([str(out)]))
    by = {(r.config["best.patience"], r.config["data.source.seed"]): r.records[0] for r in rows}
    return [[by[patience, seed] for seed in range(SEEDS)] for patience in (None, 20)]


def curve(run, figure):
    """The steps of the evaluations and a figure at each."""
    lines = [line for line in run.metrics if figure in line]
    return np.array([line["step"] for line in lines]), np.array([line[figure] for line in lines])


def errors(found, part):
    """The error of every run at every step [%], and the steps."""
    curves = [curve(run, f"{part}_accuracy") for run in found]
    return curves[0][0], 100 * (1 - np.array([values for _, values in curves]))


def kept(run):
    """The step that a stopped run keeps, and its test error there [%]."""
    steps, validation = curve(run, "validation_accuracy")
    best = np.argmax(validation)
    return steps[best], 100 * (1 - curve(run, "test_accuracy")[1][best])


def judge(out):
    """Compares the error kept with the least of the mean curve, and that with both its ends."""
    full, stopped = runs(out)
    _, test = errors(full, "test")
    ends = [kept(run) for run in stopped]
    best = np.argmin(test.mean(axis=0))
    least = test[:, best]
    more = Mean.of([error - low for (_, error), low in zip(ends, least, strict=True)])
    rise, fall = Mean.of(test[:, -1] - least), Mean.of(test[:, 0] - least)
    one = Mean.of([error for _, error in ends])
    lowest, last = Mean.of(least), Mean.of(test[:, -1])
    spent = np.mean([run.metrics[-1]["step"] for run in stopped]) / full[0].metrics[-1]["step"]
    return (
        f"stopped {one.value:.1f} ± {one.stderr:.1f} %, best step {lowest.value:.1f} ± "
        f"{lowest.stderr:.1f} %, last step {last.value:.1f} ± {last.stderr:.1f} % ({SEEDS} seeds)",
        rise.value > 2 * rise.stderr and fall.value > 2 * fall.stderr and more.value <= more.stderr,
        f"The error kept is above that of the best step by {more.value:.2f} ± {more.stderr:.2f} "
        f"points. To train on costs {rise.value:.1f} ± {rise.stderr:.1f} points, and the stopped "
        f"runs took {spent:.0%} of the steps. The best step is the one at which the mean test "
        "error of the seeds is least, which no single run knows.",
    )


def draw(out):
    """Errors against steps: of training, validation and test, and where the stopped runs ended."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    full, stopped = runs(out)
    for part, color in (("train", GREEN), ("validation", RED), ("test", BLUE)):
        steps, found = errors(full, part)
        mean, error = found.mean(axis=0), found.std(axis=0, ddof=1) / np.sqrt(SEEDS)
        axes.plot(steps, mean, color=color, label=f"{part} error")
        if part == "test":
            axes.fill_between(
                steps, mean - error, mean + error, color=color, alpha=0.2, linewidth=0
            )
    ends = np.array([kept(run) for run in stopped])
    axes.plot(ends[:, 0], ends[:, 1], "o", color=BLUE, markeredgecolor="white", markersize=7,
              label="test error of each stopped run, at the step it keeps")  # fmt: skip
    mean = ends[:, 1].mean()
    axes.axhline(mean, color=BLUE, linewidth=0.9, linestyle="--", label="their mean")
    axes.set_xscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("error [%]")
    axes.set_title("Stopping early catches the bottom of the U")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
