"""A record as one self-contained page: no network, no script, figures inline."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from gradkit.report.figures import figures
from gradkit.report.findings import (
    CENTRAL,
    extremes,
    first_not_finite,
    last_step,
    outcome_sentence,
    read_spectrum,
    spectrum_sentence,
)
from gradkit.report.quantities import finite, number, percent, seconds, with_error
from gradkit.report.spectrum import density_floor
from gradkit.report.style import STYLE
from gradkit.runner.record import ARRAYS, ENV, Record, gradient_equivalents, write_text

# The page can load nothing, whatever a record holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_OPERATORS = {
    "hessian": "Hessian",
    "gauss_newton": "Gauss–Newton matrix",
    "fisher": "Fisher matrix",
    "empirical_fisher": "empirical Fisher matrix",
}


def write_report(record: Record) -> Path:
    """Writes `plots/*.svg` and `report.html` into the run folder, each whole or not at all.

    Returns:
        The path of the page.
    """
    drawn = figures(record)
    plots = record.path / "plots"
    plots.mkdir(exist_ok=True)
    for name, svg in drawn.items():
        write_text(plots / f"{name}.svg", svg)
    path = record.path / "report.html"
    write_text(path, page(record, drawn))
    return path


def page(record: Record, drawn: Mapping[str, str]) -> str:
    """The page as text, from a record and its figures."""
    parts = [
        _header(record),
        _curves(record, drawn),
        _spectrum(record, drawn),
        _config(record),
        _environment(record),
        _footer(record),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(record.name)} – gradkit</title>\n<style>\n{STYLE}\n</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(parts) + "\n</main>\n</body>\n</html>\n"
    )


def _header(record: Record) -> str:
    return (
        f"<header>\n<h1>{escape(record.name)}</h1>\n"
        f'<p class="outcome">{escape(outcome_sentence(record))}</p>\n'
        f"{_notes(record)}{_numbers(record)}</header>"
    )


def _notes(record: Record) -> str:
    """What a reader must know before trusting the page; empty when there is nothing."""
    notes = []
    if record.truncated:
        notes.append("The last metrics line was cut short, as by a crash, and is left out.")
    first = first_not_finite(record)
    if first is not None:
        notes.append(f"The training loss is not finite at step {first:,}: the curves stop there.")
    if not record.env:
        notes.append(f"{ENV} is missing: versions, data and command are not known.")
    unconverged = sum(
        not converged
        for end in ("largest", "smallest")
        for _, _, converged in extremes(record, end)
    )
    if unconverged:
        subject = "eigenvalue has" if unconverged == 1 else "eigenvalues have"
        notes.append(f"{unconverged} listed {subject} not converged; the table has the residuals.")
    lost = sum(
        finite(value) is None
        for end in ("largest", "smallest")
        for value in ((record.spectrum or {}).get(end) or {}).get("values") or []
    )
    if lost:
        notes.append(f"{lost} of the computed eigenvalues are not finite and are left out.")
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>\n' if notes else ""


def _numbers(record: Record) -> str:
    final = _final(record)
    summary = record.summary or {}
    last = record.metrics[-1] if record.metrics else {}
    reading = read_spectrum(record)
    rows = [
        ("Test accuracy", percent(final.get("test_accuracy"))),
        ("Test loss", number(final.get("test_loss"))),
        ("Training accuracy", percent(final.get("train_accuracy"))),
        ("Training loss", number(final.get("train_loss"))),
        ("Steps", number(summary.get("steps", last.get("step")))),
        ("Time", seconds(summary.get("seconds", last.get("time")))),
        ("Time to compile", seconds(summary.get("compile_seconds"))),
        ("Work, in gradients", number(gradient_equivalents(last), 6)),
        ("Parameters", number(record.env.get("parameters"))),
        ("Largest eigenvalue", number(reading.largest, 4)),
        ("Smallest eigenvalue", number(reading.smallest, 4)),
        ("Condition number", _condition_number(record.spectrum or {})),
    ]
    items = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>\n"
        for name, value in rows
        if value != "–"
    )
    return f'<dl class="numbers">\n{items}</dl>\n' if items else ""


def _final(record: Record) -> dict[str, Any]:
    """The summary's losses and accuracies; while a run is unfinished, the last recorded ones."""
    if record.summary is not None:
        return record.summary
    merged: dict[str, Any] = {}
    for line in record.metrics:
        merged |= line
    return merged


