"""Levenberg–Marquardt: damped Newton and Gauss–Newton steps, the damping adapted to their gain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from gradkit import tree
from gradkit.core import required
from gradkit.krylov import lanczos
from gradkit.krylov.drivers import chosen
from gradkit.operators import Operator
from gradkit.states import Work
from gradkit.transforms.link import Link, link

PyTree = Any

HIGHEST = jax.lax.Precision.HIGHEST
ACCEPT = 1e-4
NOISE = 10
FALL = 0.1
MODE = "shift"
SCALE = "max"
RULE = "nielsen"
UP = 4.0


class LevenbergMarquardtState(NamedTuple):
    damping: jax.Array
    growth: jax.Array
    ratio: jax.Array
    failures: jax.Array
    scale: PyTree
    steepest: jax.Array
    work: Work

    def metrics(self) -> dict[str, jax.Array]:
        return {"damping": self.damping, "gain_ratio": self.ratio, "failures": self.failures}


class Model(NamedTuple):
    """The quadratic model of the loss on a subspace, in coordinates in which it is diagonal.

    gᵀd = Σ slopes y, dᵀA d = Σ values y², dᵀD d = Σ y².
    """

    values: jax.Array
    slopes: jax.Array
    lift: Callable[[jax.Array], PyTree]
    resolution: jax.Array

    def coordinates(self, alpha):
        if MODE == "shift":
            lowest = jnp.minimum(jnp.min(self.values, initial=0), 0)
            return self.slopes / (self.values - lowest + alpha + self.resolution)
        return self.slopes / (jnp.maximum(jnp.abs(self.values), self.resolution) + alpha)

    def decrease(self, y):
        return jnp.sum(self.slopes * y - self.values * y**2 / 2)


def levenberg_marquardt(
    damping: float = 1e-3,
    *,
    solver: str | None = None,
    scaling: bool = True,
    tol=0.1,
    max_steps: int = 20,
    basis=50,
) -> Link:
    def init(params, step):
        dtype = tree.scalar_dtype(params)
        return LevenbergMarquardtState(
            damping=jnp.asarray(damping, dtype),
            growth=jnp.asarray(2, dtype),
            ratio=jnp.zeros((), dtype),
            failures=jnp.zeros((), jnp.int32),
            scale=tree.wide_zeros(params) if scaling else (),
            steepest=jnp.zeros((), dtype),
            work=Work.none(),
        )

    def update(updates, state, params, h, **extra):
        A, f, g, value_fn = (
            required(extra, name, member="levenberg_marquardt")
            for name in ("curvature", "value", "grad", "value_fn")
        )
        A = A()
        g = optax.tree.cast_like(updates, params)
        if solver == "lanczos" or (solver is None and A.dimension > 50):
            model, scale, steepest, products = _krylov(A, g, state, basis, tol)
        else:
            model, scale, products = _dense(A, g, state.scale, scaling)
            steepest = state.steepest
        dtype = state.damping.dtype
        f = f.astype(dtype)
        noise = NOISE * jnp.finfo(f.dtype).eps * jnp.abs(f)

        def go_on(s):
            return ~s[3] & (s[4] < max_steps) & usable

        usable = (
            jnp.all(jnp.isfinite(model.values))
            & jnp.all(jnp.isfinite(model.slopes))
            & jnp.any(model.slopes != 0)
        )

        def attempt(s):
            alpha, growth, _, _, trials, gradients, _ = s
            y = model.coordinates(alpha)
            predicted = model.decrease(y)
            d = model.lift(y)
            there = tree.add_scaled(params, -1, d)
            slight = predicted <= noise

            def by_slopes():
                value, grad = jax.value_and_grad(value_fn)(there)
                return value.astype(dtype), ((tree.inner(g, d) + tree.inner(grad, d)) / 2).astype(
                    dtype
                )

            def by_values():
                value = value_fn(there).astype(dtype)
                return value, f - value

            value, actual = jax.lax.cond(slight, by_slopes, by_values)
            ratio = actual / predicted
            passed = jnp.isfinite(value) & (ratio > ACCEPT) & (value <= f + noise)
            if RULE == "nielsen":
                fall = jnp.maximum(FALL, 1 - (2 * ratio - 1) ** 3)
            elif RULE == "marquardt":
                fall = jnp.where(ratio > 0.75, FALL, jnp.where(ratio > 0.25, 1, 2))
            following = jnp.where(passed, alpha * fall, alpha * growth)
            following = jnp.maximum(following, jnp.finfo(dtype).eps ** 2)
            growth = jnp.where(
                passed,
                jnp.where(RULE == "nielsen", 2, UP),
                2 * growth if RULE == "nielsen" else growth,
            )
            ratio = jnp.where(jnp.isnan(ratio), -jnp.inf, ratio)
            return (
                following,
                growth,
                ratio,
                passed,
                trials + 1,
                gradients + slight,
                jnp.where(passed, y, 0),
            )

        zero = jnp.zeros((), jnp.int32)
        start = (
            state.damping,
            state.growth,
            jnp.zeros((), dtype),
            jnp.zeros((), bool),
            zero,
            zero,
            jnp.zeros_like(model.slopes),
        )
        alpha, growth, ratio, passed, trials, gradients, y = jax.lax.while_loop(
            go_on, attempt, start
        )
        d = model.lift(y)
        step = jax.tree.map(lambda x: jnp.where(passed, -x, 0), d)
        failed = ~passed & ~(tree.norm(g) == 0)
        return step, LevenbergMarquardtState(
            damping=alpha.astype(dtype),
            growth=growth,
            ratio=ratio,
            failures=state.failures + failed,
            scale=scale,
            steepest=steepest,
            work=state.work.plus(evaluations=trials, gradients=gradients, products=products),
        )

    return link(init, update)


def _dense(A, g, scale, scaling):
    n = A.dimension
    g_flat, unravel = ravel_pytree(g)
    H = tree.wide(A.dense())
    H = (H + H.T) / 2
    diagonal = jnp.abs(jnp.diag(H))
    if scaling:
        before, _ = ravel_pytree(scale)
        _, unravel_wide = ravel_pytree(scale)
        D = (
            jnp.maximum(before, diagonal)
            if SCALE == "max"
            else diagonal
            if SCALE == "now"
            else jnp.maximum(before * float(SCALE), diagonal)
        )
        scale = unravel_wide(D)
        D = jnp.where(D > 0, D, jnp.where(jnp.max(D) > 0, jnp.max(D), 1))
    else:
        D = jnp.full(n, jnp.max(diagonal))
        D = jnp.where(D > 0, D, 1)
    s = 1 / jnp.sqrt(D)
    values, Q = jnp.linalg.eigh(s[:, None] * H * s, symmetrize_input=False)
    resolution = n * jnp.finfo(H.dtype).eps * jnp.max(jnp.abs(values))
    slopes = jnp.matmul(s * tree.wide(g_flat), Q, precision=HIGHEST)

    def lift(y):
        return unravel((s * jnp.matmul(Q, y, precision=HIGHEST)).astype(g_flat.dtype))

    return Model(values, slopes, lift, resolution), scale, n


class _Search(NamedTuple):
    lanczos: lanczos.Lanczos
    damping: jax.Array
    tol: jax.Array
    model: tuple
    done: jax.Array


def _krylov(A, g, state, basis, tol):
    rows = min(basis, A.dimension)
    norm = tree.norm(g)
    steepest = jnp.maximum(state.steepest, norm.astype(state.steepest.dtype))
    forcing = jnp.minimum(tol, jnp.sqrt(norm / steepest))
    start = lanczos.init(A, jax.tree.map(lambda x: x[None], g), jax.random.key(0), rows=rows)
    dtype = start.H.dtype
    init = (jnp.zeros(rows, dtype), jnp.zeros((rows, rows), dtype), jnp.zeros((), dtype))
    s = _Search(start, state.damping, forcing, init, jnp.zeros((), bool))
    s = chosen(None)(_krylov_step, A, s, until=lambda s: s.done)
    values, Q, unit = s.model
    V = jax.tree.map(lambda x: x[:rows], s.lanczos.basis)
    root = jnp.sqrt(unit)

    def lift(y):
        return tree.basis_combine(V, jnp.matmul(Q, y, precision=HIGHEST) / root, g)

    return (
        Model(values / unit, norm * Q[0] / root, lift, jnp.finfo(dtype).eps * A.dimension),
        state.scale,
        steepest,
        s.lanczos.step,
    )


def _krylov_step(A, s):
    L = lanczos.step(A, s.lanczos)
    T = L.projection(padding=0)
    unit = jnp.max(jnp.abs(jnp.diag(T)))
    unit = jnp.where(unit > 0, unit, 1)
    done = jnp.arange(len(T)) < L.step
    values, Q = jnp.linalg.eigh(T + jnp.diag(jnp.where(done, 0, 10 * jnp.max(jnp.abs(T)))))
    y = Model(values / unit, Q[0], None, jnp.finfo(T.dtype).eps).coordinates(s.damping)
    y = jnp.matmul(Q, y, precision=HIGHEST) / unit
    residual = jnp.abs(L.coupling[0] @ y)
    over = (L.step >= len(T)) | (residual <= s.tol) | L.exhausted | ~jnp.isfinite(residual)
    return s._replace(lanczos=L, model=(values, Q, unit), done=over)
