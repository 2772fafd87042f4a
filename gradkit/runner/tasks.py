"""A task: what is learned, by which model, from which data."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from gradkit.core import Problem
from gradkit.runner import imported
from gradkit.runner.config import Config
from gradkit.runner.data.dataset import Dataset
from gradkit.runner.data.loading import load
from gradkit.runner.errors import UserError
from gradkit.runner.losses import LOSSES, Batch, absolute_error, accuracy
from gradkit.runner.making import as_user_error, made
from gradkit.runner.models import OF_TOKENS, Sizes

PyTree = Any

RESERVED = {"loss", "step", "epoch", "time", "learning_rate", "gradient_norm"}


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A model with its loss and its data; a task of a user's is any object with these names.

    A batch is a dictionary of `x` and `y`. In training it has `key` besides, for a model that draws
    random numbers, such as dropout: without a key it is evaluated. Of a task with `init_state` it
    has `state`, and `predict` returns a pair, the outputs and the state after the batch.

    Attributes:
        data: what is learned from.
        init: random key -> parameters.
        predict: (parameters, batch) -> outputs.
        criterion: (outputs, batch) -> loss, a mean over the examples.
        metrics: other figures by name, each (outputs, batch) -> a mean over the examples.
        likelihood: of which the criterion is the negative logarithm, for the Fisher matrix:
            "categorical", "bernoulli" or "normal"; None where it is not known.
        init_state: random key -> what a model keeps besides its parameters, such as the running
            averages of batch norm; None for a model that keeps nothing.
        source: the file that it was read from, None for one of gradkit's.
    """

    data: Dataset
    init: Callable[[jax.Array], PyTree]
    predict: Callable[[PyTree, Batch], Any]
    criterion: Callable[[Any, Batch], jax.Array]
    metrics: Mapping[str, Callable[[Any, Batch], jax.Array]] = dataclasses.field(
        default_factory=dict
    )
    likelihood: str | None = None
    init_state: Callable[[jax.Array], PyTree] | None = None
    source: Path | None = None

    @functools.cached_property
    def problem(self) -> Problem:
        """The loss, with the state of the model as the batch has it."""
        return Problem(predict=self.outputs, criterion=self.criterion)

    @functools.cached_property
    def training(self) -> Problem:
        """The loss, with the outputs and the state after the batch as its auxiliary value."""

        def loss(params, batch):
            outputs = self.predict(params, batch)
            outputs, state = outputs if self.init_state else (outputs, None)
            return self.criterion(outputs, batch), (outputs, state)

        return Problem(loss, has_aux=True)

    def outputs(self, params: PyTree, batch: Batch) -> Any:
        """Returns what the model predicts."""
        outputs = self.predict(params, batch)
        return outputs[0] if self.init_state else outputs

    def figures(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Returns every metric of some outputs."""
        return {name: metric(outputs, batch) for name, metric in self.metrics.items()}


def build(config: Config) -> Task:
    """Returns the task of a config.

    Raises:
        UserError: the data cannot be read or learned from, or a user's task is none.
    """
    if config.task is None:
        return _supervised(config)
    if ":" in config.task.name:
        return _users(config)
    return made(config.task, kind="task")


def _supervised(config: Config) -> Task:
    """The model of the config, to learn its data by its loss."""
    data, given = load(config.data), config.model
    numbers = data.classes is None
    name = config.loss or ("squared_error" if numbers else "cross_entropy")
    _suits(name, given.name, data)
    outputs = 1 if name == "binary_cross_entropy" else data.outputs
    shares = None if numbers else np.bincount(data.y_train.ravel()) / data.y_train.size
    sizes = Sizes(data.x_train.shape[1:], outputs, shares, data.train)
    net = made(given, sizes, kind="model")

    def init(key):
        return nnx.split(net(nnx.Rngs(key)), nnx.Param, ...)[1]

    def init_state(key):
        return nnx.split(net(nnx.Rngs(key)), nnx.Param, ...)[2]

    with as_user_error(f"model: {given.name} cannot be built"):
        graph, _, kept = nnx.split(nnx.eval_shape(lambda: net(nnx.Rngs(0))), nnx.Param, ...)
    stateful = bool(jax.tree.leaves(kept))

    def predict(params, batch):
        model = nnx.merge(graph, params, batch.get("state", kept), copy=True)
        outputs = model(batch["x"], batch.get("key"))
        return (outputs, nnx.split(model, nnx.Param, ...)[2]) if stateful else outputs

    return Task(
        data=data,
        init=init,
        predict=predict,
        criterion=LOSSES[name].criterion,
        metrics={"absolute_error": absolute_error} if numbers else {"accuracy": accuracy},
        likelihood=LOSSES[name].likelihood,
        init_state=init_state if stateful else None,
    )


def _suits(loss: str, model: str, data: Dataset) -> None:
    source = data.meta["source"]
    tokens = data.x_train.dtype.kind != "f"
    if tokens != (model in OF_TOKENS):
        reads, holds = ("numbers", "tokens") if tokens else ("tokens", "numbers")
        remedy = f"choose the model {OF_TOKENS[0]}" if tokens else "choose another of either"
        raise UserError(f"model: {model} learns from {reads}, and {source} holds {holds}: {remedy}")
    if data.classes is None and loss != "squared_error":
        raise UserError(f"loss: {loss} is for classes, and {source} has numbers: set squared_error")
    if loss == "binary_cross_entropy" and data.classes != 2:
        raise UserError(
            f"loss: {loss} is for 2 classes, and {source} has {data.classes}: set cross_entropy"
        )


def _users(config: Config) -> Task:
    """A task of a user's: an object, or what a function of his returns."""
    assert config.task is not None
    spec, arguments = config.task.name, config.task.arguments
    found, source = imported.imported(spec, "task")
    if isinstance(found, type) or (callable(found) and not hasattr(found, "predict")):
        with imported.told(source, f"task {spec} fails"):
            names = inspect.signature(found).parameters
            _takes(spec, names, arguments)
            found = found(load(config.data), **arguments) if "data" in names else found(**arguments)
    task = _as_task(found, source, spec)
    _check(task, spec)
    return task


def _as_task(found: Any, source: Path, spec: str) -> Task:
    required = ("data", "init", "predict", "criterion")
    if missing := [name for name in required if not hasattr(found, name)]:
        raise UserError(
            f"task: {spec}: a task has {', '.join(required)}; got {imported.described(found)} "
            f"without {', '.join(missing)}"
        )
    if not isinstance(found.data, Dataset):
        raise UserError(
            f"task: {spec}: data: expected a gradkit.runner.data.dataset.Dataset, got "
            f"{imported.described(found.data)}"
        )
    names = [field.name for field in dataclasses.fields(Task) if hasattr(found, field.name)]
    given: dict[str, Any] = {name: getattr(found, name) for name in names}
    return Task(**{**given, "source": source})


def _takes(spec: str, names: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    own = [name for name in names if name != "data"]
    if unknown := [name for name in arguments if name not in own]:
        raise UserError(
            f"task.{unknown[0]}: unknown argument of {spec}, which takes "
            f"{', '.join(own) or 'none from a config'}"
        )


def _check(task: Task, spec: str) -> None:
    """Refuses a task whose loss cannot be evaluated, or whose figures have names of others."""
    if taken := RESERVED & task.metrics.keys():
        raise UserError(f"task: {spec}: metrics: {min(taken)} is the name of another figure")
    assert task.source is not None
    with imported.told(task.source, f"task {spec}: the loss cannot be evaluated"):
        key = jax.random.key(0)
        batch: dict[str, Any] = jax.tree.map(lambda x: x[:2], task.data.train)
        if task.init_state is not None:
            batch |= {"state": task.init_state(key)}
        for more in ({}, {"key": key}):
            _, (outputs, _) = task.training.value_and_aux(task.init(key), batch | more)
            task.figures(outputs, batch | more)
