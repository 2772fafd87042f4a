"""Momentum: updates that remember the updates before them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from gradkit.tree import wide

PyTree = Any


class HeavyBallState(NamedTuple):
    """`velocity = Σᵢ μᵗ⁻ⁱ gᵢ` over the updates g so far."""

    velocity: PyTree


def heavy_ball(
    decay: float | jax.Array, nesterov: bool = False, accumulator_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Replaces updates g by the velocity v ← μ v + g, or by g + μ v with `nesterov`.

    Followed by a constant learning rate η this is Polyak's heavy ball, with an effective rate of
    η / (1 − μ). Placed after a scheduled rate instead of before it, it is the convention
    v ← μ v − η g, which differs as soon as η changes.

    Source: Polyak (1964); Sutskever et al. (2013) for Nesterov's method in the one-evaluation form.
    Differs: from `optax.trace` in name only.

    Cost: one tree of memory.

    Args:
        decay: μ, 0 ≤ μ < 1.
        nesterov: look ahead by one step of momentum.
        accumulator_dtype: dtype of the velocity; the parameters' by default.
    """

    def init(params):
        zeros = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=accumulator_dtype), params)
        return HeavyBallState(zeros)

    def update(updates, state, params=None, **_):
        v = jax.tree.map(lambda g, v: wide(g) + decay * wide(v), updates, state.velocity)
        ahead = jax.tree.map(lambda g, v: wide(g) + decay * v, updates, v) if nesterov else v
        kept = HeavyBallState(optax.tree.cast_like(v, state.velocity))
        return optax.tree.cast_like(ahead, updates), kept

    return optax.GradientTransformationExtraArgs(init, update)
