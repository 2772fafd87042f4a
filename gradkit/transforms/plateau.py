"""A learning rate that falls when the loss no longer does."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from gradkit import tree
from gradkit.core import needs_count, required
from gradkit.transforms.link import Link, link, transformation
from gradkit.tree import wide


class PlateauState(NamedTuple):
    """`scale`: the factor in force. `best`: the least mean value. The others count and sum up."""

    scale: ArrayLike
    best: ArrayLike
    total: ArrayLike
    seen: ArrayLike
    waited: ArrayLike
    resting: ArrayLike

    def metrics(self) -> dict[str, ArrayLike]:
        """Publishes the factor."""
        return {"plateau_scale": self.scale}


@transformation
def reduce_on_plateau(
    factor: optax.ScalarOrSchedule = 0.1,
    patience: int = 10,
    rtol: optax.ScalarOrSchedule = 1e-4,
    atol: optax.ScalarOrSchedule = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 1,
    min_scale: optax.ScalarOrSchedule = 0.0,
) -> Link:
    """Scales updates by a factor that falls each time the extra argument `value` stops improving.

    A mean of `accumulation_size` values improves on the best b if it is below b − rtol |b| − atol.
    After `patience` means in a row that do not, the factor is multiplied by `factor`; the next
    `cooldown` means are not counted.

    Differs: from `optax.contrib.reduce_on_plateau` for negative values, where b (1 − rtol) lies
    above b and every value improves; a mean that is NaN does not improve; and the scalars are in
    float32 at least.

    Args:
        factor: what the scale is multiplied by, between 0 and 1.
        patience: means without improvement before that.
        rtol: relative improvement that counts.
        atol: absolute improvement that counts [loss].
        cooldown: means to ignore after a reduction.
        accumulation_size: values to average: more for the loss of a mini-batch.
        min_scale: least scale.

    Raises:
        ValueError: `patience` or `accumulation_size` is not a positive whole number.
        TypeError: `update` was called without `value`.
    """
    for name, count in {"patience": patience, "accumulation_size": accumulation_size}.items():
        needs_count(count, name, member="reduce_on_plateau")

    def init(params, step):
        dtype = tree.scalar_dtype(params)
        zero, count = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        return PlateauState(
            *(jnp.ones((), dtype), jnp.full((), jnp.inf, dtype), zero),
            *(jnp.array(count) for _ in range(3)),
        )

    def update(updates, state, params, h, **extra):
        value = required(extra, "value", member="reduce_on_plateau")
        seen = state.seen + 1
        total = state.total + jnp.asarray(value, state.total.dtype)
        full = seen == accumulation_size
        mean, b = total / seen, state.best
        improved = (mean < b - h.rtol * jnp.abs(b) - h.atol) | (jnp.isinf(b) & (mean < b))
        resting = state.resting > 0
        waited = jnp.where(improved | resting, 0, state.waited + 1)
        reduces = waited >= patience
        scale = jnp.where(reduces, jnp.maximum(state.scale * h.factor, h.min_scale), state.scale)
        following = PlateauState(
            scale=scale,
            best=jnp.where(improved, mean, b),
            total=jnp.zeros_like(total),
            seen=jnp.zeros_like(seen),
            waited=jnp.where(reduces, 0, waited),
            resting=jnp.where(reduces, cooldown, jnp.maximum(state.resting - 1, 0)),
        )
        gathering = state._replace(total=total, seen=seen)
        state = optax.tree.where(full, following, gathering)
        return jax.tree.map(lambda u: state.scale * wide(u), updates), state

    return link(init, update, factor=factor, rtol=rtol, atol=atol, min_scale=min_scale)
