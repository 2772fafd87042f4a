"""The figure of a spectrum: its density, and its extreme eigenvalues with their residuals."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from gradkit.report.findings import SpectrumReading, extremes, read_spectrum, spectrum_sentence
from gradkit.report.palette import BLUE, GREEN, RED
from gradkit.report.quantities import tick
from gradkit.report.series import inverse_unit, unit
from gradkit.report.svg import INK, drawing, envelope, to_svg
from gradkit.runner.record import Spectrum

ENDS = {"largest": RED, "smallest": GREEN}
DENSITY = BLUE


def spectrum_figure(spectrum: Spectrum, name: str = "spectrum") -> str | None:
    """The density with the extreme eigenvalues beneath it, and their values by rank."""
    reading = read_spectrum(spectrum)
    has_density = density_floor(spectrum, reading) is not None
    has_values = bool(extremes(spectrum, "largest") or extremes(spectrum, "smallest"))
    if not has_density and not has_values:
        return None
    with drawing(name):
        figure = Figure(figsize=(10, 4.1), layout="constrained")
        figure.suptitle(spectrum_sentence(reading), x=0.01, ha="left", fontsize=11)
        if has_density and has_values:
            left, right = figure.add_gridspec(1, 2, width_ratios=(2.3, 1))
            _draw_density(figure, left, spectrum, reading)
            _draw_ranks(figure.add_subplot(right), spectrum, reading)
        elif has_density:
            _draw_density(figure, figure.add_gridspec(1, 1)[0], spectrum, reading)
        else:
            _draw_ranks(figure.add_subplot(), spectrum, reading)
        return to_svg(figure, name)


def density_floor(spectrum: Spectrum, reading: SpectrumReading) -> float | None:
    """Where the log axis of the density ends: a hundredth of one eigenvalue's height.

    None when there is no density to draw.
    """
    grid, density = spectrum.arrays.get("grid"), spectrum.arrays.get("density")
    if grid is None or density is None or not np.any(density > 0):
        return None
    peak = float(np.nanmax(density))
    if reading.one is not None and reading.one < peak:
        return reading.one / 100
    return peak * 1e-6


def _draw_density(
    figure: Figure, place: SubplotSpec, spectrum: Spectrum, reading: SpectrumReading
) -> None:
    rows = place.subgridspec(2, 1, height_ratios=(7, 1), hspace=0.0)
    axes = figure.add_subplot(rows[0])
    floor = density_floor(spectrum, reading) or 1.0
    grid, density, spread = visible_curve(spectrum, floor)
    axes.fill_between(
        grid,
        np.maximum(density - spread, floor),
        np.maximum(density + spread, floor),
        color=DENSITY,
        alpha=0.25,
        linewidth=0,
        label="± standard error",
    )
    axes.plot(grid, np.maximum(density, floor), color=DENSITY, linewidth=1.1, label="density")
    axes.set_yscale("log")
    axes.set_ylim(floor, 3 * density.max())
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axes.set_ylabel(f"density [{inverse_unit(spectrum)}]")
    if reading.one is not None:
        axes.axhline(
            reading.one, color=INK, linewidth=0.8, linestyle=":", label="height of one eigenvalue"
        )
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
    rug = figure.add_subplot(rows[1], sharex=axes)
    axes.tick_params(labelbottom=False, bottom=False)
    _draw_rug(rug, spectrum)
    low, high = reach(spectrum)
    eigenvalue_axis(axes, "x", reading, float(min(grid[0], low)), float(max(grid[-1], high)))
    rug.set_xlabel(f"eigenvalue [{unit(spectrum)}]")


def _draw_rug(axes: Axes, spectrum: Spectrum) -> None:
    for height, (end, color) in zip((1, 0), ENDS.items(), strict=True):
        rows = extremes(spectrum, end)
        _errorbars(axes, rows, color, x=[row[0] for row in rows], y=[height] * len(rows))
    axes.set_yticks((1, 0), tuple(ENDS))
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.set_ylim(-0.7, 1.7)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)


def _draw_ranks(axes: Axes, spectrum: Spectrum, reading: SpectrumReading) -> None:
    for end, color in ENDS.items():
        rows = extremes(spectrum, end)
        ranks = list(range(1, len(rows) + 1))
        _errorbars(axes, rows, color, x=ranks, y=[row[0] for row in rows], along="y", label=end)
    low, high = reach(spectrum)
    if max(low, -high) <= high - low:  # zero is not far away
        low, high = min(0.0, low), max(0.0, high)
        axes.axhline(0, color=INK, linewidth=0.6)
    axes.set_xlabel("rank from its end")
    axes.set_ylabel(f"eigenvalue [{unit(spectrum)}]")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.legend(loc="best")
    eigenvalue_axis(axes, "y", reading, low, high)


def reach(spectrum: Spectrum) -> tuple[float, float]:
    """From the lowest to the highest end of the error bars; empty, from +∞ to −∞, without any."""
    low, high = math.inf, -math.inf
    for end in ENDS:
        for value, error, _ in extremes(spectrum, end):
            bar = error if math.isfinite(error) else 0.0
            low, high = min(low, value - bar), max(high, value + bar)
    return low, high


def _errorbars(axes, rows, color, *, x, y, along="x", label=None) -> None:
    """One mark an eigenvalue, filled when it converged, with its residual as a bar."""
    for converged in (True, False):
        chosen = [index for index, row in enumerate(rows) if row[2] is converged]
        if not chosen:
            continue
        errors = [rows[index][1] if math.isfinite(rows[index][1]) else 0.0 for index in chosen]
        axes.errorbar(
            [x[index] for index in chosen],
            [y[index] for index in chosen],
            **{f"{along}err": errors},
            fmt="d" if along == "x" else "o",
            markersize=8 if along == "x" else 5,
            color=color,
            markerfacecolor=color if converged else "none",
            elinewidth=1.2,
            label=label if converged or label is None else f"{label}, not converged",
        )


def visible_curve(spectrum: Spectrum, floor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The curve where it is above the floor, with the points on the floor beside it."""
    grid, density = spectrum.arrays["grid"], np.nan_to_num(spectrum.arrays["density"])
    spread = np.nan_to_num(spectrum.arrays.get("spread", np.zeros_like(density)))
    above = density + spread > floor
    shown = above.copy()
    shown[1:] |= above[:-1]
    shown[:-1] |= above[1:]
    grid, density, spread = grid[shown], density[shown], spread[shown]
    kept = envelope(density, bins=400)
    return grid[kept], density[kept], spread[kept]


