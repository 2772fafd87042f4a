"""The compiled functions of a run: many steps at once, and the evaluation."""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from gradkit import states
from gradkit.curvature.hessian import hessian
from gradkit.operators import holds_convolution
from gradkit.runner import optimizers
from gradkit.runner.data.augmentation import augmented
from gradkit.runner.data.batches import Batches
from gradkit.runner.devices import ONE, Devices
from gradkit.runner.setting import Setting, State
from gradkit.transforms.norms import scaled_norm

PyTree = Any

RESIDENT = 2**31  # bytes of training data that are kept on the device
STREAMED = 2**27  # bytes of them that are sent at a time, where they are more
EVALUATED = 8192  # targets that are evaluated at once
MOST_STEPS = 8192  # in one call of compiled code


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled functions of a run, and the time that compiling them took.

    Attributes:
        feed: where the steps get their examples from.
        advance: (state, key, data, rows, first step, number of steps) -> (state, figures of each
            step, steps taken, whether all is finite); gives up the buffers of its state. It stops
            at the first step that is not finite.
        evaluate: state -> `train_loss` and the other figures of each part of the data.
        seconds: what compiling took.
    """

    feed: Feed
    advance: Callable[..., tuple[State, dict[str, jax.Array], jax.Array, jax.Array]]
    evaluate: Callable[[State], dict[str, float]]
    seconds: float

    def of(self, batches: Batches) -> Programs:
        """Returns the programs of a run that differs in its seed alone."""
        return dataclasses.replace(self, feed=self.feed.of(batches))


class Feed:
    """The training examples as compiled steps read them, with `batch`.

    They live on the device where they fit; otherwise those of the next steps are sent there, while
    the device works on the ones before: to each of several devices its part of each batch.
    """

    def __init__(
        self,
        data: dict[str, np.ndarray],
        batches: Batches,
        devices: Devices,
        most: int = MOST_STEPS,
    ):
        self.host, self.batches, self.devices = data, batches, devices
        total = sum(array.nbytes for array in data.values())
        self.resident = batches.whole or (total <= RESIDENT and devices.mesh is None)
        self.data = self._read(np.arange(batches.examples)) if self.resident else None
        a_batch = max(1, total * batches.size // batches.examples)
        fit = 2**22 // batches.size if self.resident else STREAMED // a_batch
        self.most = max(1, min(most, fit))

    def of(self, batches: Batches) -> Feed:
        """Returns the same examples in another order."""
        other = copy.copy(self)
        other.batches = batches
        return other

    def ahead(self, start: int, count: int) -> tuple[PyTree, np.ndarray]:
        """Returns data and rows for so many steps, at most `self.most`."""
        none = np.zeros((self.most, 0), np.int32)
        if self.batches.whole:
            return self.data, none
        rows = np.zeros((self.most, self.batches.size), np.int32)
        rows[:count] = self.batches.rows(start, count)
        return (self.data, rows) if self.resident else (self._read(rows), none)

    def _read(self, rows: np.ndarray) -> dict[str, jax.Array]:
        return {name: self.devices.read(array, rows) for name, array in self.host.items()}

    def batch(self, data: PyTree, rows: jax.Array, i: Any) -> dict[str, jax.Array]:
        """Returns the examples of step i of those that `ahead` has given, in compiled code."""
        if not self.resident:
            batch = {name: array[i] for name, array in data.items()}
        elif self.batches.whole:
            batch = dict(data)
        else:
            batch = {name: array[rows[i]] for name, array in data.items()}
        return self.devices.exactly(batch, self.batches.size)


def compiled(
    setting: Setting,
    state: State,
    keys: jax.Array | None = None,
    devices: Devices = ONE,
) -> Programs:
    """Returns the programs of a run.

    Args:
        setting: what the config describes.
        state: of the run, on each of the devices.
        keys: of several runs at once, which `advance` takes with their states, rows and, where
            they are streamed, data stacked along a new first axis.
        devices: what the run is trained on.
    """
    start = time.perf_counter()
    update = _update(setting)
    batch = {name: array[: setting.batches.size] for name, array in setting.task.data.train.items()}
    alone = jax.default_backend() == "cpu" and holds_convolution(
        jax.make_jaxpr(update)(state, setting.key, batch, np.int32(0))
    )
    feed = Feed(setting.task.data.train, setting.batches, devices, 1 if alone else MOST_STEPS)
    chunk = _one(setting, update, feed) if alone else _many(setting, update, feed)
    key = devices.on_each(setting.key)
    inputs = state, key, *feed.ahead(0, 1), np.int32(0), np.int32(0)
    if keys is not None:
        axes = 0, 0, None if feed.resident else 0, 0, None, None
        chunk = jax.vmap(chunk, axes)
        inputs = tuple(
            x if axis is None else stacked([x] * len(keys))
            for x, axis in zip(inputs, axes, strict=True)
        )
    return Programs(
        feed=feed,
        advance=jax.jit(chunk, donate_argnums=0, out_shardings=devices.everywhere)
        .lower(*inputs)
        .compile(),
        evaluate=_evaluator(setting, state, feed),
        seconds=time.perf_counter() - start,
    )


def stacked(trees: Sequence[PyTree]) -> PyTree:
    """Returns trees along a new first axis of each leaf."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _many(setting: Setting, update: Callable, feed: Feed) -> Callable:
    """So many steps as are asked for: one program for any number, so that all numbers agree."""

    def chunk(state, key, data, rows, start, count):
        def one(carry):
            i, state, history, _ = carry
            state, figures = update(state, key, feed.batch(data, rows, i), start + i)
            history = {name: h.at[i].set(figures[name]) for name, h in history.items()}
            return i + 1, state, history, _finite(setting, state, figures)

        _, figures = jax.eval_shape(
            lambda s: update(s, key, feed.batch(data, rows, 0), start), state
        )
        history = {name: jnp.zeros((feed.most, *f.shape), f.dtype) for name, f in figures.items()}
        i, state, history, good = jax.lax.while_loop(
            lambda carry: (carry[0] < count) & carry[3], one, (jnp.int32(0), state, history, True)
        )
        return state, history, i, good

    return chunk


