"""How the sharpness went during training, beside the limit of stability."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradkit.report.markup import figure
from gradkit.report.palette import BLUE, GREEN
from gradkit.report.quantities import finite, number
from gradkit.report.scales import log_scale, plain_scale
from gradkit.report.svg import INK, drawing, envelope, to_svg
from gradkit.runner.record import Record

_KINDS = {
    "preconditioned_sharpness": ("preconditioned sharpness", GREEN),
    "sharpness": ("sharpness [loss/param²]", BLUE),
}

_CAPTION = (
    "The sharpness is the largest eigenvalue of the Hessian on the training batch; the "
    "preconditioned one that of P^(−1/2) H P^(−1/2), with P the diagonal by which the optimizer "
    "divides. Bars, where they can be seen, are residuals. The dotted line is the limit beyond "
    "which training on a quadratic, on the full batch, diverges: 2/η for gradient descent, "
    "(2 + 2 b1)/((1 − b1) η) for Adam."
)


def sharpness_figure(record: Record) -> str | None:
    """Sharpness, plain and preconditioned, against step; None when it was not measured."""
    kinds = [kind for kind in _KINDS if len(_measured(record, kind))]
    if not kinds:
        return None
    with drawing("sharpness"):
        whole = Figure(figsize=(10, 3.3), layout="constrained")
        whole.suptitle(sharpness_sentence(record), x=0.01, ha="left", fontsize=11)
        for axes, kind in zip(whole.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
            _draw(axes, record, kind)
        return to_svg(whole, "sharpness")


def sharpness_part(record: Record, drawn: Mapping[str, str]) -> str:
    """The figure for the page, with what it shows; empty when there is none."""
    if "sharpness" not in drawn:
        return ""
    return figure(drawn, "sharpness", sharpness_sentence(record), _CAPTION, wide=True)


def sharpness_sentence(record: Record) -> str:
    """The finding, short enough for a title: where the sharpness stays, or whence it goes where."""
    kinds = [kind for kind in _KINDS if len(_measured(record, kind))]
    kind = next((kind for kind in kinds if _limit(record, kind) is not None), kinds[-1])
    steps, values, _ = _measured(record, kind).T
    name = _KINDS[kind][0].partition(" [")[0].capitalize()
    limit = _limit(record, kind)
    if limit is None or len(steps) < 2:
        way = f"from {number(values[0])} at step {int(steps[0]):,} to {number(values[-1])} at step"
        return f"{name} goes {way} {int(steps[-1]):,}"
    late = values[len(values) // 2 :] / limit
    low, high = np.quantile(late, (0.05, 0.95))
    does = "hovers at" if low > 0.9 and high < 1.1 else "is"
    mean, low, high = (f"{share:.3f}" for share in (late.mean(), low, high))
    return (
        f"{name} {does} {mean} times its limit of {number(limit)} from step "
        f"{int(steps[len(values) // 2]):,} on, 90 % of it between {low} and {high}"
    )


def _draw(axes: Axes, record: Record, kind: str) -> None:
    (name, color), (steps, values, residuals) = _KINDS[kind], _measured(record, kind).T
    kept = envelope(values)
    axes.errorbar(
        *(steps[kept], values[kept]),
        yerr=residuals[kept],
        color=color,
        linewidth=1.1,
        elinewidth=0.6,
        marker="o" if len(steps) < 50 else "",
        markersize=3,
    )
    limit = _limit(record, kind)
    reach = values if limit is None else np.append(values, limit)
    if limit is not None:
        words = f"limit of stability: {number(limit)}"
        axes.axhline(limit, color=INK, linewidth=0.9, linestyle=":", label=words)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    axes.set_xlabel("step")
    axes.set_xlim(left=0)
    axes.set_ylabel(name)
    plain_scale(axes.xaxis, whole=True)
    if reach.min() > 0 and reach.max() > 10 * reach.min():
        log_scale(axes, reach)
        return
    plain_scale(axes.yaxis)
    axes.set_ylim(min(0.0, 1.1 * reach.min()), max(0.0, 1.1 * reach.max()))


def _measured(record: Record, kind: str) -> np.ndarray:
    """Step, value and residual of each measurement, a row each; lines in between repeat the last.

    A value that is not finite is left out, and so is a residual.
    """
    rows = {}
    for line in record.metrics:
        step, value = finite(line.get("sharpness_step")), finite(line.get(kind))
        if step is not None and value is not None:
            rows[step] = (step, value, finite(line.get(f"{kind}_residual")) or 0.0)
    return np.array(list(rows.values()), dtype=float).reshape(-1, 3)


def _limit(record: Record, kind: str) -> float | None:
    limits = [finite(line.get(f"{kind}_limit")) for line in record.metrics]
    return next((limit for limit in limits if limit is not None), None)
