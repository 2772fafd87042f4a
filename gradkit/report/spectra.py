"""The sections of a page that are about spectra."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from gradkit.report.blocks import blocks_sentence, blocks_words
from gradkit.report.evolution import (
    drawn_as_ridges,
    evolution_sentence,
    threshold_words,
)
from gradkit.report.findings import CENTRAL, extremes, read_spectrum, spectrum_sentence
from gradkit.report.magnitude import magnitude_sentence, magnitude_words
from gradkit.report.markup import figure, scroll, section, table
from gradkit.report.quantities import finite, number, percent, seconds, with_error
from gradkit.report.ridges import ridge_words
from gradkit.report.series import Series, data_words, operator_words, series, unit
from gradkit.report.spectrum import density_floor
from gradkit.runner.record import ARRAYS, Record, Spectrum


def spectra_sections(record: Record, drawn: Mapping[str, str]) -> str:
    """The main spectrum in full, how it changes over training, and all others."""
    if record.main is None:
        words = (
            "No spectrum has been computed for this run; <code>gradkit spectrum RUN</code> does."
        )
        return section("Spectrum", f"<p>{words}</p>")
    first, *others = series(record)
    parts = [section("Spectrum", _main(record.main, drawn)), _evolution(first, drawn, "evolution")]
    parts += [_other(one, drawn) for one in others]
    if len(record.spectra) > 1:
        parts.append(section("All spectra", _all(record)))
    return "\n".join(part for part in parts if part)


def condition_number(spectrum: Spectrum | None) -> str:
    """The condition number, or the bound that is known."""
    condition = ({} if spectrum is None else spectrum.values).get("condition") or {}
    value, lower = number(condition.get("value")), number(condition.get("lower"))
    if lower != "–" and finite(condition.get("upper")) is None:
        return f"≥ {lower}"
    return value


def _main(spectrum: Spectrum, drawn: Mapping[str, str]) -> str:
    finding = spectrum_sentence(read_spectrum(spectrum))
    tables = "".join(_eigenvalues(spectrum, end) for end in ("largest", "smallest"))
    trust = _trust_words(spectrum)
    density = f"<h3>How far to trust the density</h3>\n<p>{escape(trust)}</p>\n" if trust else ""
    return (
        f"<p>{escape(_origin_words(spectrum))}</p>\n"
        f'<p class="narrow">{escape(finding)}.</p>\n'
        f"{figure(drawn, 'spectrum', finding, _density_words(spectrum), wide=True)}"
        f"{_magnitude(spectrum, drawn)}"
        f'<div class="tables">\n{tables}</div>\n'
        f"<h3>Condition number</h3>\n<p>{escape(_condition_words(spectrum))}</p>\n"
        f"{_totals(spectrum)}{density}{_blocks(spectrum, drawn, 'blocks')}"
    )


def _magnitude(spectrum: Spectrum, drawn: Mapping[str, str]) -> str:
    finding = magnitude_sentence(spectrum)
    return figure(drawn, "magnitude", finding, magnitude_words(), wide=True)


def _evolution(one: Series, drawn: Mapping[str, str], name: str) -> str:
    if name not in drawn:
        return ""
    finding = evolution_sentence(one)
    words = (
        "Above the largest and below the smallest eigenvalues at each checkpoint, with their "
        f"residuals as bars (often smaller than the marks), hollow where not converged; to the "
        f"right the density. {ridge_words(drawn_as_ridges(one))} {threshold_words(one)}"
    )
    drawing = figure(drawn, name, finding, words, wide=True)
    content = f'<p class="narrow">{escape(finding)}.</p>\n{drawing}'
    title = "Over training" if name == "evolution" else f"{one.title}, over training"
    return section(title, content)


def _other(one: Series, drawn: Mapping[str, str]) -> str:
    """Another operator, or the same on other data: its last spectrum, and its evolution."""
    last = one.last
    finding = spectrum_sentence(read_spectrum(last))
    content = (
        f'<p>{escape(_origin_words(last))}</p>\n<p class="narrow">{escape(finding)}.</p>\n'
        f"{figure(drawn, f'spectrum-{one.slug}', finding, _density_words(last), wide=True)}"
        f"{_totals(last)}{_blocks(last, drawn, f'blocks-{one.slug}')}"
    )
    evolution = _evolution(one, drawn, f"evolution-{one.slug}")
    return "\n".join(part for part in (section(one.title, content), evolution) if part)


def _origin_words(spectrum: Spectrum) -> str:
    values = spectrum.values
    products, time = number(values.get("products")), seconds(values.get("seconds"))
    at = "" if spectrum.step is None else f" at step {number(spectrum.step)}"
    examples = values.get("examples")
    over = "" if examples is None else f" over {number(examples)} examples"
    spent = f"{products} products" + ("" if time == "–" else f" in {time}")
    loss = ""
    if finite(values.get("loss")) is not None:
        slope = number(values.get("gradient_norm"))
        loss = f" The loss there is {number(values['loss'])}, the norm of its gradient {slope}."
    shares = [finite(share) for share in (values.get("largest") or {}).get("gradient") or []]
    if shares and None not in shares:
        held = percent(math.fsum(share for share in shares if share is not None))
        loss += f" The {len(shares)} largest eigenvectors hold {held} of the squared gradient."
    return (
        f"The {operator_words(spectrum)} of the loss{at}{over} ({data_words(spectrum)}) in "
        f"{number(values.get('parameters'))} parameters: {spent}.{loss}"
    )


def _density_words(spectrum: Spectrum) -> str:
    reading = read_spectrum(spectrum)
    if density_floor(spectrum, reading) is None:
        why = f"{ARRAYS} is missing or holds none"
        if spectrum.values.get("density", {}) is None:
            why = "none was asked for"
        return f"Extreme eigenvalues with their residuals as bars. The density is not drawn: {why}."
    words = (
        f"Density of the eigenvalues, each widened to a Gaussian of standard deviation "
        f"{number(reading.width, 2)}, with its standard error over the probes as a band. The "
        f"density axis is cut at {number(density_floor(spectrum, reading), 1)}; an eigenvalue axis "
        "that labels powers of ten is linear near zero. Below, the extreme eigenvalues with their "
        "residuals as bars (often smaller than the marks), hollow where not converged."
    )
    if reading.outliers is None:
        return words
    return (
        f"{words} The bulk is the interval that holds the central {percent(CENTRAL)} of the mass; "
        "an outlier lies further beyond it than it is long."
    )


def _eigenvalues(spectrum: Spectrum, end: str) -> str:
    rows = extremes(spectrum, end)
    if not rows:
        return f"<p>No finite {end} eigenvalue is recorded.</p>\n"
    body = "".join(
        f'<tr><td class="number">{rank}</td>'
        f'<td class="number">{escape(with_error(value, error))}</td>'
        f"<td>{'yes' if converged else 'no'}</td></tr>\n"
        for rank, (value, error, converged) in enumerate(rows, start=1)
    )
    head = '<th>Rank</th><th class="number">Value ± residual</th><th>Converged</th>'
    return scroll(
        f"{end.capitalize()} eigenvalues",
        f"<table><caption>{end.capitalize()} eigenvalues [{unit(spectrum)}]</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>",
    )


def _totals(spectrum: Spectrum) -> str:
    """What is known of all eigenvalues together; empty where nothing is."""
    values, words = spectrum.values, []
    point = values.get("point") or {}
    if point.get("kind"):
        kind = str(point["kind"]).replace("_", " ")
        words.append(f"The point is {kind}: {point.get('evidence')}.".replace("..", "."))
    negative = values.get("negative") or {}
    if negative.get("at_least") is not None:
        line = f"At least {number(negative['at_least'])} eigenvalues are negative"
        if finite(negative.get("resolution")) is not None:
            line += f", below −{number(negative['resolution'], 2)} {unit(spectrum)}"
        if finite(negative.get("estimate")) is not None:
            estimate, error = number(round(negative["estimate"])), number(negative.get("stderr"), 2)
            line += f"; the density estimates {estimate} ± {error} of "
            line += number(values.get("parameters"))
            if finite(negative.get("quadrature")) is not None:
                line += f", give or take {number(round(negative['quadrature']))} by the quadrature"
        words.append(f"{line}.")
    for name, what in (("trace", "The trace"), ("frobenius", "The Frobenius norm")):
        estimate = values.get(name) or {}
        if finite(estimate.get("value")) is not None:
            about = with_error(estimate["value"], estimate.get("stderr"))
            words.append(f"{what} is {about} {unit(spectrum)}.")
    if not words:
        return ""
    return f"<h3>All eigenvalues together</h3>\n<p>{escape(' '.join(words))}</p>\n"


def _condition_words(spectrum: Spectrum) -> str:
    condition = spectrum.values.get("condition") or {}
    value, lower, upper = (finite(condition.get(key)) for key in ("value", "lower", "upper"))
    basis = condition.get("basis")
    because = f" This rests on: {basis}." if basis else ""
    if lower is None and upper is None:
        known = "No bound is known."
    elif upper is None:
        known = f"At least {number(lower)}; no upper bound is known."
    elif lower is None:
        known = f"At most {number(upper)}; no lower bound is known."
    else:
        known = f"In the interval from {number(lower, 4)} to {number(upper, 4)}."
    if value is None:
        return f"No estimate is given. {known}{because}"
    return known + because if value == lower else f"Estimate {number(value)}. {known}{because}"


def _trust_words(spectrum: Spectrum) -> str:
    """How far the density may be off; empty where there is none."""
    density = spectrum.values.get("density") or {}
    if not density:
        return ""
    resolution = read_spectrum(spectrum).resolution
    bound, integral = finite(density.get("w1_bound")), finite(density.get("integral"))
    words = [
        f"It is an average over {number(density.get('probes'))} random probes of "
        f"{number(density.get('steps'))} Lanczos steps each."
    ]
    if bound is None:
        words.append("No bound on its distance from the true spectrum is known.")
    else:
        words.append(
            f"The Wasserstein-1 bound of {number(bound)} {unit(spectrum)} says that, with "
            "probability 0.95, moving each eigenvalue by no more than that on average turns the "
            "estimate, before it is smoothed, into the true spectrum."
        )
    if resolution is not None:
        words.append(
            "Where the spectrum is broad, ripples finer than about "
            f"{number(resolution, 1)} {unit(spectrum)} are the quadrature's own."
        )
    if integral is not None:
        words.append(f"The drawn density integrates to {integral:.4f}.")
    return " ".join(words)


def _blocks(spectrum: Spectrum, drawn: Mapping[str, str], name: str) -> str:
    blocks = spectrum.blocks
    if not blocks:
        return ""
    finding = blocks_sentence(spectrum)
    words = f"{blocks_words(spectrum)} To the right its density. {ridge_words([*blocks.values()])}"
    head = ("Layer", "Parameters", "Largest", "Smallest", "Trace")
    rows = [(block or "all parameters", *_row(one)) for block, one in blocks.items()]
    return (
        f'<h3>Layer by layer</h3>\n<p class="narrow">{escape(finding)}.</p>\n'
        f"{figure(drawn, name, finding, words, wide=True)}"
        f"{table(f'Diagonal blocks [{unit(spectrum)}]', head, rows)}"
    )


def _all(record: Record) -> str:
    head = ("Operator", "Data", "Step", "Parameters", "Largest", "Smallest", "Trace", "Condition")
    rows = [
        (
            operator_words(spectrum),
            data_words(spectrum),
            "–" if spectrum.step is None else f"{spectrum.step:,}",
            *_row(spectrum),
            condition_number(spectrum),
        )
        for one in series(record)
        for spectrum in one.spectra
    ]
    return table("Every spectrum in the folder, with residuals and standard errors", head, rows, 2)


def _row(spectrum: Spectrum) -> tuple[str, str, str, str]:
    """Parameters, largest and smallest eigenvalue, trace."""
    ends = (extremes(spectrum, end)[:1] for end in ("largest", "smallest"))
    cells = [with_error(rows[0][0], rows[0][1], 1) if rows else "–" for rows in ends]
    trace: dict[str, Any] = spectrum.values.get("trace") or {}
    known = finite(trace.get("value")) is not None
    cells.append(with_error(trace["value"], trace.get("stderr"), 1) if known else "–")
    return (number(spectrum.values.get("parameters")), cells[0], cells[1], cells[2])
