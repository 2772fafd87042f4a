"""A record as one self-contained page: no network, figures inline, no script but the race."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from gradkit.report.environment import environment
from gradkit.report.figures import figures, other_metrics
from gradkit.report.findings import (
    extremes,
    first_not_finite,
    last_step,
    outcome_sentence,
    read_spectrum,
)
from gradkit.report.markup import document, figure, footer, section
from gradkit.report.quantities import finite, number, percent, seconds
from gradkit.report.race import POLICY as RACE_POLICY
from gradkit.report.race import STYLE as RACE_STYLE
from gradkit.report.race import race_section
from gradkit.report.sharpness import sharpness_part
from gradkit.report.spectra import condition_number, spectra_sections
from gradkit.runner.record import ENV, Record, gradient_equivalents, write_text


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
    race = race_section(record)
    parts = [
        _header(record),
        _curves(record, drawn),
        spectra_sections(record, drawn),
        race,
        _config(record),
        environment(record),
        footer(record),
    ]
    extra = (RACE_STYLE, RACE_POLICY) if race else ("", "")
    return document(f"{record.name} – gradkit", parts, style=extra[0], policy=extra[1])


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
    ends = [(one, end) for one in record.spectra for end in ("largest", "smallest")]
    unconverged = sum(not row[2] for one, end in ends for row in extremes(one, end))
    if unconverged:
        subject = "eigenvalue has" if unconverged == 1 else "eigenvalues have"
        notes.append(
            f"{unconverged} listed {subject} not converged; the tables have the residuals."
        )
    values = [value for one, end in ends for value in (one.values.get(end) or {}).get("values", [])]
    lost = sum(finite(value) is None for value in values)
    if lost:
        notes.append(f"{lost} of the computed eigenvalues are not finite and are left out.")
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>\n' if notes else ""


def _numbers(record: Record) -> str:
    final = _final(record)
    summary = record.summary or {}
    last = record.metrics[-1] if record.metrics else {}
    reading = read_spectrum(record.main)
    rows = [
        ("Test accuracy", percent(final.get("test_accuracy"))),
        ("Test loss", number(final.get("test_loss"))),
        ("Training accuracy", percent(final.get("train_accuracy"))),
        ("Training loss", number(final.get("train_loss"))),
        *_other_numbers(final),
        ("Steps", number(summary.get("steps", last.get("step")))),
        ("Time", seconds(summary.get("seconds", last.get("time")))),
        ("Time to compile", seconds(summary.get("compile_seconds"))),
        ("Work, in gradients", number(gradient_equivalents(last), 6)),
        ("Parameters", number(record.env.get("parameters"))),
        ("Largest eigenvalue", number(reading.largest, 4)),
        ("Smallest eigenvalue", number(reading.smallest, 4)),
        ("Condition number", condition_number(record.main)),
    ]
    items = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>\n"
        for name, value in rows
        if value != "–"
    )
    return f'<dl class="numbers">\n{items}</dl>\n' if items else ""


def _other_numbers(final: dict[str, Any]) -> list[tuple[str, str]]:
    """What was evaluated besides losses and accuracies, on data held out."""
    known = ("test_loss", "test_accuracy")
    names = [name for name in final if name.startswith(("test_", "validation_"))]
    return [
        (escape(name.replace("_", " ").capitalize()), number(final[name]))
        for name in names
        if name not in known
    ]


def _final(record: Record) -> dict[str, Any]:
    """The figures at the end; while a run is unfinished, the last recorded ones."""
    summary = record.summary or {}
    if summary.get("status") == "diverged":
        return summary
    merged: dict[str, Any] = {}
    for line in record.metrics:
        merged |= line
    return merged | {name: value for name, value in summary.items() if value is not None}


def _curves(record: Record, drawn: Mapping[str, str]) -> str:
    if not record.config_text and not record.metrics:  # trained elsewhere
        return ""
    if not {"loss", "accuracy", "dynamics"} & drawn.keys():
        words = "The recorded metrics hold no finite numbers." if record.metrics else ""
        return section("Training", f"<p>{words or 'No metrics have been recorded.'}</p>")
    loss = figure(
        drawn,
        "loss",
        _loss_words(record),
        "Loss on the training batches, on the full training set and on the test set. A "
        "gradient-equivalent is the work of one gradient: gradient evaluations, plus a third for "
        "each further loss evaluation, plus one for each Hessian-vector product (linearized once "
        "and then applied).",
        wide=True,
    )
    accuracy = figure(drawn, "accuracy", "Accuracy against step.", "Share classified correctly.")
    dynamics = figure(
        drawn,
        "dynamics",
        "Gradient norm and learning rate against step.",
        "Norm of the training batch's gradient, and the learning rate where one is defined.",
    )
    others = "".join(
        figure(drawn, name, f"{metric} against step.", f"{metric.replace('_', ' ')}, as recorded.")
        for metric, name in other_metrics(record)
    )
    curves = f'{loss}<div class="pair">\n{accuracy}{dynamics}{others}</div>\n'
    return section("Training", curves + sharpness_part(record, drawn))


def _loss_words(record: Record) -> str:
    words = "Loss against step, time and gradient-equivalents"
    known = [line["loss"] for line in record.metrics if finite(line.get("loss")) is not None]
    if not known:
        return f"{words}."
    return (
        f"{words}; the training batch starts at {number(known[0])} and ends at "
        f"{number(known[-1])} at step {last_step(record):,}."
    )


def _config(record: Record) -> str:
    if not record.config_text:
        return ""
    text = escape(record.config_text.rstrip("\n"))
    return section(
        "Config", f'<pre tabindex="0" aria-label="Resolved config"><code>{text}</code></pre>\n'
    )
