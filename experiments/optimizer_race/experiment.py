"""Tuned alike, adaptive rates and momentum win the race on images, and curvature pays by the step.

A 784-64-64-10 network learns 5,000 articles of Fashion-MNIST (a 64-64-64-10 network 1,400 digits
where that package is not installed) for 20 passes over them. Each method has the best of the same
five numbers, as the learning rate or, where it searches its own, as the damping, by the training
loss at seed 0; L-BFGS has neither. First-order methods take batches of 100; Newton–CG and
Hessian-free batches of 1,000 with curvature on 250 of them; L-BFGS all examples. A gradient of all
examples is a pass, and so is a product with a curvature matrix on all of them; a loss is a third.
"""

import json
import shlex

import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import optimizer_looks
from gradkit.runner import compare, record
from gradkit.runner.data import installed
from gradkit.runner.document import values_in
from gradkit.runner.rows import Mean

REFERENCE = (
    "Adam and RMSProp, tuned, are never behind SGD with momentum, which they contain (Choi et al. "
    "2019); second-order methods need the fewest updates"
)
MINUTES = 7.2
PASSES = 20
GRID = (0.001, 0.004, 0.016, 0.064, 0.256)
SEEDS = 5
STEPWISE = {"batch": 100, "words": "batch_size=100 epochs=20"}
CURVED = "batch_size=1000 curvature.examples=250 epochs={} log_every=1 evaluate_every=1"
WHOLE = {"batch": None, "words": "epochs=20 log_every=1 evaluate_every=1"}
METHODS = {
    "sgd": ({"name": "sgd"}, STEPWISE),
    "momentum": ({"name": "sgd", "momentum": 0.9}, STEPWISE),
    "nesterov": ({"name": "sgd", "momentum": 0.9, "nesterov": True}, STEPWISE),
    "adagrad": ({"name": "adagrad"}, STEPWISE),
    "rmsprop": ({"name": "rmsprop"}, STEPWISE),
    "adam": ({"name": "adam"}, STEPWISE),
    "adamw": ({"name": "adamw"}, STEPWISE),
    "newton_cg": (
        {"name": "newton_cg", "max_steps": 20},
        {"batch": 1000, "words": CURVED.format(10)},
    ),
    "hessian_free": (
        {"name": "hessian_free", "max_steps": 20},
        {"batch": 1000, "words": CURVED.format(4)},
    ),
    "lbfgs": ({"name": "lbfgs"}, WHOLE),
}
CURVED_ONES = ("newton_cg", "hessian_free", "lbfgs")  # dashed
LOSS = 0.5  # nats, to which updates are counted
TUNED = {"newton_cg": "damping", "hessian_free": "damping", "lbfgs": None}


def commands(out):
    """The command lines, one after the other."""
    data = ""
    if installed.missing("fashion_mnist"):
        data = " data.source=digits data.examples=1400"
    examples = 1400 if data else 5000
    for name, (optimizer, kind) in METHODS.items():
        words = f"{kind['words']} checkpoint_every=100000{data}"
        if kind["batch"] is None:
            words += f" batch_size={examples}"
        config = f"gradkit sweep configs/optimizer_race.yaml {words}"
        begin = 0
        if (key := TUNED.get(name, "learning_rate")) is not None:
            grid = ",".join(map(str, GRID))
            yield f"{config} {written(optimizer)} optimizer.{key}={grid} --out {out}/{name}/tuning"
            tuned = values_in(best(out, name).path / record.CONFIG)["optimizer"]
            optimizer, begin = optimizer | {key: tuned[key]}, 1
        yield f"{config} {written(optimizer)} seed={begin}:{SEEDS} --out {out}/{name}/seeds"


def written(optimizer):
    """An optimizer as a word of the command line."""
    return shlex.quote(f"optimizer={json.dumps(optimizer)}")


def best(out, name):
    """The run of a method with the lowest training loss of its grid."""
    return compare.best([f"{out}/{name}/tuning"], "train_loss")


def races(out):
    """Of each method, of each seed: passes, seconds, training loss, test accuracy, steps."""
    found = {}
    for name in METHODS:
        runs = compare.open_all([f"{out}/{name}/seeds"])
        if TUNED.get(name, "") is not None:
            runs = [best(out, name), *runs]
        found[name] = [race(run) for run in runs]
    return found


def race(run):
    """One run's figures at its evaluations."""
    config = values_in(run.path / record.CONFIG)
    share = config["batch_size"] / config["data"]["examples"]
    lines = [line for line in run.metrics if "train_loss" in line]
    return {
        "passes": np.array([share * record.gradient_equivalents(line) for line in lines]),
        "seconds": np.array([line["time"] for line in lines]),
        "steps": np.array([line["step"] for line in lines]),
        "loss": np.array([line["train_loss"] for line in lines]),
        "accuracy": np.array([line["test_accuracy"] for line in lines]),
    }


