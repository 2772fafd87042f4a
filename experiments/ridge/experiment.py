"""Ridge regression by an optimizer is the closed form, and there is a best λ.

A polynomial of degree 14 through 21 points of y = x² + U(−0.3, 0.3), half the mean square plus
λ/(2m) ‖θ‖² with m = 21 points, by Newton's method: wθ is added to the gradient and wI to the
Hessian, w = λ/m. The closed form is (XᵀX + λI)⁻¹Xᵀy, with powers of x in the columns of X.
"""

import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import BLUE, GRAY, RED
from gradkit.runner.compare import open_all
from gradkit.runner.document import values_in
from gradkit.runner.record import CONFIG
from gradkit.runner.rows import Mean
from gradkit.runner.subject import of_run

REFERENCE = (
    "the optimizer's answer is (XᵀX + λI)⁻¹Xᵀy, to float32's rounding times the condition number; "
    "the test error against λ is U-shaped"
)
MINUTES = 0.9
SEEDS, POINTS = 3, 21
DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
ROUNDING = float(np.finfo(np.float32).eps)


def commands(out):
    """The command lines, one after the other."""
    members = (
        f"[{{name: add_decayed_weights, weight_decay: {w}}},"
        f"{{name: newton, learning_rate: 1.0, damping: {w}}}]"
        for w in DECAYS
    )
    yield (
        f'gradkit sweep configs/ridge.yaml "optimizer={",".join(members)}" '
        f"data.source.seed=0:{SEEDS} --out {out}"
    )


def runs(out):
    """The runs of each decay, by seed."""
    found = {}
    for run in open_all([str(out)]):
        values = values_in(run.path / CONFIG)
        decay = values["optimizer"][0]["weight_decay"]
        found[decay, values["data"]["source"]["seed"]] = run
    return {decay: [found[decay, seed] for seed in range(SEEDS)] for decay in DECAYS}


def deviation(run, decay):
    """How far a run's coefficients are from the closed form, relative; and the condition number."""
    (end,) = of_run(run)
    x, y = (np.asarray(end.batch[key], float).ravel() for key in "xy")
    X = np.vander(x, 15, increasing=True)
    A = X.T @ X + POINTS * decay * np.eye(15)
    exact = np.linalg.solve(A, X.T @ y)
    found = np.asarray(end.params["coefficients"][...], float).ravel()
    return np.linalg.norm(found - exact) / np.linalg.norm(exact), np.linalg.cond(A)


def errors(out, part):
    """The errors by decay and seed: (decays, seeds)."""
    return np.array([[run.summary[f"{part}_loss"] for run in row] for row in runs(out).values()])


def judge(out):
    """Compares with the closed form, and the ends of the test error with its lowest point."""
    pairs = [deviation(run, decay) for decay, row in runs(out).items() for run in row]
    allowed = max(away / (ROUNDING * condition) for away, condition in pairs)
    test = errors(out, "test")
    means = [Mean.of(row) for row in test]
    best = int(np.argmin([mean.value for mean in means]))
    down, up = test[0] / test[best], test[-1] / test[best]
    inside = 0 < best < len(DECAYS) - 1
    low, middle, high = (means[k] for k in (0, best, -1))
    return (
        f"closed form to {max(away for away, _ in pairs):.0e}, at most {allowed:.1g} ε κ; test "
        f"error {low.value:.2g} ± {low.stderr:.1g} at λ = {POINTS * DECAYS[0]:.1g}, "
        f"{middle.value:.3f} ± {middle.stderr:.3f} at {POINTS * DECAYS[best]:.2g}, "
        f"{high.value:.3f} ± {high.stderr:.3f} at {POINTS * DECAYS[-1]:.0f}",
        bool(allowed < 1 and inside and np.all(down > 1) and np.all(up > 1)),
        "ε = 1.2·10⁻⁷ is float32's rounding and κ the condition number of XᵀX + λI, from "
        f"{min(k for _, k in pairs):.2g} to {max(k for _, k in pairs):.1g}: an answer can be "
        "off by ε κ, relative. The test error is higher at both ends than at the best λ for "
        f"{int(np.sum((down > 1) & (up > 1)))} of {SEEDS} seeds.",
    )


def draw(out):
    """Errors against λ, and the distance from the closed form."""
    figure = Figure(figsize=(7.2, 3.7), layout="constrained")
    error, closed = figure.subplots(1, 2)
    penalties = POINTS * np.array(DECAYS)
    for part, color, marker, label in (
        ("train", GRAY, "s", "on the 21 points"),
        ("test", BLUE, "o", "on 84 others"),
    ):
        values = errors(out, part)
        error.plot(penalties, values, marker, color=color, markersize=3, alpha=0.5)
        error.plot(penalties, values.mean(axis=1), color=color, linewidth=1.8, label=label)
    error.set_ylabel("half the mean squared error")
    error.legend(loc="upper center")
    for decay, row in runs(out).items():
        pairs = np.array([deviation(run, decay) for run in row])
        closed.plot([POINTS * decay] * SEEDS, pairs[:, 0], "o", color=BLUE, markersize=4)
        closed.plot([POINTS * decay] * SEEDS, ROUNDING * pairs[:, 1], "_", color=RED, markersize=9)
    closed.plot([], [], "o", color=BLUE, markersize=4, label="measured")
    closed.plot([], [], "_", color=RED, markersize=9, label="rounding times κ")
    closed.set_ylabel("distance from the closed form, relative")
    closed.legend(loc="upper right")
    for axes in (error, closed):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("λ")
    figure.suptitle("Some shrinking helps, much does harm; the optimizer finds the closed form",
                    x=0.01, ha="left", fontsize=11)  # fmt: skip
    return figure
