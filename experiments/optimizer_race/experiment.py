"""Tuned alike, SOAP wins the race on images by the pass, momentum by the second.

A 784-64-64-10 network learns 5,000 articles of Fashion-MNIST (a 64-64-64-10 network 1,400 digits
where that package is not installed) for 20 passes over them. Each method has the best of the same
five numbers, as the learning rate or, where it finds its own, as the damping, by the training loss
at seed 0; L-BFGS has neither. First-order methods, and those with curvature at the price of a step,
take batches of 100; Newton–CG, Hessian-free and the quadratic model along SOAP's directions batches
of 1,000 with curvature on 250 of them; L-BFGS all examples. A gradient of all examples is a pass,
and so is a product with a curvature matrix on all of them; a loss is a third.
"""

import numpy as np
import races
from races import Method, Race

from gradkit.runner.data import installed
from gradkit.runner.rows import Mean

REFERENCE = (
    "Adam and RMSProp, tuned, are never behind SGD with momentum, which they contain (Choi et al. "
    "2019); second-order methods need the fewest updates"
)
MINUTES = 21
PASSES = 20
LEVEL = 0.5  # nats, to which updates are counted
LOSS = "train_loss"
CURVED = (
    "batch_size=1000 curvature.examples=250 epochs={} log_every=1 evaluate_every=1 "
    "checkpoint_every=100000"
)
BATCHES = "batch_size=100 epochs=20 checkpoint_every=100000"


def method(optimizer, words=""):
    """One that takes batches of 100."""
    return Method(optimizer, f"{BATCHES} {words}".strip())


def race():
    """The race, on what data there are."""
    digits = bool(installed.missing("fashion_mnist"))
    examples = 1400 if digits else 5000
    whole = f"batch_size={examples} epochs=20 log_every=1 evaluate_every=1 checkpoint_every=100000"
    methods = {
        "sgd": method({"name": "sgd"}),
        "momentum": method({"name": "sgd", "momentum": 0.9}),
        "nesterov": method({"name": "sgd", "momentum": 0.9, "nesterov": True}),
        "adagrad": method({"name": "adagrad"}),
        "rmsprop": method({"name": "rmsprop"}),
        "adam": method({"name": "adam"}),
        "adamw": method({"name": "adamw"}),
        "muon": method({"name": "optax.contrib.muon"}),
        "soap": method({"name": "soap"}),
        "shampoo": method({"name": "shampoo"}),
        "adahessian": method({"name": "adahessian"}),
        "sophia": method({"name": "sophia"}, "curvature.diagonal=fisher"),
        "newton_cg": Method({"name": "newton_cg", "max_steps": 20}, CURVED.format(10), "damping"),
        "hessian_free": Method(
            {"name": "hessian_free", "max_steps": 20}, CURVED.format(4), "damping"
        ),
        "soap_model": Method(
            [{"name": "scale_by_soap", "b1": 0.0}, {"name": "scale_by_quadratic_model"}],
            CURVED.format(12),
            "1.damping",
        ),
        "lbfgs": Method({"name": "lbfgs"}, whole, None),
    }
    data = "data.source=digits data.examples=1400" if digits else ""
    grid = (0.001, 0.004, 0.016, 0.064, 0.256)
    return Race("configs/optimizer_race.yaml", methods, LOSS, grid, words=data)


FEW_UPDATES = ("newton_cg", "hessian_free", "soap_model", "lbfgs")
LIGHT = ("soap", "shampoo", "adahessian", "sophia")  # curvature at the price of a step


def commands(out):
    """The command lines, one after the other."""
    yield from race().commands(out)


def steps_to(found):
    """The median steps of each method to the level, at an evaluation or on a line between two."""
    return {n: np.median(races.needed(each, "steps", LOSS, LEVEL)) for n, each in found.items()}


def judge(out):
    """Compares the ends after equal work, with their standard errors, and the steps to a loss."""
    contest = race()
    found = contest.curves(out)
    ends = {name: races.at(each, "passes", PASSES, LOSS) for name, each in found.items()}
    mean = {name: Mean.of(e) for name, e in ends.items()}
    heavy = mean["momentum"]
    behind = {
        name: (mean[name].value - heavy.value) / np.hypot(mean[name].stderr, heavy.stderr)
        for name in ("rmsprop", "adam")
    }
    steps = steps_to(found)
    fewest = min(steps, key=steps.get)
    right = {n: races.at(each, "passes", PASSES, "test_accuracy") for n, each in found.items()}
    return (
        f"training loss after {PASSES} passes: {races.ranked(ends, '.2g')}",
        all(z < 2 for z in behind.values()) and fewest in FEW_UPDATES,
        "Adam and RMSProp are "
        + " and ".join(f"{behind[name]:+.1f}" for name in ("adam", "rmsprop"))
        + f" standard errors from momentum (negative: ahead). Updates to a loss of {LEVEL}: "
        + ", ".join(f"{name} {races.after(s)}" for name, s in steps.items())
        + ". To the loss at which AdamW ends, of its gradients: "
        + races.shares(found, "passes", LOSS)
        + "; of its seconds: "
        + races.shares(found, "seconds", LOSS)
        + ". Test accuracy: "
        + ", ".join(f"{name} {100 * a.mean():.1f} %" for name, a in right.items())
        + f". Chosen: {contest.choices(out)}. The reference tunes momentum and ε as well, and its "
        "RMSProp has momentum; here a rate of five is all that is tuned.",
    )


def draw(out):
    """Loss against passes and seconds, accuracy against passes."""
    found = race().curves(out)
    panels = (
        ("passes", LOSS, "passes over the data", "training loss [nats]"),
        ("seconds", LOSS, "seconds of training", "training loss [nats]"),
        ("passes", "test_accuracy", "passes over the data", "test accuracy"),
    )
    figure = races.drawn(found, panels, LIGHT, FEW_UPDATES, ("passes", PASSES))
    figure.axes[2].set_ylim(bottom=0.7)
    ends = {n: races.at(each, "passes", PASSES, LOSS).mean() for n, each in found.items()}
    steps = steps_to(found)
    first, fewest = min(ends, key=ends.get), min(steps, key=steps.get)
    return races.headed(
        figure,
        f"For {PASSES} passes {first} leads; {fewest} takes the fewest updates to {LEVEL}: "
        f"{steps[fewest]:,.0f} against {steps[first]:,.0f}",
    )
