"""What a comparison of runs finds, in a sentence each, and what a reader must know before."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradkit.report.environment import differences
from gradkit.report.quantities import number, with_error
from gradkit.runner.rows import Mean, Row, budget_words, judge, ranked, status, unequal

_MACHINE = ("gradkit", "python", "platform", "cpus", "device", "packages.")


def headline(rows: Sequence[Row]) -> str:
    """The finding, for a title: which row is best, with its figure and the error."""
    name, best = judge(rows), ranked(rows)[:1]
    if name is None or not best:
        runs = sum(len(row.records) for row in rows)
        return f"No loss at the end of {'this run' if runs == 1 else f'any of {runs} runs'}"
    words = name.replace("_", " ")
    mean = best[0].figures[name]
    seeds = "in one run" if mean.runs == 1 else f"over {mean.runs} {_runs_word(best[0])}"
    lost = [f", {count} {kind}" for kind, count in best[0].ended.items() if kind != "finished"]
    seeds += "".join(lost)
    if len(rows) == 1:
        name = f": {best[0].label}" if len(best[0].records) == 1 else ""
        return f"{words.capitalize()} {mean_words(mean)} {seeds}{name}"
    return f"Lowest {words}: {best[0].label}, {mean_words(mean)} {seeds}"


def lead(rows: Sequence[Row]) -> str:
    """How far the best row is ahead of the next, in standard errors of the difference."""
    name, order = judge(rows), ranked(rows)
    if name is None or len(order) < 2:
        return ""
    first, second = order[0].figures[name], order[1].figures[name]
    next_words = f"Next is {order[1].label} with {mean_words(second)}"
    if first.stderr is None or second.stderr is None:
        return f"{next_words}; of a single run it is not known how much the seed matters."
    apart, error = second.value - first.value, math.hypot(first.stderr, second.stderr)
    if apart > 2 * error:
        return f"{next_words}, more than two standard errors of the difference behind."
    close = sum(
        other.stderr is not None
        and other.value - first.value <= 2 * math.hypot(first.stderr, other.stderr)
        for other in (row.figures[name] for row in order[1:])
    )
    them = "it" if close == 1 else f"{close} rows"
    return (
        f"{next_words}; the difference, {with_error(apart, error)}, is within two standard errors, "
        f"so that the seeds do not tell {them} apart from the best."
    )


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader must know before trusting the comparison."""
    found = [budget_words(rows)] if unequal(rows) else []
    runs = [run for row in rows for run in row.records]
    for kind, words in (("diverged", "diverged"), ("unfinished", "unfinished")):
        count = sum(status(run) == kind for run in runs)
        if count:
            have = "is" if kind == "unfinished" and count == 1 else "are"
            verb = f"{have} {words}" if kind == "unfinished" else words
            found.append(f"{count} of {len(runs)} runs {verb}; means are of those that finished.")
    if any(len(set(map(str, row.seeds))) < len(row.seeds) for row in rows):
        found.append("Some runs of a row have the same seed: they are no independent runs.")
    if any(run.truncated for run in runs):
        found.append(
            "The last metrics line of a run was cut short, as by a crash, and is left out."
        )
    if any(name.startswith(_MACHINE) for name in differences(runs)):
        found.append(
            "Runs were made with different versions or on different machines, so that their times "
            "do not compare: see Environment."
        )
    return found


def mean_words(mean: Mean | None) -> str:
    """A mean with its standard error, or without when there is none."""
    if mean is None:
        return "–"
    if mean.stderr is None or not mean.stderr > 0:
        return number(mean.value, 4)
    return with_error(mean.value, mean.stderr)


def _runs_word(row: Row) -> str:
    return "seeds" if len(set(map(str, row.seeds))) == len(row.seeds) else "runs"
