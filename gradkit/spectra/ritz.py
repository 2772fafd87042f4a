"""Ritz values: what a Lanczos decomposition knows of the eigenvalues."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit.krylov.lanczos import Lanczos

# Rows of the first basis, and of the smallest eigh: 0.1 ms on a CPU, where 200 take 10 ms and more.
SMALL_BLOCK = 48
ROUNDINGS = 10  # of a product of n terms: up to so many times √n ε an eigenvalue is zero


def ritz(s: Lanczos) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns θ, S, ρ: Ritz values ascending, their coefficients in V, residual norms.

    `T S = S diag(θ)` and `‖A V S − V S diag(θ)‖` is ρ column by column. Of m rows only the first
    j = `s.step` are genuine: the others lie above all of those and have ρ = inf.
    """
    T, m = s.projection(), s.rows
    padding = 1.01 * jnp.max(jnp.sum(jnp.abs(T), axis=1)) + jnp.finfo(T.dtype).tiny  # Gershgorin
    T = s.projection(padding)

    def leading(rows):
        theta, S = jnp.linalg.eigh(T[:rows, :rows])
        theta = jnp.concatenate([theta, jnp.full(m - rows, padding)])
        return theta, jnp.eye(m, dtype=S.dtype).at[:rows, :rows].set(S)

    sizes = _block_sizes(m)
    enough = jnp.searchsorted(jnp.array(sizes), s.step)
    theta, S = jax.lax.switch(enough, [functools.partial(leading, rows) for rows in sizes])
    residuals = jnp.linalg.norm(
        jnp.matmul(s.coupling, S, precision=jax.lax.Precision.HIGHEST), axis=0
    )
    return theta, S, jnp.where(jnp.arange(m) < s.step, residuals, jnp.inf)


def led_to(s: Lanczos, S: jax.Array) -> jax.Array:
    """Returns which Ritz vectors have a part in the rows since the last new direction: shape (m,).

    All of them before there was one; of copies of one eigenvalue, old and new, any mixture.
    """
    row = jnp.arange(s.rows)
    since = (row >= s.began) & (row < s.step)
    share = jnp.sum(jnp.where(since[:, None], S**2, 0), axis=0)
    return (share > 1e-3) & (row < s.step)


class RitzValues(NamedTuple):
    """Eigenvalues of the projection of A on a Krylov space.

    Attributes:
        values: ascending, shape (m,), those that are genuine first.
        residuals: shape (m,): each has an eigenvalue of A that near; infinite beyond the genuine.
        degree: dimension of the largest Krylov space of the start vector that they are as good as.
    """

    values: jax.Array
    residuals: jax.Array
    degree: jax.Array

    def resolution(self, n: int | jax.Array) -> jax.Array:
        """Returns the magnitude up to which an eigenvalue counts as zero: 10 √n ε max |θ|."""
        theta = jnp.where(jnp.isfinite(self.residuals), self.values, 0)
        return zero_tol(n, theta.dtype) * jnp.max(jnp.abs(theta))

    def negative(self, n: int | jax.Array) -> jax.Array:
        """Returns how many lie below −resolution: A has at least as many there, by interlacing."""
        genuine = jnp.isfinite(self.residuals)
        return jnp.sum(genuine & (self.values < -self.resolution(n)))


def zero_tol(n: int | jax.Array, dtype: Any) -> jax.Array:
    """Returns the resolution of eigenvalues near zero, relative to the largest magnitude."""
    return jnp.asarray(ROUNDINGS * jnp.finfo(dtype).eps * n**0.5, dtype)


@jax.jit
def ritz_values(krylov: Lanczos, degree: jax.Array) -> RitzValues:
    """Returns the Ritz values of a decomposition."""
    theta, _, residuals = ritz(krylov)
    return RitzValues(theta, residuals, degree)


def _block_sizes(rows: int) -> tuple[int, ...]:
    """Sizes at which `eigh` is compiled: the time of a large one is wasted on a few steps."""
    sizes = [SMALL_BLOCK]
    while sizes[-1] < rows / 2:
        sizes.append(2 * sizes[-1])
    return (*(size for size in sizes if size < rows / 1.5), rows)
