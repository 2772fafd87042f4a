"""A spectrum over its decades: how many eigenvalues there are of each magnitude and sign."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from gradkit.report.findings import extremes, quadrature
from gradkit.report.quantities import finite, number, percent, tick
from gradkit.report.scales import log_scale
from gradkit.report.series import unit
from gradkit.report.spectrum import ENDS
from gradkit.report.svg import INK, drawing, to_svg
from gradkit.runner.record import Spectrum

DECADES = 1.5  # fewer are no reason for a figure
WIDTH = 0.1  # standard deviation of the smoothing [decades]

_SIGNS = {"positive": (1, ENDS["largest"]), "negative": (-1, ENDS["smallest"])}


class Reach(NamedTuple):
    """Over which magnitudes a spectrum extends.

    Attributes:
        near: a distance from zero within which there are at most two nodes of the quadrature.
        within: at least this share of the eigenvalues lies there, up to the sampling of the probes.
        largest: the largest magnitude.
    """

    near: float
    within: float
    largest: float

    @property
    def decades(self) -> float:
        """Powers of ten from the one to the other."""
        return math.log10(self.largest / self.near)


def reach_of(spectrum: Spectrum) -> Reach | None:
    """Over which magnitudes a spectrum extends; None for less than `DECADES` or without a density.

    Source: between the neighbors of some adjacent nodes lies at least the weight of these
    (Chebyshev, Markov, Stieltjes); here of the nodes on either side of zero, as a mean over probes.
    """
    rule = quadrature(spectrum)
    if rule is None or not np.any(rule[0]):
        return None
    bounds, shares = [], []
    for nodes, weights in zip(*rule, strict=True):
        order = np.argsort(nodes)
        above = int(np.searchsorted(nodes[order], 0.0))
        inner, around = order[max(above - 1, 0) : above + 1], order[max(above - 2, 0) : above + 2]
        bounds.append(np.abs(nodes[around]).max())
        shares.append(weights[inner].sum() / weights.sum())
    largest = float(np.abs(rule[0]).max())
    found = Reach(max(float(max(bounds)), 1e-7 * largest), float(np.mean(shares)), largest)
    return found if found.decades >= DECADES else None


def magnitude_figure(spectrum: Spectrum, name: str = "magnitude") -> str | None:
    """Eigenvalues per decade against their magnitude, of either sign."""
    found = reach_of(spectrum)
    parameters = finite(spectrum.values.get("parameters"))
    if found is None or parameters is None:
        return None
    with drawing(name):
        figure = Figure(figsize=(10, 3.3), layout="constrained")
        figure.suptitle(magnitude_sentence(spectrum), x=0.01, ha="left", fontsize=11)
        axes = figure.subplots()
        left, right = math.log10(found.near), math.log10(found.largest)
        grid = np.linspace(left - 0.6, right + 0.3, 240)
        peak = 0.0
        for label, (sign, color) in _SIGNS.items():
            mean, error = _per_decade(spectrum, sign, grid, parameters)
            if mean.max() > 0.05:
                _draw(axes, 10**grid, mean, error, color, label)
                peak = max(peak, float((mean + error).max()))
        axes.set_yscale("log")
        axes.set_ylim(0.1, 2 * max(peak, 1.0))
        axes.yaxis.set_major_locator(LogLocator(numticks=7))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        _draw_extremes(axes, spectrum)
        log_scale(axes, 10**grid, "x")
        axes.axvspan(10 ** grid[0], found.near, color=INK, alpha=0.08, linewidth=0)
        axes.set_xlim(10 ** grid[0], 10 ** grid[-1])
        axes.set_xlabel(f"magnitude of the eigenvalue [{unit(spectrum)}]")
        axes.set_ylabel("eigenvalues per decade")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, borderaxespad=0)
        return to_svg(figure, name)


def magnitude_sentence(spectrum: Spectrum) -> str:
    """How much of the spectrum is near zero, and how near; empty where there is no such figure."""
    found = reach_of(spectrum)
    if found is None:
        return ""
    return (
        f"At least {percent(found.within, 2)} of the eigenvalues lie within "
        f"±{number(found.near, 2)} of zero, {number(found.decades, 2)} decades below the largest "
        f"of {number(found.largest)}"
    )


def magnitude_words() -> str:
    """How to read the figure."""
    return (
        f"Eigenvalues per decade of their magnitude, smoothed by a Gaussian of {WIDTH} decades, or "
        "as wide as the quadrature's nodes lie apart, with the standard error over the probes as a "
        "band; ticks below are the extreme eigenvalues. In the shaded range the quadrature has two "
        "nodes at most: neither magnitude nor sign of the eigenvalues there is known."
    )


def _per_decade(spectrum: Spectrum, sign: int, grid: np.ndarray, parameters: float):
    """Eigenvalues of one sign per decade, and their standard error over the probes.

    A node that stands for several eigenvalues is widened as far as the next one outwards is away:
    how they lie between the nodes is not known.
    """
    rule = quadrature(spectrum)
    assert rule is not None
    curves = []
    for nodes, weights in zip(*rule, strict=True):
        chosen = sign * nodes > 0
        places, order = np.log10(sign * nodes[chosen]), np.argsort(sign * nodes[chosen])
        places, counts = places[order], (parameters * weights / weights.sum())[chosen][order]
        apart = np.append(np.diff(places) / 2, 0.0)[: len(places)]  # outwards, none for the last
        widths = np.where(counts > 2, np.maximum(apart, WIDTH), WIDTH)
        kernel = np.exp(-(((grid[:, None] - places) / widths) ** 2) / 2)
        curves.append(kernel @ (counts / (widths * math.sqrt(2 * math.pi))))
    error = np.std(curves, axis=0, ddof=1) / math.sqrt(len(curves)) if len(curves) > 1 else 0.0
    return np.mean(curves, axis=0), np.broadcast_to(error, grid.shape)


def _draw(axes: Axes, x, mean, error, color: str, label: str) -> None:
    low, high = np.maximum(mean - error, 0.01), np.maximum(mean + error, 0.01)
    axes.fill_between(x, low, high, color=color, alpha=0.22, linewidth=0)
    axes.plot(x, np.maximum(mean, 0.01), color=color, linewidth=1.2, label=label)


def _draw_extremes(axes: Axes, spectrum: Spectrum) -> None:
    """The extreme eigenvalues as ticks along the lower edge, in the color of their sign."""
    values = [v for end in ("largest", "smallest") for v, _, _ in extremes(spectrum, end) if v]
    for sign, color in _SIGNS.values():
        chosen = [abs(value) for value in values if sign * value > 0]
        axes.plot(
            chosen,
            [0.03] * len(chosen),
            "|",
            color=color,
            markersize=9,
            transform=axes.get_xaxis_transform(),
        )
