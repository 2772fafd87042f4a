"""A sweep: a run for each combination of values, each in a folder of its own.

    sweeps/NAME/
      learning_rate=0.001,seed=0/   a run folder
      learning_rate=0.001,seed=1/   …

The folders are the whole state: started again, a sweep leaves out the runs that have ended and goes
on with those that have not.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradkit.runner import record
from gradkit.runner.config import Config, dump, load, seedless
from gradkit.runner.document import values_of
from gradkit.runner.errors import UserError
from gradkit.runner.guard import unbegun
from gradkit.runner.rows import shortest_ends

_RANGE = re.compile(r"\s*(\d+):(\d+)\s*")
_LONGEST = 120  # characters of a folder's name


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        folder: where it is.
        config: what it trains.
    """

    folder: Path
    config: Config


def plan(file: str, words: Sequence[str], folder: Path | None) -> list[Point]:
    """Returns the runs of a sweep, the last word's values changing fastest, but seeds faster still.

    Runs that differ in their seeds alone follow each other, and share what is compiled.

    Args:
        file: the config.
        words: `key.path=value` or `key.path=value,value…` each, the values in YAML; `first:end` is
            every whole number from the first to the end, which is excluded, as in `seed=0:5`.
        folder: of the sweep; `sweeps/NAME` by default.

    Raises:
        UserError: a word is none of these, a point has mistakes, or two would share a folder.
    """
    axes = dict(_axis(word) for word in words)
    if len(axes) < len(words):
        raise UserError(
            f"sweep: expected each key once, got {' '.join(words)}; write all values of a key in "
            "one word"
        )
    if "seed" in axes:
        axes["seed"] = axes.pop("seed")
    names = shortest_ends({key: key for key, values in axes.items() if len(values) > 1})
    points: list[Point] = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        config = load(file, [f"{key}={json.dumps(value)}" for key, value in chosen.items()])
        parts = [f"{name}={_plain(chosen[key])}" for key, name in names.items()]
        name = ",".join(parts) or "run"
        points.append(Point((folder or Path("sweeps") / config.name) / name, config))
    folders = [point.folder for point in points]
    if shared := [str(one) for one in folders if folders.count(one) > 1]:
        raise UserError(
            f"sweep: two points would share {shared[0]}: a value is given twice; drop one"
        )
    if too_long := [one.name for one in folders if len(one.name) > _LONGEST]:
        raise UserError(
            f"sweep: {too_long[0]}: a folder's name of {len(too_long[0])} characters, of at most "
            f"{_LONGEST}; sweep over fewer keys, or put long values into config files"
        )
    return points


def run(
    points: Sequence[Point],
    tell: Callable[[str], None],
    *,
    begin: Callable[[Config, Path], Any],
    resume: Callable[[record.Record], Any],
    together: Callable[[list[Config], list[Path]], Any] | None = None,
) -> None:
    """Trains what has not ended yet.

    Args:
        points: the runs.
        tell: takes a line on what is done next.
        begin: (config, folder), trains in a new folder.
        resume: goes on with a run that has begun.
        together: (configs, folders), trains runs that differ in their seeds alone in new folders;
            None to train them one by one.

    Raises:
        UserError: a folder holds the run of another config, which is found before any training.
    """
    states = [(point, _state(point)) for point in points]
    groups = _by_seeds([point for point, state in states if state is None]) if together else {}
    todo = _to_do(states, groups)
    pace = _Pace()
    for number, (point, state) in enumerate(states, start=1):
        where, kind = f"{number} of {len(points)}: {point.folder.name}", todo[number - 1]
        left = pace.left(todo[number - 1 :])
        group = groups.get(seedless(point.config), [])
        if state is not None and state.summary is not None:
            tell(f"{where}: {state.summary.get('status')} before")
        elif state is not None:
            tell(f"{where}: going on{left}")
            with pace.timed(kind):
                resume(state)
        elif together is None or len(group) < 2:
            tell(f"{where}{left}")
            with pace.timed(kind):
                begin(point.config, point.folder)
        elif point == group[0]:
            tell(f"{where} and {len(group) - 1} more seeds at once{left}")
            with pace.timed(kind):
                together([one.config for one in group], [one.folder for one in group])


def _to_do(
    states: Sequence[tuple[Point, record.Record | None]], groups: dict[str, list[Point]]
) -> list[str | None]:
    """Of each point how it will be trained: compiled first, or not; None if not by itself."""
    kinds: list[str | None] = []
    before = None
    for point, state in states:
        key = seedless(point.config)
        group = groups.get(key, [])
        if state is not None:
            kinds.append("compiled" if state.summary is None else None)
        elif len(group) > 1:
            kinds.append("compiled" if point == group[0] else None)
        else:
            kinds.append("compiled" if key != before else "as before")
            before = key
    return kinds


class _Pace:
    """What runs have taken so far: those that were compiled first, and the others."""

    def __init__(self):
        self.seconds: dict[str | None, list[float]] = {}

    @contextmanager
    def timed(self, kind: str | None) -> Iterator[None]:
        """Takes the time of a run."""
        start = time.perf_counter()
        yield
        self.seconds.setdefault(kind, []).append(time.perf_counter() - start)

    def left(self, todo: Sequence[str | None]) -> str:
        """What runs still to do will take, in words; nothing as long as there is none to go by."""
        if not self.seconds:
            return ""
        known = {kind: statistics.fmean(taken) for kind, taken in self.seconds.items()}
        some = statistics.fmean(known.values())
        seconds = sum(known.get(kind, some) for kind in todo if kind is not None)
        if seconds < 1:
            return ""
        return (
            f" (some {seconds:.0f} s left)"
            if seconds < 100
            else (f" (some {seconds / 60:.0f} min left)")
        )


def _by_seeds(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Points that differ in their seeds alone."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(seedless(point.config), []).append(point)
    return groups


def _state(point: Point) -> record.Record | None:
    """The run of a point if it has begun."""
    folder = point.folder
    if not folder.exists() or unbegun(folder):
        return None
    found = record.open_record(folder)
    if found.config_text != dump(point.config):
        raise UserError(
            f"{folder}: was begun with another config; name another folder with --out, or delete it"
        )
    return found


def _axis(word: str) -> tuple[str, list[Any]]:
    key, equals, written = word.partition("=")
    if not equals or not key:
        raise UserError(
            f"sweep: {word}: expected key.path=value,value…, such as "
            "optimizer.learning_rate=1e-3,1e-2 or seed=0:5"
        )
    if numbers := _RANGE.fullmatch(written):
        values: list[Any] = list(range(int(numbers[1]), int(numbers[2])))
    else:
        values = values_of(written, f"sweep: {key}")
    if not values:
        raise UserError(
            f"sweep: {word}: expected a value or more, got none; the end of a range is excluded"
        )
    return key, values


def _plain(value: Any) -> str:
    """A value as a part of a folder's name."""
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.+-]+", "_", text).strip("_") or "empty"
