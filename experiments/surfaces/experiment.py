"""Momentum runs along a ravine, adaptive rates cross a plateau, and clipping survives a cliff.

Four surfaces of two parameters, each with a rate for gradient descent, momentum 0.9 and Nesterov's,
and one for the three that divide by the size of gradients, AdaGrad from a sum of 0. The cliff is
the error of a recurrent unit after fifty steps (Pascanu et al. 2013), from five starts with and
without the gradient clipped to a norm of 0.1.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import optimizer_looks
from gradkit.runner.compare import open_all
from gradkit.runner.config import load
from gradkit.runner.document import values_in
from gradkit.runner.record import CONFIG
from gradkit.runner.tasks import build

REFERENCE = (
    "momentum beats gradient descent in a ravine (Polyak 1964); adaptive rates cross a plateau "
    "where gradient descent stays; clipping survives a cliff (Pascanu et al. 2013)"
)
MINUTES = 0.5
FIRST_ORDER = {
    "sgd": "name: sgd, learning_rate: {rate}",
    "momentum": "name: sgd, learning_rate: {rate}, momentum: 0.9",
    "nesterov": "name: sgd, learning_rate: {rate}, momentum: 0.9, nesterov: true",
    "adagrad": "name: adagrad, learning_rate: {scaled}, initial_accumulator_value: 0.0",
    "rmsprop": "name: rmsprop, learning_rate: {scaled}",
    "adam": "name: adam, learning_rate: {scaled}",
    "newton": "name: newton",
}
RATES = {  # of gradient descent, and of methods that divide by the size of gradients
    "ravine": (0.02, 0.3),  # 1/L
    "plateau": (0.3, 0.1),
    "saddle": (0.03, 0.03),
}
STARTS = (4.8, 5.0, 5.2, 5.4, 5.6)  # on the gentle side of the cliff, with y = −2
CLIFF = {
    "sgd": "[{name: sgd, learning_rate: 1.0}]",
    "clipped": "[{name: clip_by_global_norm, max_norm: 0.1},{name: sgd, learning_rate: 1.0}]",
}
DONE = {"ravine": 1e-2, "plateau": 0.01, "saddle": -0.24, "cliff": 1e-3}  # loss of an arrival


def commands(out):
    """The command lines, one sweep for each surface."""
    for surface, (rate, scaled) in RATES.items():
        members = (text.format(rate=rate, scaled=scaled) for text in FIRST_ORDER.values())
        chosen = ",".join("{" + text + "}" for text in members)
        yield (
            f'gradkit sweep configs/surfaces.yaml task={surface} "optimizer={chosen}" '
            f"--out {out}/{surface}"
        )
    starts = ",".join(f"{{name: cliff, start: [{x}, -2.0]}}" for x in STARTS)
    yield (
        f'gradkit sweep configs/surfaces.yaml "task={starts}" '
        f'"optimizer={",".join(CLIFF.values())}" --out {out}/cliff'
    )


def runs(out, surface):
    """The runs on a surface, by their optimizer."""
    found = {name: [] for name in (CLIFF if surface == "cliff" else FIRST_ORDER)}
    for run in open_all([f"{out}/{surface}"]):
        members = values_in(run.path / CONFIG)["optimizer"]
        first, last = (members[0], members[-1]) if isinstance(members, list) else (members,) * 2
        kind = last["name"]
        if first["name"].startswith("clip"):
            kind = "clipped"
        elif "momentum" in last:
            kind = "nesterov" if last.get("nesterov") else "momentum"
        found[kind].append(run)
    return found


def column(run, name):
    """A figure at each step, the first at the start; NaN where it is none."""
    return np.array([line[name] for line in run.metrics], float)


def arrivals(out, surface):
    """After how many steps each run is as low as `DONE`, by its optimizer; infinity for never."""
    found = {}
    for name, several in runs(out, surface).items():
        found[name] = []
        for run in several:
            there = np.flatnonzero(column(run, "loss") <= DONE[surface])
            found[name].append(there[0] if len(there) else np.inf)
    return found


def judge(out):
    """Counts the steps of each optimizer on each surface, and the starts that survive the cliff."""
    steps = {surface: {k: v[0] for k, v in arrivals(out, surface).items()} for surface in RATES}
    ravine, plateau = steps["ravine"], steps["plateau"]
    adaptive = ("adagrad", "rmsprop", "adam")
    survived = {name: sum(np.isfinite(v)) for name, v in arrivals(out, "cliff").items()}
    agrees = (
        max(ravine["momentum"], ravine["nesterov"]) < ravine["sgd"]
        and all(plateau[name] < plateau["sgd"] for name in adaptive)
        and survived["clipped"] == len(STARTS) > survived["sgd"]
    )
    told = [
        f"{surface}: " + ", ".join(f"{name} {counted(k)}" for name, k in steps[surface].items())
        for surface in RATES
    ]
    return (
        f"steps, {'; '.join(told)}; of {len(STARTS)} starts at the cliff {survived['clipped']} "
        f"arrive clipped, {survived['sgd']} unclipped",
        bool(agrees),
        "Newton's method is at the bottom of the ravine in a step, since it is quadratic, is "
        "attracted by the saddle, and stays on the plateau: curvature is negative there, so that "
        "its direction leads up, and the line search refuses it. "
        "At the saddle RMSProp and Adam are first, and AdaGrad does not arrive: its growing sum "
        "holds it back. That every adaptive rate beats gradient descent there was asked at first, "
        "failed by it, and is no part of the claim. The rates were set where none diverges: at "
        "0.03 Nesterov's method does in the ravine. "
        "Unclipped, a step that meets the wall is as long as the wall is steep.",
    )


def counted(steps):
    """A number of steps in words."""
    return f"{steps:.0f}" if np.isfinite(steps) else "never"


VIEWS = {  # what is drawn of each surface: x, y, and levels of the loss
    "ravine": ((-3, 9), (-1.6, 1.6), np.geomspace(0.03, 100, 10)),
    "plateau": ((-1.8, 4.6), (-1.6, 4.2), np.linspace(0.05, 0.95, 7)),
    "saddle": ((-0.6, 1.2), (-0.5, 1.5), np.linspace(-0.24, 0.7, 12)),
    "cliff": ((2.6, 6.2), (-3.2, -0.4), np.geomspace(1e-3, 0.5, 9)),
}


def draw(out):
    """Paths over contours of each surface."""
    figure = Figure(figsize=(7.6, 7.2), layout="constrained")
    looks = optimizer_looks([*FIRST_ORDER])
    panels = figure.subplots(2, 2).flat
    for axes, (surface, (xs, ys, levels)) in zip(panels, VIEWS.items(), strict=True):
        found = runs(out, surface)
        contours(axes, next(iter(found.values()))[0], xs, ys, levels)
        for name, several in found.items():
            color = "black" if name == "clipped" else looks[name].color
            dashes = (0, (4, 1.5)) if name in ("newton", "clipped") else "-"
            for run in several:
                x, y = (np.clip(column(run, key), -100, 100) for key in "xy")
                axes.plot(x, y, ls=dashes, color=color, linewidth=1.3, alpha=0.85)
                axes.plot(x[-1], y[-1], looks.get(name, looks["sgd"]).marker, color=color,
                          markersize=5.5, zorder=4)  # fmt: skip
                axes.plot(x[0], y[0], "o", color="black", markerfacecolor="white", zorder=5)
        axes.set_xlim(*xs)
        axes.set_ylim(*ys)
        axes.grid(visible=False)
        axes.set_title(title(surface, arrivals(out, surface)), fontsize=9)
        axes.set_xlabel("x")
        axes.set_ylabel("y")
    for name in FIRST_ORDER:
        look = looks[name]
        line = (0, (4, 1.5)) if name == "newton" else "-"
        axes.plot([], [], ls=line, color=look.color, marker=look.marker, label=name)
    axes.plot([], [], ls=(0, (4, 1.5)), color="black", marker="s", label="sgd, clipped")
    axes.text(3.0, -2.9, "over the wall", fontsize=8)
    figure.legend(loc="outside lower center", ncols=4)
    figure.suptitle("Paths on four surfaces, lighter the lower the loss", x=0.01, ha="left",
                    fontsize=11)  # fmt: skip
    return figure


def title(surface, steps):
    """What a panel shows: steps to arrive."""
    if surface == "cliff":
        survived = {name: sum(np.isfinite(found)) for name, found in steps.items()}
        return (
            f"Cliff: of {len(STARTS)} starts {survived['clipped']} survive clipped, "
            f"{survived['sgd']} unclipped"
        )
    told = {
        "ravine": ("sgd", "momentum"),
        "plateau": ("sgd", "adam"),
        "saddle": ("sgd", "adam", "newton"),
    }
    words = ", ".join(f"{name} {counted(steps[name][0])}" for name in told[surface])
    return f"{surface.capitalize()}, steps: {words}"


def contours(axes, run, xs, ys, levels):
    """The loss of a run's task, in levels."""
    task = build(load(run.path / CONFIG))
    x, y = np.meshgrid(np.linspace(*xs, 200), np.linspace(*ys, 200))
    points = jnp.stack([x.ravel(), y.ravel()], axis=1).astype(jnp.float32)
    loss = jax.jit(jax.vmap(lambda p: task.problem.value(p, task.data.train)))(points)
    loss = np.reshape(loss, x.shape)
    axes.contourf(x, y, loss, levels, cmap="Greys", alpha=0.3, extend="both", rasterized=True)
    axes.contour(x, y, loss, levels, colors="#CCCCCC", linewidths=0.5, linestyles="-")
