"""The density of a spectrum by stochastic Lanczos quadrature."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradkit import tree
from gradkit.krylov import three_term
from gradkit.krylov.drivers import Drive, chosen
from gradkit.krylov.three_term import ThreeTerm
from gradkit.operators import Operator

FAILURE = 0.05  # probability with which `w1_bound` may be exceeded


class Density(NamedTuple):
    """`Σᵢ wᵢ p(θᵢ) = vᵀ p(A) v` for each probe v and every polynomial p of degree < 2 · steps.

    The mean over probes estimates tr p(A) / n, so that the nodes θ with their weights w stand for
    the n eigenvalues, 1/n each.

    Attributes:
        nodes: θ, shape (probes, steps) [the operator's unit].
        weights: w, shape (probes, steps); each row sums to 1.
        w1_bound: bound on the Wasserstein-1 distance between these nodes and weights, averaged over
            probes, and the true spectrum; it holds with probability 0.95 [the operator's unit].
        products: products with A used.
    """

    nodes: jax.Array
    weights: jax.Array
    w1_bound: jax.Array
    products: jax.Array

    @property
    def support(self) -> tuple[jax.Array, jax.Array]:
        """The smallest and the largest node, each inside the interval of the spectrum."""
        return jnp.min(self.nodes), jnp.max(self.nodes)

    @property
    def width(self) -> jax.Array:
        """The default standard deviation of the smoothed curve: 1/200 of the support's length.

        Not less than rounding can tell apart, for a spectrum that is a single point.
        """
        low, high = self.support
        largest = jnp.maximum(jnp.abs(low), jnp.abs(high))
        return jnp.maximum((high - low) / 200, 1e-3 * jnp.where(largest > 0, largest, 1))

    def curve(self, grid: jax.Array, *, width: float | jax.Array | None = None) -> jax.Array:
        """Returns the density at the points of `grid`, smoothed by Gaussians; it integrates to 1.

        Args:
            grid: shape (m,).
            width: standard deviation of the Gaussians; `self.width` by default.
        """
        return jnp.mean(self._curves(grid, width), axis=0)

    def spread(self, grid: jax.Array, *, width: float | jax.Array | None = None) -> jax.Array:
        """Returns the standard error of `curve` over the probes; NaN for a single probe."""
        curves = self._curves(grid, width)
        return jnp.std(curves, axis=0, ddof=1) / jnp.sqrt(len(curves))

    def _curves(self, grid: jax.Array, width: float | jax.Array | None) -> jax.Array:
        sigma = self.width if width is None else width

        def one(probe):
            nodes, weights = probe
            z = (jnp.asarray(grid)[:, None] - nodes) / sigma
            return jnp.exp(-(z**2) / 2) @ weights / (sigma * jnp.sqrt(2 * jnp.pi))

        return jax.lax.map(one, (self.nodes, self.weights))


class State(NamedTuple):
    """Some probes done, one under way."""

    probe: ThreeTerm
    keys: jax.Array
    alphas: jax.Array
    betas: jax.Array
    done: jax.Array


def density(
    A: Operator, *, key: jax.Array, probes: int = 10, steps: int = 80, drive: Drive | None = None
) -> Density:
    """Returns the spectral density of A by stochastic Lanczos quadrature.

    Source: Golub & Meurant (2010), chapter 6, for the quadrature; Chen, Trogdon & Ubaru (2021),
    "Analysis of stochastic Lanczos quadrature for spectrum approximation", for probes on the
    sphere and both parts of `w1_bound`.
    Differs: of their bound before and the one after the computation for the quadrature the smaller
    is taken, and the interval of the spectrum is that of the nodes.

    Cost: probes · steps products; five trees of memory.

    Args:
        A: symmetric operator.
        key: random key of the probes.
        probes: how many start vectors, uniform on the unit sphere.
        steps: Lanczos steps a probe, which resolve about 1/steps of the spectrum's length.
        drive: `gk.in_jit` or `gk.on_host`; by default what suits the operator.

    Raises:
        ValueError: probes or steps below 1.

    Example:
        >>> import jax, jax.numpy as jnp, gradkit as gk
        >>> A = gk.Operator(lambda v: jnp.linspace(0, 1, 1000) * v, jnp.zeros(1000))
        >>> d = gk.density(A, key=jax.random.key(0))
        >>> mean = float((d.weights * d.nodes).sum(axis=1).mean())
        >>> abs(mean - 0.5) < float(d.w1_bound) < 0.1
        True
    """
    for name, value in (("probes", probes), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    state = _init(A, key, probes=probes, steps=steps)
    return _result(A, chosen(drive)(_advance, A, state, until=_stops))


@functools.partial(jax.jit, static_argnames=("probes", "steps"))
def _init(A: Operator, key: jax.Array, *, probes: int, steps: int) -> State:
    keys = jax.random.split(key, probes)
    first = three_term.init(tree.random_unit(keys[0], A.domain), rows=steps)
    empty = jnp.zeros((probes, steps), first.alpha.dtype)
    return State(first, keys, empty, jnp.zeros_like(empty), jnp.zeros((), jnp.int32))


def _advance(A: Operator, s: State) -> State:
    probe = three_term.step(A, s.probe)
    alphas = s.alphas.at[s.done].set(probe.alpha)
    betas = s.betas.at[s.done].set(probe.beta)
    rows = probe.alpha.size
    done = s.done + probe.step // rows
    following = jax.lax.cond(
        probe.step == rows,
        lambda: three_term.init(
            tree.random_unit(s.keys[jnp.minimum(done, len(s.keys) - 1)], A.domain), rows=rows
        ),
        lambda: probe,
    )
    return State(following, s.keys, alphas, betas, done)


def _stops(s: State) -> jax.Array:
    return s.done >= len(s.keys)


@jax.jit
def _result(A: Operator, s: State) -> Density:
    after = jnp.cumsum(s.betas == 0, axis=1) - (s.betas == 0) > 0  # rows beyond an exhausted space
    diagonal = jax.vmap(jnp.diag)(jnp.where(after, s.alphas[:, :1], s.alphas))  # inside the hull
    off = jax.vmap(lambda beta: jnp.diag(beta[:-1], 1))(s.betas)
    nodes, S = jnp.linalg.eigh(diagonal + off + jnp.swapaxes(off, 1, 2))
    weights = S[:, 0, :] ** 2
    weights = weights / jnp.sum(weights, axis=1, keepdims=True)
    products = jnp.asarray(s.alphas.size, jnp.int32)
    bound = _w1_bound(nodes, weights, jnp.max(s.betas), A.dimension)
    return Density(nodes, weights, bound, products)


def _w1_bound(nodes: jax.Array, weights: jax.Array, beta: jax.Array, n: int) -> jax.Array:
    """Quadrature plus sampling, Chen, Trogdon & Ubaru (2021), theorem 1 and section 4.

    Quadrature, beforehand: moments agree to degree s = 2k − 1, so W₁ ≤ 12 L / s. Afterwards: the
    distribution functions of the rule and of the true spectrum seen by the probe differ between two
    nodes by at most the larger of their weights. Sampling: with m probes in n dimensions they
    differ by at most √(ln(2n/η) / (m (n + 2))) with probability 1 − η.
    """
    probes, steps = nodes.shape
    low, high = jnp.min(nodes), jnp.max(nodes)
    missing = jnp.maximum(2 * beta - (high - low), 0)  # of a spectrum with an off-diagonal β
    low, high = low - missing / 2, high + missing / 2
    length = high - low
    before = 12 * length / (2 * steps - 1)
    gaps = jnp.diff(nodes, axis=1) * jnp.maximum(weights[:, 1:], weights[:, :-1])
    ends = (nodes[:, 0] - low) * weights[:, 0] + (high - nodes[:, -1]) * weights[:, -1]
    after = jnp.mean(jnp.sum(gaps, axis=1) + ends)
    sampling = jnp.sqrt(jnp.log(2 * n / FAILURE) / (probes * (n + 2)))
    rounding = steps * jnp.finfo(nodes.dtype).eps * jnp.maximum(jnp.abs(low), jnp.abs(high))
    return jnp.minimum(before, after) + length * sampling + rounding
