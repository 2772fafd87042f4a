"""The losses that a config can name, and the figures that go with each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Batch = Mapping[str, Any]


def cross_entropy(scores: jax.Array, batch: Batch) -> jax.Array:
    """Returns the mean cross-entropy of class scores against `batch["y"]` [nats]."""
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(scores, batch["y"]))


def binary_cross_entropy(scores: jax.Array, batch: Batch) -> jax.Array:
    """Returns the mean cross-entropy of one score an example, for class 1 of two [nats]."""
    return jnp.mean(optax.losses.sigmoid_binary_cross_entropy(scores[..., 0], batch["y"]))


def squared_error(outputs: jax.Array, batch: Batch) -> jax.Array:
    """Returns the mean over examples of ½ ‖outputs − y‖², of a class y its unit vector."""
    wanted = batch["y"]
    if jnp.issubdtype(wanted.dtype, jnp.integer):
        wanted = jax.nn.one_hot(wanted, outputs.shape[-1], dtype=outputs.dtype)
    return jnp.mean(jnp.sum((outputs - wanted) ** 2, axis=-1)) / 2


def accuracy(scores: jax.Array, batch: Batch) -> jax.Array:
    """Returns the share of examples whose class has the highest score; of one score, its sign."""
    several = scores.shape[-1] > 1
    guess = jnp.argmax(scores, axis=-1) if several else scores[..., 0] > 0
    return jnp.mean(guess == batch["y"])


def absolute_error(outputs: jax.Array, batch: Batch) -> jax.Array:
    """Returns the mean of |outputs − y| [the unit of y]."""
    return jnp.mean(jnp.abs(outputs - batch["y"]))


class Loss(NamedTuple):
    """A loss, and the likelihood of which it is the negative logarithm but for a constant."""

    criterion: Callable[[jax.Array, Batch], jax.Array]
    likelihood: str


LOSSES = {
    "cross_entropy": Loss(cross_entropy, "categorical"),
    "binary_cross_entropy": Loss(binary_cross_entropy, "bernoulli"),
    "squared_error": Loss(squared_error, "normal"),
}
