"""Kills runs at random moments, resumes them, and compares their ends with undisturbed ones.

`python benchmarks/kills.py` trains each of three small configs once without disturbance. Then it
starts the same `gradkit run` again and again, kills it at a moment drawn from its whole life, from
the imports to the report, by SIGKILL mostly, else by SIGTERM or SIGINT; and resumes it, which may
be killed too, until the run has ended. A run that was killed before it had a config is begun anew
into the same folder.

Every end must be that of the undisturbed run: parameters and state bit for bit at all of its
checkpoints, also the best; metrics but for their times; the summary but for seconds; no file more,
none less. After a signal that asks, the process must leave with its status and one message. The
exit status is 1 where anything differs.

`--kills 60` kills in all; `--seed 0` draws the moments; `--config network` takes one of the three;
`long` spends most of its life in training.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.runner import checkpoint, record, setting

COMMAND = [sys.executable, "-m", "gradkit.runner.cli", "run"]
SIGNALS = {signal.SIGKILL: 6, signal.SIGTERM: 2, signal.SIGINT: 2}  # with their shares
PATIENCE = 60  # seconds that a process may take to leave after it was asked to
CONFIGS = {
    "network": """\
data: {source: digits, validation_fraction: 0.1}
model: {hidden: [512, 256], activation: tanh, batch_norm: true, dropout: 0.1}
optimizer: {name: adam, learning_rate: 0.03}
epochs: 40
log_every: 1
evaluate_every: 20
checkpoint_every: 40
best: {metric: validation_loss, patience: 15}
""",
    "search": """\
data: {source: digits, examples: 400, test_fraction: 0.5}
model: {hidden: [8], activation: tanh}
optimizer: {name: lbfgs}
batch_size: 400
epochs: 90
log_every: 1
evaluate_every: 5
checkpoint_every: 2
best: {metric: test_loss}
""",
}
CONFIGS["long"] = (
    CONFIGS["network"].partition("epochs")[0]
    + """\
epochs: 300
log_every: 10
evaluate_every: 200
checkpoint_every: 600
best: {metric: validation_loss, patience: 30}
"""
)


class Kill(NamedTuple):
    """`phase`: what the process was doing, as its folder tells."""

    signal: signal.Signals
    phase: str
    seconds: float


class WrongError(Exception):
    """Something that must not happen to a run."""


def lives(config: Path, run: Path, length: float, moments: random.Random) -> Iterator[Kill | None]:
    """Yields a kill, or None for an end, of each process until the run has ended.

    Args:
        config: what is trained.
        run: the run folder, which is made.
        length: of an undisturbed process [s]; moments are drawn from a little more.
        moments: the generator.
    """
    while True:
        number = moments.choices(list(SIGNALS), weights=list(SIGNALS.values()))[0]
        after = moments.uniform(0.0, 1.05 * length)
        kill = killed(arguments(config, run), run, number, after=after)
        yield kill
        if kill is None:
            return


def arguments(config: Path, run: Path) -> list[str]:
    """What goes on with a run, or begins it."""
    if (run / record.CONFIG).is_file():
        return ["--resume", str(run)]
    return [str(config), "--out", str(run)]


def killed(words: list[str], run: Path, number: signal.Signals, *, after: float) -> Kill | None:
    """Starts a process and kills it; returns how, or None where it had ended before.

    Raises:
        WrongError: it left with another status or message than it should.
    """
    before, started = traces(run), time.perf_counter()
    process = subprocess.Popen(
        [*COMMAND, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        seconds, phase = time.perf_counter() - started, doing(run, before)
        os.killpg(process.pid, number)
        try:
            _, said = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise WrongError(f"went on {PATIENCE} s after {number.name} while {phase}") from None
        if process.returncode == 0:  # it had all but ended
            return None
        check_leaving(process.returncode, said, number, run)
        return Kill(number, phase, seconds)
    if process.returncode:
        raise WrongError(f"{' '.join(words)}: exit status {process.returncode}: {said}")
    return None


def traces(run: Path) -> tuple[set[tuple[str, int]], int]:
    """What tells of the work of a process: its drafts, and how far the metrics are [bytes]."""
    drafts, size = set(), 0
    with contextlib.suppress(FileNotFoundError):  # which they may be at any time
        size = (run / record.METRICS).stat().st_size
    for path in [*run.glob(".*.tmp"), *run.glob("*/.*.tmp")]:
        with contextlib.suppress(FileNotFoundError):
            drafts.add((path.name, path.stat().st_ino))
    return drafts, size


def doing(run: Path, before: tuple[set[tuple[str, int]], int]) -> str:
    """What a process is doing whose folder had some traces before it."""
    drafts, size = traces(run)
    if (run / record.SUMMARY).exists():
        return "report"
    if drafts - before[0]:
        return "saving"
    return "training" if size != before[1] else "start-up"


def check_leaving(status: int, said: str, number: signal.Signals, run: Path) -> None:
    """Compares how a process has left with how it should, after a signal."""
    if number is signal.SIGKILL:
        wanted, words = [-signal.SIGKILL], ""
    else:
        wanted, words = [128 + number, -number], "interrupted"
    if status not in wanted:
        raise WrongError(f"left with {status} after {number.name}: {said}")
    asked = status == 128 + number
    last = said.splitlines()[-1] if said else ""
    if (run / record.CONFIG).is_file() and not (run / record.SUMMARY).exists() and asked:
        words = f"interrupted; go on by gradkit run --resume {run}"
    if asked and (words not in last or "Traceback" in said):
        raise WrongError(f"said after {number.name}: {said}")


def remains(run: Path) -> dict[str, Any]:
    """All of a run that has ended which must be as if nobody had disturbed it."""
    opened = record.open_record(run)
    made = setting.reopen(opened)
    found: dict[str, Any] = {
        f"{place}/{step:06d}": bits(made, run, step, place)
        for place in (setting.CHECKPOINTS, setting.BEST)
        for step in checkpoint.steps(run / place)
    }
    found |= {
        f"metrics at step {line['step']}": {k: v for k, v in line.items() if k != "time"}
        for line in opened.metrics
    }
    summary = opened.summary or {}
    found["summary"] = {k: v for k, v in summary.items() if not k.endswith("seconds")}
    found["files"] = sorted(path.name for path in run.iterdir())
    found["drafts"] = sorted(str(path) for path in run.rglob("*.tmp"))
    page = run / "report.html"
    found["report"] = page.exists() and "</html>" in page.read_text("utf-8")
    return found


def bits(made: setting.Setting, run: Path, step: int, place: str) -> list[bytes]:
    """Every leaf of a checkpoint."""
    state, _, _ = setting.state_at(made, run, step, place)
    keyed = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(state)]
    leaves = zip(jax.tree.leaves(state), keyed, strict=True)
    return [np.asarray(jax.random.key_data(x) if key else x).tobytes() for x, key in leaves]


def differences(whole: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """What a run has otherwise; checkpoints more than the whole one's are those of signals."""
    more = [n for n in run.keys() - whole.keys() if not n.startswith(f"{setting.CHECKPOINTS}/")]
    return sorted([*more, *(name for name in whole if run.get(name) != whole[name])])


