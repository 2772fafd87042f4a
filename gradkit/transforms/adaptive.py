"""Scaling by running second moments: a rate for every parameter."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from gradkit.transforms.moments import bias
from gradkit.tree import wide

PyTree = Any


class RmsState(NamedTuple):
    """`nu`: exponential moving average of g² over `step` updates g."""

    step: ArrayLike
    nu: PyTree


class MomentsState(NamedTuple):
    """`mu`, `nu`: exponential moving averages of g and g² over `step` updates g."""

    step: ArrayLike
    mu: PyTree
    nu: PyTree


def scale_by_rms(
    decay: float | jax.Array = 0.9,
    eps: float | jax.Array = 1e-8,
    initial_scale: float | jax.Array = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Scales updates g to g/√(r + ε), with r ← ρ r + (1 − ρ) g².

    Source: Hinton (2012), lecture 6e of "Neural networks for machine learning".

    Cost: one tree of memory.

    Args:
        decay: ρ, 0 ≤ ρ < 1.
        eps: ε, in the unit of g² inside the root, of g outside.
        initial_scale: r before the first update.
        eps_in_sqrt: √(r + ε) (default), or √r + ε.
        bias_correction: divide r by 1 − ρᵗ.
    """

    def init(params):
        return RmsState(jnp.zeros((), jnp.int32), _second_moments(params, initial_scale))

    def update(updates, state, params=None, **_):
        step = optax.safe_increment(state.step)
        c = bias(decay, step) if bias_correction else 1
        nu = jax.tree.map(
            lambda g, r: decay * wide(r) + (1 - decay) * _square(g), updates, state.nu
        )
        scaled = jax.tree.map(
            lambda g, r: (wide(g) / _root(r / c, eps, eps_in_sqrt)).astype(g.dtype), updates, nu
        )
        return scaled, RmsState(step, optax.tree.cast_like(nu, state.nu))

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_stddev(
    decay: float | jax.Array = 0.9,
    eps: float | jax.Array = 1e-8,
    initial_scale: float | jax.Array = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Scales updates g to g/√(r − m² + ε): centered RMSProp, m and r the averages of g and g².

    Source: Graves (2013), "Generating sequences with recurrent neural networks", equation 38.
    Differs: the variance r − m² is kept from falling below zero by rounding.

    Cost: two trees of memory.

    Args:
        decay: ρ of both averages, 0 ≤ ρ < 1.
        eps: ε, in the unit of g² inside the root, of g outside.
        initial_scale: r before the first update.
        eps_in_sqrt: √(r − m² + ε) (default), or √(r − m²) + ε.
        bias_correction: divide m and r by 1 − ρᵗ.
    """

    def init(params):
        mu = jax.tree.map(jnp.zeros_like, params)
        return MomentsState(jnp.zeros((), jnp.int32), mu, _second_moments(params, initial_scale))

    def update(updates, state, params=None, **_):
        step = optax.safe_increment(state.step)
        c = bias(decay, step) if bias_correction else 1
        mu = jax.tree.map(lambda g, m: _mix(decay, m, wide(g)), updates, state.mu)
        nu = jax.tree.map(
            lambda g, r: decay * wide(r) + (1 - decay) * _square(g), updates, state.nu
        )

        def scaled(g, m, r):
            variance = jnp.maximum(r / c - _square(m / c), 0)
            return (wide(g) / _root(variance, eps, eps_in_sqrt)).astype(g.dtype)

        following = MomentsState(
            step, optax.tree.cast_like(mu, state.mu), optax.tree.cast_like(nu, state.nu)
        )
        return jax.tree.map(scaled, updates, mu, nu), following

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_adam(
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    eps_root: float | jax.Array = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Scales updates g to m̂ / (√(v̂ + ε_root) + ε), m̂ and v̂ the corrected averages of g and g².

    Source: Kingma & Ba (2015), algorithm 1; Dozat (2016) for `nesterov`.

    Cost: two trees of memory.

    Args:
        b1: β₁, decay of the average of g.
        b2: β₂, decay of the average of g².
        eps: ε outside the root [the unit of g].
        eps_root: ε inside the root [the unit of g²].
        mu_dtype: dtype of the average of g; the parameters' by default.
        nesterov: use β₁ m + (1 − β₁) g in place of m, each with its own correction.
    """

    def init(params):
        mu = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=mu_dtype), params)
        return MomentsState(jnp.zeros((), jnp.int32), mu, _second_moments(params, 0.0))

    def update(updates, state, params=None, **_):
        step = optax.safe_increment(state.step)
        c1, c2 = bias(b1, step), bias(b2, step)
        mu = jax.tree.map(lambda g, m: _mix(b1, m, wide(g)), updates, state.mu)
        nu = jax.tree.map(lambda g, v: _mix(b2, v, _square(g)), updates, state.nu)
        ahead = bias(b1, optax.safe_increment(step))

        def scaled(g, m, v):
            m_hat = b1 * m / ahead + (1 - b1) * wide(g) / c1 if nesterov else m / c1
            return (m_hat / (jnp.sqrt(v / c2 + eps_root) + eps)).astype(g.dtype)

        following = MomentsState(
            step, optax.tree.cast_like(mu, state.mu), optax.tree.cast_like(nu, state.nu)
        )
        return jax.tree.map(scaled, updates, mu, nu), following

    return optax.GradientTransformationExtraArgs(init, update)


def _second_moments(params: PyTree, value: Any) -> PyTree:
    return jax.tree.map(
        lambda p: jnp.full_like(p, value, dtype=jnp.finfo(p.dtype).dtype),  # |g|² is real
        params,
    )


def _mix(decay: float | jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    return decay * wide(old) + (1 - decay) * new


def _square(g: jax.Array) -> jax.Array:
    g = wide(g)
    return jnp.real(g * jnp.conj(g)) if jnp.iscomplexobj(g) else g * g


def _root(r: jax.Array, eps: float | jax.Array, eps_in_sqrt: bool) -> jax.Array:
    return jnp.sqrt(r + eps) if eps_in_sqrt else jnp.sqrt(r) + eps