def _one(setting: Setting, update: Callable, feed: Feed) -> Callable:
    """A single step outside of any loop, in which a CPU is slow at convolutions."""

    def chunk(state, key, data, rows, start, count):
        state, figures = update(state, key, feed.batch(data, rows, 0), start)
        history = {name: f[None] for name, f in figures.items()}
        return state, history, jnp.minimum(1, count), _finite(setting, state, figures)

    return chunk


def _finite(setting: Setting, state: State, figures: dict[str, jax.Array]) -> jax.Array:
    leaves = jax.tree.leaves(state.params)
    good = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))
    return good if setting.config.on_nan == "skip" else good & jnp.isfinite(figures["loss"])


def _update(setting: Setting) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """One step: (state, key of the run, batch, number of the step) -> (state, figures)."""
    task, tx, config = setting.task, setting.tx, setting.config
    parts = config.micro_batches if config.micro_batches > 1 else None
    drawing = _draws(setting)
    few = config.curvature.examples
    share = few * (parts or 1) / setting.batches.size if few else 1

    def update(state, key, batch, step):
        params, optimizer, model = state
        drawn = jax.random.fold_in(key, step)
        if setting.augments:
            x = augmented(batch["x"], jax.random.fold_in(drawn, 2), config.data.augment)
            batch = batch | {"x": x}
        if task.init_state is not None:
            batch = batch | {"state": model}
        if drawing:
            batch = batch | {"key": jax.random.fold_in(drawn, 1)}
        point = gk.observe(
            task.training,
            params,
            batch,
            curvature=_curvature(setting, step),
            diagonal=_diagonal(setting, step, jax.random.fold_in(drawn, 3)),
            key=drawn,
            micro_batches=parts,
        )
        outputs, following = point.aux
        if parts is not None:
            outputs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)
        grad = point.grad
        if config.on_nan == "skip":  # a loss that is not finite can have a gradient that is
            lost = jnp.where(jnp.isfinite(point.value), 0, jnp.nan)
            grad = jax.tree.map(lambda g: g + lost.astype(g.dtype), grad)
        updates, optimizer = tx.update(grad, optimizer, params, **point.extras)
        params = optax.apply_updates(params, updates)
        if config.on_nan == "skip":
            following = optax.tree.where(jnp.isfinite(point.value), following, model)
        figures = {
            "loss": point.value,
            **task.figures(outputs, batch),
            "gradient_norm": scaled_norm(point.grad).value,
            **{k: v for k, v in gk.hyperparams(optimizer).items() if k == "learning_rate"},
            **gk.metrics(optimizer),
            **_beyond_one_gradient(optimizer, share),
        }
        return State(params, optimizer, following), jax.tree.map(jnp.asarray, figures)

    return update


def _draws(setting: Setting) -> bool:
    """Whether training needs a random key in its batch: the model reads it, or has two modes."""
    task = setting.task
    if task.init_state is not None:
        return True
    key = jax.random.key(0)
    batch = jax.tree.map(lambda x: x[:2], task.data.train)

    def value(params, key):
        return task.training.value_and_aux(params, batch | {"key": key})[0]

    traced = jax.make_jaxpr(value)(jax.eval_shape(task.init, key), key).jaxpr
    return any(traced.invars[-1] is v for equation in traced.eqns for v in equation.invars)


