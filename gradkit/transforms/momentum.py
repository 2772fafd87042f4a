"""Momentum: updates that remember the updates before them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax
from jax.typing import DTypeLike

from gradkit.transforms.link import Link, link, transformation
from gradkit.tree import wide, wide_zeros

PyTree = Any


class VelocityState(NamedTuple):
    """`velocity = Σᵢ μᵗ⁻ⁱ xᵢ`: x the updates g for `heavy_ball`, the steps −η g for `velocity`."""

    velocity: PyTree


@transformation
def heavy_ball(
    decay: optax.ScalarOrSchedule,
    nesterov: bool = False,
    accumulator_dtype: DTypeLike | None = None,
) -> Link:
    """Replaces updates g by the velocity v ← μ v + g, or by g + μ v with `nesterov`.

    Followed by a constant learning rate η this is Polyak's heavy ball, with an effective rate of
    η / (1 − μ). `gk.velocity` is the convention v ← μ v − η g, which differs as soon as η changes;
    `gk.ema` is v ← μ v + (1 − μ) g.

    Source: Polyak (1964); Sutskever et al. (2013) for Nesterov's method in the one-evaluation form,
    whose iterates are the points at which `gk.nesterov` takes its gradients.
    Differs: from `optax.trace` in name, and in that the velocity is kept in float32 at least unless
    a dtype is given.

    Cost: one tree of memory.

    Args:
        decay: μ, 0 ≤ μ < 1.
        nesterov: look ahead by one step of momentum.
        accumulator_dtype: dtype of the velocity.
    """

    def init(params, step):
        return VelocityState(wide_zeros(params, accumulator_dtype))

    def update(updates, state, params, h, **_):
        mu = h.decay
        v = jax.tree.map(lambda g, v: wide(g) + mu * wide(v), updates, state.velocity)
        ahead = jax.tree.map(lambda g, v: wide(g) + mu * v, updates, v) if nesterov else v
        return ahead, VelocityState(optax.tree.cast_like(v, state.velocity))

    return link(init, update, decay=decay)


@transformation
def velocity(
    learning_rate: optax.ScalarOrSchedule,
    decay: optax.ScalarOrSchedule = 0.9,
    accumulator_dtype: DTypeLike | None = None,
) -> Link:
    """Replaces updates g by the step v ← μ v − η g: it takes the place of a learning rate.

    Equal to `gk.heavy_ball` before a learning rate as long as that is constant. After a change of
    η the old steps keep their size here, and are scaled anew there.

    Source: Sutskever et al. (2013), equation 1.

    Cost: one tree of memory.

    Args:
        learning_rate: η, a number or a schedule.
        decay: μ, 0 ≤ μ < 1.
        accumulator_dtype: dtype of the velocity; float32 at least by default.
    """

    def init(params, step):
        return VelocityState(wide_zeros(params, accumulator_dtype))

    def update(updates, state, params, h, **_):
        mu, eta = h.decay, h.learning_rate
        v = jax.tree.map(lambda g, v: mu * wide(v) - eta * wide(g), updates, state.velocity)
        return v, VelocityState(optax.tree.cast_like(v, state.velocity))

    return link(init, update, steps=True, learning_rate=learning_rate, decay=decay)
