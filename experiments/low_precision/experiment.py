"""Adam learns as well with its averages in 16 or 8 bits as in 32.

Two tasks of the races, each at the rate that was best there for 32 bits: a network on 5,000 images
of Fashion-MNIST, 20 passes at 0.004, and a transformer on the language reference of Python, 300
steps at a peak of 0.01 with clipped gradients and a decay of 0.1. Averages of 4,096 numbers and
more are kept in bfloat16, rounded at random, or in 8 bits with a scale for each 256. Five seeds,
the same for all three.
"""

import json

import numpy as np
from matplotlib.figure import Figure
from races import curve

from gradkit.report.palette import BLUE, GREEN, RED
from gradkit.runner.compare import open_all
from gradkit.runner.rows import Mean

REFERENCE = (
    "losses within noise of float32's (Dettmers et al. 2022 for 8 bits; Gupta et al. 2015 for "
    "random rounding)"
)
MINUTES = 9
WIDTHS = {"float32": None, "bfloat16": "bfloat16", "int8": "int8"}
LOOKS = {"float32": (BLUE, "-"), "bfloat16": (RED, "--"), "int8": (GREEN, ":")}
SCHEDULE = {"warmup_cosine": {"peak": 0.01, "steps": 300, "warmup": 30}}
ADAMW = {"name": "adamw", "weight_decay": 0.1, "learning_rate": SCHEDULE}
TASKS = {
    "images": ("optimizer_race", [], {"name": "adam", "learning_rate": 0.004}, "train_loss"),
    "text": ("text_race", [{"name": "clip_by_global_norm", "max_norm": 1.0}], ADAMW, "test_loss"),
}
TITLES = {"images": "Adam on Fashion-MNIST", "text": "AdamW on a text"}


def commands(out):
    """The command lines, one after the other."""
    for task, (config, before, member, _) in TASKS.items():
        for name, dtype in WIDTHS.items():
            narrow = {"name": "low_precision", "dtype": dtype, "inner": member}
            chain = json.dumps([*before, narrow if dtype else member])
            yield (
                f"gradkit sweep configs/{config}.yaml checkpoint_every=100000 'optimizer={chain}' "
                f"seed=0:5 --out {out}/{task}/{name}"
            )


def curves(out, task):
    """Of each width the curve of each seed."""
    figure = TASKS[task][-1]
    return {
        name: [curve(run, figure) for run in open_all([f"{out}/{task}/{name}"])] for name in WIDTHS
    }


def ends(out, task):
    """Of each width the mean of the last figure over seeds."""
    figure = TASKS[task][-1]
    return {
        name: Mean.of(seed[figure][-1] for seed in each) for name, each in curves(out, task).items()
    }


def distance(mean, other):
    """How far a mean is from another, in standard errors of the difference of the two."""
    return (mean.value - other.value) / np.hypot(mean.stderr, other.stderr)


def judge(out):
    """Compares the last losses with the spread over seeds."""
    found = {task: ends(out, task) for task in TASKS}
    figures = [
        f"{TITLES[task]}: "
        + ", ".join(f"{name} {x.value:.4f} ± {x.stderr:.4f}" for name, x in ended.items())
        for task, ended in found.items()
    ]
    apart = {
        f"{name}, {task}": distance(ended[name], ended["float32"])
        for task, ended in found.items()
        for name in WIDTHS
        if name != "float32"
    }
    words = ", ".join(f"{name} {value:+.1f}" for name, value in apart.items())
    return (
        "; ".join(figures) + " (5 seeds)",
        max(map(abs, apart.values())) < 2,
        "The losses are those of the training images and of the held-out text. From float32's, in "
        f"standard errors of the difference: {words}. Adam keeps 8 bytes a parameter in float32, "
        "4 in bfloat16 and 2.03 in 8 bits.",
    )


def draw(out):
    """The means over seeds, with a band of one standard error."""
    figure = Figure(figsize=(8.4, 3.5), layout="constrained")
    for axes, task in zip(figure.subplots(1, 2), TASKS, strict=True):
        name_of_loss = TASKS[task][-1]
        for name, each in curves(out, task).items():
            steps = each[0]["steps"]
            losses = np.array([seed[name_of_loss] for seed in each])
            mean, spread = losses.mean(axis=0), losses.std(axis=0, ddof=1) / len(each) ** 0.5
            color, style = LOOKS[name]
            axes.plot(steps, mean, style, color=color, label=name)
            axes.fill_between(steps, mean - spread, mean + spread, color=color, alpha=0.15, lw=0)
        axes.set_xlabel("step")
        axes.set_ylabel(name_of_loss.replace("_", " ").replace("train ", "training "))
        axes.set_title(TITLES[task])
        axes.legend()
    return figure
