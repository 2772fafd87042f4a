"""Gradient accumulation: one update for several micro-batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from gradkit.transforms.link import Link, as_link, link
from gradkit.tree import wide, wide_zeros

PyTree = Any


class AccumulationState(NamedTuple):
    """The weighted sum of the gradients since the last emitted update.

    `micro_step`: how many. `examples`: their total weight. `emitted`: updates of the inner
    transformation so far, its own step.
    """

    inner: PyTree
    gradients: PyTree
    examples: ArrayLike
    micro_step: ArrayLike
    emitted: ArrayLike


def accumulate(
    inner: optax.GradientTransformation,
    every: int,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> Link:
    """Runs a transformation once in `every` updates, on the mean of the gradients since then.

    The other updates are zero. The mean Σ nᵢ gᵢ / Σ nᵢ weighs each micro-batch by its number of
    examples n, where `update` is told: `tx.update(g, state, params, examples=len(batch))`; it is
    exact then for ragged micro-batches and losses that average.

    The inner transformation, its schedules included, counts the updates that it makes. Of the extra
    arguments it sees `grad` as the mean; `value`, `value_fn` and `curvature` are the last
    micro-batch's. For a line search over all of them use `gk.observe(..., micro_batches=k)`.

    Differs: `optax.MultiSteps` runs the inner transformation at every micro-batch and drops the
    result, and is not a transformation.

    Cost: one tree of memory; a micro-batch reads and writes it once.

    Args:
        inner: the transformation.
        every: micro-batches an update.
        accumulator_dtype: dtype of the sum; float32 at least by default.

    Raises:
        ValueError: `every` is not a positive whole number.
    """
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"accumulate: every must be a positive whole number, got {every!r}")
    part = as_link(inner)

    def init(params, step):
        return AccumulationState(
            inner=part.start(params, step),
            gradients=wide_zeros(params, accumulator_dtype),
            examples=jnp.zeros(()),
            micro_step=jnp.zeros((), jnp.int32),
            emitted=jnp.array(step),
        )

    def update(updates, state, params, h, *, examples=None, **extra):
        n = jnp.asarray(1 if examples is None else examples, state.examples.dtype)
        total = jax.tree.map(
            lambda s, g: (wide(s) + n * wide(g)).astype(s.dtype), state.gradients, updates
        )
        weight = state.examples + n

        def emit():
            mean = jax.tree.map(lambda s: wide(s) / weight, total)
            seen = extra | ({"grad": mean} if "grad" in extra else {})
            step, following = part.advance(mean, state.inner, params, state.emitted, seen)
            return step, following, jax.tree.map(jnp.zeros_like, total)

        def hold():
            step = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(emit)[0])
            return step, state.inner, total

        due = state.micro_step + 1 >= every
        step, following, kept = jax.lax.cond(due, emit, hold)
        return step, AccumulationState(
            inner=following,
            gradients=kept,
            examples=jnp.where(due, 0, weight),
            micro_step=jnp.where(due, 0, state.micro_step + 1),
            emitted=jnp.where(due, optax.safe_increment(state.emitted), state.emitted),
        )

    return link(init, update, around=part)
