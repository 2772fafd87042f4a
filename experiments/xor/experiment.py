"""Large random weights keep a network from learning exclusive or.

A 2-4-1 network of sigmoids learns exclusive or by gradient descent with momentum 0.99. With
weights uniform in [−10, 10] units begin where the sigmoid is flat; with variance 1/fan_in they
begin where it is steep.
"""

import math

from matplotlib.figure import Figure

from gradkit.report.palette import BLUE, RED
from gradkit.runner.compare import open_all

REFERENCE = "about 6 of 20 seeds fail with U(−10, 10), 0 of 20 with N(0, 1/fan_in)"
MINUTES = 0.3
FAILED = 0.1  # nats: below it all four answers are right


def commands(out):
    """The command lines, one after the other."""
    yield (
        "gradkit sweep configs/xor.yaml "
        '"model.kernel_init={name: uniform, bound: 10.0},lecun_normal" '
        f"seed=0:20 --out {out}"
    )


def losses(out):
    """The last loss of each run, by its initializer."""
    found = {"uniform": [], "lecun_normal": []}
    for run in open_all([str(out)]):
        kind = "uniform" if "uniform" in run.config_text else "lecun_normal"
        found[kind].append(run.summary["train_loss"])
    return found


def judge(out):
    """Counts the seeds that fail."""
    failed = {kind: sum(loss > FAILED for loss in found) for kind, found in losses(out).items()}
    many, none = failed["uniform"], failed["lecun_normal"]
    chance = sum(math.comb(20, k) * 0.3**k * 0.7 ** (20 - k) for k in range(many, 21))
    return (
        f"{many} of 20 fail with U(−10, 10), {none} of 20 with N(0, 1/fan_in)",
        none == 0 and many > 0 and chance > 0.025,
        f"If 6 of 20 are expected, {many} or more have a probability of {chance:.2f}. A seed that "
        "fails stays where some units are flat for all four inputs.",
    )


def draw(out):
    """The last loss of each seed."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    names = {
        "uniform": ("weights U(−10, 10)", RED, "^"),
        "lecun_normal": ("N(0, 1/fan_in)", BLUE, "o"),
    }
    for kind, found in losses(out).items():
        label, color, marker = names[kind]
        axes.plot(range(20), sorted(found), marker, color=color, label=label)
    axes.axhline(FAILED, color="#999999", linewidth=0.8)
    axes.text(0, FAILED * 1.3, "above: not learned", fontsize=8, color="#666666")
    axes.set_yscale("log")
    axes.set_xlabel("seeds, from the lowest loss to the highest")
    axes.set_ylabel("cross-entropy after 1,000 steps [nats]")
    axes.set_xticks(range(0, 20, 5))
    axes.set_title("Large weights get stuck on exclusive or")
    axes.legend()
    return figure
