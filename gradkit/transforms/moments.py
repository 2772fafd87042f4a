"""Exponential moving averages of gradients, and the correction of their bias."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax
from jax.typing import ArrayLike, DTypeLike

from gradkit.transforms.link import Link, link, no_updates, one_more, transformation
from gradkit.tree import wide, wide_zeros

PyTree = Any


class EmaState(NamedTuple):
    """`mean = Σᵢ (1 − β) βᵗ⁻ⁱ xᵢ` over the updates x so far, `age` in number."""

    age: ArrayLike
    mean: PyTree


class BiasCorrectionState(NamedTuple):
    """`age`: updates since the average to be corrected was zero."""

    age: ArrayLike


@transformation
def ema(
    decay: optax.ScalarOrSchedule,
    debias: bool = True,
    accumulator_dtype: DTypeLike | None = None,
) -> Link:
    """Replaces updates x by their exponential moving average m ← β m + (1 − β) x.

    Source: Kingma & Ba (2015), section 3, for the correction of the bias.
    Differs: optax keeps the output in the accumulator's dtype; here it has the updates'. The
    average is kept in float32 at least unless a dtype is given.

    Cost: one tree of memory.

    Args:
        decay: β, 0 ≤ β < 1, how much of the past is kept.
        debias: divide by 1 − βᵗ, so that the average of a constant is that constant from the first
            step on. `chain(ema(b, debias=False), bias_correction(b))` does the same.
        accumulator_dtype: dtype of the average.
    """

    def init(params, step):
        return EmaState(no_updates(), wide_zeros(params, accumulator_dtype))

    def update(updates, state, params, h, **_):
        mean = h.averaged("decay", state.mean, updates)
        correction = h.bias("decay", state.age) if debias else 1
        averaged = jax.tree.map(lambda m: m / correction, mean)
        return averaged, EmaState(one_more(state.age), optax.tree.cast_like(mean, state.mean))

    return link(init, update, decay=decay)


@transformation
def bias_correction(decay: optax.ScalarOrSchedule) -> Link:
    """Divides the t-th update by 1 − βᵗ: an average that started at zero becomes unbiased.

    Source: Kingma & Ba (2015), section 3.

    Args:
        decay: β of the exponential moving average to be corrected.
    """

    def init(params, step):
        return BiasCorrectionState(no_updates())

    def update(updates, state, params, h, **_):
        correction = h.bias("decay", state.age)
        return jax.tree.map(lambda m: wide(m) / correction, updates), BiasCorrectionState(
            one_more(state.age)
        )

    return link(init, update, decay=decay)
