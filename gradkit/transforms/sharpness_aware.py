"""Sharpness-aware minimization: the gradient where the loss near the parameters is highest."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.core import needs_params, required
from gradkit.states import Work
from gradkit.transforms.foreign import as_link
from gradkit.transforms.link import Link, link, transformation
from gradkit.transforms.norms import scaled_norm

PyTree = Any


class SharpnessAwareState(NamedTuple):
    """The inner transformation's state, and `rise`, by how much the loss was higher there."""

    inner: PyTree
    rise: jax.Array
    work: Work

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes the rise of the loss."""
        return {"sharpness_rise": self.rise}


@transformation
def sharpness_aware(
    inner: optax.GradientTransformation, rho: optax.ScalarOrSchedule = 0.05
) -> Link:
    """Gives a transformation the gradient at θ + ρ g/‖g‖ in the place of that at θ.

    θ + ρ g/‖g‖ is, to first order, where the loss is highest within a distance ρ. `sharpness_rise`
    among the metrics is how much higher it is: for a small ρ, ρ ‖g‖ + ½ ρ² ĝᵀ H ĝ, ĝ = g/‖g‖.

    Its `update` takes what `observe` returns:
    `tx.update(point.grad, state, params, **point.extras)`.

    Source: Foret et al. (2021), "Sharpness-aware minimization for efficiently improving
    generalization", algorithm 1.

    Cost: one gradient an update besides the one that comes in; one tree.

    Args:
        inner: a transformation, of gradkit or optax, such as `gk.sgd(0.1, momentum=0.9)`. What it
            sees of the loss besides the gradient, such as curvature, is at θ.
        rho: ρ, a number or a schedule [the unit of the parameters].

    Raises:
        TypeError: `update` was called without the extra arguments `value` and `value_fn`.
        ValueError: `update` was called without the parameters.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> tx, x = gk.sharpness_aware(gk.sgd(1.0), rho=0.5), jnp.array([1.0, 0.0])
        >>> point = gk.observe(lambda x, _: jnp.sum(x**2), x, None)
        >>> tx.update(point.grad, tx.init(x), x, **point.extras)[0]  # of the gradient at 1.5
        Array([-3., -0.], dtype=float32)
    """
    part = as_link(inner)

    def init(params, step):
        rise = jnp.zeros((), tree.scalar_dtype(params))
        return SharpnessAwareState(part.start(params, step), rise, Work.none())

    def update(updates, state, params, h, **extra):
        value, value_fn = (
            required(extra, name, member="sharpness_aware") for name in ("value", "value_fn")
        )
        needs_params(params, member="sharpness_aware")
        norm = scaled_norm(updates)
        direction = jax.tree.map(lambda g: tree.wide(g) * (1 / norm.scale), updates)
        length = jnp.where(norm.rest == 0, 1, norm.rest)
        there = tree.add_scaled(params, h.rho / length, direction)
        highest, g = jax.value_and_grad(value_fn)(there)
        g = jax.tree.map(lambda x: tree.wide(x).conj(), g)
        u, following = part.advance(g, state.inner, params, h.now, extra)
        rise = jnp.asarray(highest - value, state.rise.dtype)
        return u, SharpnessAwareState(following, rise, state.work.plus(evaluations=1, gradients=1))

    return link(init, update, around=part, rho=rho)
