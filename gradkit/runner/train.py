"""Training: from a config to a run folder, resumable to the same bits."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import optax

import gradkit as gk
from gradkit.runner import checkpoint, guard, record, signals
from gradkit.runner.config import Config, dump
from gradkit.runner.errors import UserError
from gradkit.runner.programs import Programs, compiled
from gradkit.runner.progress import Progress
from gradkit.runner.setting import (
    BEST,
    CHECKPOINTS,
    Setting,
    State,
    origin,
    prepare,
    reopen,
    sources,
    state_at,
)
from gradkit.runner.training import Training

PyTree = Any

PACKAGES = ("jax", "jaxlib", "optax", "flax", "orbax-checkpoint", "numpy", "scikit-learn")


def begin(config: Config, folder: Path, command: Sequence[str]) -> dict[str, Any]:
    """Trains in a new run folder and returns the summary.

    Raises:
        UserError: the folder exists, or the config's data or optimizer are not usable; no folder is
          made then.
        KeyboardInterrupt: as from `resume`.
    """
    _refuse_to_overwrite(folder)
    setting = prepare(config)
    state = setting.initial()
    programs = compiled(setting, state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made: {error.strerror}. Name another with --out FOLDER."
        ) from None
    with guard.alone(folder):
        _refuse_to_overwrite(folder)
        guard.remove_drafts(folder)
        record.write_json(folder / record.ENV, _environment(setting, state, command))
        record.write_text(folder / record.CONFIG, dump(config))
        return _train(setting, programs, folder, state, step=0, seconds=0.0)


def _refuse_to_overwrite(folder: Path) -> None:
    if folder.exists() and not guard.unbegun(folder):
        begun = (folder / record.CONFIG).is_file()
        on = f"Go on with it by gradkit run --resume {folder}, or name" if begun else "Name"
        raise UserError(
            f"{folder}: exists already and is not overwritten. {on} another with --out FOLDER."
        )


def resume(run: record.Record) -> dict[str, Any]:
    """Goes on with an unfinished run from its last checkpoint and returns the summary.

    Raises:
        UserError: its data or its config have changed, its checkpoint is damaged, or another
          process is training in it.
        KeyboardInterrupt: it was interrupted and can be resumed: on a first Ctrl-C or SIGTERM from
          the last complete step, which is saved, else from the last checkpoint. Its argument is the
          number of the signal.
    """
    with guard.alone(run.path):
        return _resume(run)


def _resume(run: record.Record) -> dict[str, Any]:
    setting, folder = reopen(run), run.path
    if checkpoint.steps(folder / CHECKPOINTS):
        state, step, seconds = state_at(setting, folder)
        _check_metrics(folder, step)
    else:
        state, step, seconds = setting.initial(), 0, 0.0
        command = run.env.get("command", [])
        record.write_json(folder / record.ENV, _environment(setting, state, command))
    programs = compiled(setting, state)
    guard.remove_drafts(folder, folder / CHECKPOINTS, folder / BEST)
    record.truncate_metrics(folder / record.METRICS, step)
    return _train(setting, programs, folder, state, step=step, seconds=seconds)


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


def _train(
    setting: Setting,
    programs: Programs,
    folder: Path,
    state: State,
    *,
    step: int,
    seconds: float,
) -> dict[str, Any]:
    config, lines = setting.config, record.read_metrics(folder / record.METRICS)[0]
    training = Training(setting, programs, state, step=step, seconds=seconds, lines=lines)

    def save(place: str) -> None:
        metrics = folder / record.METRICS
        meta = {
            "seconds": training.seconds,
            "origin": origin(config),
            "metrics": metrics.stat().st_size if metrics.exists() else 0,
        }
        checkpoint.save(folder / place, training.step, training.state, **meta)

    with (
        Progress("train", setting.steps, "step", done=step) as progress,
        signals.patience() as asked,
    ):
        while training.goes_on and asked.by is None:
            for line, best in training.advance():
                record.append_metrics(folder / record.METRICS, line)
                progress.update(line["step"], loss=line["loss"])
                if best:
                    save(BEST)
                    checkpoint.keep_only(folder / BEST, training.step)
            progress.update(training.step)
            wanted = training.due(config.checkpoint_every) or not training.goes_on
            if wanted and training.status != "diverged":
                save(CHECKPOINTS)
        if asked.by is not None and training.goes_on:
            save(CHECKPOINTS)
            raise KeyboardInterrupt(asked.by)
    return _summarize(folder, training, programs.seconds)


def _summarize(folder: Path, training: Training, compile_seconds: float) -> dict[str, Any]:
    lines, _ = record.read_metrics(folder / record.METRICS)
    final = lines[-1] if training.status == "finished" else {}  # evaluated at the last step
    parts = tuple(f"{part}_" for part in training.setting.task.data.parts)
    summary = {
        "status": training.status,
        "steps": training.step,
        "seconds": round(training.seconds, 3),
        "compile_seconds": round(compile_seconds, 3),
        **{name: value for name, value in final.items() if name.startswith(parts)},
        **training.watch.summary(),
    }
    record.write_json(folder / record.SUMMARY, summary)
    return summary


def _environment(setting: Setting, state: State, command: Sequence[str]) -> dict[str, Any]:
    return environment(state.params) | sources(setting.task) | {"command": list(command)}


def environment(params: PyTree) -> dict[str, Any]:
    """Returns what `env.json` says of versions, machine and the number of parameters."""
    return {
        "gradkit": gk.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": f"{jax.default_backend()}: {jax.devices()[0].device_kind}",
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "parameters": int(optax.tree.size(params)),
    }
