"""Nesterov's method with the gradient at the point it looks ahead to."""

from __future__ import annotations

from typing import Any

import jax
import optax

from gradkit.core import required
from gradkit.transforms.link import Link, link, transformation
from gradkit.transforms.momentum import VelocityState
from gradkit.tree import wide, wide_zeros

PyTree = Any


@transformation
def nesterov(
    learning_rate: optax.ScalarOrSchedule = 1e-2, momentum: optax.ScalarOrSchedule = 0.9
) -> Link:
    """Nesterov's method: v ← μ v − η ∇f(θ + μ v), θ ← θ + v, the gradient taken at θ + μ v.

    With constant η and μ its interim points θ + μ v are the parameters of
    `gk.sgd(learning_rate, momentum, nesterov=True)`, on any function: that form saves the second
    gradient and tracks the interim points. Where η or μ changes, the two are different methods.

    Its `update` takes what `observe` returns: `tx.update(point.grad, state, params,
    **point.extras)`.

    Source: Nesterov (1983); Sutskever et al. (2013), equations 3 and 4.
    Differs: the incoming gradient, which is taken at θ, is not used.

    Cost: one gradient an update, at the interim point; the incoming one costs nothing under `jit`
    where nothing else uses it. One tree of memory.

    Args:
        learning_rate: η, a number or a schedule.
        momentum: μ, 0 ≤ μ < 1.

    Raises:
        TypeError: `update` was called without the extra argument `value_fn`.
    """

    def init(params, step):
        return VelocityState(wide_zeros(params))

    def update(updates, state, params, h, **extra):
        value_fn = required(extra, "value_fn", member="nesterov")
        mu, eta = h.momentum, h.learning_rate
        interim = jax.tree.map(
            lambda p, v: (wide(p) + mu * v).astype(p.dtype), params, state.velocity
        )
        g = jax.grad(value_fn)(interim)
        v = jax.tree.map(lambda v, g: mu * v - eta * wide(g.conj()), state.velocity, g)
        return v, VelocityState(v)

    return link(init, update, steps=True, learning_rate=learning_rate, momentum=momentum)
