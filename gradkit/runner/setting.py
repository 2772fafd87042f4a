"""What a run needs besides its state: all of it follows from the config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import gradkit as gk
from gradkit.runner import checkpoint, optimizers, record, tasks
from gradkit.runner.catalog import nearest
from gradkit.runner.config import Config, load
from gradkit.runner.data.augmentation import check_images
from gradkit.runner.data.batches import Batches
from gradkit.runner.errors import UserError
from gradkit.runner.members import as_written
from gradkit.runner.schema import Augment
from gradkit.transforms.sharpness import track_sharpness

PyTree = Any

CHECKPOINTS = "checkpoints"
BEST = "best"  # the folder of one checkpoint, that of the best evaluation
_CHANGED = {"data": "the data have", "task": "the file of the task has"}
PATIENCE = 20  # steps in a row that may be skipped for their gradients


class State(NamedTuple):
    """What a run carries from step to step: parameters, optimizer, and what else a model keeps."""

    params: PyTree
    optimizer: PyTree
    model: PyTree


@dataclasses.dataclass(frozen=True)
class Setting:
    """A config, built: its task, its optimizer, its order of examples."""

    config: Config
    task: tasks.Task
    tx: optax.GradientTransformationExtraArgs
    batches: Batches
    rate: Callable[[int], Any]

    @property
    def steps(self) -> int:
        """Steps in the whole run."""
        return self.config.epochs * self.batches.per_epoch

    @property
    def augments(self) -> bool:
        """Whether the images of a step are changed at random."""
        return self.config.data.augment != Augment()

    @property
    def key(self) -> jax.Array:
        """The source of all randomness in the run, but for the order of the examples."""
        return jax.random.key(self.config.seed)

    def initial(self) -> State:
        """Returns the state at step 0, each leaf in a buffer of its own.

        The training step overwrites its arguments, and an optimizer may hold one array twice.
        """
        params = self.task.init(self.key)
        model = self.task.init_state(self.key) if self.task.init_state else None
        state = State(params, self.tx.init(params), model)
        return jax.tree.map(_own, state)


def _own(leaf: Any) -> jax.Array:
    return jnp.array(leaf, dtype=jnp.result_type(leaf), copy=True)


def prepare(config: Config, task: tasks.Task | None = None) -> Setting:
    """Returns everything that a config describes, built.

    Args:
        config: the config.
        task: of another config, which says the same of it; built by default.

    Raises:
        UserError: the data or the optimizer's values are not usable.
    """
    task = task or tasks.build(config)
    examples = len(task.data.x_train)
    size = 1 if task.data.meta["source"] == "none" else config.batch_size
    labels = None if task.data.classes is None else task.data.y_train
    batches = Batches(examples, size, config.seed, config.sampling, labels)
    tx = optimizers.build(config.optimizer)
    setting = Setting(config, task, tx, batches, optimizers.configured_rate(config.optimizer))
    _fits_together(setting)
    if config.on_nan == "skip":
        tx = gk.apply_if_finite(tx, max_consecutive_errors=PATIENCE)
    if config.sharpness_every is not None:
        tx = track_sharpness(tx, every=config.sharpness_every)
    return dataclasses.replace(setting, tx=tx)


def task_words(config: Config) -> str:
    """Returns all that a config says of its task: equal for configs that may share one."""
    return config.model_dump_json(include={"data", "model", "loss", "task"})


def _fits_together(setting: Setting) -> None:
    """Refuses values that are good by themselves and cannot be had together."""
    config, task, batches = setting.config, setting.task, setting.batches
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    published = jax.eval_shape(lambda params: gk.metrics(setting.tx.init(params)), shapes)
    if "function_changes" in published and not batches.whole:
        raise UserError(
            f"optimizer: it compares the gradients of one step and the next, which must be of the "
            f"same loss; batch_size: {batches.size} of {batches.examples} examples makes another "
            f"one of each. Set batch_size: {batches.examples}, or choose another optimizer."
        )
    if setting.augments:
        check_images(task.data.x_train, task.data.meta["source"])
        if "function_changes" in published:
            raise UserError(
                "optimizer: it compares the gradients of one step and the next, which must be of "
                "the same loss; data.augment makes another one of each. Leave it out, or choose "
                "another optimizer."
            )
    if batches.size % config.micro_batches:
        raise UserError(
            f"micro_batches: expected a divisor of the batch_size {batches.size}, got "
            f"{config.micro_batches}; such as {_divisor(batches.size, config.micro_batches)}"
        )
    if config.micro_batches > 1 and task.init_state is not None:
        raise UserError(
            "micro_batches: a model with a state, such as batch norm, sees the whole batch at "
            "once; set micro_batches: 1"
        )
    if (config.curvature.examples or 0) > batches.size // config.micro_batches:
        raise UserError(
            f"curvature.examples: expected at most {batches.size // config.micro_batches}, the "
            f"examples of a batch or micro-batch, got {config.curvature.examples}"
        )
    if config.curvature.diagonal == "fisher" and task.likelihood is None:
        raise UserError(
            "curvature.diagonal: fisher draws labels from the model, and this task does not say "
            "how: give it a likelihood, categorical, bernoulli or normal, or choose "
            "empirical_fisher"
        )
    others = optimizers.curvature_operator(config) != "hessian" or config.curvature.examples
    if config.sharpness_every is not None and others:
        raise UserError(
            "sharpness_every: measures the Hessian of a step's whole batch, and this optimizer is "
            "given another curvature; leave it out, and look at the checkpoints by gradkit "
            "spectrum --checkpoint all"
        )
    known = [f"{part}_{name}" for part in task.data.parts for name in ("loss", *task.metrics)]
    if config.best.metric not in (None, *known):
        need = " Set data.validation_fraction." if "validation" in config.best.metric else ""
        raise UserError(
            f"best.metric: no figure {config.best.metric!r}; {nearest(config.best.metric, known)}"
            f"there are {', '.join(known)}.{need}"
        )


def _divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is not more than `most`."""
    return max(d for d in range(1, min(number, most) + 1) if number % d == 0)