def _curves(record: Record, drawn: Mapping[str, str]) -> str:
    if not {"loss", "accuracy", "dynamics"} & drawn.keys():
        words = "The recorded metrics hold no finite numbers." if record.metrics else ""
        return _section("Training", f"<p>{words or 'No metrics have been recorded.'}</p>")
    loss = _figure(
        drawn,
        "loss",
        _loss_words(record),
        "Loss on the training batches, on the full training set and on the test set. A "
        "gradient-equivalent is the work of one gradient: gradient evaluations, plus a third for "
        "each further loss evaluation, plus one for each Hessian-vector product (linearized once "
        "and then applied).",
        wide=True,
    )
    accuracy = _figure(drawn, "accuracy", "Accuracy against step.", "Share classified correctly.")
    dynamics = _figure(
        drawn,
        "dynamics",
        "Gradient norm and learning rate against step.",
        "Norm of the training batch's gradient, and the learning rate where one is defined.",
    )
    return _section("Training", f'{loss}<div class="pair">\n{accuracy}{dynamics}</div>\n')


def _loss_words(record: Record) -> str:
    words = "Loss against step, time and gradient-equivalents"
    known = [line["loss"] for line in record.metrics if finite(line.get("loss")) is not None]
    if not known:
        return f"{words}."
    return (
        f"{words}; the training batch starts at {number(known[0])} and ends at "
        f"{number(known[-1])} at step {last_step(record):,}."
    )


def _spectrum(record: Record, drawn: Mapping[str, str]) -> str:
    if record.spectrum is None:
        words = (
            "No spectrum has been computed for this run; <code>gradkit spectrum RUN</code> does."
        )
        return _section("Spectrum", f"<p>{words}</p>")
    finding = spectrum_sentence(read_spectrum(record))
    figure = _figure(drawn, "spectrum", finding, _density_words(record), wide=True)
    tables = "".join(_eigenvalues(record, end) for end in ("largest", "smallest"))
    return _section(
        "Spectrum",
        f"<p>{escape(_spectrum_origin(record.spectrum))}</p>\n"
        f'<p class="narrow">{escape(finding)}.</p>\n{figure}'
        f'<div class="tables">\n{tables}</div>\n'
        f"<h3>Condition number</h3>\n<p>{escape(_condition_words(record.spectrum))}</p>\n"
        f"<h3>How far to trust the density</h3>\n<p>{escape(_trust_words(record))}</p>\n",
    )


def _spectrum_origin(spectrum: Mapping[str, Any]) -> str:
    products, time = number(spectrum.get("products")), seconds(spectrum.get("seconds"))
    operator = spectrum.get("operator", "curvature")
    return (
        f"The {_OPERATORS.get(operator, operator)} of the loss at step "
        f"{number(spectrum.get('step'))}, over {number(spectrum.get('examples'))} examples "
        f"({spectrum.get('data', 'data not named')}) in {number(spectrum.get('parameters'))} "
        f"parameters: {products} products in {time}."
    )


def _density_words(record: Record) -> str:
    reading = read_spectrum(record)
    if density_floor(record, reading) is None:
        return (
            f"Extreme eigenvalues with their residuals as bars. The density is not drawn: {ARRAYS} "
            "is missing or holds none."
        )
    words = (
        f"Density of the eigenvalues, each widened to a Gaussian of standard deviation "
        f"{number(reading.width, 2)}, with its standard error over the probes as a band. The "
        f"density axis is cut at {number(density_floor(record, reading), 1)}; an eigenvalue axis "
        "that labels powers of ten is linear near zero. Below, the extreme eigenvalues with their "
        "residuals as bars (often smaller than the marks), hollow where not converged."
    )
    if reading.outliers is None:
        return words
    return (
        f"{words} The bulk is the interval that holds the central {percent(CENTRAL)} of the mass; "
        "an outlier lies further beyond it than it is long."
    )


