"""Kronecker factors take a third fewer steps than AdamW to teach a transformer its text.

A transformer of two layers of width 64 reads 4,800 pieces of 64 characters of the language
reference of Python once, in batches of 16: 300 steps, with 30 of warm-up and then half a cosine.
Each method has the best of the same four peak rates, by the test loss at seed 0; all have gradients
clipped to a norm of 1, and a decay of 0.1 where they decay. All else is at its default.
"""

import races
from races import Method, Race

REFERENCE = (
    "SOAP or Shampoo needs at most 1/1.3 of the steps that tuned AdamW needs to the same loss "
    "(Vyas et al. 2025 report 40 % fewer steps on language models)"
)
MINUTES = 37.5
LOSS = "test_loss"
STEPS = 300
BOTH = ("soap", "shampoo")


def method(member, words=""):
    """A method in the chain, its peak rate to be chosen."""
    schedule = {"warmup_cosine": {"peak": 0.01, "steps": STEPS, "warmup": STEPS // 10}}
    chain = [{"name": "clip_by_global_norm", "max_norm": 1.0}, member | {"learning_rate": schedule}]
    return Method(chain, words, "1.learning_rate.warmup_cosine.peak")


DECAY = {"weight_decay": 0.1}
RACE = Race(
    "configs/text_race.yaml",
    {
        "adamw": method({"name": "adamw"} | DECAY),
        "soap": method({"name": "soap"} | DECAY),
        "shampoo": method({"name": "shampoo"} | DECAY),
        "nesterov": method({"name": "sgd", "momentum": 0.9, "nesterov": True}),
        "muon": method({"name": "optax.contrib.muon"} | DECAY),
        "sophia": method({"name": "sophia"} | DECAY, "curvature.diagonal=fisher"),
    },
    LOSS,
    (0.003, 0.01, 0.03, 0.1),
)
CURVED = ("soap", "shampoo", "sophia")
commands = RACE.commands


def judge(out):
    """Compares the steps to AdamW's last loss."""
    found = RACE.curves(out)
    ahead, steps = races.ahead(found, BOTH, LOSS)
    ends = {name: [run[LOSS][-1] for run in each] for name, each in found.items()}
    return (
        f"{ahead} needs 1/{steps.value:.2f} ± {steps.stderr:.2f} of AdamW's steps; "
        f"test loss after {STEPS} steps: {races.ranked(ends)}",
        steps.value - steps.stderr >= 1.3,
        "To the loss at which AdamW ends, of its gradients: "
        + races.shares(found, "gradients", LOSS)
        + "; of its seconds: "
        + races.shares(found, "seconds", LOSS)
        + ". Along a cosine that is not over, so that a schedule of its own would end lower. "
        f"Losses between evaluations, 60 steps apart, are on lines. Chosen: {RACE.choices(out)}.",
    )


def draw(out):
    """Test loss against steps, gradient-equivalents and seconds."""
    found = RACE.curves(out)
    kinds = {"steps": "steps", "gradients": "gradients", "seconds": "seconds of training"}
    panels = [(cost, LOSS, label, "test loss [nats]") for cost, label in kinds.items()]
    figure = races.drawn(found, panels, CURVED)
    ahead, steps = races.ahead(found, BOTH, LOSS)
    return races.headed(
        figure,
        f"{ahead} comes to AdamW's last loss in 1/{steps.value:.2f} of its steps",
    )
