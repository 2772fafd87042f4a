"""A constant learning rate ends on a floor of noise, and rates that fall go below it.

A quadratic with eigenvalues 0.1, 0.3 and 1 whose gradients have normal noise of variance σ² = 1 in
each coordinate. At a constant rate η a mode with eigenvalue λ comes to rest with the variance v
that solves v = (1 − ηλ)² v + η²σ²: v = ησ²/(λ(2 − ηλ)), and the loss with ½ Σ λv on average.
"""

import math

import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import AMBER, BLUE, GREEN, INK, PINK, RED
from gradkit.runner.compare import compared, open_all
from gradkit.runner.rows import Mean

REFERENCE = "constant η: a floor of ½ Σ ησ²/(2 − ηλ); falling rates end below it (Robbins & Monro)"
MINUTES = 0.9
EIGENVALUES = (0.1, 0.3, 1.0)
STEPS, PEAK, LAST = 10010, 0.3, 1000  # the end of a run is the mean over its last steps
CONSTANT = (0.3, 0.1, 0.03)
FALLING = {
    "1/k": ("{warmup_inverse_time: {peak: 0.3, scale: 100}}", BLUE),
    "1/√k": ("{warmup_inverse_sqrt: {peak: 0.3}}", GREEN),
    "steps": ("{step_decay: {peak: 0.3, at: [5000, 8000]}}", AMBER),
    "cosine": ("{warmup_cosine: {peak: 0.3, steps: 10010}}", PINK),
    "warm restarts": ("{warm_restarts: {peak: 0.3, period: 1430, multiplier: 2}}", INK),
}
FAMILIES = ("inverse_time", "inverse_sqrt", "step_decay", "cosine", "warm_restarts")


def commands(out):
    """The command lines, one after the other."""
    rates = [*map(str, CONSTANT), *(words for words, _ in FALLING.values())]
    yield (
        f'gradkit sweep configs/schedules.yaml "optimizer.1.learning_rate={",".join(rates)}" '
        f"optimizer.0.key=0,1,2 --out {out}"
    )


def runs(out):
    """The runs of each constant rate and of each schedule."""
    found = {name: [] for name in (*CONSTANT, *FALLING)}
    for row in compared(open_all([str(out)])):
        rate = row.config.get("optimizer.1.learning_rate")
        names = " ".join(row.config)
        if rate is None:
            family = next(family for family in FAMILIES if f"{family}." in names)
            rate = dict(zip(FAMILIES, FALLING, strict=True))[family]
        found[rate] += row.records
    return found


def floor(rate):
    """The mean loss of a constant rate in the long run."""
    return sum(rate / (2 - rate * value) for value in EIGENVALUES) / 2


def losses(run):
    """The steps, and the loss before each."""
    return tuple(np.array([line[key] for line in run.metrics]) for key in ("step", "loss"))


def end(found):
    """The mean loss over the last steps, of the second half at a constant rate."""
    means = []
    for run in found:
        steps, loss = losses(run)
        means.append(loss[steps > STEPS - LAST].mean())
    return Mean.of(means)


def stay(found):
    """The mean loss over the second half."""
    return Mean.of(loss[steps > STEPS / 2].mean() for steps, loss in map(losses, found))


def judge(out):
    """Compares constant rates with their floors, and the ends of the others with that floor."""
    found = runs(out)
    floors = {rate: stay(found[rate]) for rate in CONSTANT}
    ends = {name: end(found[name]) for name in FALLING}
    # Student's t at 5 % with 2 degrees of freedom is 4.3
    off = max(abs(mean.value - floor(rate)) / mean.stderr for rate, mean in floors.items())
    below = all(mean.value + 4.3 * mean.stderr < floor(PEAK) for mean in ends.values())
    far = max(abs(math.log(mean.value / floor(rate))) for rate, mean in floors.items())
    return (
        "; ".join(
            f"η = {rate}: {mean.value:.4f} ± {mean.stderr:.4f}, floor {floor(rate):.4f}"
            for rate, mean in floors.items()
        )
        + "; from 0.3 down: "
        + ", ".join(f"{name} {mean.value:.4f} ± {mean.stderr:.4f}" for name, mean in ends.items())
        + " (3 seeds)",
        off < 4.3 and far < 0.1 and below,
        f"Constant rates are within {off:.1f} standard errors of their floors over the second "
        f"half of {STEPS:,} steps. Over the last {LAST:,} steps the schedules, which begin at "
        f"{PEAK}, are all below its floor of {floor(PEAK):.3f}." if below else
        f"Not every schedule ends clearly below the floor {floor(PEAK):.3f} of the rate it began "
        "with.",
    )  # fmt: skip


def draw(out):
    """The loss of constant rates with their floors, and of the schedules."""
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    still, falling = figure.subplots(1, 2, sharey=True)
    found = runs(out)
    for rate, color in zip(CONSTANT, (RED, AMBER, BLUE), strict=True):
        still.plot(*smooth(found[rate]), color=color, label=f"η = {rate}")
        still.axhline(floor(rate), color=color, linewidth=0.8, linestyle="--")
    still.set_title("A constant rate stays on its floor (dashed)")
    for name, (_, color) in FALLING.items():
        falling.plot(*smooth(found[name]), color=color, label=name)
    falling.axhline(floor(PEAK), color=RED, linewidth=0.8, linestyle="--")
    falling.set_title("Falling rates from 0.3 go below it")
    for axes in (still, falling):
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.legend(loc="lower left", ncols=2)
    still.set_ylabel("loss, mean over 500 steps and 3 seeds")
    still.set_ylim(bottom=2e-4)
    return figure


def smooth(found):
    """The steps, and the loss averaged over seeds and fifty lines each."""
    curves = [losses(run) for run in found]
    mean = np.mean([loss for _, loss in curves], axis=0)
    whole = len(mean) // 50 * 50
    steps = curves[0][0][:whole]
    return steps.reshape(-1, 50).mean(axis=1), mean[:whole].reshape(-1, 50).mean(axis=1)