def eigenvalue_axis(axes, which, reading: SpectrumReading, low: float, high: float) -> None:
    """Linear near zero and logarithmic beyond where outliers are far, else linear throughout."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    threshold = 4 * reading.width if reading.width else 0.0
    left, right = reading.bulk or (0.0, 0.0)
    near_zero = left <= threshold and right >= -threshold
    if threshold and near_zero and high - low > 10 * max(threshold, right - left):
        scale = axes.set_xscale if which == "x" else axes.set_yscale
        scale("symlog", linthresh=threshold, linscale=0.8)
        axis.set_major_locator(FixedLocator(_symlog_ticks(low, high, threshold)))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    limits = axes.set_xlim if which == "x" else axes.set_ylim
    limits(_with_margin(axis, low, high))


def _with_margin(axis, low: float, high: float) -> tuple[float, float]:
    """A twentieth of the axis on either side, on the axis' own scale."""
    scale = axis.get_transform()
    ends = scale.transform(np.array([low, high]))
    margin = 0.05 * (ends[1] - ends[0]) or 1.0
    start, stop = scale.inverted().transform(ends + np.array([-margin, margin]))
    return float(start), float(stop)


def _symlog_ticks(low: float, high: float, threshold: float) -> list[float]:
    """Zero and powers of ten from about the threshold on, at most a handful on either side."""
    first = math.floor(math.log10(threshold))
    if 10.0**first < 0.3 * threshold:
        first += 1
    ticks = [0.0]
    for sign, reach in ((1, high), (-1, -low)):
        powers = [10.0**power for power in range(first, 40) if 10.0**power <= reach]
        ticks += [sign * power for power in powers[:: math.ceil(len(powers) / 5) or 1]]
    return sorted(ticks)
