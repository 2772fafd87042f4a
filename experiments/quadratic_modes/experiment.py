"""Each mode of a quadratic shrinks, swings or grows by its own curvature.

Under gradient descent with rate α the amplitude of an eigenvector with eigenvalue λ is (1 − αλ)ᵗ
times the first one: decay for αλ < 1, oscillation up to αλ = 2, divergence beyond.
"""

import numpy as np
from matplotlib.figure import Figure

from gradkit.report.palette import BLUE, GREEN, RED
from gradkit.runner.compare import open_all

REFERENCE = "amplitudes equal (1 − αλ)ᵗ"
MINUTES = 0.1
MODES = (0.5, 1.5, 2.1)
LOOKS = {0.5: (BLUE, "o", "decay"), 1.5: (GREEN, "s", "oscillation"), 2.1: (RED, "^", "divergence")}


def commands(out):
    """The command lines, one after the other."""
    yield (
        'gradkit sweep configs/quadratic_modes.yaml "task={name: quadratic, eigenvalues: [0.5]},'
        '{name: quadratic, eigenvalues: [1.5]},{name: quadratic, eigenvalues: [2.1]}" '
        f"--out {out}"
    )


def amplitudes(out):
    """The coordinate of each run at each step, by its eigenvalue."""
    found = {}
    for run in open_all([str(out)]):
        value = next(
            mode for mode in MODES if f"[{mode}]" in run.path.name or f"{mode}" in run.path.name
        )
        found[value] = np.array([line["x"] for line in run.metrics])
    return {mode: found[mode] for mode in MODES}


def judge(out):
    """The largest relative deviation from the law while amplitudes are above rounding."""
    worst = 0.0
    for mode, seen in amplitudes(out).items():
        law = seen[0] * (1 - mode) ** np.arange(len(seen))
        clear = np.abs(law) > 1e-6
        worst = max(worst, float(np.max(np.abs(seen / law - 1)[clear])))
    return (
        f"equal to {worst:.0e} relative over 40 steps",
        worst < 1e-4,
        "In float32 the deviation is what forty roundings leave.",
    )


def draw(out):
    """Amplitudes and the law."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for mode, seen in amplitudes(out).items():
        color, marker, words = LOOKS[mode]
        seen, steps = seen / seen[0], np.arange(len(seen))
        axes.plot(steps, seen, marker, color=color, markersize=4, label=f"αλ = {mode}: {words}")
        fine = (1 - mode) ** steps
        axes.plot(steps, fine, color=color, linewidth=0.8)
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set_xlabel("step")
    axes.set_ylabel("amplitude over the first one")
    axes.set_title("Curvature alone says how a mode moves (lines: the law)")
    figure.legend(loc="outside lower center", ncols=3)
    return figure
