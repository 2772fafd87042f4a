"""Gradient descent finds the line behind noisy points, and momentum the same one.

Thirty points of y = 3x + 2 + U(−0.1, 0.1) with x uniform in [−1, 1], least squares from intercept
and slope (10, 5), a thousand steps on all points. The rate is 0.3 for half the mean square, which
is 0.005 for the sum of squares.
"""

import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import optimizer_looks
from gradkit.runner.compare import open_all
from gradkit.runner.data import named

REFERENCE = "SGD (1.988, 2.998), momentum 0.6 (1.984, 2.993), Nesterov 0.8 (1.974, 2.991)"
MINUTES = 0.1
TRUE = {"intercept": 2.0, "slope": 3.0}


def commands(out):
    """The command lines, one after the other."""
    yield (
        'gradkit sweep configs/line_fit.yaml "optimizer={name: sgd, learning_rate: 0.3},'
        "{name: sgd, learning_rate: 0.3, momentum: 0.6},"
        '{name: sgd, learning_rate: 0.3, momentum: 0.8, nesterov: true}" '
        f"--out {out}"
    )


def kinds(out):
    """Each run by the name of its method."""
    runs = open_all([str(out)])
    names = ["nesterov" if "nesterov" in run.config_text else "momentum" if
             "momentum" in run.config_text else "sgd" for run in runs]  # fmt: skip
    return dict(zip(names, runs, strict=True))


def errors():
    """Standard errors of intercept and slope for noise uniform in ±0.1 on 30 of the points."""
    x = named.line(examples=38).x[:30, 0].astype(float)
    noise = 0.1 / np.sqrt(3)
    return noise / np.sqrt(30), noise / np.sqrt(np.sum((x - x.mean()) ** 2))


def judge(out):
    """Compares the ends with the true line, in standard errors."""
    ends = {
        name: (run.summary["train_intercept"], run.summary["train_slope"])
        for name, run in kinds(out).items()
    }
    se = errors()
    away = max(
        abs(value - true) / error
        for end in ends.values()
        for value, true, error in zip(end, TRUE.values(), se, strict=True)
    )
    text = ", ".join(f"{name} ({b:.3f}, {a:.3f})" for name, (b, a) in ends.items())
    return (
        text,
        away < 2.6,
        f"The noise alone gives standard errors of {se[0]:.3f} and {se[1]:.3f}; the ends are "
        f"within {away:.1f} of them of (2, 3). All three end at the one least-squares line of "
        "these points; the published ends are of other points and of methods that differ.",
    )


def draw(out):
    """Intercept against slope on the way."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    way, loss = figure.subplots(1, 2)
    runs = kinds(out)
    looks = optimizer_looks(list(runs))
    for name, run in runs.items():
        steps = [line["step"] for line in run.metrics]
        look = looks[name]
        style = {"color": look.color, "marker": look.marker, "markersize": 3, "markevery": 5}
        way.plot(*(([line[k] for line in run.metrics]) for k in TRUE), label=name, **style)
        loss.plot(steps[:60], [line["loss"] for line in run.metrics][:60], label=name, **style)
    way.plot(*TRUE.values(), "+", color="black", markersize=12)
    way.annotate("the true line", TRUE.values(), xytext=(8, -12), textcoords="offset points")
    way.set_xlabel("intercept")
    way.set_ylabel("slope")
    loss.set_yscale("log")
    loss.set_xlabel("step")
    loss.set_ylabel("half the mean square")
    loss.legend()
    figure.suptitle("Three ways to one line", x=0.01, ha="left", fontsize=10)
    return figure