def _curvature(setting: Setting, step: jax.Array) -> Callable[..., PyTree]:
    """The operator that the optimizer is given: of some of a batch's examples."""
    task = setting.task
    gauss_newton = optimizers.curvature_operator(setting.config) == "gauss_newton"

    def curvature(problem, params, batch):
        part, rest = _some(setting, batch, step)
        if gauss_newton:
            return gk.gauss_newton(task.problem, params, part | rest)
        return hessian(problem, params, part | rest)

    return curvature


def _diagonal(setting: Setting, step: jax.Array, key: jax.Array) -> Callable[..., PyTree] | None:
    """The diagonal that it is given, of the same examples; None for one of its own."""
    task = setting.task

    def empirical(problem, params, batch):
        del problem
        part, rest = _some(setting, batch, step)
        return gk.empirical_fisher_diagonal(
            lambda params, part: task.problem.value(params, part | rest), params, part
        )

    def drawn(problem, params, batch):
        del problem
        part, rest = _some(setting, batch, step)
        given = {"key": key, "likelihood": task.likelihood}
        D = gk.fisher_diagonal(task.problem, params, part | rest, **given)
        labels = 1 if task.likelihood == "normal" else part["y"][0].size  # the loss is their mean
        return optax.tree.scale(1 / labels, D)

    return {"empirical_fisher": empirical, "fisher": drawn, None: None}[
        optimizers.curvature_diagonal(setting.config)
    ]


def _some(setting: Setting, batch: PyTree, step: jax.Array) -> tuple[PyTree, PyTree]:
    """So many examples of a batch, others from step to step, and what in it is not of examples."""
    columns, few = setting.task.data.train.keys(), setting.config.curvature.examples
    part, rest = (
        {k: x for k, x in batch.items() if (k in columns) == has} for has in (True, False)
    )
    if few is None:
        return part, rest
    rows = (step * few + jnp.arange(few)) % len(next(iter(part.values())))
    return {k: x[rows] for k, x in part.items()}, rest


def _beyond_one_gradient(optimizer: PyTree, share: float) -> dict[str, jax.Array]:
    """What the updates so far have asked for besides a gradient each: losses are by themselves.

    Args:
        optimizer: its state.
        share: of a batch's examples that a product is of; products are counted in whole ones.
    """
    work = states.work(optimizer)
    alone, products = work.evaluations - work.gradients, work.products
    products = products if share == 1 else share * products
    return {"gradients": work.gradients, "evaluations": alone, "products": products}


def _evaluator(setting: Setting, state: State, feed: Feed) -> Callable[[State], dict[str, float]]:
    task, parts, devices = setting.task, dict(setting.task.data.parts), feed.devices
    if feed.resident and devices.mesh is None:
        parts = jax.device_put(parts | {"train": feed.data})

    @functools.partial(jax.jit, static_argnames="examples", out_shardings=devices.everywhere)
    def figures(params, model, data, examples):
        data = devices.exactly(data, examples)
        data = data if task.init_state is None else data | {"state": model}
        value, outputs = task.problem.value_and_aux(params, data)
        return {"loss": value, **task.figures(outputs, data)}

    def means(state, data):
        """The mean of each figure over all examples, so many at a time."""
        examples = len(data["x"])
        most = max(1, EVALUATED // max(1, data["y"][0].size))  # of a text each token is a target
        totals: dict[str, float] = {}
        for start in range(0, examples, most):
            few = min(most, examples - start)
            piece = {name: _piece(devices, x, start, few) for name, x in data.items()}
            for name, value in figures(state.params, state.model, piece, examples=few).items():
                mean = shortest(np.atleast_1d(value))[0]
                totals[name] = totals.get(name, 0.0) + few / examples * mean
        return totals

    def evaluate(state):
        return {
            f"{part}_{name}": mean
            for part, data in parts.items()
            for name, mean in means(state, data).items()
        }

    evaluate(state)  # compiles
    return evaluate


def _piece(devices: Devices, array: Any, start: int, count: int) -> Any:
    if devices.mesh is None:
        return array[start : start + count]
    return devices.read(array, np.arange(start, start + count))


def shortest(values: np.ndarray) -> list[Any]:
    """Returns Python's numbers; of a float32 the shortest, 0.003 and not 0.003000000026."""
    if values.dtype.kind in "biu":
        return values.tolist()
    return [float(str(value)) for value in values]
