"""Exponential moving averages of gradients, and the correction of their bias."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from gradkit.tree import wide

PyTree = Any


class EmaState(NamedTuple):
    """`mean = Σᵢ (1 − β) βᵗ⁻ⁱ xᵢ` over the t = `step` updates x so far."""

    step: ArrayLike
    mean: PyTree


class BiasCorrectionState(NamedTuple):
    """How many updates have passed."""

    step: ArrayLike


def ema(
    decay: float | jax.Array, debias: bool = True, accumulator_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Replaces updates x by their exponential moving average m ← β m + (1 − β) x.

    Source: Kingma & Ba (2015), section 3, for the correction of the bias.
    Differs: optax keeps the output in the accumulator's dtype; here it has the updates'.

    Cost: one tree of memory.

    Args:
        decay: β, 0 ≤ β < 1, how much of the past is kept.
        debias: divide by 1 − βᵗ, so that the average of a constant is that constant from the first
            step on. `chain(ema(b, debias=False), bias_correction(b))` does the same.
        accumulator_dtype: dtype of the average; the parameters' by default.
    """

    def init(params):
        zeros = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=accumulator_dtype), params)
        return EmaState(jnp.zeros((), jnp.int32), zeros)

    def update(updates, state, params=None, **_):
        step = optax.safe_increment(state.step)
        correction = bias(decay, step) if debias else 1
        mean = jax.tree.map(
            lambda x, m: decay * wide(m) + (1 - decay) * wide(x), updates, state.mean
        )
        averaged = jax.tree.map(lambda x, m: (m / correction).astype(x.dtype), updates, mean)
        return averaged, EmaState(step, optax.tree.cast_like(mean, state.mean))

    return optax.GradientTransformationExtraArgs(init, update)


def bias_correction(decay: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    """Divides the t-th update by 1 − βᵗ: an average that started at zero becomes unbiased.

    Source: Kingma & Ba (2015), section 3.

    Args:
        decay: β of the exponential moving average to be corrected.
    """

    def init(params):
        return BiasCorrectionState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **_):
        step = optax.safe_increment(state.step)
        correction = bias(decay, step)
        corrected = jax.tree.map(lambda m: (wide(m) / correction).astype(m.dtype), updates)
        return corrected, BiasCorrectionState(step)

    return optax.GradientTransformationExtraArgs(init, update)


def bias(decay: float | jax.Array, step: ArrayLike) -> jax.Array:
    """Returns 1 − βᵗ, the total weight of an average that started at zero, t = `step` updates on.

    In float32 whatever the parameters are: in bfloat16 a β of 0.999 would be 1.
    """
    return 1 - jnp.asarray(decay, jnp.promote_types(jnp.float32, jnp.result_type(decay))) ** step
