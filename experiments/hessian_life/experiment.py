"""While a network learns, its Hessian loses its negative side and comes to hold the gradient.

A 64-24-24-10 network learns the digits by ten optimizers, with batches of 32 and with all 1,408
examples at once, and by some of them with batch normalization. The spectrum on all examples is
taken at the start and four times on the way. Five things are known of it: the sharpness λ_max of
full-batch gradient descent rises toward 2/η, which small batches keep away from; as many top
eigenvectors as there are classes hold most of the gradient; batch normalization lowers λ_max; and
negative eigenvalues shrink.
"""

import dataclasses

import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import GRAY, optimizer_looks
from gradkit.report.quantities import number
from gradkit.report.ridges import draw_ridges
from gradkit.report.svg import INK
from gradkit.runner.compare import open_all

REFERENCE = (
    "on the full batch λ_max rises to 2/η (Cohen et al. 2021), with small batches less "
    "(Jastrzębski et al. 2017); the top eigenvectors, as many as classes, hold most of the "
    "gradient (Gur-Ari et al. 2018); batch normalization lowers λ_max (Ghorbani et al. 2019); "
    "negative eigenvalues shrink (Sagun et al. 2018)"
)
MINUTES = 5

# Of each kind what a config says of it; a method joins the others by a line here.
FIRST_ORDER = {
    "sgd": "{name: sgd, learning_rate: 0.2}",
    "momentum": "{name: sgd, learning_rate: 0.05, momentum: 0.9}",
    "nesterov": "{name: nesterov, learning_rate: 0.05}",
    "adagrad": "{name: adagrad, learning_rate: 0.03}",
    "rmsprop": "{name: rmsprop, learning_rate: 2e-3}",
    "adam": "{name: adam, learning_rate: 3e-3}",
    "adamw": "{name: adamw, learning_rate: 3e-3, weight_decay: 0.01}",
}
SECOND_ORDER = {  # on the full batch
    "newton_cg": "newton_cg",
    "lbfgs": "lbfgs",
    "hessian_free": "{name: hessian_free, max_steps: 30}",
}
NORMALIZED = ("sgd", "adam")
CONFIG = "configs/hessian_life.yaml"
BATCHES = {"small": "with small batches", "full": "on the full batch"}
STEPS = {"small": "epochs=10", "full": "batch_size=1408 epochs=440"}
FEW = "batch_size=1408 epochs=40 log_every=1 evaluate_every=10 checkpoint_every=10"
PLACES = ("small", "full", "second", "small_norm", "full_norm")


def commands(out):
    """The command lines, one after the other."""
    every, some = ",".join(FIRST_ORDER.values()), ",".join(FIRST_ORDER[n] for n in NORMALIZED)
    for batch, words in STEPS.items():
        yield f'gradkit sweep {CONFIG} "optimizer={every}" {words} --out {out}/{batch}'
    second = ",".join(SECOND_ORDER.values())
    yield f'gradkit sweep {CONFIG} "optimizer={second}" {FEW} --out {out}/second'
    for batch, words in STEPS.items():
        yield (
            f'gradkit sweep {CONFIG} "optimizer={some}" task.batch_norm=true {words} '
            f"--out {out}/{batch}_norm"
        )
    yield f"gradkit spectrum {' '.join(f'{out}/{place}' for place in PLACES)} --checkpoint all"


def lives(out):
    """The spectra of each run from its start on, by the place it is in and its method."""
    found = {}
    for place in PLACES:
        for run in open_all([f"{out}/{place}"]):
            found[place, method(run.config_text)] = run.spectra
    return found


def method(text):
    """The method of a config, by its name here."""
    known = [*FIRST_ORDER, *SECOND_ORDER]
    name = next(name for name in reversed(known) if f"name: {name}\n" in text)
    return "momentum" if name == "sgd" and "momentum: 0.9" in text else name


def sharpness(spectrum):
    """The largest eigenvalue."""
    return spectrum.values["largest"]["values"][0]


