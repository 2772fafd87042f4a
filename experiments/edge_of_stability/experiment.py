"""Full-batch training drives the sharpness up to the limit of stability and stays there.

Gradient descent on a quadratic diverges where the largest eigenvalue λ of the Hessian is above
2/η. On a network λ rises until it is there, and then hovers while the loss falls on. For Adam the
same holds of the Hessian preconditioned by Adam's own diagonal, at (2 + 2β₁) / ((1 − β₁) η), which
is 38/η for β₁ = 0.9. A 64-64-32-10 network with tanh learns 1,000 digits by squared error.
"""

import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import GRAY, optimizer_looks
from gradkit.runner.compare import open_all
from gradkit.runner.rows import Mean

REFERENCE = (
    "λ hovers at 2/η under gradient descent, the preconditioned one at 38/η under Adam "
    "(Cohen et al. 2021, 2022)"
)
MINUTES = 1.1
RATES = (0.2, 0.4)
NEAR = 0.05  # the mean over the last quarter of the steps is this near to the limit
DASHES = {0.2: "-", 0.4: (0, (4, 1.5))}


def commands(out):
    """The command lines, one after the other."""
    size = '"model.hidden=[64, 32]"'
    yield (
        f"gradkit sweep configs/edge_of_stability.yaml {size} "
        f"optimizer.learning_rate=0.2,0.4 seed=0:3 --out {out}/sgd"
    )
    yield f"gradkit sweep configs/edge_of_stability_adam.yaml {size} seed=0:3 --out {out}/adam"


def groups(out):
    """The runs of each kind: by the rate for gradient descent, and those of Adam."""
    found = {rate: [] for rate in RATES} | {"adam": []}
    for run in open_all([f"{out}/sgd"]):
        found[run.metrics[-1]["learning_rate"]].append(run)
    found["adam"] = open_all([f"{out}/adam"])
    return found


def shares(run, kind):
    """Steps, and the sharpness as a share of its limit."""
    name = "preconditioned_sharpness" if kind == "adam" else "sharpness"
    rows = {line["sharpness_step"]: line[name] / line[f"{name}_limit"] for line in run.metrics}
    return np.array(list(rows)), np.array(list(rows.values()))


def figures(run, kind):
    """The lowest share on the way, and the mean of the last quarter."""
    steps, share = shares(run, kind)
    return share.min(), share[steps > 0.75 * steps[-1]].mean()


def judge(out):
    """Whether every run rises to its limit and then stays near it on average."""
    texts, all_near, loss_falls = [], True, True
    for kind, runs in groups(out).items():
        low, late = np.array([figures(run, kind) for run in runs]).T
        mean = Mean.of(late)
        limit = "38/η" if kind == "adam" else "2/η"
        name = "Adam" if kind == "adam" else f"η = {kind:g}"
        texts.append(f"{name}: {mean.value:.3f} ± {mean.stderr:.3f} of {limit}")
        all_near &= bool(np.all(np.abs(late - 1) < NEAR) and np.all(low < 1 - NEAR))
        for run in runs:
            *_, third, last = np.array_split([line["loss"] for line in run.metrics], 4)
            loss_falls &= bool(last.mean() < third.mean())
    lowest = min(figures(run, kind)[0] for kind, runs in groups(out).items() for run in runs)
    return (
        "; ".join(texts),
        all_near and loss_falls,
        "The mean of the last 750 of 3,000 steps, three seeds each. Agreement asks that in each "
        f"run it is within {NEAR:.0%} of the limit, that the sharpness came there from below (it "
        f"was as low as {lowest:.2f} of the limit), and that the loss, which swings at the edge, "
        "is lower in the last quarter than in the one before, on average. It is "
        f"{'in all' if loss_falls else 'not in all'} runs. At first agreement asked for a lower "
        "loss at the last step than before, which a spike decides, and looked for the sharpness "
        "below its limit after step 100 alone, when at η = 0.4 it is there already.",
    )


def draw(out):
    """The sharpness as a share of its limit, and the loss."""
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, height_ratios=(1.5, 1))
    looks = optimizer_looks(["sgd", "adam"])
    for kind, runs in groups(out).items():
        column, name = (1, "adam") if kind == "adam" else (0, "sgd")
        style = {"color": looks[name].color, "linewidth": 1, "linestyle": DASHES.get(kind, "-")}
        label = "Adam, η = 0.003" if kind == "adam" else f"gradient descent, η = {kind:g}"
        for run in runs:
            steps, share = shares(run, kind)
            axes[0, column].plot(steps, share, **style, label=label)
            lines = [(line["step"], line["loss"]) for line in run.metrics]
            axes[1, column].plot(*zip(*lines, strict=True), **style)
            label = None
    for column, (words, law) in enumerate(
        (("λ · η/2", "2/η"), ("preconditioned λ · η/38", "38/η"))
    ):
        upper, lower = axes[:, column]
        upper.axhline(1, color=GRAY, linewidth=1.2)
        upper.text(3000, 1.04, f"limit of stability, {law}", ha="right", va="bottom", fontsize=9)
        upper.set_ylim(0, 1.6)
        upper.set_ylabel(words)
        upper.legend(loc="upper right")
        lower.set_yscale("log")
        lower.set_ylabel("loss (½ squared error)")
        lower.set_xlabel("step")
    figure.suptitle(
        "Training makes the loss as sharp as the step size can bear", x=0.01, ha="left", fontsize=12
    )
    return figure
