"""Second-order steps train a deep autoencoder that gradient descent hardly moves.

An autoencoder of handwritten digits, 64-128-64-32-16-32-64-128-64, with logistic units, a linear
code and weights of which fifteen a unit are not zero: the kind on which Hessian-free optimization
was shown first. Every method but one sees 600 digits at each step. Rates, and the damping of
Newton–CG, are the best of the same four numbers at seed 0. First-order methods take 6,000 steps, a
pass each, three times the passes of the others. Hessian-free finds its own damping; its
curvature is of 150 of the digits, others at each step, and it takes at most 40 steps of conjugate
gradients: the best of four such settings at seed 0. Newton–CG was worse with 150. Cost is counted
in passes over the data: a gradient is one, a product with a curvature matrix another, a loss a
third.
"""

import numpy as np
import races
from races import Method, Race

REFERENCE = (
    "Hessian-free reaches in N passes an error that Adam and Nesterov need at least 3 N for, and "
    "plain gradient descent never reaches (Martens 2010; Sutskever et al. 2013)"
)
MINUTES = 19.4
BUDGET = 2000  # passes
ERROR = "train_squared_error"
LONG = 3 * BUDGET  # of first-order methods
FIRST = ("sgd", "nesterov", "adam")
GRADIENTS = f"epochs={LONG} log_every=20 evaluate_every=200 checkpoint_every={LONG}"
SMALL = "adam_100"
RACE = Race(
    "configs/autoencoder.yaml",
    {
        "sgd": Method({"name": "sgd"}, GRADIENTS),
        "nesterov": Method({"name": "sgd", "momentum": 0.9, "nesterov": True}, GRADIENTS),
        "adam": Method({"name": "adam"}, GRADIENTS),
        "newton_cg": Method({"name": "newton_cg"}, "epochs=220 checkpoint_every=220", "damping"),
        "hessian_free": Method(
            {"name": "hessian_free", "max_steps": 40},
            "curvature.examples=150 epochs=180 checkpoint_every=180",
            None,
        ),
        SMALL: Method(
            {"name": "adam"},
            f"batch_size=100 epochs={BUDGET} log_every=100 evaluate_every=1000 "
            "checkpoint_every=12000",
        ),
    },
    ERROR,
    (0.003, 0.01, 0.03, 0.1),
)
LEVELS = (0.5, 0.3, 0.2, 0.12, 0.1)
LESS = 3  # times fewer passes
commands = RACE.commands


def passes_to(found, level):
    """The median passes of each method to an error."""
    return {n: np.median(races.needed(each, "passes", ERROR, level)) for n, each in found.items()}


def saved(took):
    """How many times fewer passes Hessian-free takes than the faster of Nesterov and Adam."""
    return min(took["nesterov"], took["adam"]) / took["hessian_free"]


def judge(out):
    """Looks for an error to which Hessian-free takes at most a third of the passes of others."""
    found = RACE.curves(out)
    took = {level: passes_to(found, level) for level in LEVELS}
    level = max(took, key=lambda level: saved(took[level]))
    ends = {name: races.at(each, "passes", BUDGET, ERROR) for name, each in found.items()}
    long = {name: races.at(found[name], "passes", LONG, ERROR) for name in FIRST}
    times = {name: each[0]["seconds"][-1] / each[0]["passes"][-1] for name, each in found.items()}
    return (
        f"to an error of {level}: "
        + ", ".join(f"{n} {races.after(took[level][n])}" for n in ("hessian_free", *FIRST))
        + f" passes: 1/{saved(took[level]):.1f}",
        saved(took[level]) >= LESS and np.isinf(took[level]["sgd"]),
        "The passes are medians of 5 seeds, the level that of five at which Hessian-free saves "
        "most; it takes "
        + ", ".join(f"1/{saved(each):.1f} at {level}" for level, each in took.items())
        + f". Squared error a digit after {BUDGET:,} passes: {races.ranked(ends, '.2f')}; after "
        f"{LONG:,}: {races.ranked(long, '.2f')}. {SMALL} is Adam on batches of 100, six updates a "
        "pass: passes are not all that counts. A pass took "
        + ", ".join(f"{name} {1e3 * t:.1f}" for name, t in times.items())
        + f" ms. Chosen: {RACE.choices(out)}.",
    )


def draw(out):
    """The error against passes and against seconds."""
    found = RACE.curves(out)
    kinds = {"passes": "passes over the data", "seconds": "seconds of training"}
    panels = [
        (cost, ERROR, label, "squared error a digit [pixel²]") for cost, label in kinds.items()
    ]
    figure = races.drawn(found, panels, ("newton_cg", "hessian_free"), (SMALL,), ("passes", LONG))
    took = passes_to(found, LEVELS[-1])
    others = ", ".join(n for n in FIRST if np.isinf(took[n]))
    return races.headed(
        figure,
        f"hessian_free is at {LEVELS[-1]} after {took['hessian_free']:,.0f} passes, adam after "
        f"{took['adam']:,.0f}; {others} not within {LONG:,}",
    )
