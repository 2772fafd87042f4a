"""What a record says, in one sentence each: how the run ended, and what its spectrum shows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gradkit.report.quantities import finite, number, percent, seconds, with_error
from gradkit.runner.record import Record, Spectrum

CENTRAL = 0.98  # the share of the mass that is called the bulk


@dataclass(frozen=True)
class SpectrumReading:
    """What a spectrum shows; None stands for what it does not tell.

    Attributes:
        largest: the largest eigenvalue found.
        smallest: the smallest eigenvalue found.
        bulk: the interval that holds the central 98 % of the mass.
        outliers: how many of the largest eigenvalues lie, with their whole residual, further beyond
            the bulk than the bulk is long.
        more: whether the quadrature holds further outliers below those listed.
        resolution: about the finest structure that the quadrature can show in a broad spectrum.
        negative: the share of the mass below minus the smoothing width.
        negative_error: its standard error over the probes.
        width: standard deviation of the Gaussian smoothing [loss/param²].
        one: the height that a single eigenvalue has in the smoothed density [param²/loss].
    """

    largest: float | None = None
    smallest: float | None = None
    bulk: tuple[float, float] | None = None
    outliers: int | None = None
    more: bool = False
    resolution: float | None = None
    negative: float | None = None
    negative_error: float | None = None
    width: float | None = None
    one: float | None = None


def read_spectrum(spectrum: Spectrum | None) -> SpectrumReading:
    """The reading of a spectrum; an empty one of None."""
    if spectrum is None:
        return SpectrumReading()
    top, bottom = extremes(spectrum, "largest"), extremes(spectrum, "smallest")
    width = finite((spectrum.values.get("density") or {}).get("width"))
    parameters = finite(spectrum.values.get("parameters"))
    one = 1 / (parameters * width * math.sqrt(2 * math.pi)) if parameters and width else None
    bulk = _bulk(spectrum)
    outliers, more = _outliers(spectrum, bulk, parameters)
    negative, negative_error = _mass_below(spectrum, None if width is None else -width)
    return SpectrumReading(
        largest=top[0][0] if top else None,
        smallest=bottom[0][0] if bottom else None,
        bulk=bulk,
        outliers=outliers,
        more=more,
        resolution=_resolution(spectrum),
        negative=negative,
        negative_error=negative_error,
        width=width,
        one=one,
    )


def extremes(spectrum: Spectrum, end: str) -> list[tuple[float, float, bool]]:
    """Value, residual and convergence of the eigenvalues at one end, from the end inwards.

    A residual that was not recorded is infinite: nothing is known about that value.
    """
    listed = spectrum.values.get(end) or {}
    values = listed.get("values") or []
    residuals = listed.get("residuals") or []
    converged = listed.get("converged") or []
    rows = []
    for index, value in enumerate(values):
        known = finite(value)
        residual = finite(residuals[index]) if index < len(residuals) else None
        if known is not None:
            error = math.inf if residual is None else residual
            rows.append((known, error, index < len(converged) and bool(converged[index])))
    return sorted(rows, reverse=end == "largest")


def spectrum_sentence(reading: SpectrumReading) -> str:
    """The finding, short enough for a title."""
    parts = [part for part in (_outliers_words(reading), _negative_words(reading)) if part]
    sentence = "; ".join(parts)
    return sentence[:1].upper() + sentence[1:]


def outcome_sentence(record: Record) -> str:
    """How the run ended: accuracy, steps and time, or what is missing."""
    summary = record.summary
    if not record.config_text and record.env.get("task"):
        params = record.env.get("params")
        return f"Curvature of the task {record.env['task']}" + (f" at {params}." if params else ".")
    if summary is None:
        if not record.metrics:
            return "Unfinished: no step has been recorded yet."
        return f"Unfinished: the record ends at step {last_step(record):,}, without a summary."
    steps, time = summary.get("steps"), summary.get("seconds")
    spent = f"{number(steps)} step{'' if steps == 1 else 's'} in {seconds(time)}"
    if summary.get("status") == "diverged":
        first = first_not_finite(record)
        where = "" if first is None else f"; the loss is not finite from step {first:,} on"
        return f"Diverged after {spent}{where}."
    if finite(summary.get("test_accuracy")) is not None:
        return f"Test accuracy {percent(summary['test_accuracy'])} after {spent}."
    for key, words in (("test_loss", "Test loss"), ("train_loss", "Training loss")):
        if finite(summary.get(key)) is not None:
            return f"{words} {number(summary[key])} after {spent}."
    return f"Finished {spent}; no final loss was recorded."


def last_step(record: Record) -> int:
    """The step of the last metrics line, 0 without any."""
    return record.metrics[-1]["step"] if record.metrics else 0


def first_not_finite(record: Record) -> int | None:
    """The first step whose recorded loss is not finite."""
    for line in record.metrics:
        if "loss" in line and finite(line["loss"]) is None:
            return line["step"]
    return None


def _outliers_words(reading: SpectrumReading) -> str:
    if reading.largest is None:
        return ""
    reach = number(reading.largest)
    if not reading.outliers:
        return f"largest eigenvalue {reach}"
    count = f"{'at least ' if reading.more else ''}{reading.outliers}"
    if reading.outliers == 1:
        return f"{count} outlier, at {reach}"
    return f"{count} outliers reach {reach}"


def _negative_words(reading: SpectrumReading) -> str:
    if reading.negative is None or reading.width is None:
        return ""
    edge = number(-reading.width, 2)
    if reading.negative < 1e-6:
        return f"no mass below {edge}"
    share, error = percent(reading.negative, 2), reading.negative_error
    if error is not None and error > 0.01 * reading.negative:
        share = f"{with_error(100 * reading.negative, 100 * error, 1)} %"
    return f"{share} of the mass lies below {edge}"


def _bulk(spectrum: Spectrum) -> tuple[float, float] | None:
    """The nodes between which the central 98 % of the mass lies."""
    rule = quadrature(spectrum)
    if rule is None:
        return None
    nodes, weights = (array.ravel() for array in rule)
    order = np.argsort(nodes)
    below = np.cumsum(weights[order]) / weights.sum()
    first, last = np.searchsorted(below, ((1 - CENTRAL) / 2, (1 + CENTRAL) / 2))
    return float(nodes[order][first]), float(nodes[order][min(last, len(order) - 1)])


def _outliers(
    spectrum: Spectrum, bulk: tuple[float, float] | None, parameters: float | None
) -> tuple[int | None, bool]:
    """How many of the largest eigenvalues are outliers, and whether there are more of them."""
    top = extremes(spectrum, "largest")
    if bulk is None or parameters is None or not top:
        return None, False
    edge = bulk[1] + max(bulk[1] - bulk[0], 1e-6 * abs(top[0][0]))
    beyond = [(value, error) for value, error, _ in top if value - error > edge]
    if len(beyond) < len(top):
        return len(beyond), False
    value, error = beyond[-1]
    below, _ = _mass_below(spectrum, value - max(error, 1e-3 * abs(value)))
    inside, _ = _mass_below(spectrum, edge)
    between = 0.0 if below is None or inside is None else parameters * (below - inside)
    return len(beyond), between > 0.5


def _resolution(spectrum: Spectrum) -> float | None:
    rule = quadrature(spectrum)
    if rule is None:
        return None
    nodes, _ = rule
    return 2 * float(nodes.max() - nodes.min()) / nodes.shape[1]


def _mass_below(spectrum: Spectrum, edge: float | None) -> tuple[float | None, float | None]:
    """The share of the mass below an edge, and its standard error over the probes."""
    rule = quadrature(spectrum)
    if edge is None or rule is None:
        return None, None
    nodes, weights = rule
    mass = np.where(nodes < edge, weights, 0.0).sum(axis=1)
    error = float(mass.std(ddof=1)) / math.sqrt(len(mass)) if len(mass) > 1 else None
    return float(mass.mean()), error


def quadrature(spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray] | None:
    """Nodes and weights, a row each probe; None when they are missing or not finite."""
    nodes, weights = spectrum.arrays.get("nodes"), spectrum.arrays.get("weights")
    if nodes is None or weights is None or not nodes.size:
        return None
    if not (np.isfinite(nodes).all() and np.isfinite(weights).all()):
        return None
    return nodes, weights