def _eigenvalues(record: Record, end: str) -> str:
    rows = extremes(record, end)
    if not rows:
        return f"<p>No finite {end} eigenvalue is recorded.</p>\n"
    body = "".join(
        f'<tr><td class="number">{rank}</td>'
        f'<td class="number">{escape(with_error(value, error))}</td>'
        f"<td>{'yes' if converged else 'no'}</td></tr>\n"
        for rank, (value, error, converged) in enumerate(rows, start=1)
    )
    head = '<th>Rank</th><th class="number">Value ± residual</th><th>Converged</th>'
    return _scroll(
        f"{end.capitalize()} eigenvalues",
        f"<table><caption>{end.capitalize()} eigenvalues [loss/param²]</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>",
    )


def _condition_number(spectrum: Mapping[str, Any]) -> str:
    condition = spectrum.get("condition") or {}
    value, lower = number(condition.get("value")), number(condition.get("lower"))
    if lower != "–" and finite(condition.get("upper")) is None:
        return f"≥ {lower}"
    return value


def _condition_words(spectrum: Mapping[str, Any]) -> str:
    condition = spectrum.get("condition") or {}
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


def _trust_words(record: Record) -> str:
    density = (record.spectrum or {}).get("density") or {}
    resolution = read_spectrum(record).resolution
    bound, integral = finite(density.get("w1_bound")), finite(density.get("integral"))
    words = [
        f"It is an average over {number(density.get('probes'))} random probes of "
        f"{number(density.get('steps'))} Lanczos steps each."
    ]
    if bound is None:
        words.append("No bound on its distance from the true spectrum is known.")
    else:
        words.append(
            f"The Wasserstein-1 bound of {number(bound)} loss/param² says that, with probability "
            "0.95, moving each eigenvalue by no more than that on average turns the estimate, "
            "before it is smoothed, into the true spectrum."
        )
    if resolution is not None:
        words.append(
            "Where the spectrum is broad, ripples finer than about "
            f"{number(resolution, 1)} loss/param² are the quadrature's own."
        )
    if integral is not None:
        words.append(f"The drawn density integrates to {integral:.4f}.")
    return " ".join(words)


def _config(record: Record) -> str:
    text = escape(record.config_text.rstrip("\n"))
    return _section(
        "Config", f'<pre tabindex="0" aria-label="Resolved config"><code>{text}</code></pre>\n'
    )


def _environment(record: Record) -> str:
    if not record.env:
        return _section("Environment", f"<p>{ENV} is missing.</p>")
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{_cell(name, value)}</td></tr>\n'
        for name, value in record.env.items()
    )
    return _section(
        "Environment",
        _scroll(
            "Environment",
            f"<table><caption>Where and with what the run was made</caption>\n<tbody>\n"
            f"{rows}</tbody></table>",
        ),
    )


def _cell(name: str, value: Any) -> str:
    if name == "command" and isinstance(value, list):
        return f"<code>{escape(shlex.join(map(str, value)))}</code>"
    if isinstance(value, dict):
        return "<br>".join(f"{escape(str(key))} {_inline(item)}" for key, item in value.items())
    return _inline(value)


def _inline(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = escape("not known" if value is None else str(value))
        return f"<code>{text}</code>" if len(text) > 30 else text
    return escape(number(value, 6))


def _footer(record: Record) -> str:
    version = record.env.get("gradkit")
    made = f"gradkit {version}" if version else "gradkit"
    return f"<footer>Run made with {escape(made)}; this page holds all of its figures.</footer>"


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}</section>"


def _figure(
    drawn: Mapping[str, str], name: str, words: str, caption: str, *, wide: bool = False
) -> str:
    """A figure of the record; empty when there is none of that name."""
    if name not in drawn:
        return ""
    label = escape(words, quote=True)
    svg = drawn[name].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    inner = _scroll(f"{name.capitalize()} figure", svg, wide=True) if wide else svg
    return f"<figure>\n{inner}<figcaption>{escape(caption)}</figcaption>\n</figure>\n"


def _scroll(label: str, content: str, *, wide: bool = False) -> str:
    """A box that scrolls by itself when its content is wider than the page, by keyboard too."""
    kind = "scroll wide" if wide else "scroll"
    return (
        f'<div class="{kind}" tabindex="0" role="region" aria-label="{escape(label)}">\n'
        f"{content}\n</div>\n"
    )
