"""Scales of axes, with labels that can be read."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from gradkit.report.quantities import tick


def log_scale(axes: Axes, values: np.ndarray, which: str = "y") -> None:
    """A log axis that is labelled also over less than a decade."""
    positive = values[values > 0]
    decades = math.log10(np.nanmax(positive) / np.nanmin(positive))
    axis = axes.yaxis if which == "y" else axes.xaxis
    scale = axes.set_yscale if which == "y" else axes.set_xscale
    scale("log", nonpositive="mask")
    subs = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axis.set_minor_formatter(NullFormatter())


def plain_scale(axis: Axis, most: int = 5, *, whole: bool = False) -> None:
    """A linear axis with at most so many intervals between round numbers, or whole ones."""
    axis.set_major_locator(MaxNLocator(most, steps=(1, 2, 2.5, 5, 10), integer=whole))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
