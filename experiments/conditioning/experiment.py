"""Centered and scaled inputs make gradient descent as many times faster as they lower κ.

Linear regression on 13 measurements of 142 wines, with an intercept. κ is the largest over the
smallest eigenvalue of the Hessian, XᵀX/m with a column of ones in X; gradient descent goes at its
best rate, 2/(λ_max + λ_min), until a thousandth of the excess loss is left. Of a network, whose
smallest eigenvalues are zero, the measure is the largest over the mean eigenvalue of the
Gauss–Newton matrix of the loss that training sees, of which κ can only be a multiple.
"""

import functools

import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import AMBER, BLUE, GREEN, RED
from gradkit.runner.compare import open_all
from gradkit.runner.data.loading import load
from gradkit.runner.record import open_record
from gradkit.runner.rows import Mean
from gradkit.runner.schema import Data

REFERENCE = (
    "κ and steps fall from raw to standardized to whitened, where κ = 1; batch norm lowers κ of a "
    "network (LeCun et al. 1998; Ioffe and Szegedy 2015)"
)
MINUTES = 1.6
CONFIG = "configs/conditioning.yaml"
LOOKS = {
    "null": ("as they are", RED),
    "min_max": ("in [0, 1]", AMBER),
    "standardize": ("standardized", BLUE),
    "whiten": ("whitened", GREEN),
}
STEPS = {"null": 3000, "min_max": 3000, "standardize": 300, "whiten": 5}
LEFT = 1e-3  # of the excess of the loss at 0, where a run has arrived
SEEDS = 3


def commands(out):
    """The command lines: first the curvature, then the rate that follows from it."""
    yield f"gradkit sweep {CONFIG} data.preprocess={','.join(LOOKS)} --out {out}/curvature"
    yield f"gradkit spectrum {out}/curvature --no-density"
    for kind, steps in STEPS.items():
        found = open_record(f"{out}/curvature/preprocess={kind}").spectrum
        rate = 2 / (found["largest"]["values"][0] + max(0, found["smallest"]["values"][0]))
        yield (
            f"gradkit run {CONFIG} data.preprocess={kind} epochs={steps} "
            f"optimizer.learning_rate={rate:.8g} --out {out}/descent/{kind}"
        )
    yield (
        "gradkit sweep configs/conditioning_batch_norm.yaml model.batch_norm=false,true "
        f"seed=0:{SEEDS} --out {out}/networks"
    )
    yield f"gradkit spectrum {out}/networks --operator gauss_newton --data training"


class Regression:
    """The closed form of a linear regression, in float64.

    Attributes:
        values: eigenvalues of its Hessian, ascending.
        excess: loss above the least one at zero weights, by eigenvector.
        least: the least loss.
    """

    def __init__(self, kind):
        given = load(Data(source="wine", preprocess=None if kind == "null" else kind))
        X = np.c_[given.x_train.astype(float), np.ones(len(given.x_train))]
        y = np.eye(given.classes)[given.y_train]
        self.values, vectors = np.linalg.eigh(X.T @ X / len(X))
        best = np.linalg.lstsq(X, y, rcond=None)[0]
        self.excess = self.values * np.sum((vectors.T @ best) ** 2, axis=1) / 2
        self.least = np.sum((X @ best - y) ** 2) / len(X) / 2

    @property
    def condition(self):
        """The condition number."""
        return self.values[-1] / self.values[0]

    def left(self, steps):
        """Which share of the excess is left after so many steps at the best rate."""
        factors = 1 - 2 * self.values / (self.values[-1] + self.values[0])
        powers = np.abs(factors) ** (2 * np.asarray(steps, float)[..., None])
        return powers @ self.excess / self.excess.sum()

    def steps(self):
        """After how many steps `LEFT` is left."""
        low, high = 0, 1
        while self.left(high) > LEFT:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.left(middle) <= LEFT else (middle, high)
        return high


@functools.cache
def regression(kind):
    """The closed form for inputs of a kind."""
    return Regression(kind)


def left(out, kind):
    """Which share of the excess a run has left before its first step and after each."""
    exact = regression(kind)
    losses = [line["loss"] for line in open_record(f"{out}/descent/{kind}").metrics]
    return (np.array(losses) - exact.least) / exact.excess.sum()


def arrival(out, kind):
    """After how many steps a run has arrived; None if it has not."""
    there = np.flatnonzero(left(out, kind) <= LEFT)
    return int(there[0]) if len(there) else None


def condition(out, kind):
    """The condition number that a spectrum has, and whether it is resolved or a lower bound."""
    found = open_record(f"{out}/curvature/preprocess={kind}").spectrum
    (least,), (error,) = found["smallest"]["values"], found["smallest"]["residuals"]
    resolved = error < 0.01 * least
    return found["largest"]["values"][0] / (least + error * (not resolved)), resolved


