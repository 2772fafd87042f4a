"""Training: from a config to a run folder, resumable to the same bits."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import optax

import gradkit as gk
from gradkit.processes import by_first, first, several
from gradkit.runner import checkpoint, guard, record, signals
from gradkit.runner.config import Config, dump, seedless
from gradkit.runner.devices import ONE, Devices
from gradkit.runner.errors import UserError
from gradkit.runner.kept import Kept
from gradkit.runner.programs import Programs, compiled
from gradkit.runner.progress import Progress
from gradkit.runner.setting import (
    BEST,
    CHECKPOINTS,
    Setting,
    State,
    prepare,
    reopen,
    sources,
    state_at,
    task_words,
)
from gradkit.runner.training import Training

PyTree = Any

PACKAGES = ("jax", "jaxlib", "optax", "flax", "orbax-checkpoint", "numpy", "scikit-learn")


class Workshop:
    """Settings and programs, built once for runs that differ in their seeds and names alone.

    Runs in a row with the same task share it, so that their data are read once.

    Args:
        devices: what they are trained on.
    """

    def __init__(self, devices: Devices = ONE):
        self.devices = devices
        self._made: dict[str, tuple[Setting, Programs | None]] = {}

    def setting(self, config: Config) -> Setting:
        """Returns the setting of a config."""
        name = seedless(config)
        if name not in self._made:
            words = task_words(config)
            last = [
                made.task for made, _ in self._made.values() if task_words(made.config) == words
            ]
            self._made = {}  # of the last one only: data may be large
            self._made = {name: (prepare(config, *last), None)}
        made, _ = self._made[name]
        batches = dataclasses.replace(made.batches, seed=config.seed)
        return dataclasses.replace(made, config=config, batches=batches)

    def programs(self, setting: Setting, state: State) -> Programs:
        """Returns the programs of a setting; those made before took no time now."""
        name = seedless(setting.config)
        made, programs = self._made.get(name, (setting, None))
        if programs is None:
            programs = compiled(setting, state, devices=self.devices)
            self._made[name] = made, dataclasses.replace(programs, seconds=0.0)
        return programs.of(setting.batches)


def begin(
    config: Config,
    folder: Path,
    command: Sequence[str],
    workshop: Workshop | None = None,
    *,
    brief: bool = False,
) -> dict[str, Any]:
    """Trains in a new run folder and returns the summary.

    Args:
        config: what to train.
        folder: the run folder.
        command: the command line.
        workshop: what other runs share with this one, and the devices.
        brief: whether there are others, each with a line of its own.

    Raises:
        UserError: the folder exists, or the config's data or optimizer are not usable; no folder is
          made then.
        KeyboardInterrupt: as from `resume`.
    """
    by_first(lambda: refuse_existing(folder))
    workshop = workshop or Workshop()
    setting = workshop.setting(config)
    state = workshop.devices.on_each(setting.initial())
    programs = workshop.programs(setting, state)
    with contextlib.ExitStack() as stack:

        def claim():
            stack.enter_context(claimed(folder))
            describe(folder, setting, state, command)

        by_first(claim)
        return _train(Training(setting, programs, state), folder, brief=brief)


def refuse_existing(folder: Path) -> None:
    """Raises a `UserError` where there is something already that a run has not just left."""
    if folder.exists() and not guard.unbegun(folder):
        begun = (folder / record.CONFIG).is_file()
        on = f"Go on with it by gradkit run --resume {folder}, or name" if begun else "Name"
        raise UserError(
            f"{folder}: exists already and is not overwritten. {on} another with --out FOLDER."
        )


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes a run folder, or takes one that was killed before it had a config, for this process.

    Raises:
        UserError: it cannot be made, or another process was faster.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made: {error.strerror}. Name another with --out FOLDER."
        ) from None
    with guard.alone(folder):
        refuse_existing(folder)
        guard.remove_drafts(folder)
        yield


def describe(folder: Path, setting: Setting, state: State, command: Sequence[str]) -> None:
    """Writes what a run is, which makes its folder a run folder."""
    about = environment(state.params) | sources(setting.task) | {"command": list(command)}
    record.write_json(folder / record.ENV, about)
    record.write_text(folder / record.CONFIG, dump(setting.config))


def resume(run: record.Record, devices: Devices = ONE) -> dict[str, Any]:
    """Goes on with an unfinished run from its last checkpoint and returns the summary.

    Raises:
        UserError: its data or its config have changed, its checkpoint is damaged, or another
          process is training in it.
        KeyboardInterrupt: it was interrupted and can be resumed: on a first Ctrl-C or SIGTERM from
          the last complete step, which is saved, else from the last checkpoint. Its argument is the
          number of the signal.
    """
    with contextlib.ExitStack() as stack:

        def claim():
            stack.enter_context(guard.alone(run.path))

        by_first(claim)
        return _resume(run, devices)


def _resume(run: record.Record, devices: Devices) -> dict[str, Any]:
    setting, folder = reopen(run), run.path
    last = by_first(lambda: (checkpoint.steps(folder / CHECKPOINTS) or [None])[-1])
    if last is not None:
        state, step, seconds = state_at(setting, folder, last)
        by_first(lambda: _check_metrics(folder, step))
    else:
        state, step, seconds = setting.initial(), 0, 0.0
    state = devices.on_each(state)
    programs = compiled(setting, state, devices=devices)

    def tidied():
        if last is None:
            describe(folder, setting, state, run.env.get("command", []))
        guard.remove_drafts(folder, folder / CHECKPOINTS, folder / BEST)
        record.truncate_metrics(folder / record.METRICS, step)
        return record.read_metrics(folder / record.METRICS)[0]

    lines = by_first(tidied)
    training = Training(setting, programs, state, step=step, seconds=seconds, lines=lines)
    return _train(training, folder)


def _check_metrics(folder: Path, step: int) -> None:
    """Refuses metrics that lack lines from before a checkpoint; earlier ones may have all."""
    metrics, place = folder / record.METRICS, folder / CHECKPOINTS

    def covers(step: int) -> bool:
        expected = checkpoint.kept_beside(place, step).get("metrics", 0)
        return record.metrics_size(metrics, step) >= expected

    if covers(step):
        return
    covered = [s for s in checkpoint.steps(place) if covers(s)]
    on = f"those after {covered[-1]:06d}" if covered else "all"
    raise UserError(
        f"{metrics}: cut short: it lacks lines from before the checkpoint of step {step}. Put the "
        f"file back as it was, or delete {on} in {place} to go on from there."
    )


def _train(training: Training, folder: Path, *, brief: bool = False) -> dict[str, Any]:
    steps = training.setting.steps
    progress = Progress("train", steps, "step", done=training.step, brief=brief, mute=not first())
    with Kept.open(training, folder) as kept, progress, signals.patience() as asked:
        signal = None
        while training.goes_on and (signal := training.agreed(asked.by)) is None:
            kept.keep(training.advance(), progress)
        if signal is not None:
            kept.save()
            raise KeyboardInterrupt(signal)
        return kept.end()


def environment(params: PyTree) -> dict[str, Any]:
    """Returns what `env.json` says of versions, machine and the number of parameters."""
    return {
        "gradkit": gk.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": f"{jax.default_backend()}: {jax.devices()[0].device_kind}",
        **({"processes": jax.process_count()} if several() else {}),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "parameters": int(optax.tree.size(params)),
    }
