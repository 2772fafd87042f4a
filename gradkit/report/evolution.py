"""How a spectrum changes over training: its extreme eigenvalues and its density, step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradkit.report.findings import extremes
from gradkit.report.quantities import finite, number, tick
from gradkit.report.ridges import draw_ridges
from gradkit.report.scales import log_scale, plain_scale
from gradkit.report.series import Series, unit
from gradkit.report.spectrum import ENDS
from gradkit.report.svg import INK, drawing, to_svg
from gradkit.runner.record import Spectrum

_RIDGES = 12  # most densities drawn


def evolution_figure(series: Series, name: str = "evolution") -> str | None:
    """Extreme eigenvalues against step, and the density at some of the steps."""
    spectra = [spectrum for spectrum in series.spectra if extremes(spectrum, "largest")]
    if len(spectra) < 2:
        return None
    with drawing(name):
        figure = Figure(figsize=(10, 4.3), layout="constrained")
        figure.suptitle(evolution_sentence(series), x=0.01, ha="left", fontsize=11)
        left, right = figure.add_gridspec(1, 2, width_ratios=(1, 1.15))
        rows = left.subgridspec(2, 1, height_ratios=(2.6, 1))
        upper = figure.add_subplot(rows[0])
        lower = figure.add_subplot(rows[1], sharex=upper)
        _draw_ranks(upper, spectra, "largest")
        _draw_threshold(upper, series)
        _draw_ranks(lower, spectra, "smallest")
        upper.tick_params(labelbottom=False)
        lower.set_xlabel("step")
        plain_scale(lower.xaxis, whole=True)
        figure.supylabel(f"eigenvalue [{unit(series.last)}]", fontsize=9)
        axes = figure.add_subplot(right)
        shown = drawn_as_ridges(series)
        draw_ridges(axes, shown)
        axes.set_yticks(range(len(shown)), [tick(spectrum.step or 0) for spectrum in shown])
        axes.set_title("density, by step", fontsize=9)
        return to_svg(figure, name)


def drawn_as_ridges(series: Series) -> list[Spectrum]:
    """The spectra whose densities are drawn: a dozen at most, evenly spaced, both ends included."""
    spectra = [spectrum for spectrum in series.spectra if extremes(spectrum, "largest")]
    count = min(len(spectra), _RIDGES)
    return [spectra[round(i)] for i in np.linspace(0, len(spectra) - 1, count)]


def evolution_sentence(series: Series) -> str:
    """What the largest eigenvalue does over training, beside the threshold of stability."""
    pairs = [(s.step, rows[0][0]) for s in series.spectra if (rows := extremes(s, "largest"))]
    (first_step, first), (last_step, last) = pairs[0], pairs[-1]
    peak_step, peak = max(pairs, key=lambda pair: pair[1])
    verb = "falls" if last < first else "rises"
    words = (
        f"Largest eigenvalue {verb} from {number(first)} at step {first_step:,} to {number(last)} "
        f"at step {last_step:,}"
    )
    if peak > 1.02 * max(first, last):
        words += f", with {number(peak)} at step {peak_step:,}"
    threshold, formula = threshold_of(series)
    if threshold is None:
        return words
    above = sum(value > threshold for _, value in pairs)
    where = f"above {formula} = {number(threshold)} at {above} of {len(pairs)} steps"
    return f"{words}; {where if above else f'below {formula} = {number(threshold)} throughout'}"


def threshold_of(series: Series) -> tuple[float | None, str]:
    """The largest stable eigenvalue at the run's learning rate, None without, and its formula."""
    stability = _stability(series)
    return finite(stability.get("threshold")), str(stability.get("formula") or "2/η")


def threshold_words(series: Series) -> str:
    """What the line of stability is, or why there is none; empty where nothing is known."""
    stability = _stability(series)
    threshold, formula = threshold_of(series)
    words = str(stability.get("words") or "")
    if threshold is None:
        return f"No line of stability is drawn: {words}." if words else ""
    return (
        f"The dotted line is {formula} with {words}: on a quadratic, descent on the full batch at "
        "this rate diverges along eigenvectors whose eigenvalue is larger."
    )


def _stability(series: Series) -> dict[str, Any]:
    stability = series.last.values.get("stability")
    return stability if isinstance(stability, dict) else {}


def _draw_ranks(axes: Axes, spectra: list[Spectrum], end: str) -> None:
    """A line for each rank from one end, the outermost strong, hollow where not converged."""
    color = ENDS[end]
    found = [(spectrum.step or 0, extremes(spectrum, end)) for spectrum in spectra]
    values = np.array([value for _, rows in found for value, _, _ in rows])
    most = max(len(rows) for _, rows in found)
    for rank in range(most):
        points = [(step, *rows[rank]) for step, rows in found if len(rows) > rank]
        steps, heights, errors, converged = zip(*points, strict=True)
        errors = [error if np.isfinite(error) else 0.0 for error in errors]
        axes.errorbar(
            steps,
            heights,
            yerr=errors,
            color=color,
            alpha=1 if rank == 0 else 0.4,
            linewidth=1.3 if rank == 0 else 0.8,
            marker="o",
            markersize=3.5 if rank == 0 else 2,
        )
        hollow = [i for i, yes in enumerate(converged) if not yes]
        axes.plot(
            [steps[i] for i in hollow],
            [heights[i] for i in hollow],
            "o",
            color=color,
            markerfacecolor="none",
            markersize=7,
        )
    axes.set_title(f"{most} {end}" if most > 1 else end, fontsize=9)
    first = np.array([rows[0][0] for _, rows in found if rows])
    if end == "largest" and values.min() > 0 and first.max() > 10 * first.min():
        log_scale(axes, values)
        return
    plain_scale(axes.yaxis, 4)
    axes.set_ylim(min(0.0, 1.1 * values.min()), max(0.0, 1.1 * values.max()))


def _draw_threshold(axes: Axes, series: Series) -> None:
    threshold, formula = threshold_of(series)
    if threshold is None:
        return
    values = np.array([v for s in series.spectra for v, _, _ in extremes(s, "largest")])
    lowest, highest = min(values.min(), threshold), max(values.max(), threshold)
    if lowest > 0 and (threshold > 4 * values.max() or threshold < values.max() / 100):
        log_scale(axes, np.append(values, threshold))
        axes.set_ylim(lowest / 1.5, highest * 1.5)
    else:
        axes.set_ylim(top=max(axes.get_ylim()[1], 1.1 * threshold))
    axes.axhline(threshold, color=INK, linewidth=1.1, linestyle=":")
    axes.annotate(
        f"{formula} = {number(threshold)}",
        (0, threshold),
        xycoords=("axes fraction", "data"),
        xytext=(3, 3),
        textcoords="offset points",
        fontsize=8.5,
    )
