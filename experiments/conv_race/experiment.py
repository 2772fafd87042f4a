"""Kronecker factors take a third fewer steps than AdamW to teach a convolutional network digits.

A network of two convolutions, 16 and 32 channels wide, learns 1,400 digits for 15 passes in batches
of 50, each method with the best of the same five numbers by the training loss at seed 0: the
learning rate, or the damping of Newton–CG and Hessian-free, which take batches of 350 with
curvature on 100 of them, as does the step by the quadratic model along SOAP's directions without
momentum of their own. All else is at its default.
"""

import races
from races import Method, Race

from gradkit.runner.rows import Mean

REFERENCE = (
    "SOAP or Shampoo needs at most 1/1.3 of the steps that tuned AdamW needs to the same loss "
    "(Vyas et al. 2025 report 40 % fewer steps on language models)"
)
MINUTES = 11.8
LOSS = "train_loss"
FEW = "batch_size=350 curvature.examples=100 log_every=1 evaluate_every=1 epochs={}"
BOTH = ("soap", "shampoo")
RACE = Race(
    "configs/conv_race.yaml",
    {
        "nesterov": Method({"name": "sgd", "momentum": 0.9, "nesterov": True}),
        "adamw": Method({"name": "adamw"}),
        "muon": Method({"name": "optax.contrib.muon"}),
        "soap": Method({"name": "soap"}),
        "shampoo": Method({"name": "shampoo"}),
        "adahessian": Method({"name": "adahessian"}),
        "sophia": Method({"name": "sophia"}, "curvature.diagonal=fisher"),
        "newton_cg": Method({"name": "newton_cg", "max_steps": 20}, FEW.format(8), "damping"),
        "hessian_free": Method({"name": "hessian_free", "max_steps": 20}, FEW.format(2), "damping"),
        "soap_model": Method(
            [{"name": "scale_by_soap", "b1": 0.0}, {"name": "scale_by_quadratic_model"}],
            FEW.format(8),
            "1.damping",
        ),
    },
    LOSS,
    (0.001, 0.004, 0.016, 0.064, 0.256),
)
LIGHT = ("soap", "shampoo", "adahessian", "sophia")  # curvature at the price of a step
SOLVING = ("newton_cg", "hessian_free", "soap_model")
commands = RACE.commands


def judge(out):
    """Compares the steps to AdamW's last loss."""
    found = RACE.curves(out)
    ahead, steps = races.ahead(found, BOTH, LOSS)
    ends = {name: [run[LOSS][-1] for run in each] for name, each in found.items()}
    right = {name: Mean.of([run["test_accuracy"][-1] for run in e]) for name, e in found.items()}
    return (
        f"{ahead} needs 1/{steps.value:.2f} ± {steps.stderr:.2f} of AdamW's steps; "
        f"training loss at the end: {races.ranked(ends, '.1e')}",
        steps.value - steps.stderr >= 1.3,
        "To the loss at which AdamW ends, of its gradients: "
        + races.shares(found, "gradients", LOSS)
        + "; of its seconds: "
        + races.shares(found, "seconds", LOSS)
        + ". Test accuracy at the end: "
        + ", ".join(f"{name} {100 * mean.value:.1f} %" for name, mean in right.items())
        + f". Chosen: {RACE.choices(out)}.",
    )


def draw(out):
    """Loss against steps, passes and seconds."""
    found = RACE.curves(out)
    kinds = {"steps": "steps", "passes": "passes over the data", "seconds": "seconds of training"}
    panels = [(cost, LOSS, label, "training loss [nats]") for cost, label in kinds.items()]
    figure = races.drawn(found, panels, LIGHT, SOLVING, ("passes", 15))
    ahead, steps = races.ahead(found, BOTH, LOSS)
    return races.headed(
        figure,
        f"{ahead} comes to AdamW's last loss in 1/{steps.value:.2f} of its steps",
    )
