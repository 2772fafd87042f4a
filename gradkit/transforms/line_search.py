"""Line search: a learning rate found by trying the loss."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.core import required
from gradkit.transforms.link import Link, link


class LineSearchState(NamedTuple):
    """The last search: `learning_rate`, 0 where it failed. `evaluations`: of the loss, in all."""

    learning_rate: jax.Array
    evaluations: jax.Array
    failures: jax.Array

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes all three."""
        return self._asdict()


def line_search(
    *,
    decrease: optax.ScalarOrSchedule = 1e-4,
    shrink: optax.ScalarOrSchedule = 0.5,
    max_steps: int = 20,
) -> Link:
    """Scales updates u to −α u, with α the first of 1, ½, ¼ … that lowers the loss enough.

    Enough is Armijo's f(θ − α u) ≤ f(θ) − c α gᵀu. It takes the place of a learning rate.

    Source: Nocedal & Wright (2006), algorithm 3.1.
    Differs: a loss that is NaN or infinite fails the trial; the test allows for the rounding of f,
    2 ε |f|, without which no step passes near a minimum in float32; where no α passes, or −u is not
    a direction of descent, the update is zero and counted as a failure, unless u is zero itself.

    Cost: one evaluation of the loss a trial.

    Args:
        decrease: c, 0 < c < ½.
        shrink: factor between one trial and the next.
        max_steps: most trials.

    Raises:
        TypeError: `update` was called without `value`, `grad` or `value_fn`.
    """

    def init(params, step):
        return LineSearchState(
            learning_rate=jnp.ones((), tree.scalar_dtype(params)),
            evaluations=jnp.zeros((), jnp.int32),
            failures=jnp.zeros((), jnp.int32),
        )

    def update(updates, state, params, h, **extra):
        value, grad, value_fn = (
            required(extra, name, member="line_search") for name in ("value", "grad", "value_fn")
        )
        dtype = state.learning_rate.dtype
        f = value.astype(dtype)
        slope = tree.inner(grad, updates).astype(dtype)  # gᵀu: f falls along −u if positive
        slack = 2 * jnp.finfo(value.dtype).eps * jnp.abs(f)

        def passes(alpha):
            trial = value_fn(tree.add_scaled(params, -alpha, updates))
            return (slope > 0) & (trial <= f - h.decrease * alpha * slope + slack)

        def go_on(search):
            _, trials, passed = search
            return ~passed & (trials < max_steps) & (slope > 0)

        def attempt(search):
            alpha, trials, _ = search
            alpha = jnp.where(trials > 0, h.shrink * alpha, alpha)
            return alpha, trials + 1, passes(alpha)

        start = (jnp.ones((), dtype), jnp.zeros((), jnp.int32), jnp.zeros((), bool))
        alpha, trials, passed = jax.lax.while_loop(go_on, attempt, start)
        alpha = jnp.where(passed, alpha, 0)
        step = jax.tree.map(lambda u: jnp.where(passed, -alpha * u, 0), updates)
        failed = ~passed & (tree.norm(updates) != 0)
        return step, LineSearchState(alpha, state.evaluations + trials, state.failures + failed)

    return link(init, update, decrease=decrease, shrink=shrink)