def at(each, cost, where, figure):
    """A figure of each seed where a cost is reached, on lines between evaluations; else NaN."""
    return np.array([np.interp(where, run[cost], run[figure], np.nan, np.nan) for run in each])


def steps_to(each, loss):
    """The median over seeds of the steps until a training loss; infinite if it is not reached."""
    reached = [np.flatnonzero(run["loss"] <= loss) for run in each]
    steps = [run["steps"][r[0]] if len(r) else np.inf for run, r in zip(each, reached, strict=True)]
    return np.median(steps)


def judge(out):
    """Compares the ends after equal work, with their standard errors, and the steps to a loss."""
    found = races(out)
    ends = {name: at(each, "passes", PASSES, "loss") for name, each in found.items()}
    mean = {name: Mean.of(e) for name, e in ends.items()}
    heavy = mean["momentum"]
    behind = {
        name: (mean[name].value - heavy.value) / np.hypot(mean[name].stderr, heavy.stderr)
        for name in ("rmsprop", "adam")
    }
    steps = {name: steps_to(each, LOSS) for name, each in found.items()}
    fewest = min(steps, key=lambda name: steps[name])
    agrees = all(z < 2 for z in behind.values()) and fewest in CURVED_ONES
    order = sorted(mean, key=lambda name: mean[name].value)
    accuracy = {name: at(each, "passes", PASSES, "accuracy") for name, each in found.items()}
    grids = [
        f"{name} {values_in(best(out, name).path / record.CONFIG)['optimizer'][key]:g}"
        for name in METHODS
        if (key := TUNED.get(name, "learning_rate")) is not None
    ]
    return (
        "training loss after 20 passes: "
        + ", ".join(f"{name} {mean[name].value:.3f} ± {mean[name].stderr:.3f}" for name in order),
        agrees,
        "Adam and RMSProp are "
        + " and ".join(f"{behind[name]:+.1f}" for name in ("adam", "rmsprop"))
        + f" standard errors from momentum (negative: ahead). To a training loss of {LOSS}: "
        + ", ".join(
            f"{name} {s:,.0f}" if np.isfinite(s) else f"{name} not" for name, s in steps.items()
        )
        + " updates. Test accuracy: "
        + ", ".join(f"{name} {100 * a.mean():.1f} %" for name, a in accuracy.items())
        + f". Chosen: {', '.join(grids)}. The reference tunes momentum and ε as well, and its "
        "RMSProp has momentum; here a rate of five is all that is tuned.",
    )


def draw(out):
    """Loss against passes and seconds, accuracy against passes."""
    found = races(out)
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    panels = figure.subplots(1, 3)
    looks = optimizer_looks([*METHODS])
    kinds = (
        ("passes", "loss", "passes over the data", "training loss [nats]"),
        ("seconds", "loss", "seconds of training", "training loss [nats]"),
        ("passes", "accuracy", "passes over the data", "test accuracy"),
    )
    for axes, (cost, figure_name, label, height) in zip(panels, kinds, strict=True):
        for name, each in found.items():
            least = max(run[cost][0] for run in each)
            most = min(run[cost][-1] for run in each)
            most = min(most, PASSES) if cost == "passes" else most
            grid = np.geomspace(least, most, 60) if cost == "seconds" else np.linspace(least, most)
            values = at(each, cost, grid, figure_name)
            mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / len(each) ** 0.5
            look = looks[name]
            dashes = (0, (4, 1.5)) if name in CURVED_ONES else "-"
            style = {"color": look.color, "marker": look.marker, "linestyle": dashes}
            style |= {"markersize": 3.5}
            axes.plot(grid, mean, label=name, linewidth=1.2, markevery=12, **style)
            axes.fill_between(grid, mean - error, mean + error, color=look.color, alpha=0.2, lw=0)
        axes.set_xlabel(label)
        axes.set_ylabel(height)
        axes.set_yscale("log" if figure_name == "loss" else "linear")
    panels[1].set_xscale("log")
    panels[2].set_ylim(bottom=0.7)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=10, columnspacing=1)
    ends = {name: at(each, "passes", PASSES, "loss").mean() for name, each in found.items()}
    steps = {name: steps_to(each, LOSS) for name, each in found.items()}
    first, fewest = min(ends, key=ends.get), min(steps, key=steps.get)
    figure.suptitle(
        f"For {PASSES} passes {first} leads; {fewest} takes the fewest updates to {LOSS}: "
        f"{steps[fewest]:,.0f} against {steps[first]:,.0f}",
        x=0.01, ha="left", fontsize=10,
    )  # fmt: skip
    return figure
