"""Several runs as one self-contained page: what was best, by how much, and at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from gradkit.report.bands import bands_figure, drawn_rows
from gradkit.report.environment import differences, environment_table
from gradkit.report.findings import extremes
from gradkit.report.markup import document, figure, footer, section, table
from gradkit.report.quantities import number, with_error
from gradkit.report.sensitivity import (
    Swept,
    best_values,
    panels,
    sensitivity_figures,
    shown_lines,
    swept,
)
from gradkit.report.series import data_words, operator_words
from gradkit.report.spectra import condition_number
from gradkit.report.verdict import headline, lead, mean_words, notes
from gradkit.runner.errors import UserError
from gradkit.runner.record import Spectrum, write_text
from gradkit.runner.rows import (
    Row,
    budget_words,
    columns,
    judge,
    more_is_better,
    ranked,
    short_names,
    shown,
)

ABOUT = "gradkit comparison"
_LISTED = 60  # rows of a table
_FIGURES = 400_000  # characters of all figures
_COSTS = {"steps": "Steps", "seconds": "Time [s]", "gradients": "Gradient-equivalents"}


def write_comparison(rows: Sequence[Row], path: Path) -> Path:
    """Writes the page of some rows, whole or not at all, and returns its path.

    Raises:
        UserError: there is a file already that is no such page.
    """
    if path.exists() and not _ours(path):
        raise UserError(
            f"{path}: exists already, is no comparison of runs, and is not overwritten; "
            "name another with --out FILE"
        )
    write_text(path, comparison(rows))
    return path


def comparison(rows: Sequence[Row]) -> str:
    """The page as text."""
    curves = bands_figure(rows)
    drawn = {"curves": curves} if curves else {}
    for name, svg in sensitivity_figures(rows).items():
        if sum(map(len, drawn.values())) + len(svg) < _FIGURES:
            drawn[name] = svg
    title = headline(rows)
    parts = [
        _header(rows, title),
        _table(rows),
        _curves(rows, drawn),
        _sensitivity(rows, drawn),
        _budgets(rows),
        _spectra(rows),
        _config(rows),
        _environment(rows),
        footer(rows[0].records[0]),
    ]
    return document(f"{title} – gradkit", parts, ABOUT)


def _ours(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return f'<meta name="generator" content="{ABOUT}">'.encode() in file.read(500)


def _header(rows: Sequence[Row], title: str) -> str:
    words, told = lead(rows), notes(rows)
    outcome = f'<p class="outcome">{escape(words)}</p>\n' if words else ""
    items = "".join(f"<li>{escape(note)}</li>" for note in told)
    listed = f'<ul class="notes">{items}</ul>\n' if told else ""
    return f"<header>\n<h1>{escape(title)}</h1>\n{outcome}{listed}</header>"


def _table(rows: Sequence[Row]) -> str:
    settings = short_names([*rows[0].settings])
    figures = [name for name in columns(rows) if not name.startswith("best_train_")]
    figures.sort(key=lambda name: (name.startswith("best_"), name == "train_loss"))
    best = {name: _best(rows, name) for name in figures}
    head = [*(settings.values() or ["Run"]), "Runs", *(name.replace("_", " ") for name in figures)]
    lines = []
    for row in _listed(rows):
        cells = [shown(row.settings[key]) for key in settings] or [row.label]
        lines.append([*cells, _ended(row), *(_end(row, name, best[name]) for name in figures)])
    words = "Means over the runs of a row ± the standard error of the mean"
    if any(name.startswith("best_") for name in figures):
        words += ", at the end, and as “best” at the best of all evaluations"
    if len(rows) > 1:
        words += "; ★ the best of a column"
    if len(lines) < len(rows):
        words += f"; the {len(lines)} best of {len(rows)} rows"
    ends = table("The end of training", head, lines, len(settings) or 1)
    return section("Comparison", f"<p>{escape(words)}.</p>\n{ends}")


def _listed(rows: Sequence[Row]) -> list[Row]:
    """The rows that tables have: all, or of many the best, in their own order."""
    if len(rows) <= _LISTED:
        return list(rows)
    best = set([*ranked(rows), *rows][:_LISTED])
    return [row for row in rows if row in best]


def _best(rows: Sequence[Row], name: str) -> float | None:
    known = [row.figures[name].value for row in rows if name in row.figures]
    if len(rows) < 2 or not known:
        return None
    return max(known) if more_is_better(name) else min(known)


def _end(row: Row, name: str, best: float | None) -> str:
    mean = row.figures.get(name)
    mark = "★ " if mean is not None and mean.value == best else ""
    return f"{mark}{mean_words(mean)}"


def _ended(row: Row) -> str:
    finished = row.ended.get("finished", 0)
    others = [f"{count} {words}" for words, count in row.ended.items() if words != "finished"]
    return ", ".join([str(finished), *others])


def _curves(rows: Sequence[Row], drawn: dict[str, str]) -> str:
    if "curves" not in drawn:
        return section("Training", "<p>No losses have been recorded.</p>\n")
    shown_rows = drawn_rows(rows)
    words = "Mean over the runs of a row that have finished, with a band of ± one standard error. "
    if len(shown_rows) < len(rows):
        words = f"The {len(shown_rows)} best of {len(rows)} rows. {words}"
    if any("diverged" in row.ended for row in shown_rows):
        words += (
            "Dotted: a run that diverged, up to its last finite evaluation, at the cross; what "
            "diverged before its first is not drawn, nor what leaves the panel. "
        )
    if any("unfinished" in row.ended for row in shown_rows):
        words += "Thin and dashed: a run that has not finished. "
    if any(len(row.records) - len(row.finished) > 1 for row in shown_rows):
        words += "Of a row at most three such runs are drawn. "
    words += (
        "Time is that of training and evaluation, without compiling. A gradient-equivalent is the "
        "work of one gradient: gradient evaluations, plus a third for each further loss "
        "evaluation, plus one for each Hessian-vector product."
    )
    about = f"Losses of {len(shown_rows)} rows against step, time and gradient-equivalents."
    return section("Training", figure(drawn, "curves", about, words, wide=True))


def _sensitivity(rows: Sequence[Row], drawn: dict[str, str]) -> str:
    if len(rows) < 2:
        return ""
    judged, parts, wide = judge(rows) or "", [], len(panels(rows)) > 1
    for place, one in enumerate(swept(rows)):
        name = f"sensitivity-{place}"
        if name in drawn:
            title = escape(best_values(one, judged)[0])
            words = _sensitivity_words(one, judged)
            svg = figure(drawn, name, f"Final figures against {one.name}.", words, wide=wide)
            parts.append(f"<div>\n<h3>{title}</h3>\n{svg}</div>\n")
        elif parts:
            parts.append(f"<p>{escape(one.name)}: not drawn, to keep this page small.</p>\n")
    if not parts:
        parts = ["<p>No setting was varied with all others as they were.</p>\n"]
    found = "".join(parts)
    return section("Sensitivity", found if wide else f'<div class="pair">\n{found}</div>\n')


def _sensitivity_words(one: Swept, judged: str) -> str:
    """The caption of a sensitivity."""
    lines = shown_lines(one, judged)
    words = "The end of training, with standard errors over the runs of a row"
    if any("diverged" in row.ended for _, line in lines for row in line):
        words += "; × at the edge: here runs diverged, some or all"
    words += "."
    if len(lines) > 1:
        what = "Points on one line" if one.numeric else "Points of one color"
        words += f" {what} differ in nothing else. {best_values(one, judged)[1]}"
    if len(lines) < len(one.lines):
        words = f"The {len(lines)} best of {len(one.lines)} lines. {words}"
    return words


def _budgets(rows: Sequence[Row]) -> str:
    lines = [
        [row.label, *(mean_words(row.budget.get(cost)) for cost in _COSTS)]
        for row in _listed(rows)
        if row.budget
    ]
    if not lines:
        return ""
    words = f"<p>{escape(budget_words(rows))}</p>\n"
    caption = "What a run of a row took, a mean over those that have finished"
    return section("Budgets", words + table(caption, ["Row", *_COSTS.values()], lines))


def _spectra(rows: Sequence[Row]) -> str:
    found = [
        (row, seed, run.main)
        for row in rows
        for seed, run in zip(row.seeds or [None] * len(row.records), row.records, strict=True)
        if run.main is not None
    ]
    if not found:
        return ""
    lines = [
        [
            row.label,
            shown(seed),
            operator_words(spectrum),
            data_words(spectrum),
            _extreme(spectrum, "largest"),
            _extreme(spectrum, "smallest"),
            condition_number(spectrum),
            _interval(spectrum),
        ]
        for row, seed, spectrum in found[:_LISTED]
    ]
    head = ("Row", "Seed", "Operator", "Data", "λ max", "λ min", "Condition", "Interval")
    some = f", the first {_LISTED} of {len(found)}" if len(found) > _LISTED else ""
    return section("Spectra", table(f"Extreme eigenvalues with residuals{some}", head, lines, 4))


def _extreme(spectrum: Spectrum, end: str) -> str:
    found = extremes(spectrum, end)
    return with_error(found[0][0], found[0][1], 1) if found else "–"


def _interval(spectrum: Spectrum) -> str:
    condition = spectrum.values.get("condition") or {}
    lower, upper = number(condition.get("lower")), number(condition.get("upper"))
    return "–" if lower == upper == "–" else f"{lower} to {'∞' if upper == '–' else upper}"


def _config(rows: Sequence[Row]) -> str:
    values = {
        key: [shown(value) for value in dict.fromkeys(shown(row.settings[key]) for row in rows)]
        for key in rows[0].settings
    }
    seeds = dict.fromkeys(shown(seed) for row in rows for seed in row.seeds)
    listed = [[key, ", ".join(found)] for key, found in values.items()]
    if len(seeds) > 1:
        listed.append(["seed", ", ".join(seeds)])
    differing = table("Keys in which runs differ", ["Key", "Values"], listed, 2) if listed else ""
    first = rows[0].records[0]
    text = escape(first.config_text.rstrip("\n"))
    what = f"<p>In full that of the first run, {escape(first.name)}:</p>\n"
    return section(
        "Config",
        f'{differing}{what}<pre tabindex="0" aria-label="Resolved config of the first run"><code>'
        f"{text}</code></pre>\n",
    )


def _environment(rows: Sequence[Row]) -> str:
    runs = [run for row in rows for run in row.records]
    found = differences(runs)
    lines = [
        [
            name,
            ", ".join(f"{value} ({count} of {len(runs)} runs)" for value, count in kinds.items()),
        ]
        for name, kinds in found.items()
    ]
    listed = table("What runs do not have in common", ["What", "Values"], lines, 2) if lines else ""
    alike = "" if lines or len(runs) < 2 else "<p>All runs have this in common.</p>\n"
    full = f"<p>In full that of the first run, {escape(runs[0].name)}:</p>\n" if lines else ""
    return section("Environment", f"{listed}{alike}{full}{environment_table(runs[0])}")