def threshold(spectrum):
    """The largest eigenvalue that the step size can bear; None where none is known."""
    return (spectrum.values.get("stability") or {}).get("threshold")


def negative(spectrum):
    """The smallest eigenvalue as a share of the largest, its sign turned."""
    return max(-spectrum.values["smallest"]["values"][0], 0) / sharpness(spectrum)


def mass_below_zero(spectrum):
    """The share of eigenvalues clearly below zero: by more than a thousandth of the largest."""
    nodes, weights = spectrum.arrays["nodes"], spectrum.arrays["weights"]
    return float(np.sum(weights * (nodes < -1e-3 * sharpness(spectrum))) / len(nodes))


def share(spectrum):
    """Of the squared gradient, what the 10 largest eigenvectors hold."""
    shares = spectrum.values["largest"]["gradient"]
    return np.nan if None in shares else sum(shares)


def condition(spectrum):
    """A lower bound for the condition number."""
    return spectrum.values["condition"]["lower"]


def facts(out):
    """What is known, each with what was found and whether it is so."""
    life = lives(out)
    plain = {key: spectra for key, spectra in life.items() if not key[0].endswith("norm")}
    full = {n: life["full", n] for n in ("sgd", "momentum", "nesterov")}
    reached = {n: sharpness(spectra[-1]) / threshold(spectra[-1]) for n, spectra in full.items()}
    flatter = [sharpness(life["small", n][-1]) / sharpness(life["full", n][-1]) for n in full]
    held = {
        batch: [share(one) for name in FIRST_ORDER for one in life[batch, name][1:]]
        for batch in STEPS
    }
    lower = [
        sharpness(life[f"{batch}_norm", n][i]) / sharpness(life[batch, n][i])
        for batch in STEPS
        for n in NORMALIZED
        for i in range(len(life[batch, n]))
    ]
    fewer = [mass_below_zero(s[-1]) / mass_below_zero(s[0]) for s in plain.values()]
    smaller = [negative(s[-1]) / negative(s[0]) for s in plain.values()]
    return {
        "edge": (
            "λ_max over the limit of stability at the end, on the full batch: "
            + ", ".join(f"{name} {number(value, 2)}" for name, value in reached.items()),
            all(0.9 < value < 1.1 for value in reached.values()),
        ),
        "batch": (
            f"λ_max of small over full batch {min(flatter):.2f} to {max(flatter):.2f}",
            max(flatter) < 1,
        ),
        "gradient": (
            "share of the gradient in the top 10 directions "
            + ", ".join(f"{words} {np.median(held[b]):.1%}" for b, words in BATCHES.items())
            + " (medians)",
            min(np.median(several) for several in held.values()) > 0.5,
        ),
        "normalization": (
            f"λ_max with over without batch normalization {number(np.median(lower), 2)} (median)",
            np.median(lower) < 1,
        ),
        "negative": (
            f"from start to end −λ_min/λ_max times {number(np.median(smaller), 2)}, the share of "
            f"negative eigenvalues times {number(np.median(fewer), 2)} (medians)",
            np.median(smaller) < 1 and np.median(fewer) < 1,
        ),
    }


WHY = {
    "edge": "λ_max does not come to the limit of stability in these 440 steps: with cross-entropy "
    "it falls while the examples are learned (it rises with squared error: see edge_of_stability)",
    "batch": "small batches do not end flatter with each of the three descents (at the same loss "
    "they do: see batch_size_sharpness)",
    "gradient": "the top directions hold less than half of the gradient, and on the full batch, "
    "where descent is done first with the sharpest directions, next to nothing",
    "normalization": "λ_max is not lower with batch normalization, neither at the start nor later",
    "negative": "negative eigenvalues do not become both fewer and smaller",
}