def whole_run(config: Path, folder: Path, runs: int = 2) -> tuple[dict[str, Any], float]:
    """What remains of undisturbed runs, and how long the last one's process takes [s]."""
    seconds, found = 0.0, []
    for number in range(runs):
        run, started = folder / f"whole-{number}", time.perf_counter()
        if killed(arguments(config, run), run, signal.SIGKILL, after=600):
            raise WrongError("took longer than 10 minutes")
        seconds = time.perf_counter() - started
        found.append(remains(run))
        if different := differences(found[0], found[-1]):
            raise WrongError(f"two undisturbed runs differ in {', '.join(different)}")
    return found[0], seconds


class Tally:
    """All kills so far, told one by one with how long it will take."""

    def __init__(self, wanted: int):
        self.wanted, self.kills, self.started = wanted, [], time.perf_counter()
        self.runs, self.wrong = 0, []

    def add(self, kill: Kill, name: str) -> None:
        self.kills.append(kill)
        spent = time.perf_counter() - self.started
        left = max(0, self.wanted - len(self.kills)) * spent / len(self.kills)
        print(
            f"kill {len(self.kills)}/{self.wanted}  {name} {self.runs + 1}: {kill.signal.name} in "
            f"{kill.phase} after {kill.seconds:.1f} s  {60 * len(self.kills) / spent:.1f} kills/min"
            f"  remaining {left:.0f} s",
            flush=True,
        )

    def __str__(self) -> str:
        by = [
            ", ".join(f"{name} {count}" for name, count in sorted(collections.Counter(of).items()))
            for of in ([k.signal.name for k in self.kills], [k.phase for k in self.kills])
        ]
        same = self.runs - len(self.wrong)
        return (
            f"{len(self.kills)} kills ({by[0]}; {by[1]}) of {self.runs} runs; {same} ended "
            "bit-identical to undisturbed ones"
        )


def main(words: list[str] | None = None) -> int:
    """Kills and compares; returns the exit status."""
    parser = argparse.ArgumentParser(description="Kills runs, resumes them, compares.")
    parser.add_argument("--kills", type=int, default=60, help="in all, at least")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--config", choices=CONFIGS, action="append", help="all by default")
    parsed = parser.parse_args(words)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where started in background
    names = parsed.config or list(CONFIGS)
    moments, tally = random.Random(parsed.seed), Tally(parsed.kills)
    with tempfile.TemporaryDirectory() as place:
        for number, name in enumerate(names, start=1):
            folder = Path(place, name)
            folder.mkdir()
            config = folder / f"{name}.yaml"
            config.write_text(CONFIGS[name])
            whole, length = whole_run(config, folder)
            print(f"{name}: {len(whole)} things to compare; undisturbed {length:.1f} s", flush=True)
            while len(tally.kills) < parsed.kills * number / len(names):
                disturbed(config, folder / "run", whole, length, moments, tally)
    print(tally)
    return 1 if tally.wrong else 0


def disturbed(
    config: Path,
    run: Path,
    whole: dict[str, Any],
    length: float,
    moments: random.Random,
    tally: Tally,
) -> None:
    """One run, killed until it has ended, and compared."""
    shutil.rmtree(run, ignore_errors=True)
    try:
        for kill in lives(config, run, length, moments):
            if kill:
                tally.add(kill, config.stem)
        different = differences(whole, remains(run))
    except WrongError as error:
        different = [str(error)]
    tally.runs += 1
    if different:
        tally.wrong.append(different)
        kept = tempfile.mkdtemp(prefix="killed-")
        if run.exists():
            shutil.copytree(run, kept, dirs_exist_ok=True)
        print(f"{config.stem} {tally.runs} differs: {', '.join(different)}; kept in {kept}")


if __name__ == "__main__":
    sys.exit(main())
