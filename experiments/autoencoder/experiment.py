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
MINUTES = 14
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
commands = RACE.commands


def there(found, name, passes):
    """The passes of Hessian-free to where a method is after so many, each the median of seeds."""
    end = np.median(races.at(found[name], "passes", passes, ERROR))
    return np.median(races.needed(found["hessian_free"], "passes", ERROR, end))


def judge(out):
    """Compares Hessian-free after its passes with others after three times as many."""
    found = RACE.curves(out)
    ends = {
        name: races.at(each, "passes", LONG if name in FIRST else BUDGET, ERROR)
        for name, each in found.items()
    }
    goal = ends["hessian_free"].max()
    took = {name: there(found, name, LONG) for name in FIRST}
    equal = {name: races.at(found[name], "passes", BUDGET, ERROR) for name in FIRST}
    times = {name: each[0]["seconds"][-1] / each[0]["passes"][-1] for name, each in found.items()}
    others = {name: each for name, each in ends.items() if name not in FIRST}
    return (
        f"squared error a digit after {BUDGET:,} passes: {races.ranked(others, '.2f')}; after "
        f"{LONG:,}: {races.ranked({name: ends[name] for name in FIRST}, '.2f')}",
        all(ends[name].min() > goal for name in FIRST),
        f"After {BUDGET:,} passes "
        + ", ".join(f"{name} {np.mean(e):.2f}" for name, e in equal.items())
        + f"; where they are after {LONG:,}, Hessian-free is "
        + ", ".join(f"{races.after(passes)} ({name})" for name, passes in took.items())
        + f". {SMALL} is Adam on batches of 100, six updates a pass: passes are not all that "
        "counts. A pass took "
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
    ends = {n: np.median(races.at(e, "passes", BUDGET, ERROR)) for n, e in found.items()}
    ends.pop(SMALL)
    first = min(ends, key=ends.get)
    figure.suptitle(
        f"Of methods that see all digits at each step, {first} trains the autoencoder furthest",
        x=0.01, ha="left", fontsize=10,
    )  # fmt: skip
    return figure
