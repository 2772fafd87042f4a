"""Averages of the parameters: over time, and between a fast and a slow copy."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from gradkit.core import needs_count, needs_params
from gradkit.transforms.foreign import as_link
from gradkit.transforms.link import Link, link, no_updates, one_more, state_type, transformation
from gradkit.tree import wide, wide_copy, wide_zeros

PyTree = Any


class AverageState(NamedTuple):
    """`mean = Σᵢ (1 − β) βᵗ⁻ⁱ θᵢ` over the parameters so far, and its `weight`."""

    weight: ArrayLike
    mean: PyTree

    @property
    def average(self) -> PyTree:
        """The corrected average of the parameters, mean / weight: what to evaluate and save."""
        return jax.tree.map(lambda m: m / self.weight, self.mean)


@transformation
def average_params(
    decay: optax.ScalarOrSchedule = 0.999, accumulator_dtype: DTypeLike | None = None
) -> Link:
    """Keeps an exponential moving average of the parameters; updates pass as they are.

    The last member of a chain, so that θ + u are the next parameters. Its state's `average` is the
    corrected average: `state.average_params.average`. The schedule `lambda k: k / (k + 1)` for the
    decay makes it the plain mean of all.

    Source: Polyak & Juditsky (1992) for averaging; Kingma & Ba (2015), section 3, for the
    correction.

    Cost: one tree of memory.

    Args:
        decay: β, 0 ≤ β < 1, a number or a schedule.
        accumulator_dtype: dtype of the average; float32 at least by default.

    Raises:
        ValueError: `update` was called without the parameters.
    """

    def init(params, step):
        return AverageState(jnp.zeros(()), wide_zeros(params, accumulator_dtype))

    def update(updates, state, params, h, **_):
        needs_params(params, member="average_params")
        beta, rest = h.decay, h.complement("decay")
        mean = jax.tree.map(
            lambda m, p, u: (beta * wide(m) + rest * (wide(p) + wide(u))).astype(m.dtype),
            *(state.mean, params, updates),
        )
        weight = beta * state.weight + rest  # 1 − βᵗ where β is constant
        return updates, AverageState(weight.astype(jnp.result_type(state.weight)), mean)

    return link(init, update, decay=decay)


@transformation
def lookahead(
    fast_optimizer: optax.GradientTransformation,
    sync_period: int = 6,
    slow_step_size: optax.ScalarOrSchedule = 0.5,
    reset_state: bool = False,
) -> Link:
    """Moves a slow copy of the parameters to the fast optimizer's every few steps, and restarts it.

    After each `sync_period` updates φ ← φ + α (θ − φ) and θ ← φ: φ the slow copy, kept in the
    state, θ the parameters.

    Source: Zhang, Lucas, Hinton & Ba (2019), algorithm 1.
    Differs: from optax in that the parameters are the plain tree, where optax wants a pair, and in
    the defaults of `sync_period` and `slow_step_size`, the paper's.

    Cost: one tree of memory beside the fast optimizer's.

    Args:
        fast_optimizer: a whole optimizer, learning rate included.
        sync_period: k, updates between two moves of the slow copy.
        slow_step_size: α, 0 < α ≤ 1.
        reset_state: start the fast optimizer's state anew at each move.

    Raises:
        ValueError: `sync_period` is not a positive whole number, or `update` was called without the
            parameters.
    """
    needs_count(sync_period, "sync_period", member="lookahead")
    part = as_link(fast_optimizer)
    state_of = state_type((part.name, "slow", "age"))

    def init(params, step):
        return state_of(part.start(params, step), wide_copy(params), no_updates())

    def update(updates, state, params, h, **extra):
        needs_params(params, member="lookahead")
        u, inner = part.advance(updates, state[0], params, h.now, extra)
        alpha = jnp.where((state.age + 1) % sync_period == 0, h.slow_step_size, 0)
        sync = alpha != 0

        def moved(slow, p, u):
            return (wide(slow) + alpha * (wide(p) + wide(u) - wide(slow))).astype(slow.dtype)

        slow = jax.tree.map(moved, state.slow, params, u)
        u = jax.tree.map(
            lambda u, s, p: jnp.where(sync, wide(s) - wide(p), wide(u)), u, slow, params
        )
        if reset_state:
            fresh = part.start(params, h.step + 1)
            inner = optax.tree.where(sync, fresh, inner)
        return u, state_of(inner, slow, one_more(state.age))

    return link(init, update, around=part, slow_step_size=slow_step_size)
