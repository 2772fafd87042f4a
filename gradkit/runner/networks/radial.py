"""A network of radial basis functions."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Start(NamedTuple):
    """Where a network of radial basis functions begins: what its first two stages find.

    Attributes:
        centers: (units, features).
        widths: (units,).
        weights: (units + 1, outputs), the bias last.
    """

    centers: np.ndarray
    widths: np.ndarray
    weights: np.ndarray


def start(x: np.ndarray, wanted: np.ndarray, units: int) -> Start:
    """Returns the k-means of the inputs, and the least-squares weights on top of them.

    A width is the distance to the nearest other center.

    Args:
        x: inputs (examples, ...).
        wanted: targets (examples, outputs).
        units: how many centers.

    Raises:
        ValueError: there are fewer different inputs.
    """
    from sklearn.cluster import KMeans

    x = x.reshape(len(x), -1).astype(float)
    different = len(np.unique(x, axis=0))
    if not 2 <= units <= different:
        raise ValueError(f"units: expected 2 to {different}, the different inputs, got {units}")
    found = KMeans(units, n_init="auto", random_state=0).fit(x)
    centers = np.asarray(found.cluster_centers_)
    squares = _squared_distances(centers, centers)
    widths = np.sqrt((squares + np.diag(np.full(units, np.inf))).min(axis=1))
    hidden = np.exp(-_squared_distances(x, centers) / (2 * widths**2))
    design = np.concatenate([hidden, np.ones((len(x), 1))], axis=1)
    weights = np.linalg.lstsq(design, wanted, rcond=1e-5)[0]  # larger ones drown in float32
    return Start(centers, widths, weights)


def _squared_distances(x: np.ndarray, centers: np.ndarray) -> np.ndarray:
    return np.sum((x[:, None] - centers) ** 2, axis=-1)


class Fixed(nnx.Variable):
    """What is kept of a model and not trained."""


class Radial(nnx.Module):
    """A weighted sum of normal bumps around centers.

    Attributes:
        centers: (units, features), parameters if they are trained.
        log_widths: (units,), likewise.
        output: the layer of the weights.
    """

    def __init__(self, begin: Start, *, trained: bool, rngs: nnx.Rngs):
        kind = nnx.Param if trained else Fixed
        self.centers = kind(jnp.asarray(begin.centers, jnp.float32))
        self.log_widths = kind(jnp.log(jnp.asarray(begin.widths, jnp.float32)))
        weights = jnp.asarray(begin.weights, jnp.float32)
        self.output = nnx.Linear(
            len(weights) - 1,
            weights.shape[1],
            kernel_init=lambda *_: weights[:-1],
            bias_init=lambda *_: weights[-1],
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns outputs (examples, outputs) for inputs (examples, ...)."""
        away = x.reshape(len(x), 1, -1) - self.centers[...]
        squares = jnp.sum(away**2, axis=-1) * jnp.exp(-2 * self.log_widths[...])
        return self.output(jnp.exp(-squares / 2))
