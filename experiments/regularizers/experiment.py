"""Dropout with max-norm regularizes a digit classifier best, L2 least.

A 64-256-256-10 network learns 200 of scikit-learn's digits, few enough for a regularizer to matter,
by gradient descent with momentum; 899 others test it. Penalties and bounds are on the weights of
the layers; half of the hidden units are dropped. Each regularizer has three strengths to choose
from, chosen on validation error with two seeds; the test errors are of five other seeds.
"""

import itertools

import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import BLUE, GRAY
from gradkit.runner.compare import open_all
from gradkit.runner.config import load
from gradkit.runner.rows import Mean

REFERENCE = (
    "on MNIST L2 1.62 %, L2 + L1 1.60 %, max-norm 1.35 %, dropout + L2 1.25 %, dropout + max-norm "
    "1.05 % (Srivastava et al. 2014, table 9)"
)
MINUTES = 2.7
PUBLISHED = {
    "L2": 1.62,
    "L2 + L1": 1.60,
    "max-norm": 1.35,
    "dropout + L2": 1.25,
    "dropout + max-norm": 1.05,
}
NONE = "none"
PENALTIES, BOUNDS = (1e-3, 1e-2, 1e-1), (1.0, 2.0, 3.0)
STRENGTHS = {name: BOUNDS if "max-norm" in name else PENALTIES for name in PUBLISHED}
SEEDS = 5


def settings(name, *strengths):
    """What a regularizer changes in the config, as words of a command."""
    words = ["model.dropout=0.5"] if "dropout" in name else []
    if "L1" in name:
        (strength,) = strengths  # tied: a sweep has every pair
        words.append(f"optimizer.1.l1={strength / 10:g}")
    if name == NONE:
        return words
    key = "optimizer.2.max_norm" if "max-norm" in name else "optimizer.1.l2"
    return [*words, f"{key}={','.join(str(strength) for strength in strengths)}"]


def folder(out, name, *rest):
    """Where the runs of a regularizer are."""
    return out / "_".join([name.replace(" + ", "_"), *map(str, rest)])


def commands(out):
    """The command lines, one after the other."""
    for name in PUBLISHED:
        groups = [[one] for one in STRENGTHS[name]] if "L1" in name else [STRENGTHS[name]]
        for group in groups:
            place = folder(out, name, "tuned", *(group if "L1" in name else ()))
            yield command(settings(name, *group), "100:102", place)
    yield command([], f"0:{SEEDS}", folder(out, NONE))
    for name in PUBLISHED:
        yield command(settings(name, best(out, name)), f"0:{SEEDS}", folder(out, name))


def command(words, seeds, place):
    """One sweep over seeds."""
    line = ["gradkit sweep configs/regularizers.yaml", *words, f"seed={seeds} --out {place}"]
    return " ".join(line)


def errors(runs, part):
    """The errors of some runs [%]."""
    return 100 * (1 - np.array([run.summary[f"{part}_accuracy"] for run in runs]))


def best(out, name):
    """The strength of the lowest validation error, the first of equal ones."""
    runs = open_all([str(path) for path in sorted(out.glob(f"{folder(out, name, 'tuned').name}*"))])
    found = {strength: [] for strength in STRENGTHS[name]}
    for run in runs:
        _, penalty, bound = (
            member.arguments for member in load(run.path / "config.yaml").optimizer
        )
        found[bound["max_norm"] if "max-norm" in name else penalty["l2"]].append(run)
    means = {strength: errors(runs, "validation").mean() for strength, runs in found.items()}
    return min(means, key=means.get)


def tested(out, name):
    """The test errors of the seeds [%]."""
    return errors(open_all([str(folder(out, name))]), "test")


def compared(out):
    """Mean and standard error of the test error of each [%], and the pairs out of order."""
    means = {}
    for name in (NONE, *PUBLISHED):
        mean = Mean.of(tested(out, name))
        means[name] = mean.value, mean.stderr
    pairs = {}
    for worse, better in itertools.combinations(PUBLISHED, 2):
        (a, ea), (b, eb) = means[worse], means[better]
        pairs[worse, better] = (a - b) / np.hypot(ea, eb)
    return means, pairs


def judge(out):
    """The published order holds if its ends are apart in it and no pair is so against it."""
    means, pairs = compared(out)
    against = [f"{b} above {a}" for (a, b), z in pairs.items() if z < -2]
    settled = sum(z > 2 for z in pairs.values())
    first, *_, last = PUBLISHED
    listed = ", ".join(f"{name} {m:.2f} ± {e:.2f} %" for name, (m, e) in means.items())
    strengths = ", ".join(f"{name} {best(out, name):g}" for name in PUBLISHED)
    lowest = min(means, key=lambda name: means[name][0])
    words = (
        f"Of the 10 pairs {settled} are in the published order by more than two standard errors, "
        f"{len(against)} against it{': ' if against else ''}{', '.join(against)}; the others are "
        f"not told apart. The lowest mean is that of {lowest}. A likely reason is the size: 200 "
        "examples of 8 × 8 pixels, where MNIST has 60,000 of 28 × 28, and five seeds. "
        f"Strengths: {strengths} (λ₂, with λ₁ = λ₂/10, or c). The standard errors "
        "are over seeds, of one training and one test set: another draw of the 899 test digits "
        f"would move a single error by some {100 * np.sqrt(0.06 * 0.94 / 899):.1f} %, all of them "
        "alike for the most part."
    )
    return listed, pairs[first, last] > 2 and not against, words


def draw(out):
    """Published and measured errors in the published order."""
    means, _ = compared(out)
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    there, here = figure.subplots(1, 2, sharey=True)
    names = [NONE, *PUBLISHED]
    for place, name in enumerate(names):
        if name in PUBLISHED:
            there.plot(PUBLISHED[name], place, "o", color=GRAY)
        mean, error = means[name]
        seen = tested(out, name)
        here.plot(seen, [place + 0.2] * len(seen), "|", color=BLUE, alpha=0.6)
        here.errorbar(mean, place, xerr=error, fmt="o", color=BLUE, capsize=3)
    there.set_yticks(range(len(names)), names)
    there.set_xlim(0.9, 1.8)
    there.invert_yaxis()
    there.set_title("published, MNIST", fontsize=9)
    here.set_title("measured, 200 digits", fontsize=9)
    there.set_xlabel("test error [%]")
    here.set_xlabel("test error, mean ± standard error over five seeds [%]")
    figure.suptitle(
        "On 200 digits seeds differ by as much as regularizers do", x=0.01, ha="left", fontsize=11
    )
    return figure
