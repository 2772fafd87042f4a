"""Weights drawn for their activation keep its variance through depth.

Ten layers of 128 units on standardized digits. The deviation of the activations over the examples,
as a root mean square over the units, is followed from the first layer to the last before any
training. An initializer keeps it if the last is the first within a factor of ten. Then ten steps of
Adam show which weights stay alike.
"""

import json

import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import AMBER, BLUE, GREEN, PINK, RED
from gradkit.runner.compare import open_all
from gradkit.runner.config import load
from gradkit.runner.rows import Mean

REFERENCE = (
    "preserved for LeCun, Glorot and He in their regime, vanishing or exploding otherwise; equal "
    "weights stay equal"
)
MINUTES = 1.7
DEPTH, SEEDS = 10, 3
SMALL, LARGE = {"name": "normal", "stddev": 0.01}, {"name": "normal", "stddev": 0.2}
WIDE = {"name": "glorot_uniform", "gain": 4.0}
# Of each activation the initializers, whether the variance is to be kept, and their looks.
CASES = {
    "tanh": [
        ("glorot_uniform", True, "Glorot", BLUE),
        ("lecun_normal", True, "LeCun", GREEN),
        (SMALL, False, "N(0, 0.01²)", RED),
    ],
    "relu": [
        ("he_normal", True, "He", BLUE),
        ("glorot_uniform", False, "Glorot", AMBER),
        (LARGE, False, "N(0, 0.2²)", PINK),
    ],
    "selu": [
        ("lecun_normal", True, "LeCun", GREEN),
        (SMALL, False, "N(0, 0.01²)", RED),
        (LARGE, False, "N(0, 0.2²)", PINK),
    ],
    "sigmoid": [
        (WIDE, True, "Glorot, gain 4", BLUE),
        ("glorot_uniform", False, "Glorot", AMBER),
    ],
}
ALIKE = {
    "lecun_normal": ("LeCun", GREEN, "s"),
    "constant": ("all 0.1", RED, "D"),
    "zeros": ("all 0", AMBER, "o"),
}


def commands(out):
    """The command lines, one after the other."""
    more = {"tanh": ["zeros", "constant"]}
    for activation, cases in CASES.items():
        values = [case[0] for case in cases] + more.get(activation, [])
        listed = ",".join(v if isinstance(v, str) else json.dumps(v) for v in values)
        yield (
            f"gradkit sweep configs/initializers.yaml task.activation={activation} "
            f"'task.kernel_init={listed}' seed=0:{SEEDS} --out {out}/{activation}"
        )


def runs(out, activation, initializer):
    """The runs of one case."""
    found = [
        run
        for run in open_all([str(out / activation)])
        if load(run.path / "config.yaml").task.arguments["kernel_init"] == initializer
    ]
    assert len(found) == SEEDS
    return found


def deviations(out, activation, initializer):
    """The deviations of the initial weights (seeds, depth)."""
    names = [f"deviation_{depth:02}" for depth in range(1, DEPTH + 1)]
    found = runs(out, activation, initializer)
    return np.array([[run.metrics[0][name] for name in names] for run in found])


def apart(out, initializer):
    """How far tanh units of the first layer are apart, by step (seeds, steps)."""
    return np.array(
        [[line["apart"] for line in run.metrics] for run in runs(out, "tanh", initializer)]
    )


def judge(out):
    """Compares the last depth with the first, and units that began alike."""
    told, failed = [], []
    for activation, cases in CASES.items():
        words = []
        for initializer, kept, label, _ in cases:
            seen = deviations(out, activation, initializer)
            ratio = Mean.of(seen[:, -1] / seen[:, 0])
            words.append(f"{label} {ratio.value:.2g} ± {ratio.stderr:.1g}")
            if (0.1 <= ratio.value <= 10) != kept:
                failed.append(f"{activation} with {label}")
        told.append(f"{activation}: {', '.join(words)}")
    alike = max(apart(out, name)[:, -1].max() for name in ("zeros", "constant"))
    drawn = apart(out, "lecun_normal")[:, -1].min()
    if alike > 1e-5 * drawn:
        failed.append("equal weights")
    words = (
        "The figures are the deviation at depth 10 over that at depth 1. After ten steps of Adam "
        f"the first layer's units that began equal are {alike:.1g} apart, drawn ones {drawn:.1g}."
    )
    if failed:
        words += f" Not as the reference has it: {', '.join(failed)}."
    if "sigmoid with Glorot, gain 4" in failed:
        words += (
            " Gain 4 makes up for the sigmoid's slope of ¼ at 0, but its values have mean ½, which "
            "no zero-mean weights take away: units are driven to where the slope is smaller, and "
            "what tells examples apart shrinks, if more slowly than with gain 1."
        )
    return "; ".join(told), not failed, words


def draw(out):
    """Deviation against depth, and how far units are apart against steps."""
    figure = Figure(figsize=(9.6, 5.4), layout="constrained")
    (*panels, last), rest = figure.subplots(2, 3)
    panels = [*panels, last, rest[0]]
    depth = np.arange(1, DEPTH + 1)
    for axes, (activation, cases) in zip(panels, CASES.items(), strict=True):
        axes.axhspan(0.1, 10, color="#999999", alpha=0.15, linewidth=0)
        for place, (initializer, kept, label, color) in enumerate(cases):
            seen = deviations(out, activation, initializer)
            ratio = (seen / seen[:, :1]).mean(axis=0)
            style = {"color": color, "linestyle": "-" if kept else "--", "marker": "osD"[place]}
            axes.plot(depth, ratio, **style, markersize=3.5, label=label)
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 1e-3), max(high, 1e3))
        axes.set_title(activation)
        axes.set_xlabel("depth [layers]")
        axes.set_ylabel("deviation / that at depth 1")
        axes.set_xticks(range(2, DEPTH + 1, 2))
        axes.legend(fontsize=8, loc="lower left" if activation != "relu" else "upper left")
    for name, (label, color, marker) in ALIKE.items():
        steps = apart(out, name).mean(axis=0)
        rest[1].plot(range(len(steps)), steps, f"{marker}-", color=color, markersize=4, label=label)
    rest[1].set_title("equal weights stay equal")
    rest[1].set_xlabel("step of Adam, tanh")
    rest[1].set_ylabel("units of layer 1 apart")
    rest[1].legend(fontsize=8, loc="center right")
    rest[2].set_axis_off()
    rest[2].text(
        0,
        0.9,
        "solid: the initializer made for\nthe activation\n\ndashed: another one\n\n"
        "gray: kept within a factor of 10",
        va="top",
        transform=rest[2].transAxes,
    )
    figure.suptitle(
        "Weights drawn for their activation keep its variance, but for the sigmoid's",
        x=0.01,
        ha="left",
    )
    return figure
