"""An L1 penalty makes coefficients exactly zero, the more the larger it is.

Proximal gradient descent on half the mean squared error plus λ‖w‖₁: on orthonormal inputs (20
coefficients of 1, with a standard error of 0.7), where the solution is that of least squares moved
toward zero by λ, and on the 10 measurements of diabetes, standardized, beside scikit-learn's Lasso.
"""

import functools

import numpy as np
from matplotlib.figure import Figure
from sklearn.linear_model import Lasso

from gradkit.report.palette import BLUE, COLORS, RED
from gradkit.runner.compare import open_all
from gradkit.runner.document import values_in
from gradkit.runner.record import CONFIG
from gradkit.runner.subject import of_run

REFERENCE = (
    "zeros: those of the soft threshold sign(z) max(|z| − λ, 0) on orthonormal inputs, those of "
    "scikit-learn's Lasso on others; none with an L2 penalty (Tibshirani 1996)"
)
MINUTES = 0.4
PENALTIES = {
    "lasso_orthonormal": (0.2, 0.5, 1.0, 1.5, 2.0, 2.5),
    "lasso": (0.5, 2.0, 5.0, 10.0, 20.0, 40.0),
}
LOOKS = {"lasso_orthonormal": ("20 orthonormal inputs", RED, "^"), "lasso": ("diabetes", BLUE, "o")}


def commands(out):
    """The command lines, one after the other."""
    for name, penalties in PENALTIES.items():
        values = ",".join(map(str, penalties))
        yield f"gradkit sweep configs/{name}.yaml optimizer.l1={values} --out {out}/{name}"
    yield f"gradkit run configs/lasso.yaml optimizer.l1=0.0 optimizer.l2=1.0 --out {out}/ridge"


def coefficients(run):
    """The coefficients of the inputs that a run ended with."""
    (end,) = of_run(run)
    return np.asarray(end.params["layers"][0]["kernel"][...]).ravel()


@functools.cache
def solutions(out, name):
    """Coefficients by penalty, those of the runs."""
    runs = open_all([f"{out}/{name}"])
    found = {values_in(run.path / CONFIG)["optimizer"]["l1"]: coefficients(run) for run in runs}
    return {penalty: found[penalty] for penalty in PENALTIES[name]}


@functools.cache
def data(out, name):
    """The inputs and targets of a design, in float64."""
    (end,) = of_run(open_all([f"{out}/{name}"])[0])
    return tuple(np.asarray(end.batch[key], float) for key in "xy")


def exact(out, name, penalty):
    """The solution: of the closed form, or of scikit-learn."""
    x, y = data(out, name)
    if name == "lasso_orthonormal":
        z = (x.T @ y / len(x)).ravel()
        return np.sign(z) * np.maximum(np.abs(z) - penalty, 0)
    return Lasso(penalty, tol=1e-8, max_iter=100_000).fit(x, y.ravel()).coef_


def judge(out):
    """Compares zeros and coefficients with those of the oracles."""
    counts, away, same = {}, 0.0, True
    for name, found in ((name, solutions(out, name)) for name in PENALTIES):
        counts[name] = [int(np.sum(w == 0)) for w in found.values()]
        for penalty, w in found.items():
            wanted = exact(out, name, penalty)
            same &= bool(np.all((w == 0) == (wanted == 0)))
            away = max(away, np.abs(w - wanted).max() / np.abs(wanted).max())
    (ridge,) = open_all([f"{out}/ridge"])
    none = int(np.sum(coefficients(ridge) == 0))
    told = [
        f"{' '.join(map(str, counts[name]))} of {LOOKS[name][0]} at λ = "
        + " ".join(f"{penalty:g}" for penalty in PENALTIES[name])
        for name in PENALTIES
    ]
    grow = all(counts[name] == sorted(counts[name]) for name in PENALTIES)
    sparse = all(counts[name][-1] > counts[name][0] for name in PENALTIES)
    return (
        f"zeros {'; '.join(told)}; with L2 {none}",
        bool(same and away < 1e-3 and grow and sparse and none == 0),
        f"{'The same' if same else 'Not the same'} coefficients are zero as in the oracles, and "
        f"the others differ by at most {away:.0e} of the largest. On orthonormal inputs a single "
        "step of rate 1 is the closed form.",
    )


def draw(out):
    """The number of zeros, and the coefficients of diabetes, against the penalty."""
    figure = Figure(figsize=(7.2, 3.7), layout="constrained")
    zeros, path = figure.subplots(1, 2)
    for name, (label, color, marker) in LOOKS.items():
        x, y = data(out, name)
        most = np.abs(x.T @ (y - y.mean() * (name == "lasso"))).max() / len(x)
        grid = most * np.geomspace(2e-3, 1.02, 150)
        share = [np.mean(exact(out, name, penalty) == 0) for penalty in grid]
        zeros.step(grid / most, share, color=color, linewidth=1, where="post")
        found = solutions(out, name)
        zeros.plot(np.array([*found]) / most, [np.mean(w == 0) for w in found.values()], marker,
                   color=color, label=label)  # fmt: skip
    zeros.plot([], [], color="black", linewidth=1, label="closed form, scikit-learn")
    zeros.set_xscale("log")
    zeros.set_xlabel("λ over the least λ with all zero")
    zeros.set_ylabel("share of coefficients exactly zero")
    zeros.legend(loc="upper left")
    curves = np.array([exact(out, "lasso", penalty) for penalty in grid])
    found = solutions(out, "lasso")
    for place in range(curves.shape[1]):
        color = COLORS[place % len(COLORS)]
        path.plot(grid, curves[:, place], color=color, linewidth=1)
        path.plot([*found], [w[place] for w in found.values()], "o", color=color, markersize=4)
    path.set_xscale("log")
    path.set_xlabel("λ [loss / coefficient]")
    path.set_ylabel("coefficient")
    path.set_title("diabetes (lines: scikit-learn)", fontsize=9)
    figure.suptitle("An L1 penalty leaves out inputs", x=0.01, ha="left", fontsize=11)
    return figure