def networks(out):
    """The largest over the mean eigenvalue of each network, by whether it has batch norm."""
    found = {False: [], True: []}
    for run in open_all([f"{out}/networks"]):
        seen = run.spectrum
        mean = seen["trace"]["value"] / seen["parameters"]
        found["batch_norm: true" in run.config_text].append(seen["largest"]["values"][0] / mean)
    return found


def judge(out):
    """Compares κ and steps with the closed form, and networks with and without batch norm."""
    seen, words, agrees = {}, [], True
    for kind, (label, _) in LOOKS.items():
        exact, steps, expected = regression(kind), arrival(out, kind), regression(kind).steps()
        seen[kind], resolved = condition(out, kind)
        sign, more = ("", "") if resolved else ("≥ ", f"more than {STEPS[kind]:,}")
        words.append(f"{label}: κ {sign}{seen[kind]:.3g}, steps {more or steps}")
        agrees &= seen[kind] < exact.condition * 1.01
        agrees &= not resolved or seen[kind] > exact.condition * 0.99
        if expected < STEPS[kind]:
            agrees &= steps is not None and abs(steps - expected) <= max(1, 0.02 * expected)
        else:
            agrees &= steps is None
    agrees &= all(a > b for a, b in zip([*seen.values()], [*seen.values()][1:], strict=False))
    logs = {normed: Mean.of(np.log(values)) for normed, values in networks(out).items()}
    gain = logs[False].value - logs[True].value
    error = np.hypot(logs[False].stderr, logs[True].stderr)
    agrees &= gain > 2 * error
    plain, normed = (Mean.of(values) for values in networks(out).values())
    return (
        "; ".join(words) + f"; a network's largest over its mean eigenvalue {plain.value:.0f} ± "
        f"{plain.stderr:.0f}, with batch norm {normed.value:.0f} ± {normed.stderr:.0f}",
        bool(agrees),
        "The closed form has κ "
        + ", ".join(f"{regression(kind).condition:.3g}" for kind in LOOKS)
        + " and the steps "
        + ", ".join(f"{regression(kind).steps():.3g}" for kind in LOOKS)
        + ": as they are, the inputs' smallest eigenvalue is below the rounding of float32 beside "
        f"the largest, so that the spectrum has a bound alone, and {STEPS['null']:,} steps do not "
        "show. Rescaling to [0, 1] takes the scales away, standardizing the means, and whitening "
        f"the correlations. Over {SEEDS} seeds batch norm divides the network's measure by "
        f"{np.exp(gain):.1f}.",
    )


def draw(out):
    """The descent on each kind of inputs beside the closed form, and the networks."""
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    descent, nets = figure.subplots(1, 2, width_ratios=(3, 1.1))
    for kind, (label, color) in LOOKS.items():
        exact, share = regression(kind), left(out, kind)
        steps = np.arange(len(share))
        power = np.floor(np.log10(exact.condition))
        kappa = f"{exact.condition:.0f}" if power < 4 else (
            rf"${exact.condition / 10**power:.1f} \cdot 10^{{{power:.0f}}}$"
        )  # fmt: skip
        share = np.maximum(share, 1e-30)  # rounding makes it negative
        descent.plot(steps + 1, share, color=color, linewidth=2.5, alpha=0.45)
        descent.plot(steps + 1, exact.left(steps), "--", color=color, linewidth=1)
        descent.plot([], [], color=color, linewidth=2.5, alpha=0.6, label=f"{label}: κ = {kappa}")
    descent.plot([], [], "--", color="black", linewidth=1, label="closed form")
    descent.axhline(LEFT, color="#999999", linewidth=0.8)
    descent.set_xscale("log")
    descent.set_yscale("log")
    descent.set_ylim(LEFT / 10, 3)
    descent.set_xlabel("1 + steps at the best rate")
    descent.set_ylabel("share of the excess loss that is left")
    descent.set_title("Linear regression on wine")
    figure.legend(loc="outside lower center", ncols=3)
    found = networks(out)
    for place, (normed, color) in enumerate(((False, RED), (True, BLUE))):
        nets.plot([place] * len(found[normed]), found[normed], "o", color=color, alpha=0.8)
    nets.set_xlim(-0.6, 1.6)
    nets.set_ylim(0, 1.1 * max(map(max, found.values())))
    nets.set_xticks([0, 1], ["without", "batch norm"])
    nets.set_ylabel("largest over mean eigenvalue")
    nets.set_title("A network, 3 seeds")
    figure.suptitle("Inputs alike and centered: the same loss in far fewer steps", x=0.01,
                    ha="left", fontsize=11)  # fmt: skip
    return figure
