"""Training: from a config to a run folder, resumable to the same bits."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradkit as gk
from gradkit import tree
from gradkit.core import Problem
from gradkit.curvature.hessian import hessian
from gradkit.runner import checkpoint, optimizers, record, tasks
from gradkit.runner.config import Config, dump, load
from gradkit.runner.data import Batches
from gradkit.runner.errors import UserError
from gradkit.runner.members import as_written
from gradkit.runner.progress import Progress

PyTree = Any

PACKAGES = ("jax", "jaxlib", "optax", "flax", "orbax-checkpoint", "numpy", "scikit-learn")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a run needs besides its state: all of it follows from the config."""

    config: Config
    task: tasks.Task
    tx: optax.GradientTransformationExtraArgs
    batches: Batches
    rate: Callable[[int], float | None]

    @property
    def steps(self) -> int:
        """Steps in the whole run."""
        return self.config.epochs * self.batches.per_epoch


def prepare(config: Config) -> Setting:
    """Returns everything that a config describes, built.

    Raises:
      UserError: the data or the optimizer's values are not usable.
    """
    task = tasks.build(config)
    batches = Batches(len(task.dataset.x_train), config.batch_size, config.seed)
    tx = optimizers.build(config.optimizer)
    return Setting(config, task, tx, batches, optimizers.configured_rate(config.optimizer))


def begin(config: Config, folder: Path, command: list[str]) -> dict[str, Any]:
    """Trains in a new run folder and returns the summary.

    Raises:
      UserError: the folder exists, or the config's data or optimizer are not usable.
    """
    if folder.exists():
        raise UserError(
            f"{folder}: exists already and is not overwritten. Go on with it by "
            f"gradkit run --resume {folder}, or name another with --out FOLDER."
        )
    setting = prepare(config)
    try:
        (folder / "checkpoints").mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from None
    record.write_json(folder / record.ENV, _environment(setting, command))
    record.write_text(folder / record.CONFIG, dump(config))
    return _train(setting, folder, _initial(setting), step=0, seconds=0.0)


def resume(folder: Path) -> dict[str, Any]:
    """Goes on with a run from its last checkpoint and returns the summary.

    Raises:
      UserError: not a run folder, its data have changed, or its checkpoint is damaged.
    """
    run = record.open_record(folder)
    if run.summary is not None and run.summary["status"] == "finished":
        return run.summary
    setting = prepare(load(folder / record.CONFIG))
    known, now = run.env.get("data", {}).get("sha256"), setting.task.dataset.sha256
    if known != now:
        raise UserError(
            f"{folder}: the data have changed since the run began: expected sha256 {known}, "
            f"got {now} from {setting.config.data.source}"
        )
    state, step, seconds = _initial(setting), 0, 0.0
    saved = checkpoint.steps(folder / "checkpoints")
    if saved:
        state, meta = checkpoint.restore(folder / "checkpoints", saved[-1], state)
        _same_origin(folder, meta["origin"], _origin(setting.config))
        step, seconds = meta["step"], meta["seconds"]
    record.truncate_metrics(folder / record.METRICS, step)
    return _train(setting, folder, state, step=step, seconds=seconds)


def evaluator(problem: Problem, data: PyTree) -> Callable[[PyTree], dict[str, float]]:
    """Returns a compiled function from parameters to loss and accuracy on `data`."""
    data = jax.device_put(data)

    @jax.jit
    def evaluate(params, data):
        value, scores = problem.value_and_aux(params, data)
        return value, tasks.accuracy(scores, data)

    def floats(params):
        loss, accuracy = evaluate(params, data)
        return {"loss": float(loss), "accuracy": float(accuracy)}

    return floats


def _initial(setting: Setting) -> PyTree:
    params = setting.task.params
    return params, setting.tx.init(params)


