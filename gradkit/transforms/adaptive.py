"""Scaling by second moments: a rate for every parameter."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from gradkit.transforms.link import Link, link, no_updates, one_more, transformation
from gradkit.transforms.norms import bounded
from gradkit.tree import root, square, wide, wide_zeros

PyTree = Any
ScalarOrSchedule = optax.ScalarOrSchedule

LARGE_SUM = 2**24  # squares of the largest numbers that a sum over all updates has room for


class RmsState(NamedTuple):
    """`nu`: exponential moving average of g² over the updates g so far, `age` in number."""

    age: ArrayLike
    nu: PyTree


class MomentsState(NamedTuple):
    """`mu`, `nu`: exponential moving averages of g and g² over the `age` updates g so far."""

    age: ArrayLike
    mu: PyTree
    nu: PyTree


class SumOfSquaresState(NamedTuple):
    """`sum_of_squares`: of all updates so far, and the value it began with."""

    sum_of_squares: PyTree


class AdadeltaState(NamedTuple):
    """Exponential moving averages: `e_g` of g², `e_x` of the squared scaled updates."""

    e_g: PyTree
    e_x: PyTree


@transformation
def scale_by_rms(
    decay: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-8,
    initial_scale: float | jax.Array = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    *,
    nu_dtype: DTypeLike | None = None,
) -> Link:
    """Scales updates g to g/√(r + ε), with r ← ρ r + (1 − ρ) g².

    Source: Hinton (2012), lecture 6e of "Neural networks for machine learning".
    Differs: from optax in `nu_dtype`, and in that r is kept in float32 at least without it.

    Cost: one tree of memory.

    Args:
        decay: ρ, 0 ≤ ρ < 1.
        eps: ε, in the unit of g² inside the root, of g outside.
        initial_scale: r before the first update.
        eps_in_sqrt: √(r + ε) (default), or √r + ε.
        bias_correction: divide r by 1 − ρᵗ.
        nu_dtype: dtype of r.
    """

    def init(params, step):
        return RmsState(no_updates(), _squares(params, initial_scale, nu_dtype))

    def update(updates, state, params, h, **_):
        g = jax.tree.map(bounded, updates)
        c = h.bias("decay", state.age) if bias_correction else 1
        nu = _averaged_squares(g, state.nu, h, "decay")
        scaled = jax.tree.map(lambda g, r: g / _root(r / c, h.eps, eps_in_sqrt), g, nu)
        return scaled, RmsState(one_more(state.age), optax.tree.cast_like(nu, state.nu))

    return link(init, update, decay=decay, eps=eps)


@transformation
def scale_by_stddev(
    decay: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-8,
    initial_scale: float | jax.Array = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    *,
    mu_dtype: DTypeLike | None = None,
    nu_dtype: DTypeLike | None = None,
) -> Link:
    """Scales updates g to g/√(r − m² + ε): centered RMSProp, m and r the averages of g and g².

    Source: Graves (2013), "Generating sequences with recurrent neural networks", equation 38.
    Differs: from optax in that the variance r − m² is kept from falling below zero by rounding, in
    `mu_dtype` and `nu_dtype`, and in that m and r are kept in float32 at least without them.

    Cost: two trees of memory.

    Args:
        decay: ρ of both averages, 0 ≤ ρ < 1.
        eps: ε, in the unit of g² inside the root, of g outside.
        initial_scale: r before the first update.
        eps_in_sqrt: √(r − m² + ε) (default), or √(r − m²) + ε.
        bias_correction: divide m and r by 1 − ρᵗ.
        mu_dtype: dtype of m.
        nu_dtype: dtype of r.
    """

    def init(params, step):
        mu, nu = wide_zeros(params, mu_dtype), _squares(params, initial_scale, nu_dtype)
        return MomentsState(no_updates(), mu, nu)

    def update(updates, state, params, h, **_):
        c = h.bias("decay", state.age) if bias_correction else 1
        g = jax.tree.map(bounded, updates)
        mu = h.averaged("decay", state.mu, g)
        nu = _averaged_squares(g, state.nu, h, "decay")

        def scaled(g, m, r):
            variance = jnp.maximum(r / c - square(m / c), 0)
            return g / _root(variance, h.eps, eps_in_sqrt)

        return jax.tree.map(scaled, g, mu, nu), _moments(state, mu, nu)

    return link(init, update, decay=decay, eps=eps)


@transformation
def scale_by_adam(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    nu_dtype: DTypeLike | None = None,
    bias_correction: bool = True,
) -> Link:
    """Scales updates g to m̂ / (√(v̂ + ε_root) + ε), m̂ and v̂ the corrected averages of g and g².

    With a large ε the steps tend to m̂ / ε: momentum.

    Source: Kingma & Ba (2015), algorithm 1; Dozat (2016) for `nesterov`.
    Differs: from optax in `nu_dtype` and `bias_correction`, and in that m and v are kept in float32
    at least unless a dtype is given: in bfloat16 v would never fall, in float16 g² underflows.

    Cost: two trees of memory.

    Args:
        b1: β₁, decay of the average of g.
        b2: β₂, decay of the average of g².
        eps: ε outside the root [the unit of g].
        eps_root: ε inside the root [the unit of g²].
        mu_dtype: dtype of the average of g.
        nesterov: use β₁ m + (1 − β₁) g in place of m, each with its own correction.
        nu_dtype: dtype of the average of g².
        bias_correction: divide m by 1 − β₁ᵗ and v by 1 − β₂ᵗ.
    """

    def init(params, step):
        mu, nu = wide_zeros(params, mu_dtype), _squares(params, 0.0, nu_dtype)
        return MomentsState(no_updates(), mu, nu)

    def update(updates, state, params, h, **_):
        b1, rest = h.b1, h.complement("b1")
        t = state.age
        weights = [h.bias(b, age) for b, age in (("b1", t), ("b2", t), ("b1", t + 1))]
        c1, c2, ahead = (1 / c if bias_correction else 1 for c in weights)
        g = jax.tree.map(bounded, updates)
        mu = h.averaged("b1", state.mu, g)
        nu = _averaged_squares(g, state.nu, h, "b2")

        def scaled(g, m, v):
            m_hat = ahead * b1 * m + c1 * rest * g if nesterov else c1 * m
            return m_hat / (root(c2 * v + h.eps_root) + h.eps)

        return jax.tree.map(scaled, g, mu, nu), _moments(state, mu, nu)

    return link(init, update, b1=b1, b2=b2, eps=eps, eps_root=eps_root)


@transformation
def scale_by_rss(
    initial_accumulator_value: float | jax.Array = 0.1,
    eps: ScalarOrSchedule = 1e-7,
    *,
    eps_in_sqrt: bool = True,
) -> Link:
    """Scales updates g to g/√(r + ε), with r ← r + g² the sum over all updates.

    Source: Duchi, Hazan & Singer (2011), the diagonal form of their figure 1.
    Differs: from optax in `eps_in_sqrt`, and in that a NaN in r shows in the updates ever after,
    where optax's are zero. The textbook form g/(ε + √r) from r = 0 is
    `scale_by_rss(0.0, eps_in_sqrt=False)`.

    Cost: one tree of memory.

    Args:
        initial_accumulator_value: r before the first update [the unit of g²].
        eps: ε, in the unit of g² inside the root, of g outside.
        eps_in_sqrt: √(r + ε) (default), or √r + ε.
    """

    def init(params, step):
        return SumOfSquaresState(_squares(params, initial_accumulator_value, None))

    def update(updates, state, params, h, **_):
        g = jax.tree.map(lambda x: bounded(x, LARGE_SUM), updates)
        total = jax.tree.map(lambda g, r: wide(r) + square(g), g, state.sum_of_squares)

        def scaled(g, r):
            none = r == 0  # then g is 0 too; a NaN is not hidden
            return jnp.where(none, 0, g / _root(jnp.where(none, 1, r), h.eps, eps_in_sqrt))

        kept = optax.tree.cast_like(total, state.sum_of_squares)
        return jax.tree.map(scaled, g, total), SumOfSquaresState(kept)

    return link(init, update, eps=eps)


@transformation
def scale_by_adadelta(rho: ScalarOrSchedule = 0.9, eps: ScalarOrSchedule = 1e-6) -> Link:
    """Scales updates g to u = g √(x + ε)/√(r + ε), r and x the averages of g² and of u² before.

    The update has the unit of the parameters, so that no learning rate is needed.

    Source: Zeiler (2012), algorithm 1; his ρ is 0.95.

    Cost: two trees of memory.

    Args:
        rho: ρ of both averages, 0 ≤ ρ < 1.
        eps: ε [the unit of g² and of the parameters squared].
    """

    def init(params, step):
        return AdadeltaState(_squares(params, 0.0, None), _squares(params, 0.0, None))

    def update(updates, state, params, h, **_):
        g = jax.tree.map(bounded, updates)
        e_g = _averaged_squares(g, state.e_g, h, "rho")
        u = jax.tree.map(
            lambda g, r, x: g * (root(wide(x) + h.eps) / root(r + h.eps)),
            *(g, e_g, state.e_x),
        )
        e_x = _averaged_squares(u, state.e_x, h, "rho")
        following = AdadeltaState(
            optax.tree.cast_like(e_g, state.e_g), optax.tree.cast_like(e_x, state.e_x)
        )
        return u, following

    return link(init, update, rho=rho, eps=eps)


def _squares(params: PyTree, value: Any, dtype: DTypeLike | None) -> PyTree:
    def leaf(p):
        real = jnp.finfo(p.dtype).dtype  # |g|² is real
        kept = jnp.promote_types(real, jnp.float32) if dtype is None else dtype
        return jnp.full_like(p, value, dtype=kept)

    return jax.tree.map(leaf, params)


def _averaged_squares(updates: PyTree, mean: PyTree, h: Any, decay: str) -> PyTree:
    return h.averaged(decay, mean, jax.tree.map(square, updates))


def _moments(state: MomentsState, mu: PyTree, nu: PyTree) -> MomentsState:
    kept = optax.tree.cast_like(mu, state.mu), optax.tree.cast_like(nu, state.nu)
    return MomentsState(one_more(state.age), *kept)


def _root(r: jax.Array, eps: jax.Array, eps_in_sqrt: bool) -> jax.Array:
    return root(r + eps) if eps_in_sqrt else root(r) + eps