def judge(out):
    """Whether all that is known is so."""
    found = facts(out)
    wrong = [WHY[name] for name, (_, holds) in found.items() if not holds]
    holds = sum(holds for _, holds in found.values())
    return (
        "; ".join(words for words, _ in found.values()),
        not wrong,
        f"{holds} of 5 statements hold; one seed. "
        + (f"Not so: {'; '.join(wrong)}. " if wrong else "")
        + "The edge asks for 0.9 to 1.1 of the limit 2/η, or what momentum makes of it, at the end "
        "of each of the three full-batch descents; the batch for a smaller λ_max in each of them. "
        "Shares of the gradient are those of the first-order methods without normalization, after "
        "the start, on all examples; negative means below −λ_max/1000, a share that four "
        "probes tell to a tenth or so. A Hessian that "
        "rounding does not resolve any more, its loss being nearly zero, has no spectrum here: so "
        "the second-order methods are seen on their first steps alone.",
    )


def draw(out):
    """The density over one training, and five figures of all."""
    life = lives(out)
    looks = optimizer_looks([*FIRST_ORDER, *SECOND_ORDER])
    figure = Figure(figsize=(12, 7.2), layout="constrained")
    axes = figure.subplots(2, 3)
    ridge = axes[0, 0]
    rows = life["full", "adam"]
    draw_ridges(ridge, rows)
    ridge.set_yticks(range(len(rows)), [f"step {one.step}" for one in rows])
    ridge.set_title("density, Adam on the full batch")

    panels = {
        (0, 1): ("λ_max [loss/param²]", sharpness, "log"),
        (0, 2): ("share of the gradient\nin the top 10 directions", share, "linear"),
        (1, 0): ("−λ_min / λ_max", negative, "log"),
        (1, 1): ("condition number, at least", condition, "log"),
    }
    for place, (label, value, scale) in panels.items():
        one = axes[place]
        for (where, name), spectra in life.items():
            if not where.endswith("norm"):
                _way(one, spectra, value, looks[name], where)
        one.set_yscale(scale)
        one.set_ylabel(label)
        _progress(one)
    axes[0, 2].set_ylim(0, 1.02)
    axes[0, 1].set_title("sharpness (dotted: limit for GD, 2/η)")
    limit = threshold(life["full", "sgd"][-1])
    axes[0, 1].axhline(limit, color=looks["sgd"].color, linewidth=1.2, linestyle=":")
    axes[0, 2].set_title("gradient in the sharp directions")
    axes[1, 0].set_title("negative curvature shrinks")
    axes[1, 1].set_title("conditioning")

    one = axes[1, 2]
    for batch in STEPS:
        for name in NORMALIZED:
            _way(one, life[batch, name], sharpness, looks[name], batch)
            _way(one, life[f"{batch}_norm", name], sharpness, looks[name], batch, hollow=True)
    one.set_yscale("log")
    one.set_ylabel("λ_max [loss/param²]")
    one.set_title("with batch normalization (hollow)")
    _progress(one)

    lines = [
        one.plot([], [], label=name, **looks[name].points)[0]
        for name in (*FIRST_ORDER, *SECOND_ORDER)
    ]
    lines += [
        one.plot([], [], color=INK, linestyle=style, label=words)[0]
        for style, words in (("-", "full batch"), (DOTS, "batches of 32"))
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=11)
    figure.suptitle(
        "The life of a Hessian: it flattens, and most on its negative side",
        x=0.01,
        ha="left",
        fontsize=13,
    )
    return figure


DOTS = (0, (1.5, 1.5))


def _way(axes, spectra, value, look, where, *, hollow=False):
    """A figure along a training, from its start to its end."""
    way = [value(one) for one in spectra]
    style = dataclasses.replace(look, hollow=hollow).points
    dashes = DOTS if where.startswith("small") else "-"
    most = max(one.step for one in spectra)
    places = [one.step / most for one in spectra]
    axes.plot(places, way, **style, linestyle=dashes, linewidth=1.1, markersize=4)


def _progress(axes):
    axes.set_xticks((0, 0.5, 1), ("start", "half", "end"))
    axes.set_xlabel("training")
    axes.axvline(0, color=GRAY, linewidth=0.5)
