"""A line under-fits a parabola's points, a parabola fits them, degree 20 fits their noise.

Twenty-one points of y = x² + U(−0.3, 0.3) with x uniform in [−1, 1], and 84 more to test on, of
five seeds each; least squares by L-BFGS. The error is half the mean square.
"""

import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import AMBER, BLUE, RED
from gradkit.runner.compare import open_all
from gradkit.runner.document import values_in
from gradkit.runner.record import CONFIG
from gradkit.runner.rows import Mean
from gradkit.runner.subject import of_run

REFERENCE = (
    "degree 1 under-fits, 2 fits, 20 over-fits: the error on the points falls with the degree, "
    "the error on others is least for 2"
)
MINUTES = 1
SEEDS = 5
LOOKS = {1: (AMBER, "D"), 2: (BLUE, "o"), 20: (RED, "^")}
NOISE = 0.3**2 / 3 / 2  # what the noise alone makes of the error


def commands(out):
    """The command lines, one after the other."""
    degrees = ",".join(map(str, LOOKS))
    yield (
        f"gradkit sweep configs/polynomial_fit.yaml model.degree={degrees} "
        f"data.source.seed=0:{SEEDS} --out {out}"
    )


def runs(out):
    """The runs by degree and seed."""
    found = {}
    for run in open_all([str(out)]):
        values = values_in(run.path / CONFIG)
        found[values["model"]["degree"], values["data"]["source"]["seed"]] = run
    return found


def errors(out, degree):
    """The errors of each seed on the points and on others."""
    ends = [runs(out)[degree, seed].summary for seed in range(SEEDS)]
    return tuple(np.array([end[f"{part}_loss"] for end in ends]) for part in ("train", "test"))


def fitted(run):
    """The points of a run, and its coefficients of Legendre polynomials."""
    (end,) = of_run(run)
    x, y = (np.asarray(end.batch[key], float).ravel() for key in "xy")
    return x, y, np.asarray(end.params["coefficients"][...], float).ravel()


def judge(out):
    """Compares the errors of the degrees, seed by seed, and two fits with NumPy's least squares."""
    train, test = ({d: errors(out, d)[part] for d in LOOKS} for part in (0, 1))
    away = 0.0
    for (degree, _), run in runs(out).items():
        if degree < 20:
            x, y, found = fitted(run)
            away = max(away, np.abs(found - np.polynomial.legendre.legfit(x, y, degree)).max())
    agrees = (
        np.all(train[1] > train[2])
        and np.all(train[2] > train[20])
        and np.all(test[1] > test[2])
        and np.all(test[20] > test[2])
        and away < 1e-4
    )
    means = {d: (Mean.of(train[d]), Mean.of(test[d])) for d in LOOKS}
    told = [
        f"degree {d}: {on.value:.4f} ± {on.stderr:.4f} and {off.value:.2g} ± {off.stderr:.1g}"
        for d, (on, off) in means.items()
    ]
    return (
        f"error on the points and on others, {'; '.join(told)}",
        bool(agrees),
        f"The noise alone makes an error of {NOISE:.3f}. Degrees 1 and 2 are NumPy's least squares "
        f"to {away:.0e}. Degree 20 could go through all 21 points; its Hessian's condition number "
        "of some 10¹⁷ keeps an optimizer in float32 from it, and from errors far larger still. "
        f"Of {SEEDS} seeds the order of errors on other points holds in "
        f"{int(np.sum((test[1] > test[2]) & (test[20] > test[2])))}.",
    )


def draw(out):
    """The fits of one seed, and the errors of all."""
    figure = Figure(figsize=(7.2, 3.7), layout="constrained")
    fits, error = figure.subplots(1, 2, width_ratios=(1.5, 1))
    grid = np.linspace(-1, 1, 400)
    for degree, (color, _) in LOOKS.items():
        x, y, found = fitted(runs(out)[degree, 0])
        fits.plot(grid, np.polynomial.legendre.legval(grid, found), color=color, linewidth=1.6,
                  label=f"degree {degree}")  # fmt: skip
    fits.plot(grid, grid**2, ":", color="black", linewidth=1, label="the parabola")
    fits.plot(x, y, "o", color="black", markersize=4, markerfacecolor="white")
    fits.set_ylim(-0.7, 1.5)
    fits.set_xlabel("x")
    fits.set_ylabel("y")
    for place, (degree, (color, marker)) in enumerate(LOOKS.items()):
        on, off = errors(out, degree)
        for shift, values, face in ((-0.14, on, "none"), (0.14, off, color)):
            error.plot(np.full(SEEDS, place + shift), values, marker, color=color,
                       markerfacecolor=face, alpha=0.85)  # fmt: skip
    error.plot([], [], "o", color="#666666", markerfacecolor="none", label="on the 21 points")
    error.plot([], [], "o", color="#666666", label="on 84 others")
    error.axhline(NOISE, color="#999999", linewidth=0.8)
    error.text(-0.45, NOISE * 0.93, "noise", fontsize=8, color="#666666", va="top")
    error.set_yscale("log")
    error.set_xlim(-0.5, 2.5)
    error.set_xticks(range(3), [f"degree {degree}" for degree in LOOKS])
    error.set_ylabel("half the mean squared error")
    error.set_title(f"{SEEDS} seeds", fontsize=9)
    figure.legend(loc="outside lower center", ncols=6)
    figure.suptitle("Degree 20 learns the noise of a parabola's points", x=0.01, ha="left",
                    fontsize=11)  # fmt: skip
    return figure
