"""The Hessian of a trained classifier has about as many outliers as there are classes.

A network with one hidden layer of 32 learns the first 2, 3, 5 and all 10 classes of the digits from
pixels between 0 and 1, and all of them again with each pixel standardized. The outliers are counted
by the widest gap, as a ratio, among the 20 largest eigenvalues: those before it are outliers. The
bulk is everything else, nearly all of it near zero. The plain pixels were added after a first look
at the standardized ones, of which none stood apart.
"""

import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import BLUE, GRAY, GREEN, PINK, RED
from gradkit.runner.compare import open_all

REFERENCE = (
    "about as many outliers as classes, the bulk near zero (Sagun et al. 2018, Ghorbani et al. "
    "2019, Papyan 2019)"
)
MINUTES = 2.7
CLASSES = (2, 3, 5, 10)
LOOKS = {2: (BLUE, "o"), 3: (GREEN, "s"), 5: (PINK, "^"), 10: (RED, "D")}
KINDS = {"plain": "plain pixels", "standardized": "standardized pixels"}
TITLE = (
    "Outliers stand out from the bulk, one less than there are classes, if pixels stay as they are"
)
NEAR_ZERO = 0.05  # of the largest eigenvalue


def commands(out):
    """The command lines, one after the other."""
    sources = ",".join(f"{{name: digits, classes: {count}}}" for count in CLASSES)
    sweep = "gradkit sweep configs/outliers.yaml"
    yield f'{sweep} "data.source={sources}" seed=0:3 --out {out}/plain'
    yield f"{sweep} data.preprocess=standardize seed=0:3 --out {out}/standardized"
    yield f"gradkit spectrum {out}/plain {out}/standardized"


def groups(out, kind):
    """The spectra by the number of classes."""
    found = {count: [] for count in (CLASSES if kind == "plain" else CLASSES[-1:])}
    for run in open_all([f"{out}/{kind}"]):
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


def counts(out, kind):
    """The number of outliers in each run, by the number of classes."""
    found = groups(out, kind)
    return {classes: [outliers(one) for one in several] for classes, several in found.items()}


def judge(out):
    """Whether the number of outliers follows the number of classes, to within one."""
    found = {kind: counts(out, kind) for kind in KINDS}
    within = {
        kind: [abs(n - classes) <= 1 for classes, several in each.items() for n in several]
        for kind, each in found.items()
    }
    near = np.mean([bulk(one) for k in KINDS for some in groups(out, k).values() for one in some])
    texts = [
        f"outliers of {words}: "
        + ", ".join(f"{_list(several)} of {c} classes" for c, several in found[kind].items())
        for kind, words in KINDS.items()
    ]
    parts = [f"{sum(within[kind])} of {len(within[kind])} with {KINDS[kind]}" for kind in KINDS]
    exact = sum(n == c - 1 for c, several in found["plain"].items() for n in several)
    return (
        "; ".join(texts)
        + f"; {near:.1%} of all eigenvalues within {NEAR_ZERO:.0%} of the largest from zero",
        all(all(several) for several in within.values()) and near > 0.9,
        "Three seeds each. The count is within one of the number of classes in "
        f"{' and '.join(parts)}; agreement asks for all, and for nine tenths of all eigenvalues to "
        f"be near zero. With plain pixels it is one less than the number of classes in {exact} "
        "runs: adding one number to all scores changes no probability, so that cross-entropy has a "
        "direction fewer than there are scores. Where the outliers differ much among themselves, "
        "the widest gap is between two of them, and the count too low: the plot shows it. "
        "With each pixel standardized, which makes much of those that hardly vary, the large "
        "eigenvalues fall off without a gap.",
    )


def _list(several):
    return "/".join(map(str, several))


def draw(out):
    """The largest eigenvalues by rank, and the count against the number of classes."""
    figure = Figure(figsize=(10.5, 4), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1.25, 1.25, 1))
    for place, (kind, words) in enumerate(KINDS.items()):
        ranks = axes[place]
        for classes, spectra in groups(out, kind).items():
            color, marker = LOOKS[classes]
            for seed, spectrum in enumerate(spectra):
                values, n = largest(spectrum), outliers(spectrum)
                label = f"{classes} classes" if seed == 0 else None
                rank, relative = np.arange(1, len(values) + 1), values / values[0]
                hollow = {"markersize": 4, "fillstyle": "none", "color": color}
                ranks.plot(rank, relative, color=color, linewidth=0.7, alpha=0.6)
                ranks.plot(rank[:n], relative[:n], marker, color=color, markersize=5, label=label)
                ranks.plot(rank[n:], relative[n:], marker, **hollow)
                more = {} if kind == "plain" else hollow
                look = {"color": color, "markersize": 6} | more
                axes[2].plot(classes + 0.25 * (seed - 1), n, marker, **look)
        ranks.set_yscale("log")
        ranks.set_title(words)
        ranks.set_xlabel("rank (filled: before the widest gap)")
        ranks.set_xticks(range(0, 21, 5))
    axes[0].set_ylabel("eigenvalue / the largest one")
    axes[0].legend(loc="upper right")
    axes[1].sharey(axes[0])
    last = axes[2]
    last.axline((0, 0), slope=1, color=GRAY, linewidth=1, zorder=0)
    last.text(7.3, 8.2, "one a class", ha="right", fontsize=9)
    last.set_title("outliers (hollow: standardized)")
    last.set_xlabel("classes")
    last.set_ylabel("outliers")
    last.set_xticks(CLASSES)
    last.set_yticks(range(0, 12, 2))
    last.set_xlim(0, 11)
    last.set_ylim(0, 11)
    figure.suptitle(TITLE, x=0.01, ha="left", fontsize=12)
    return figure
