"""The diagonal blocks of an operator, layer by layer."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradkit.report.findings import extremes
from gradkit.report.quantities import finite, number, percent
from gradkit.report.ridges import draw_ridges
from gradkit.report.scales import log_scale
from gradkit.report.series import unit
from gradkit.report.spectrum import ENDS
from gradkit.report.svg import drawing, to_svg
from gradkit.runner.record import Spectrum

_ROWS = 40  # most layers drawn


def blocks_figure(spectrum: Spectrum, name: str = "blocks") -> str | None:
    """The extreme eigenvalues of each layer's block, and its density."""
    blocks = dict(list(spectrum.blocks.items())[:_ROWS])
    if not blocks:
        return None
    with drawing(name):
        figure = Figure(figsize=(10, 1.7 + 0.55 * len(blocks)), layout="constrained")
        figure.suptitle(blocks_sentence(spectrum), x=0.01, ha="left", fontsize=11)
        rows = list(blocks.items())[::-1]  # the first layer on top
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.6))
        draw_ridges(right, [block for _, block in rows])
        _draw_extremes(left, [block for _, block in rows])
        left.set_yticks(range(len(rows)), [_label(name) for name, _ in rows])
        return to_svg(figure, name)


def blocks_sentence(spectrum: Spectrum) -> str:
    """Which layer is the sharpest, and how much of the whole's largest eigenvalue it has."""
    tops = {name: rows[0][0] for name, block in spectrum.blocks.items() if (rows := _top(block))}
    whole = _top(spectrum)
    if not tops:
        return "No block has a finite eigenvalue"
    name, value = max(tops.items(), key=lambda item: item[1])
    words = f"{_label(name)} is the sharpest layer: its block reaches {number(value)}"
    if not whole or whole[0][0] <= 0:
        return words
    return f"{words}, {percent(value / whole[0][0])} of the {number(whole[0][0])} of the whole"


def blocks_words(spectrum: Spectrum) -> str:
    """How to read the figure."""
    count = len(spectrum.blocks)
    words = (
        "The diagonal block of a layer is the curvature when the parameters of that layer alone "
        "move. To the left its largest and its most negative eigenvalue, in magnitude, where "
        "they differ from zero, hollow where not converged."
    )
    return words if count <= _ROWS else f"{words} The first {_ROWS} of {count} layers are drawn."


def _top(spectrum: Spectrum) -> list[tuple[float, float, bool]]:
    return extremes(spectrum, "largest")


def _label(name: str) -> str:
    return name or "all parameters"


def _resolution(block: Spectrum) -> float:
    """The magnitude up to which an eigenvalue is no different from zero."""
    known = finite((block.values.get("negative") or {}).get("resolution"))
    return 1e-6 * max((abs(v) for v, _, _ in _top(block)), default=0.0) if known is None else known


def _draw_extremes(axes: Axes, blocks: list[Spectrum]) -> None:
    magnitudes = []
    for (end, color), sign in zip(ENDS.items(), (1, -1), strict=True):
        label = "largest" if sign == 1 else "most negative"
        for height, block in enumerate(blocks):
            value, error, converged = next(iter(extremes(block, end)), (0.0, 0.0, True))
            if sign * value <= _resolution(block):
                continue
            magnitudes.append(abs(value))
            axes.errorbar(
                abs(value),
                height,
                xerr=error if np.isfinite(error) else 0.0,
                fmt="o" if sign == 1 else "v",
                color=color,
                markerfacecolor=color if converged else "none",
                label=label,
            )
            label = None
    if magnitudes:
        low, high = min(magnitudes), max(magnitudes)
        log_scale(axes, np.array([low / 3, high * 3]), "x")
        axes.set_xlim(low / 2, high * 2)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
    axes.set_xlabel(f"extreme eigenvalue, magnitude [{unit(blocks[0])}]")
    axes.grid(visible=True, axis="x")
