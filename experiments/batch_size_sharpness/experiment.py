"""Small batches lead to flatter minima than large ones.

Gradient descent with batches of 16 and with all 1,408 examples, from the same starts, at the same
rates and for the same number of steps. The loss differs between them nevertheless, and with it the
Hessian of a cross-entropy: both are therefore compared at the same training loss as well, by
interpolation between the checkpoints.
"""

import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import BLUE, RED
from gradkit.report.scales import log_scale
from gradkit.runner.compare import open_all
from gradkit.runner.rows import Mean

REFERENCE = (
    "small-batch minima flatter: smaller λ_max and trace, more eigenvalues near zero (Keskar et "
    "al. 2017)"
)
MINUTES = 2.1
RATES = (0.1, 0.3)
BATCHES = {"small": (16, 20, BLUE), "full": (1408, 1760, RED)}
FIGURES = ("λ_max", "trace", "near zero")
NEAR_ZERO = 0.01  # loss/param²
MARKERS = {0.1: "o", 0.3: "^"}


def commands(out):
    """The command lines, one after the other."""
    for name, (size, epochs, _) in BATCHES.items():
        yield (
            f"gradkit sweep configs/batch_size_sharpness.yaml batch_size={size} epochs={epochs} "
            f"optimizer.learning_rate=0.1,0.3 seed=0:3 --out {out}/{name}"
        )
    yield f"gradkit spectrum {out}/small {out}/full --checkpoint all"


def ways(out):
    """The loss and the three figures of each checkpoint, by batch and rate, a way a seed."""
    found = {(name, rate): [] for name in BATCHES for rate in RATES}
    for name in BATCHES:
        for run in open_all([f"{out}/{name}"]):
            spectra = [one for one in run.spectra if one.step]
            found[name, run.metrics[0]["learning_rate"]].append(np.array([*map(_figures, spectra)]))
    return found


def _figures(spectrum):
    nodes, weights = spectrum.arrays["nodes"], spectrum.arrays["weights"]
    near = np.sum(weights * (np.abs(nodes) < NEAR_ZERO)) / len(nodes)
    values = spectrum.values
    return values["loss"], values["largest"]["values"][0], values["trace"]["value"], near


def at_loss(way, loss):
    """The figures where training had come down to a loss."""
    rows = np.log(way[::-1])
    return np.exp([np.interp(np.log(loss), rows[:, 0], rows[:, i]) for i in (1, 2, 3)])


def ratios(out):
    """Small over full batch, at the end and at the same loss: the three figures, a row a seed."""
    found = ways(out)
    end, same = {}, {}
    for rate in RATES:
        pairs = list(zip(found["small", rate], found["full", rate], strict=True))
        end[rate] = np.array([small[-1, 1:] / full[-1, 1:] for small, full in pairs])
        levels = [max(small[-1, 0], full[-1, 0]) for small, full in pairs]
        same[rate] = np.array(
            [
                at_loss(small, level) / at_loss(full, level)
                for (small, full), level in zip(pairs, levels, strict=True)
            ]
        )
    return end, same


def _texts(found, figure):
    means = [Mean.of(rows[:, figure]) for rows in found.values()]
    return " and ".join(f"{mean.value:.3f} ± {mean.stderr:.3f}" for mean in means)


def judge(out):
    """Whether λ_max and trace are smaller, and more is near zero, at the same loss and rate."""
    end, same = ratios(out)
    clear = []
    for figure, sign in enumerate((-1, -1, 1)):
        for rows in same.values():
            logs = sign * np.log(rows[:, figure])
            mean = Mean.of(logs)
            clear.append(mean.value > 2 * mean.stderr)
    names = [f"{name} at rate {rate:g}" for name in FIGURES for rate in RATES]
    missing = [name for name, yes in zip(names, clear, strict=True) if not yes]
    holds = [name for name, yes in zip(names, clear, strict=True) if yes]
    return (
        "small over full batch, at rates 0.1 and 0.3 and the same loss: "
        + ", ".join(f"{name} {_texts(same, i)}" for i, name in enumerate(FIGURES)),
        all(clear),
        "Agreement asks that all three figures, at both rates, differ the way that is claimed by "
        "more than two standard errors over three seeds, at the same training loss. "
        + (f"That holds for {', '.join(holds)}. " if holds else "")
        + (f"It does not hold for {', '.join(missing)}. " if missing else "")
        + f"After the same number of steps, where the loss differs, λ_max is {_texts(end, 0)} and "
        f"the trace {_texts(end, 1)} times that of the full batch. Near zero means within "
        f"{NEAR_ZERO:g} loss/param².",
    )


def draw(out):
    """Each figure along the way, against the training loss."""
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    axes = figure.subplots(1, 3)
    for (name, rate), several in ways(out).items():
        size, _, color = BATCHES[name]
        for seed, way in enumerate(several):
            label = f"batches of {size:,}, η = {rate:g}" if seed == 0 else None
            for i, one in enumerate(axes):
                one.plot(
                    *(way[:, 0], way[:, i + 1]),
                    color=color,
                    marker=MARKERS[rate],
                    markersize=4,
                    linewidth=0.8,
                    linestyle="-" if rate == RATES[0] else (0, (4, 2)),
                    label=label if i == 0 else None,
                )
    labels = ("λ_max [loss/param²]", "trace [loss/param²]", f"share of |λ| < {NEAR_ZERO:g}")
    for one, label in zip(axes, labels, strict=True):
        one.set_xlabel("training loss [nats] (training goes left)")
        one.set_ylabel(label)
    found = np.concatenate([way for several in ways(out).values() for way in several])
    for i, one in enumerate(axes):
        log_scale(one, found[:, 0], "x")
        if i < 2:
            log_scale(one, found[:, i + 1])
    figure.legend(loc="outside lower center", ncols=4)
    figure.suptitle(
        "At the same training loss, small batches are where the loss is a little flatter",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    return figure
