"""Gradient accumulation: one update for several micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from gradkit import tree
from gradkit.core import needs_count
from gradkit.transforms.conditional import when
from gradkit.transforms.foreign import as_link
from gradkit.transforms.link import Link, link, transformation
from gradkit.tree import wide, wide_zeros

PyTree = Any


class AccumulationState(NamedTuple):
    """The weighted sum of the `micro_step` gradients since the last emitted update.

    `examples`: their total weight. `emitted`: updates of the inner transformation so far, its own
    step. At micro-step 0 the sum is not cleared but ignored: its memory holds the last update.
    """

    inner: PyTree
    gradients: PyTree
    examples: ArrayLike
    micro_step: ArrayLike
    emitted: ArrayLike


@transformation
def accumulate(
    inner: optax.GradientTransformation,
    every: int | Callable[[jax.Array], Any],
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> Link:
    """Runs a transformation on the mean of every `every` gradients; the other updates are zero.

    `every` may be a schedule: a function of the number of means so far. With the extra argument
    `flush=True`, a boolean or a traced one, an update ends the window early, as at the end of an
    epoch: `tx.update(g, state, params, flush=True)`.

    The mean Σ nᵢ gᵢ / Σ nᵢ weighs each micro-batch by its number of examples n, where `update` is
    told: `tx.update(g, state, params, examples=len(batch))`; it is exact then for ragged
    micro-batches and losses that average.

    The inner transformation, its schedules included, counts the updates that it makes. Of the extra
    arguments it sees `grad` as the mean; `value`, `value_fn` and `curvature` are the last
    micro-batch's. For a line search over all of them use `gk.observe(..., micro_batches=k)`.

    Differs: `optax.MultiSteps` runs the inner transformation at every micro-batch and drops the
    result, is not a transformation, and cannot end a window early.

    Cost: one tree of memory, in which the emitted update is computed too. The inner transformation
    runs within a compiled loop of no or one step, in which a CPU is slow at convolutions: this
    matters to members that call the loss.

    Args:
        inner: the transformation.
        every: micro-batches an update, a number or a schedule. A window whose length a schedule
            changes ends at the first micro-batch that is the new length or beyond it.
        accumulator_dtype: dtype of the sum; float32 at least by default.

    Raises:
        ValueError: `every` is neither a positive whole number nor a function.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> tx = gk.accumulate(gk.sgd(1.0), every=lambda emitted: 2 + emitted)
        >>> state, steps = tx.init(jnp.zeros(())), []
        >>> for g in (1.0, 3.0, 2.0, 4.0, 6.0):
        ...     u, state = tx.update(jnp.asarray(g), state)
        ...     steps.append(float(u))
        >>> steps
        [0.0, -2.0, 0.0, 0.0, -4.0]
    """
    if not callable(every):
        needs_count(every, "every", member="accumulate")
    part = as_link(inner)

    def init(params, step):
        return AccumulationState(
            inner=part.start(params, step),
            gradients=wide_zeros(params, accumulator_dtype),
            examples=jnp.zeros(()),
            micro_step=jnp.zeros((), jnp.int32),
            emitted=jnp.array(step),
        )

    def update(updates, state, params, h, *, examples=None, flush=False, **extra):
        n = jnp.asarray(1 if examples is None else examples, state.examples.dtype)
        first = state.micro_step == 0
        total = jax.tree.map(
            lambda s, g: (jnp.where(first, 0, wide(s)) + n * wide(g)).astype(s.dtype),
            *(state.gradients, updates),
        )
        weight = jnp.where(first, 0, state.examples) + n

        def emit(room, inner, sums, params, weight, emitted, traced):
            mean = jax.tree.map(lambda s: wide(s) / weight, room if sums is None else sums)
            seen = extra | traced | ({"grad": mean} if "grad" in extra else {})
            return part.advance(mean, inner, params, h.now._replace(step=emitted), seen)

        length = every(state.emitted) if callable(every) else every
        due = (state.micro_step + 1 >= length) | jnp.asarray(flush)
        context = params, weight, state.emitted, _traced(extra)
        if not tree.traced(due) and not due:  # outside jit, where tracing the rest would cost most
            return optax.tree.zeros_like(updates), state._replace(
                gradients=total, examples=weight, micro_step=state.micro_step + 1
            )
        shapes = jax.eval_shape(emit, None, state.inner, total, *context)[0]
        fits = tree.shapes(total) == tree.shapes(shapes)  # then the step may overwrite the sum
        step, following = when(
            due,
            lambda carry, *held: emit(*carry, *held),
            (total if fits else tree.zeros(shapes), state.inner),
            *(None if fits else total, *context),
        )
        return jax.tree.map(lambda u: jnp.where(due, u, 0), step), AccumulationState(
            inner=following,
            gradients=step if fits else total,
            examples=weight,
            micro_step=jnp.where(due, 0, state.micro_step + 1),
            emitted=jnp.where(due, optax.safe_increment(state.emitted), state.emitted),
        )

    return link(init, update, around=part)


def _traced(extra: dict[str, Any]) -> dict[str, Any]:
    """The extra arguments that are trees of arrays, as those of `observe`; not plain functions."""
    return {
        name: value
        for name, value in extra.items()
        if name != "grad" and all(isinstance(x, jax.Array) for x in jax.tree.leaves(value))
    }
