"""Gradient descent needs 1/ε steps on a flat convex function and log 1/ε on a curved one.

Quadratics with a largest eigenvalue L = 1 of the Hessian and the others spread evenly on a
logarithmic scale down to λ_min, from 1 away from the minimum along each eigenvector, with
η = 1/L. For any convex function with that L the loss after T steps is at most ‖θ₀ − θ*‖²/(2ηT)
above its least one, and with λ_min > 0 at most (1 − η λ_min)²ᵀ of what it was on a quadratic.
"""

import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import BLUE, GREEN, RED
from gradkit.runner.compare import open_all
from gradkit.runner.document import values_in
from gradkit.runner.record import CONFIG

REFERENCE = (
    "loss − least loss ≤ ‖θ₀ − θ*‖²/(2ηT), T = O(L/ε); with λ_min > 0 a factor (1 − η λ_min)² a "
    "step, T = O(log 1/ε) (Nesterov 2004)"
)
MINUTES = 0.1
DECADES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
LOOKS = {0.1: (GREEN, "$10^{-1}$"), 0.01: (BLUE, "$10^{-2}$"), 1e-6: (RED, "$10^{-6}$")}
ROUNDING = 1e-10  # below it a loss is not looked at


def commands(out):
    """The command lines, one after the other."""
    spectra = [DECADES[: DECADES.index(least) + 1] for least in LOOKS]
    lists = ",".join(f"[{','.join(map(repr, values))}]" for values in spectra)
    yield (
        f'gradkit sweep configs/gradient_descent_rate.yaml "task.eigenvalues={lists}" --out {out}'
    )


def losses(out):
    """The eigenvalues of each run and its losses, the first at the start, by λ_min."""
    found = {}
    for run in open_all([str(out)]):
        values = values_in(run.path / CONFIG)["task"]["eigenvalues"]
        found[min(values)] = np.array(values), np.array([line["loss"] for line in run.metrics])
    return {least: found[least] for least in LOOKS}


def bound(values, steps):
    """The bound for any convex function, with ‖θ₀ − θ*‖² = the number of eigenvalues and η = 1."""
    return len(values) / (2 * np.maximum(steps, 1))


def to_reach(loss, levels):
    """After how many steps each level is reached."""
    return np.array([np.flatnonzero(loss <= level)[0] for level in levels])


def exponent(loss):
    """By which power of 1/ε the steps grow, over levels that are reached in 10 to 2,000 steps."""
    levels = np.geomspace(loss[10], loss[2000], 20)
    return np.polyfit(np.log(1 / levels), np.log(to_reach(loss, levels)), 1)[0]


def factor(loss):
    """The factor a step of the loss once it is a millionth, above what rounding leaves."""
    late = np.flatnonzero((loss < 1e-6 * loss[0]) & (loss > ROUNDING * loss[0]))
    return (loss[late[-1]] / loss[late[0]]) ** (1 / (late[-1] - late[0]))


def judge(out):
    """How near losses come to the bound, and the rates."""
    share, under, factors = 0.0, True, {}
    for least, (values, loss) in losses(out).items():
        steps = np.arange(len(loss))
        share = max(share, np.max(loss[1:] / bound(values, steps[1:])))
        clear = loss > ROUNDING * loss[0]
        under &= bool(np.all((loss <= 1.001 * loss[0] * (1 - least) ** (2 * steps))[clear]))
        if least > 1e-3:
            factors[least] = factor(loss)
    power = exponent(losses(out)[1e-6][1])
    text = ", ".join(f"{seen:.4f} (law {(1 - least) ** 2:.4f})" for least, seen in factors.items())
    exact = all(abs(np.log(f) / np.log((1 - m) ** 2) - 1) < 0.01 for m, f in factors.items())
    return (
        f"at most {100 * share:.0f} % of the bound; T grows as (1/ε)^{power:.2f} at λ_min = 10⁻⁶; "
        f"factor a step {text} at λ_min = 0.1, 0.01",
        bool(share <= 1 and under and exact and 0.9 < power < 1.1),
        "At λ_min = 10⁻⁶ the law of a constant factor is true too, and of no use: it would take "
        "a million steps to show. Until then each step has a curvature of its own to work on, and "
        "the loss falls as 1/T.",
    )


def draw(out):
    """Losses beside bound and law, and the steps to reach a loss."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    course, cost = figure.subplots(1, 2)
    for least, (values, loss) in losses(out).items():
        color, label = LOOKS[least]
        steps = np.arange(len(loss))
        seen = loss > ROUNDING * loss[0]
        seen &= steps > 0
        course.plot(steps[seen], loss[seen], color=color, linewidth=1.8)
        levels = np.geomspace(loss[1], max(loss[-1], ROUNDING * loss[0]), 40)[1:-1]
        name = rf"$\lambda_{{min}}$ = {label}"
        cost.plot(1 / levels, to_reach(loss, levels), color=color, linewidth=1.8, label=name)
        if least > 1e-3:
            law = loss[0] * (1 - least) ** (2 * steps)
            course.plot(steps[seen], law[seen], ":", color=color, linewidth=1.2)
        else:
            course.plot(steps[1:], bound(values, steps[1:]), "--", color="black", linewidth=0.9)
            course.text(40, 0.45, "bound ‖θ₀ − θ*‖²/(2ηT)", fontsize=8, va="bottom")
    course.plot([], [], ":", color="black", linewidth=1.2, label=r"$(1-\eta\lambda_{min})^{2T}$")
    course.set_xscale("log")
    course.set_yscale("log")
    course.set_ylim(1e-9, 30)
    course.set_xlabel("step T")
    course.set_ylabel("loss above the least one")
    course.legend(loc="lower left")
    guide = np.array([1e1, 1e3])
    cost.plot(guide, 1.5 * guide, "--", color="black", linewidth=0.9)
    cost.text(1.5e2, 600, "as 1/ε", fontsize=8, ha="right")
    cost.set_xscale("log")
    cost.set_yscale("log")
    cost.set_xlim(1, 1e10)
    cost.set_xlabel("1/ε")
    cost.set_ylabel("steps to a loss of ε")
    cost.legend(loc="lower right")
    figure.suptitle("Where the least curvature is felt, each digit costs the same", x=0.01,
                    ha="left", fontsize=11)  # fmt: skip
    return figure
