"""The Hessian of a trained classifier has about as many outliers as there are classes.

A network with one hidden layer of 32 learns the first 2, 3, 5 and all 10 classes of the digits. The
outliers are counted by the widest gap, as a ratio, among the 20 largest eigenvalues: those before
it are outliers. The bulk is everything else, nearly all of it near zero.
"""

import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import BLUE, GRAY, GREEN, PINK, RED
from gradkit.runner.compare import open_all

REFERENCE = (
    "about as many outliers as classes, the bulk near zero (Sagun et al. 2018, Ghorbani et al. "
    "2019, Papyan 2019)"
)
MINUTES = 1.5
CLASSES = (2, 3, 5, 10)
LOOKS = {2: (BLUE, "o"), 3: (GREEN, "s"), 5: (PINK, "^"), 10: (RED, "D")}
NEAR_ZERO = 0.05  # of the largest eigenvalue


def commands(out):
    """The command lines, one after the other."""
    sources = ",".join(f"{{name: digits, classes: {count}}}" for count in CLASSES)
    yield f'gradkit sweep configs/outliers.yaml "data.source={sources}" seed=0:3 --out {out}'
    yield f"gradkit spectrum {out}"


def groups(out):
    """The spectra by the number of classes."""
    found = {count: [] for count in CLASSES}
    for run in open_all([str(out)]):
        found[run.env["data"]["classes"]].append(run.main)
    return found


def largest(spectrum):
    """The 20 largest eigenvalues, from the largest on."""
    return np.array(spectrum.values["largest"]["values"])


def outliers(spectrum):
    """How many eigenvalues are before the widest gap."""
    values = largest(spectrum)
    return int(np.argmax(values[:-1] / values[1:])) + 1


def bulk(spectrum):
    """The share of all eigenvalues that are small beside the largest."""
    nodes, weights = spectrum.arrays["nodes"], spectrum.arrays["weights"]
    small = np.abs(nodes) < NEAR_ZERO * largest(spectrum)[0]
    return np.sum(weights * small) / len(nodes)


def judge(out):
    """Whether the number of outliers follows the number of classes, to within one."""
    found = groups(out)
    counts = {classes: [outliers(one) for one in several] for classes, several in found.items()}
    near = np.mean([bulk(one) for several in found.values() for one in several])
    away = [abs(n - classes) for classes, several in counts.items() for n in several]
    words = {c: " ".join(map(str, sorted(several))) for c, several in counts.items()}
    exact = sum(n == c - 1 for c, several in counts.items() for n in several)
    return (
        "; ".join(f"{c} classes: {w}" for c, w in words.items()) + f" outliers; {near:.1%} of all "
        f"eigenvalues within {NEAR_ZERO:.0%} of the largest from zero",
        max(away) <= 1 and near > 0.9,
        f"Three seeds each. The count is one less than the number of classes in {exact} of "
        f"{len(away)} runs: adding one number to all scores changes no probability, so that "
        "cross-entropy has a direction fewer than there are scores. Agreement asks for every count "
        "to be within one of the number of classes, and for nine tenths of all eigenvalues to be "
        "near zero.",
    )


def draw(out):
    """The largest eigenvalues by rank, and the count against the number of classes."""
    figure = Figure(figsize=(8.4, 4), layout="constrained")
    ranks, counts = figure.subplots(1, 2, width_ratios=(1.6, 1))
    for classes, spectra in groups(out).items():
        color, marker = LOOKS[classes]
        for seed, spectrum in enumerate(spectra):
            values = largest(spectrum)
            n = outliers(spectrum)
            label = f"{classes} classes" if seed == 0 else None
            rank = np.arange(1, len(values) + 1)
            relative = values / values[0]
            ranks.plot(rank, relative, color=color, linewidth=0.7, alpha=0.6)
            ranks.plot(rank[:n], relative[:n], marker, color=color, markersize=5.5, label=label)
            ranks.plot(rank[n:], relative[n:], marker, color=color, markersize=4, fillstyle="none")
            counts.plot(classes + 0.25 * (seed - 1), n, marker, color=color, markersize=6)
    counts.axline((0, 0), slope=1, color=GRAY, linewidth=1, zorder=0)
    counts.text(6.6, 7.4, "one a class", ha="right", fontsize=9)
    counts.set_xlabel("classes")
    counts.set_ylabel("outliers")
    counts.set_xticks(CLASSES)
    counts.set_yticks(range(0, 12, 2))
    counts.set_xlim(0, 11)
    counts.set_ylim(0, 11)
    ranks.set_yscale("log")
    ranks.set_xlabel("rank (filled: before the widest gap)")
    ranks.set_ylabel("eigenvalue / the largest one")
    ranks.set_xticks(range(0, 21, 5))
    ranks.legend(loc="upper right")
    figure.suptitle(
        "A trained classifier's loss is sharp in about as many directions as there are classes",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    return figure
