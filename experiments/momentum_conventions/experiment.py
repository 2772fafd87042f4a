"""Momentum takes the square root of the condition number, in either convention.

A quadratic with eigenvalues 1, 10 and 100. Each method has the rate and the momentum that are best
for it: gradient descent η = 2/(λ_max + λ_min), Nesterov's method η = 1/λ_max and
μ = (√κ − 1)/(√κ + 1), the heavy ball η = ((√λ_max + √λ_min)/2)⁻² and the square of that μ.
The two conventions of momentum, v ← μv + g with θ ← θ − ηv (Polyak) and v ← μv − ηg with θ ← θ + v
(velocity), are compared at a constant rate and at one that falls tenfold on the way.
"""

import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import BLUE, RED, optimizer_looks
from gradkit.runner.compare import open_all

REFERENCE = (
    "rates (κ−1)/(κ+1) = 0.980, 1−1/√κ = 0.900, (√κ−1)/(√κ+1) = 0.818; conventions equal at a "
    "constant rate only"
)
MINUTES = 0.2
LOW, HIGH, DROP, FIRST = 1.0, 100.0, 30, 50
KAPPA = HIGH / LOW
ROOT = np.sqrt(KAPPA)
MU = (ROOT - 1) / (ROOT + 1)
FACTORS = {"sgd": (KAPPA - 1) / (KAPPA + 1), "nesterov": 1 - 1 / ROOT, "heavy_ball": MU}
WORDS = {"sgd": "gradient descent", "nesterov": "Nesterov", "heavy_ball": "heavy ball"}


def commands(out):
    """The command lines, one after the other."""
    plain, ball = 2 / (HIGH + LOW), 4 / (np.sqrt(HIGH) + np.sqrt(LOW)) ** 2
    yield (
        'gradkit sweep configs/momentum_conventions.yaml "optimizer='
        f"{{name: sgd, learning_rate: {plain:.8g}}},"
        f"{{name: nesterov, learning_rate: {1 / HIGH:.8g}, momentum: {MU:.8g}}},"
        f"[{{name: heavy_ball, decay: {MU**2:.8g}}}, "
        f'{{name: scale_by_learning_rate, learning_rate: {ball:.8g}}}]" --out {out}/methods'
    )
    for name, rate in (
        ("constant", "0.01"),
        ("scheduled", f"{{step_decay: {{peak: 0.01, at: [{DROP}], factor: 0.1}}}}"),
    ):
        yield (
            'gradkit sweep configs/momentum_conventions.yaml "optimizer='
            f"[{{name: heavy_ball, decay: 0.9}}, {{name: scale_by_learning_rate, "
            f'learning_rate: {rate}}}],[{{name: velocity, decay: 0.9, learning_rate: {rate}}}]" '
            f"--out {out}/{name}"
        )


def runs(folder, names):
    """Each run by its optimizer."""
    found = open_all([str(folder)])
    return {name: next(run for run in found if f"name: {name}" in run.config_text)
            for name in names}  # fmt: skip


def losses(run):
    """The steps, and the loss before each."""
    return tuple(np.array([line[key] for line in run.metrics]) for key in ("step", "loss"))


def places(run):
    """Where a run is before each step, shape (steps, 3)."""
    return np.array([[line[name] for name in "xyz"] for line in run.metrics])


def factor(name, run):
    """By what ‖θ‖ in the metric of the Hessian falls a step, fitted over the last steps.

    The best momentum makes two roots one, and the amplitude t times the power of it.
    """
    t, loss = (values[FIRST:] for values in losses(run))
    height = np.log(loss) / 2 - (0 if name == "sgd" else np.log(t))
    return np.exp(np.polyfit(t, height, 1)[0])


def apart(out, kind):
    """How far the two conventions are from each other, over how far they have gone, at most."""
    one, other = map(places, runs(out / kind, ("heavy_ball", "velocity")).values())
    return np.max(np.linalg.norm(one - other, axis=1)) / np.linalg.norm(one[0])


def judge(out):
    """Compares slopes with formulas, and one convention with the other."""
    found = {name: factor(name, run) for name, run in runs(out / "methods", FACTORS).items()}
    off = max(abs(np.log(found[name]) / np.log(rate) - 1) for name, rate in FACTORS.items())
    constant, scheduled = apart(out, "constant"), apart(out, "scheduled")
    return (
        ", ".join(f"{WORDS[name]} {value:.3f}" for name, value in found.items())
        + f"; conventions apart by {constant:.0e} of the first distance at a constant rate, by "
        f"{scheduled:.2f} after a drop",
        off < 0.03 and constant < 1e-4 and scheduled > 0.01,
        f"The logarithms of the factors are those of the formulas to {off:.1%}. In the momentum "
        "methods two roots are one, so that the distance falls as t times the power; the t is "
        f"divided out. After the rate falls tenfold at step {DROP}, Polyak's momentum goes on with "
        "a tenth of its speed at once, since the rate multiplies all that it remembers; the "
        "velocity keeps its speed and forgets it over some 1/(1−μ) = 10 steps.",
    )


def draw(out):
    """The distances with their formulas, and the conventions at both kinds of rate."""
    figure = Figure(figsize=(8.4, 3.5), layout="constrained")
    pace, parting = figure.subplots(1, 2)
    looks = optimizer_looks(list(FACTORS))
    for name, run in runs(out / "methods", FACTORS).items():
        t, loss = losses(run)
        distance = np.sqrt(loss / loss[0])
        look = looks[name]
        pace.plot(
            t, distance, look.marker, color=look.color, markersize=3, markevery=5,
            label=f"{WORDS[name]}, law {FACTORS[name]:.3f}ᵗ{'' if name == 'sgd' else ' · t'}",
        )  # fmt: skip
        law = FACTORS[name] ** t * (1 if name == "sgd" else t)
        pace.plot(t, law * distance[-1] / law[-1], color=look.color, linewidth=0.8)
    pace.set_yscale("log")
    pace.set_xlabel("step")
    pace.set_ylabel("√(loss over the first one)")
    pace.set_title("Momentum: √κ in place of κ = 100")
    pace.legend()
    for name, color, marker, words in (
        ("heavy_ball", BLUE, "o", "Polyak"),
        ("velocity", RED, "^", "velocity"),
    ):
        run = runs(out / "scheduled", (name,))[name]
        t, loss = losses(run)
        parting.plot(t[:90], np.sqrt(loss / loss[0])[:90], color=color, marker=marker,
                     markersize=3, markevery=3, label=f"{words}, rate falls")  # fmt: skip
    run = runs(out / "constant", ("velocity",))["velocity"]
    t, loss = losses(run)
    parting.plot(t[:90], np.sqrt(loss / loss[0])[:90], color="#999999", linewidth=0.9,
                 label="both, constant rate")  # fmt: skip
    parting.axvline(DROP, color="#999999", linewidth=0.8, linestyle="--")
    parting.set_yscale("log")
    parting.set_xlabel("step")
    parting.set_ylabel("√(loss over the first one)")
    parting.set_title(f"The conventions part as the rate falls at {DROP}")
    parting.legend()
    return figure
