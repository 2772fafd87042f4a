"""The spectra of several runs, one run after the other in one process.

Runs of one task share whatever is compiled for its loss. The folders are the whole state: what is
there already is read and not computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from gradkit.runner import spectrum, subject
from gradkit.runner.errors import UserError
from gradkit.runner.record import Record
from gradkit.runner.spectrum import Options
from gradkit.runner.tasks import Task


def survey(
    runs: Sequence[Record],
    options: Options,
    tell: Callable[[str], None],
    *,
    steps: str = "last",
    data: str = "train",
) -> tuple[dict[str, list[dict[str, Any]]], bool]:
    """Returns the spectra of each run by its folder, and whether none had to be left out.

    Args:
        runs: the runs.
        options: how each is looked at.
        tell: takes a line on what is done next, and on what cannot be.
        steps, data: as for `subject.of_run`.

    Raises:
        UserError: as from `subject.of_run` and `spectrum.compute`, if there is no spectrum at all;
            as long as there is one, what cannot be looked at is told and left out.
    """
    tasks: dict[str, Task] = {}
    found: dict[str, list[dict[str, Any]]] = {}
    taken: list[float] = []
    refused: UserError | None = None
    for number, run in enumerate(runs, start=1):
        left = _left(taken, len(runs) - len(taken))
        tell(f"{number} of {len(runs)}: {run.name}{left}")
        results, start = found.setdefault(str(run.path), []), time.perf_counter()
        try:
            for one in subject.of_run(run, steps, data, tasks):
                results.append(spectrum.compute(one, options))
        except UserError as error:
            refused = error
            tell(f"left out: {error}")
        taken.append(time.perf_counter() - start)
    if refused is not None and not any(found.values()):
        raise refused
    return found, refused is None


def _left(taken: Sequence[float], count: int) -> str:
    """The time that so many more runs take, by those that were not merely read."""
    computed = [seconds for seconds in taken if seconds > max(taken) / 20]
    if not computed:
        return ""
    return f"; about {count * sum(computed) / len(computed):.0f} s left"
