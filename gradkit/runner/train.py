"""Training: from a config to a run folder, resumable to the same bits."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from gradkit import states, tree
from gradkit.core import Problem
from gradkit.curvature.hessian import hessian
from gradkit.runner import checkpoint, guard, optimizers, record, tasks
from gradkit.runner.config import Config, dump, load
from gradkit.runner.data import Batches
from gradkit.runner.errors import UserError
from gradkit.runner.members import as_written
from gradkit.runner.progress import Progress
from gradkit.transforms.sharpness import track_sharpness

PyTree = Any

CHECKPOINTS = "checkpoints"
PACKAGES = ("jax", "jaxlib", "optax", "flax", "orbax-checkpoint", "numpy", "scikit-learn")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a run needs besides its state: all of it follows from the config."""

    config: Config
    task: tasks.Task
    tx: optax.GradientTransformationExtraArgs
    batches: Batches
    rate: Callable[[int], Any]

    @property
    def steps(self) -> int:
        """Steps in the whole run."""
        return self.config.epochs * self.batches.per_epoch

    def initial(self) -> PyTree:
        """Returns parameters and optimizer state at step 0, each leaf in a buffer of its own.

        The training step overwrites its arguments, and an optimizer may hold one array twice.
        """
        state = self.task.params, self.tx.init(self.task.params)
        return jax.tree.map(lambda x: jnp.array(x, dtype=jnp.result_type(x), copy=True), state)


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled functions of a run, and the time that compiling them took.

    Attributes:
        update: (state, batch, step) -> (state, figures); gives up the buffers of its state.
        train: parameters -> loss and accuracy on the full training set.
        test: the same on the test set.
        seconds: what compiling took.
    """

    update: Callable[..., tuple[PyTree, dict[str, jax.Array]]]
    train: Callable[[PyTree], dict[str, float]]
    test: Callable[[PyTree], dict[str, float]]
    seconds: float


def prepare(config: Config) -> Setting:
    """Returns everything that a config describes, built.

    Raises:
        UserError: the data or the optimizer's values are not usable.
    """
    task = tasks.build(config)
    batches = Batches(len(task.dataset.x_train), config.batch_size, config.seed)
    tx = optimizers.build(config.optimizer)
    _needs_one_function(tx, task, batches)
    if config.sharpness_every is not None:
        tx = track_sharpness(tx, every=config.sharpness_every)
    return Setting(config, task, tx, batches, optimizers.configured_rate(config.optimizer))


def _needs_one_function(tx: Any, task: tasks.Task, batches: Batches) -> None:
    """Refuses mini-batches for what compares gradients of step and step, and says that it does."""
    published = jax.eval_shape(lambda params: gk.metrics(tx.init(params)), task.params)
    if "function_changes" in published and batches.size < batches.examples:
        raise UserError(
            f"optimizer: it compares the gradients of one step and the next, which must be of the "
            f"same loss; batch_size: {batches.size} of {batches.examples} examples makes another "
            f"one of each. Set batch_size: {batches.examples}, or choose another optimizer."
        )


def begin(config: Config, folder: Path, command: Sequence[str]) -> dict[str, Any]:
    """Trains in a new run folder and returns the summary.

    Raises:
        UserError: the folder exists, or the config's data or optimizer are not usable; no folder is
          made then.
        KeyboardInterrupt: as from `resume`.
    """
    if folder.exists():
        raise UserError(
            f"{folder}: exists already and is not overwritten. Go on with it by "
            f"gradkit run --resume {folder}, or name another with --out FOLDER."
        )
    setting = prepare(config)
    state = setting.initial()
    programs = _compile(setting, state)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made: {error.strerror}. Name another with --out FOLDER."
        ) from None
    with guard.alone(folder):
        record.write_json(folder / record.ENV, _environment(setting, command))
        record.write_text(folder / record.CONFIG, dump(config))
        return _train(setting, programs, folder, state, step=0, seconds=0.0)


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
    else:
        state, step, seconds = setting.initial(), 0, 0.0
        record.write_json(folder / record.ENV, _environment(setting, run.env.get("command", [])))
    programs = _compile(setting, state)
    for draft in [*folder.glob(".*.tmp"), *(folder / CHECKPOINTS).glob(".*.tmp")]:
        shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
    record.truncate_metrics(folder / record.METRICS, step)
    return _train(setting, programs, folder, state, step=step, seconds=seconds)


def reopen(run: record.Record) -> Setting:
    """Returns the setting of a run that was begun before.

    Raises:
        UserError: its config is not usable, or its data have changed.
    """
    setting = prepare(load(run.path / record.CONFIG))
    began, now = run.env.get("data", {}).get("sha256"), setting.task.dataset.sha256
    if began != now:
        raise UserError(
            f"{run.path}: the data have changed since the run began: expected sha256 {began}, got "
            f"{now} from {setting.config.data.source}. Put the old data back, or begin a new run."
        )
    return setting


def state_at(setting: Setting, folder: Path, step: int | None = None) -> tuple[PyTree, int, float]:
    """Returns a run's state at a checkpoint, the step and the seconds of training until then.

    Args:
        setting: what the run's config describes.
        folder: the run folder.
        step: of the checkpoint; the last one by default.

    Raises:
        UserError: the checkpoint is damaged, or the config has changed since.
    """
    step = checkpoint.steps(folder / CHECKPOINTS)[-1] if step is None else step
    state, meta = checkpoint.restore(folder / CHECKPOINTS, step, setting.initial())
    began, now = meta["origin"], _origin(setting.config)
    changed = [f"{n}: expected {began.get(n)}, got {now[n]}" for n in now if began.get(n) != now[n]]
    if changed:
        raise UserError(
            f"{folder / record.CONFIG}: changed since the run began: {'; '.join(changed)}. "
            "Change it back, or begin a new run."
        )
    return state, step, meta["seconds"]


def _origin(config: Config) -> dict[str, str]:
    """The part of a config that a run cannot change on its way, as text."""
    fixed = config.model_dump(
        include={"seed", "data", "model", "loss", "batch_size", "sharpness_every"}
    )
    fixed["optimizer"] = [as_written(member) for member in config.optimizer]
    return {name: str(value) for name, value in fixed.items()}


def _compile(setting: Setting, state: PyTree) -> Programs:
    start = time.perf_counter()
    update = jax.jit(_update(setting), donate_argnums=0)
    dataset, problem = setting.task.dataset, setting.task.problem
    return Programs(
        update=update.lower(state, _batch(setting, 0), np.int32(0)).compile(),
        train=_evaluator(problem, state[0], dataset.train),
        test=_evaluator(problem, state[0], dataset.test),
        seconds=time.perf_counter() - start,
    )


def _update(setting: Setting) -> Callable[..., tuple[PyTree, dict[str, jax.Array]]]:
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
            **{k: v for k, v in gk.hyperparams(opt_state).items() if k == "learning_rate"},
            **gk.metrics(opt_state),
            **_beyond_one_gradient(opt_state),
        }
        return (params, opt_state), figures

    return update


def _beyond_one_gradient(opt_state: PyTree) -> dict[str, jax.Array]:
    """What the updates so far have asked for besides a gradient each: losses are by themselves."""
    work = states.work(opt_state)
    alone = work.evaluations - work.gradients
    return {"gradients": work.gradients, "evaluations": alone, "products": work.products}


def _evaluator(problem: Problem, params: PyTree, data: PyTree) -> Callable[..., dict[str, float]]:
    def evaluate(params, data):
        value, scores = problem.value_and_aux(params, data)
        return {"loss": value, "accuracy": tasks.accuracy(scores, data)}

    data = jax.device_put(data)
    compiled = jax.jit(evaluate).lower(params, data).compile()
    return lambda params: _numbers(compiled(params, data))


def _batch(setting: Setting, step: int) -> dict[str, Any]:
    indices = setting.batches.indices(step)
    return {name: array[indices] for name, array in setting.task.dataset.train.items()}


def _train(
    setting: Setting,
    programs: Programs,
    folder: Path,
    state: PyTree,
    *,
    step: int,
    seconds: float,
) -> dict[str, Any]:
    config = setting.config
    cadence = config.log_every, config.evaluate_every, config.checkpoint_every
    start, diverged = time.perf_counter() - seconds, False

    def due(every: int) -> bool:
        return step == setting.steps or step % every == 0

    def elapsed() -> float:
        return time.perf_counter() - start

    def save() -> None:
        checkpoint.save(
            folder / CHECKPOINTS, step, state, seconds=elapsed(), origin=_origin(config)
        )

    with Progress("train", setting.steps, "step", done=step) as progress, guard.patience() as asked:
        while step < setting.steps and not diverged and asked.by is None:
            state, figures = programs.update(state, _batch(setting, step), np.int32(step))
            step += 1
            progress.update(step)
            if not any(map(due, cadence)):
                continue
            line = _line(setting, step, figures, elapsed())
            if due(config.evaluate_every):
                line |= {f"train_{name}": value for name, value in programs.train(state[0]).items()}
                line |= {f"test_{name}": value for name, value in programs.test(state[0]).items()}
            record.append_metrics(folder / record.METRICS, line)
            progress.update(step, loss=line["loss"])
            diverged = not (math.isfinite(line["loss"]) and _finite(state[0]))
            if due(config.checkpoint_every) and not diverged:
                save()
        if asked.by is not None and step < setting.steps and not diverged:
            if _finite(state[0]):
                save()
            raise KeyboardInterrupt(asked.by)
    status = "diverged" if diverged else "finished"
    return _summarize(folder, status, step, elapsed(), programs.seconds)


@jax.jit
def _finite(params: PyTree) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params)]))


def _numbers(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: _number(value) for name, value in figures.items()}


def _number(value: Any) -> float | int | None:
    """Python's number; of a float32 the shortest that means it, 0.003 and not 0.003000000026."""
    if value is None:
        return None
    array = np.asarray(value)
    return array.item() if array.dtype.kind in "biu" else float(str(array[()]))


def _line(setting: Setting, step: int, figures: dict[str, Any], seconds: float) -> dict[str, Any]:
    line = {
        "step": step,
        "epoch": round(step / setting.batches.per_epoch, 4),
        "time": round(seconds, 4),
        "learning_rate": setting.rate(step - 1),
    }
    if "sharpness" in figures:
        line |= optimizers.sharpness_limits(setting.config.optimizer)
    return _numbers(line | figures | {"gradients": step + figures["gradients"]})


def _summarize(
    folder: Path, status: str, step: int, seconds: float, compile_seconds: float
) -> dict[str, Any]:
    lines, _ = record.read_metrics(folder / record.METRICS)
    final = lines[-1] if status == "finished" else {}  # evaluated at the last step
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    summary = {
        "status": status,
        "steps": step,
        "seconds": round(seconds, 3),
        "compile_seconds": round(compile_seconds, 3),
        **{name: final.get(name) for name in names},
    }
    record.write_json(folder / record.SUMMARY, summary)
    return summary


def _environment(setting: Setting, command: Sequence[str]) -> dict[str, Any]:
    about = {"data": setting.task.dataset.describe(), "command": list(command)}
    return environment(setting.task.params) | about


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
