"""Densities one above the other, on one axis of eigenvalues."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from gradkit.report.findings import SpectrumReading, extremes, read_spectrum
from gradkit.report.quantities import finite, number
from gradkit.report.series import unit
from gradkit.report.spectrum import (
    DENSITY,
    ENDS,
    density_floor,
    eigenvalue_axis,
    reach,
    visible_curve,
)
from gradkit.report.svg import INK, outline
from gradkit.runner.record import Spectrum

HEIGHT = 0.86  # of a ridge, where rows are 1 apart


def draw_ridges(axes: Axes, rows: Sequence[Spectrum]) -> None:
    """The number density of each spectrum above its row, 0 the lowest, and its extreme eigenvalues.

    All share one logarithmic scale.
    """
    scale = _scale(rows)
    curves = [_curve(row, scale) for row in rows]
    ends = [end for row in rows for end in reach(row) if math.isfinite(end)]
    ends += [float(grid[i]) for grid, _ in curves if len(grid) for i in (0, -1)]
    if ends:
        eigenvalue_axis(axes, "x", _shared(rows), min(ends), max(ends))
    for height, (row, (grid, share)) in enumerate(zip(rows, curves, strict=True)):
        axes.axhline(height, color=INK, linewidth=0.4, alpha=0.4)
        kept = outline(axes.xaxis.get_transform().transform(grid), share)
        grid, curve = grid[kept], height + HEIGHT * share[kept]
        foot = [height] if len(grid) else []
        axes.fill(
            np.concatenate([grid[:1], grid, grid[-1:]]),
            np.concatenate([foot, curve, foot]),
            color=DENSITY,
            alpha=0.22,
            linewidth=0,
        )
        axes.plot(grid, curve, color=DENSITY, linewidth=0.9)
        for end, color in ENDS.items():
            values = [value for value, _, _ in extremes(row, end)]
            axes.plot(values, [height] * len(values), "|", color=color, markersize=6)
    axes.set_xlabel(f"eigenvalue [{unit(rows[0])}]")
    axes.set_ylim(-0.25, len(rows))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)


def ridge_words(rows: Sequence[Spectrum]) -> str:
    """What the height of a ridge means."""
    scale = _scale(rows)
    if scale is None:
        return "No density is recorded."
    low, high = (number(float(f"{10.0**power:.1g}")) for power in scale)
    return (
        f"Each ridge is a number density on one logarithmic scale, from {low} at its foot to "
        f"{high} eigenvalues per {unit(rows[0])} at the highest peak; marks on the foot are "
        "extreme eigenvalues."
    )


def _curve(row: Spectrum, scale: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """The grid of a density, and its height from 0 to 1; empty without one."""
    if scale is None or _floor(row) is None:
        return np.zeros(0), np.zeros(0)
    bottom, top = scale
    unit = _number_of_parameters(row)
    grid, density, _ = visible_curve(row, 10**bottom / unit)
    return grid, (np.log10(np.maximum(unit * density, 10**bottom)) - bottom) / (top - bottom)


def _scale(rows: Sequence[Spectrum]) -> tuple[float, float] | None:
    """Powers of ten of the highest floor and the highest peak; None without a density."""
    floors = [(row, floor) for row in rows if (floor := _floor(row)) is not None]
    if not floors:
        return None
    peaks = [_number_of_parameters(row) * np.nanmax(row.arrays["density"]) for row, _ in floors]
    return math.log10(max(floor for _, floor in floors)), math.log10(max(peaks))


def _floor(row: Spectrum) -> float | None:
    floor = density_floor(row, read_spectrum(row))
    return None if floor is None else _number_of_parameters(row) * floor


def _number_of_parameters(row: Spectrum) -> float:
    return finite(row.values.get("parameters")) or 1.0


def _shared(rows: Sequence[Spectrum]) -> SpectrumReading:
    """A reading with the narrowest bulk and the widest smoothing, for the choice of the axis."""
    readings = [read_spectrum(row) for row in rows]
    bulks = [reading.bulk for reading in readings if reading.bulk]
    widths = [reading.width for reading in readings if reading.width]
    bulk = min(bulks, key=lambda bulk: bulk[1] - bulk[0], default=None)
    return dataclasses.replace(readings[-1], bulk=bulk, width=max(widths, default=None))
