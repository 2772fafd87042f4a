"""Kronecker factors take a third fewer steps than AdamW to teach a transformer its text.

A transformer of two layers of width 64 reads 4,800 pieces of 64 characters of the language
reference of Python once, in batches of 16: 300 steps, with 30 of warm-up and then half a cosine.
Each method has the best of the same four peak rates, by the test loss at seed 0; all have gradients
clipped to a norm of 1, and a decay of 0.1 where they decay. All else is at its default.
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
    "SOAP or Shampoo needs at most 1/1.3 of the steps that tuned AdamW needs to the same loss "
    "(Vyas et al. 2025 report 40 % fewer steps on language models)"
)
MINUTES = 34
GRID = (0.003, 0.01, 0.03, 0.1)
SEEDS = 5
DECAY = {"weight_decay": 0.1}
METHODS = {
    "adamw": {"name": "adamw"} | DECAY,
    "soap": {"name": "soap"} | DECAY,
    "shampoo": {"name": "shampoo"} | DECAY,
    "nesterov": {"name": "sgd", "momentum": 0.9, "nesterov": True},
    "muon": {"name": "optax.contrib.muon"} | DECAY,
    "sophia": {"name": "sophia"} | DECAY,
}
CURVED = ("soap", "shampoo", "sophia")  # dashed
LOSS = "test_loss"
STEPS = 300


def commands(out):
    """The command lines, one after the other."""
    for name in METHODS:
        yield sweep(out, name, GRID, "tuning", "seed=0")
        yield sweep(out, name, [chosen(out, name)], "seeds", f"seed=1:{SEEDS}")


def sweep(out, name, peaks, folder, seeds):
    """The command of a method's runs."""
    peak, *others = peaks
    schedule = {"warmup_cosine": {"peak": peak, "steps": STEPS, "warmup": STEPS // 10}}
    member = METHODS[name] | {"learning_rate": schedule}
    chain = [{"name": "clip_by_global_norm", "max_norm": 1.0}, member]
    more = "curvature.diagonal=fisher " if name == "sophia" else ""
    varied = ",".join(map(str, peaks))
    return (
        f"gradkit sweep configs/text_race.yaml {shlex.quote(f'optimizer={json.dumps(chain)}')} "
        + (f"optimizer.1.learning_rate.warmup_cosine.peak={varied} " if others else "")
        + f"{more}{seeds} --out {out}/{name}/{folder}"
    )


def best(out, name):
    """The run of a method with the lowest test loss of its grid."""
    return compare.best([f"{out}/{name}/tuning"], LOSS)


def chosen(out, name):
    """Its peak rate."""
    member = values_in(best(out, name).path / record.CONFIG)["optimizer"][1]
    return member["learning_rate"]["warmup_cosine"]["peak"]


def races(out):
    """Of each method, of each seed: steps, gradient-equivalents and test loss."""
    return {
        name: [race(run) for run in [best(out, name), *compare.open_all([f"{out}/{name}/seeds"])]]
        for name in METHODS
    }


def race(run):
    """One run's figures at its evaluations."""
    lines = [line for line in run.metrics if LOSS in line]
    return {
        "steps": np.array([line["step"] for line in lines]),
        "work": np.array([record.gradient_equivalents(line) for line in lines]),
        "loss": np.array([line[LOSS] for line in lines]),
    }


def saved(found, name, cost):
    """AdamW's cost to its own last loss over that of a method, seed by seed; 0 if not reached."""
    pairs = zip(found["adamw"], found[name], strict=True)
    return np.array(
        [a[cost][-1] / compare.crossing(b[cost], b["loss"], a["loss"][-1]) for a, b in pairs]
    )


def said(ratios):
    """The part of AdamW's cost that a method takes, as text."""
    return f"{1 / ratios.mean():.2f}" if ratios.all() else "not by all seeds"


def judge(out):
    """Compares the steps to AdamW's last loss."""
    found = races(out)
    steps = {name: Mean.of(saved(found, name, "steps")) for name in ("soap", "shampoo")}
    ahead = max(steps, key=lambda name: steps[name].value)
    ends = {name: Mean.of([run["loss"][-1] for run in each]) for name, each in found.items()}
    order = sorted(ends, key=lambda name: ends[name].value)
    return (
        f"{ahead} needs 1/{steps[ahead].value:.2f} ± {steps[ahead].stderr:.2f} of AdamW's steps; "
        "test loss after 300 steps: "
        + ", ".join(f"{name} {ends[name].value:.3f} ± {ends[name].stderr:.3f}" for name in order),
        steps[ahead].value - steps[ahead].stderr >= 1.3,
        "To the loss at which AdamW ends, in its gradients: "
        + ", ".join(f"{name} {said(saved(found, name, 'work'))}" for name in METHODS)
        + ". Along a cosine that is not over, so that a schedule of its own would end lower. "
        "Losses between evaluations, 60 steps apart, are on lines. Peak rates chosen: "
        + ", ".join(f"{name} {chosen(out, name):g}" for name in METHODS)
        + ".",
    )


def draw(out):
    """Test loss against steps and gradient-equivalents."""
    found = races(out)
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    looks = optimizer_looks([*METHODS])
    kinds = {"steps": "steps", "work": "gradient-equivalents"}
    for axes, (cost, label) in zip(figure.subplots(1, 2, sharey=True), kinds.items(), strict=True):
        for name, each in found.items():
            x = np.mean([run[cost] for run in each], axis=0)
            losses = np.array([run["loss"] for run in each])
            mean, error = losses.mean(axis=0), losses.std(axis=0, ddof=1) / len(each) ** 0.5
            look = looks[name]
            dashes = (0, (4, 1.5)) if name in CURVED else "-"
            style = {"color": look.color, "marker": look.marker, "linestyle": dashes}
            axes.plot(x, mean, label=name, linewidth=1.2, markersize=3.5, **style)
            axes.fill_between(x, mean - error, mean + error, color=look.color, alpha=0.2, lw=0)
        ends = np.mean([run["loss"][-1] for run in found["adamw"]])
        axes.axhline(ends, color="0.4", linewidth=0.7, linestyle=":")
        axes.set_xlabel(label)
    figure.axes[0].set_ylabel("test loss [nats per character]")
    figure.axes[0].set_ylim(top=3.2)
    figure.axes[0].annotate("AdamW's last", (5, ends), va="bottom", fontsize=8, color="0.3")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(METHODS))
    ratio = {name: np.mean(saved(found, name, "steps")) for name in ("soap", "shampoo")}
    ahead = max(ratio, key=lambda name: ratio[name])
    figure.suptitle(
        f"{ahead} comes to AdamW's last loss in 1/{ratio[ahead]:.2f} of its steps",
        x=0.01, ha="left", fontsize=10,
    )  # fmt: skip
    return figure
