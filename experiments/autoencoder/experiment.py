"""Second-order steps train a deep autoencoder that gradient descent hardly moves.

An autoencoder of handwritten digits, 64-128-64-32-16-32-64-128-64, with logistic units, a linear
code and weights of which fifteen a unit are not zero: the kind on which Hessian-free optimization
was shown first. Every method but one sees 600 digits at each step. Rates, and the damping of
Newton–CG, are the best of the same three numbers at seed 0. Hessian-free finds its own damping; its
curvature is of 150 of the digits, others at each step, and it takes at most 40 steps of conjugate
gradients: the best of four such settings at seed 0. Newton–CG was worse with 150. Cost is counted
in passes over the data: a gradient is one, a product with a curvature matrix another, a loss a
third.
"""

import json
import shlex

import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import optimizer_looks
from gradkit.runner import compare, record
from gradkit.runner.document import values_in
from gradkit.runner.rows import Mean

REFERENCE = (
    "Hessian-free reaches in N passes an error that Adam and Nesterov need more than N for, and "
    "plain gradient descent never reaches (Martens 2010; Sutskever et al. 2013)"
)
MINUTES = 6.6
BUDGET = 2000  # passes
GRID = (0.01, 0.03, 0.1)
A_STEP_A_GRADIENT = "epochs=2000 log_every=10 evaluate_every=100 checkpoint_every=2000"
METHODS = {
    "sgd": ({"name": "sgd"}, A_STEP_A_GRADIENT),
    "nesterov": ({"name": "sgd", "momentum": 0.9, "nesterov": True}, A_STEP_A_GRADIENT),
    "adam": ({"name": "adam"}, A_STEP_A_GRADIENT),
    "newton_cg": ({"name": "newton_cg"}, "epochs=220 checkpoint_every=220"),
    "hessian_free": (
        {"name": "hessian_free", "max_steps": 40},
        "curvature.examples=150 epochs=180 checkpoint_every=180",
    ),
}
TUNED = {"newton_cg": "damping", "hessian_free": None}  # of all others the learning rate
SMALL = "adam, batches of 100"
ERROR = "train_squared_error"


def commands(out):
    """The command lines, one after the other."""
    config = "gradkit sweep configs/autoencoder.yaml"
    for name, (optimizer, steps) in METHODS.items():
        if (key := TUNED.get(name, "learning_rate")) is not None:
            grid = ",".join(map(str, GRID))
            chosen = written(optimizer)
            yield f"{config} {chosen} optimizer.{key}={grid} {steps} --out {out}/{name}/tuning"
            best = compare.best([f"{out}/{name}/tuning"], ERROR)
            tuned = values_in(best.path / record.CONFIG)["optimizer"]
            optimizer = optimizer | {key: tuned[key]}
            yield f"{config} {written(optimizer)} seed=1:3 {steps} --out {out}/{name}/seeds"
        else:
            yield f"{config} {written(optimizer)} seed=0:3 {steps} --out {out}/{name}/seeds"
    yield (
        f"{config} {written({'name': 'adam', 'learning_rate': 0.003})} batch_size=100 "
        f"epochs={BUDGET} log_every=100 evaluate_every=1000 checkpoint_every=12000 "
        f"--out {out}/small"
    )


def written(optimizer):
    """An optimizer as a word of the command line."""
    return shlex.quote(f"optimizer={json.dumps(optimizer)}")


def curves(out):
    """Of each method the passes and errors of each seed at its evaluations, and its seconds."""
    found = {}
    for name in METHODS:
        runs = compare.open_all([f"{out}/{name}/seeds"])
        if TUNED.get(name, "") is not None:
            runs = [compare.best([f"{out}/{name}/tuning"], ERROR), *runs]
        found[name] = [curve(run) for run in runs]
    found[SMALL] = [curve(compare.best([f"{out}/small"], ERROR), share=1 / 6)]
    return found


def curve(run, share=1.0):
    """Passes over the data, error and seconds at each evaluation of a run."""
    lines = [line for line in run.metrics if line.get(ERROR) is not None]
    passes = [share * record.gradient_equivalents(line) for line in lines]
    return np.array([passes, *([line[name] for line in lines] for name in (ERROR, "time"))])


