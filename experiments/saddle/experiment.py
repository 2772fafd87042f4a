"""Newton's method is attracted by a saddle that others leave.

On ½ (x² − y²) + ¼ y⁴ there is a saddle at the origin, with minima at (0, ±1). Newton's step is
toward the point where the quadratic model is stationary, of whatever kind; with absolute values
of the eigenvalues (saddle-free Newton) it goes down along negative curvature.
"""

from matplotlib.figure import Figure

from gradkit.report.palette import optimizer_looks
from gradkit.runner.compare import open_all

REFERENCE = "Newton is attracted, saddle-free Newton and SGD escape (Dauphin et al. 2014)"
MINUTES = 0.1


def commands(out):
    """The command lines, one after the other."""
    yield (
        'gradkit sweep configs/saddle.yaml "optimizer={name: sgd, learning_rate: 0.1},newton,'
        'saddle_free" '
        f"--out {out}"
    )


def runs(out):
    """Each run by its optimizer."""
    names = ("saddle_free", "newton", "sgd")
    found = {}
    for run in open_all([str(out)]):
        found[next(name for name in names if f"name: {name}" in run.config_text)] = run
    return {name: found[name] for name in ("sgd", "newton", "saddle_free")}


def judge(out):
    """Where each ends: at the saddle, whose value is 0, or at a minimum, whose value is −¼."""
    ends = {name: run.summary["train_loss"] for name, run in runs(out).items()}
    first = {
        name: next((line["step"] for line in run.metrics if line["loss"] < -0.24), None)
        for name, run in runs(out).items()
    }
    agrees = abs(ends["newton"]) < 1e-6 and max(ends["sgd"], ends["saddle_free"]) < -0.2499
    return (
        ", ".join(f"{name} ends at {value:.3g}" for name, value in ends.items()),
        agrees,
        f"From (1, 0.001), a thousandth off the ridge, gradient descent is below −0.24 after "
        f"{first['sgd']} steps and saddle-free Newton after {first['saddle_free']}; Newton's "
        "method is at the saddle to rounding and stays.",
    )


def draw(out):
    """The loss of each, and the distance from the saddle along its way down."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    loss, height = figure.subplots(1, 2)
    found = runs(out)
    looks = optimizer_looks(list(found))
    for name, run in found.items():
        steps = [line["step"] for line in run.metrics]
        style = looks[name].points | {"markersize": 3, "markevery": 10}
        loss.plot(steps, [line["loss"] for line in run.metrics], label=name, **style)
        height.plot(steps, [abs(line["y"]) + 1e-17 for line in run.metrics], label=name, **style)
    for value, words in ((0, "saddle"), (-0.25, "minimum")):
        loss.axhline(value, color="#999999", linewidth=0.8)
        loss.text(200, value + 0.015, words, ha="right", fontsize=8, color="#666666")
    height.set_yscale("log")
    for axes, label in ((loss, "loss"), (height, "|y|, distance along the way down")):
        axes.set_xlabel("step")
        axes.set_ylabel(label)
    loss.legend()
    figure.suptitle("Newton's method stays at the saddle", x=0.01, ha="left", fontsize=10)
    return figure
