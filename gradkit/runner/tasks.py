"""A task: what is learned, by which model, from which data."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gradkit.core import Problem
from gradkit.runner import data
from gradkit.runner.config import Config

PyTree = Any


class Mlp(nnx.Module):
    """Dense layers with an activation between them."""

    def __init__(self, widths: tuple[int, ...], activation: str, *, rngs: nnx.Rngs):
        pairs = itertools.pairwise(widths)
        self.layers = nnx.List([nnx.Linear(m, n, rngs=rngs) for m, n in pairs])
        self.activation = getattr(jax.nn, activation)

    def __call__(self, x):
        """Returns class scores (examples, classes) for features (examples, features)."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


@dataclasses.dataclass(frozen=True)
class Task:
    """A problem with its data and the parameters to start from.

    Attributes:
        problem: `predict` gives class scores (examples, classes), `criterion` the config's loss of
          them.
        params: initial parameters, an `nnx.State`.
        dataset: training and test examples.
        likelihood: of which the criterion is the negative logarithm: that of the Fisher matrix.
    """

    problem: Problem
    params: PyTree
    dataset: data.Dataset
    likelihood: str = "categorical"


def build(config: Config) -> Task:
    """Returns the task of a config, its parameters drawn from the config's seed.

    Raises:
        UserError: the data cannot be read or learned from.
    """
    given = config.data
    dataset = data.load(given.source, given.test_fraction)
    if given.examples is not None:
        dataset = dataset.first(given.examples)
    if given.standardize:
        dataset = dataset.standardized()
    widths = (dataset.x_train.shape[1], *config.model.hidden, dataset.classes)
    model = Mlp(widths, config.model.activation, rngs=nnx.Rngs(config.seed))
    graph, params = nnx.split(model, nnx.Param)

    def predict(params, batch):
        return nnx.merge(graph, params)(batch["x"])

    criterion, likelihood = LOSSES[config.loss]
    return Task(Problem(predict=predict, criterion=criterion), params, dataset, likelihood)


def cross_entropy(scores: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Returns the mean cross-entropy of class scores against `batch["y"]` [nats]."""
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(scores, batch["y"]))


def squared_error(scores: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Returns the mean over examples of ½ ‖scores − e‖², with e the unit vector of the class."""
    wanted = jax.nn.one_hot(batch["y"], scores.shape[-1], dtype=scores.dtype)
    return jnp.mean(jnp.sum((scores - wanted) ** 2, axis=-1)) / 2


# Each loss, and the likelihood of which it is the negative logarithm but for a constant.
LOSSES = {
    "cross_entropy": (cross_entropy, "categorical"),
    "squared_error": (squared_error, "normal"),
}


def accuracy(scores: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Returns the share of examples whose class has the highest score."""
    return jnp.mean(jnp.argmax(scores, axis=-1) == batch["y"])