def _train(
    setting: Setting, folder: Path, state: PyTree, *, step: int, seconds: float
) -> dict[str, Any]:
    config, dataset = setting.config, setting.task.dataset
    clock = time.perf_counter()
    update = _compile_update(setting, state)
    test, train = (evaluator(setting.task.problem, x) for x in (dataset.test, dataset.train))
    compile_seconds = time.perf_counter() - clock
    clock, status = time.perf_counter() - seconds, "finished"

    cadence = (config.log_every, config.evaluate_every, config.checkpoint_every)
    checkpoints = folder / "checkpoints"
    with Progress("train", setting.steps, "step", done=step) as progress:
        while step < setting.steps:
            state, figures = update(state, _batch(setting, step), step)
            step += 1
            last = step == setting.steps
            due = {every: last or step % every == 0 for every in cadence}
            progress.update(step)
            if any(due.values()):
                elapsed = time.perf_counter() - clock
                line = _line(setting, step, figures, elapsed)
                if due[config.evaluate_every]:
                    line |= {f"train_{name}": value for name, value in train(state[0]).items()}
                    line |= {f"test_{name}": value for name, value in test(state[0]).items()}
                record.append_metrics(folder / record.METRICS, line)
                progress.update(step, loss=line["loss"])
                if not math.isfinite(line["loss"]) or not _finite(state[0]):
                    status = "diverged"
                    break
                if due[config.checkpoint_every]:
                    checkpoint.save(
                        checkpoints, step, state, seconds=elapsed, origin=_origin(config)
                    )
    return _summarize(folder, status, step, time.perf_counter() - clock, compile_seconds)


def _compile_update(setting: Setting, state: PyTree) -> Callable[..., tuple[PyTree, dict]]:
    problem, tx = setting.task.problem, setting.tx
    key = jax.random.key(setting.config.seed)

    def update(state, batch, step):
        params, opt_state = state
        drawn = jax.random.fold_in(key, step)
        point = gk.observe(problem, params, batch, curvature=hessian, key=drawn)
        updates, opt_state = tx.update(point.grad, opt_state, params, **point.extras)
        params = optax.apply_updates(params, updates)
        figures = {
            "loss": point.value,
            "accuracy": tasks.accuracy(point.aux, batch),
            "gradient_norm": tree.norm(point.grad),
            **gk.metrics(opt_state),
        }
        return (params, opt_state), figures

    jitted = jax.jit(update, donate_argnums=0)
    return jitted.lower(state, _batch(setting, 0), jnp.int32(0)).compile()


@jax.jit
def _finite(params: PyTree) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params)]))


def _batch(setting: Setting, step: int) -> dict[str, Any]:
    indices = setting.batches.indices(step)
    return {name: array[indices] for name, array in setting.task.dataset.train.items()}


def _line(setting: Setting, step: int, figures: dict[str, Any], seconds: float) -> dict[str, Any]:
    figures = {name: value.item() for name, value in jax.device_get(figures).items()}
    line = {
        "step": step,
        "epoch": round(step / setting.batches.per_epoch, 4),
        "time": round(seconds, 4),
        "learning_rate": setting.rate(step - 1),
        "gradients": step,
        "evaluations": 0,
        "products": 0,
    }
    return line | figures


def _summarize(
    folder: Path, status: str, step: int, seconds: float, compile_seconds: float
) -> dict[str, Any]:
    lines, _ = record.read_metrics(folder / record.METRICS)
    evaluated = next((line for line in reversed(lines) if "test_loss" in line), {})
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    summary = {
        "status": status,
        "steps": step,
        "seconds": round(seconds, 3),
        "compile_seconds": round(compile_seconds, 3),
        **{name: evaluated.get(name) for name in names},
    }
    record.write_json(folder / record.SUMMARY, summary)
    return summary


def _environment(setting: Setting, command: list[str]) -> dict[str, Any]:
    return {
        "gradkit": gk.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": f"{jax.default_backend()}: {jax.devices()[0].device_kind}",
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "data": setting.task.dataset.describe(),
        "parameters": optax.tree.size(setting.task.params),
        "command": command or sys.argv,
    }


def _origin(config: Config) -> dict[str, Any]:
    """The part of a config that a run cannot change on its way."""
    fixed = config.model_dump(mode="json", include={"seed", "data", "model", "batch_size"})
    return fixed | {"optimizer": [as_written(member) for member in config.optimizer]}


def _same_origin(folder: Path, began: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [name for name in now if began.get(name) != now[name]]
    if changed:
        raise UserError(
            f"{folder / record.CONFIG}: changed since the run began: "
            + "; ".join(f"{name}: expected {began.get(name)}, got {now[name]}" for name in changed)
        )