def at(found, passes):
    """The error after so many passes of each seed, on a line between evaluations; else NaN."""
    return [np.exp(np.interp(passes, c[0], np.log(c[1]), np.nan, np.nan)) for c in found]


def needed(found, error):
    """The passes until an error, of each seed, between evaluations; infinite if not reached."""
    return [compare.crossing(c[0], np.log(c[1]), np.log(error)) for c in found]


def judge(out):
    """Compares what Hessian-free reaches within the budget with what others need for it."""
    found = curves(out)
    ends = {name: np.array(at(c, BUDGET)) for name, c in found.items()}
    goal = float(np.max(ends["hessian_free"]))
    within = {name: np.median(needed(c, goal)) for name, c in found.items() if name != SMALL}
    took = within.pop("hessian_free")
    others = {name: within[name] for name in ("nesterov", "adam")}
    agrees = all(passes > took for passes in others.values()) and np.isinf(within["sgd"])
    minibatch = needed(found[SMALL], goal)[0]
    there = {
        name: np.median(needed(found["hessian_free"], float(np.median(ends[name]))))
        for name in ("nesterov", "adam")
    }
    text = ", ".join(
        f"{name} {mean.value:.2f}" + (f" ± {mean.stderr:.2f}" if mean.runs > 1 else "")
        for name, mean in ((name, Mean.of(e)) for name, e in ends.items())
    )
    said = {n: "never" if np.isinf(p) else f"after {p:,.0f}" for n, p in within.items()}
    seconds = {n: np.median([c[2, -1] / c[0, -1] for c in cs]) * 1e3 for n, cs in found.items()}
    return (
        f"squared error a digit after {BUDGET:,} passes: {text}",
        agrees,
        f"Hessian-free is at {goal:.2f} after {took:,.0f} passes; of those that see all digits at "
        "each step, "
        + ", ".join(f"{n} {words}" for n, words in said.items())
        + f". Where they end after {BUDGET:,} passes it is after "
        + " and ".join(f"{p:,.0f} ({n.capitalize()})" for n, p in there.items())
        + ". Adam on batches of 100, six updates a pass, is there "
        + (f"after {minibatch:,.0f}" if np.isfinite(minibatch) else f"not within {BUDGET:,}")
        + ": passes are not all that counts. A pass took "
        + ", ".join(f"{n} {ms:.1f}" for n, ms in seconds.items())
        + " ms.",
    )


def draw(out):
    """The error against passes and against seconds."""
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    passes, time = figure.subplots(1, 2, sharey=True)
    found = curves(out)
    looks = optimizer_looks([*METHODS])
    for name, each in found.items():
        small = name == SMALL
        look = looks["adam" if small else name]
        style = {"color": look.color, "linestyle": ":" if small else "-", "linewidth": 1.4}
        first, last = max(c[0, 0] for c in each), min(BUDGET, *(c[0, -1] for c in each))
        grid = np.geomspace(first, last, 80)
        mean = np.exp(np.mean(np.log([at([c], grid)[0] for c in each]), axis=0))
        passes.plot(grid, mean, label=name, **style)
        longest = each[0]
        inside = longest[0] <= BUDGET * 1.02
        time.plot(longest[2, inside], longest[1, inside], **style)
    passes.set_yscale("log")
    for axes, label in ((passes, "passes over the data"), (time, "seconds of training")):
        axes.set_xscale("log")
        axes.set_xlabel(label)
    passes.set_ylabel("squared error a digit [pixel²]")
    figure.legend(loc="outside lower center", ncols=6)
    ends = {n: np.exp(np.mean(np.log(at(c, BUDGET)))) for n, c in found.items() if n != SMALL}
    first = min(ends, key=ends.get)
    figure.suptitle(
        f"Of methods that see all digits at each step, {first} trains the autoencoder furthest",
        x=0.01, ha="left", fontsize=10,
    )  # fmt: skip
    return figure