def reopen(run: record.Record, known: dict[str, tasks.Task] | None = None) -> Setting:
    """Returns the setting of a run that was begun before.

    Args:
        run: the run.
        known: tasks by what configs say of them, to which this run's is added. Runs of one task
            share it, and with it whatever is compiled for its loss.

    Raises:
        UserError: its config is not usable, its data or its task have changed, or another version
            of gradkit began it.
    """
    began = str(run.env.get("gradkit", gk.__version__))
    if began.split(".")[:2] != gk.__version__.split(".")[:2]:
        raise UserError(
            f"{run.path}: was begun with gradkit {began}; this is {gk.__version__}, with which it "
            f"would not go on to the same numbers. Install gradkit {began} to go on with it, or "
            "begin a new run; reports can be made with any version."
        )
    config, known = load(run.path / record.CONFIG), {} if known is None else known
    words = task_words(config)
    setting = prepare(config, known.get(words))
    known[words] = setting.task
    found = sources(setting.task)
    for name, wanted in {name: run.env.get(name, {}) for name in found}.items():
        then, now = wanted.get("sha256"), found[name]["sha256"]
        if then != now:
            raise UserError(
                f"{run.path}: {_CHANGED[name]} changed since the run began: expected sha256 "
                f"{then}, got {now} from {found[name]['source']}. Put back what was there, or "
                "begin a new run."
            )
    return setting


def sources(task: tasks.Task) -> dict[str, dict[str, Any]]:
    """Returns what `env.json` says of the data and of a user's task, a hash of each among it."""
    found = {"data": task.data.describe()}
    if task.source is not None:
        found["task"] = {"source": str(task.source), "sha256": checkpoint.sha256(task.source)}
    return found


def state_at(
    setting: Setting, folder: Path, step: int | None = None, place: str = CHECKPOINTS
) -> tuple[State, int, float]:
    """Returns a run's state at a checkpoint, the step and the seconds of training until then.

    Args:
        setting: what the run's config describes.
        folder: the run folder.
        step: of the checkpoint; the last one by default.
        place: which folder of checkpoints.

    Raises:
        UserError: the checkpoint is damaged, or the config has changed since.
    """
    step = checkpoint.steps(folder / place)[-1] if step is None else step
    state, meta = checkpoint.restore(folder / place, step, setting.initial())
    began, now = meta["origin"], origin(setting.config)
    changed = [f"{n}: expected {began.get(n)}, got {now[n]}" for n in now if began.get(n) != now[n]]
    if changed:
        raise UserError(
            f"{folder / record.CONFIG}: changed since the run began: {'; '.join(changed)}. "
            "Change it back, or begin a new run."
        )
    return state, step, meta["seconds"]


def origin(config: Config) -> dict[str, str]:
    """Returns the part of a config that a run cannot change on its way, as text."""
    fixed = config.model_dump(
        include={
            *("seed", "data", "model", "loss", "task", "batch_size", "sampling", "micro_batches"),
            *("curvature", "sharpness_every", "on_nan"),
        }
    )
    fixed["optimizer"] = [as_written(member) for member in config.optimizer]
    return {name: str(value) for name, value in fixed.items()}
