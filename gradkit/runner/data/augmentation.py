"""Augmentation: images of a training batch changed at random, so that targets still hold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.runner.errors import UserError
from gradkit.runner.schema import Augment


def augmented(x: jax.Array, key: jax.Array, given: Augment) -> jax.Array:
    """Returns images (examples, height, width, ...), each changed by itself: a function of the key.

    Each is mirrored with probability ½, moved by up to `crop` pixels in both directions, with zeros
    where nothing was, and multiplied by a number of its own in 1 ± `jitter`.
    """
    flipping, moving, scaling = jax.random.split(key, 3)
    each = (len(x), *[1] * (x.ndim - 1))
    if given.flip:
        x = jnp.where(jax.random.bernoulli(flipping, shape=each), jnp.flip(x, axis=2), x)
    if given.crop:
        edges = [(0, 0), *[(given.crop, given.crop)] * 2, *[(0, 0)] * (x.ndim - 3)]
        corners = jax.random.randint(moving, (len(x), 2), 0, 2 * given.crop + 1)
        rows, columns = (
            corners[:, axis, None] + jnp.arange(x.shape[1 + axis]) for axis in range(2)
        )
        padded = jnp.pad(x, edges)
        x = padded[jnp.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None]]
    if given.jitter:
        drawn = jax.random.uniform(scaling, each, x.dtype, -given.jitter, given.jitter)
        x = x * (1 + drawn)
    return x


def check_images(x: np.ndarray, source: str) -> None:
    """Refuses inputs that are no images.

    Raises:
        UserError: they are not.
    """
    if x.ndim not in (3, 4) or x.dtype.kind != "f":
        raise UserError(
            "data.augment: expected images of shape (height, width) or (height, width, channels), "
            f"got {x.dtype} of shape {x.shape[1:]} from {source}; leave it out"
        )
