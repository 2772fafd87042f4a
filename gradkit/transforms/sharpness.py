"""Sharpness: the largest eigenvalue of the curvature, followed during training."""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.core import needs_count, required
from gradkit.operators import Operator
from gradkit.states import LinkState
from gradkit.transforms.adaptive import MomentsState, RmsState
from gradkit.transforms.conditional import run_if
from gradkit.transforms.link import Link, as_link, link
from gradkit.tree import wide

PyTree = Any

# Products that every measurement makes, however good its start: they let a direction that has
# overtaken the one followed grow out of the noise, from one measurement to the next.
LEAST_PRODUCTS = 4

# The defaults of optax, whose states hold no hyperparameters unless they were injected.
_OPTAX_EPS = 1e-8
_OPTAX_ADAM = {"b1": 0.9, "b2": 0.999, "eps": _OPTAX_EPS, "eps_root": 0.0}

_COUNTERS = {"step", "applied", "emitted"}  # fields that count the updates of what is within


class Leading(NamedTuple):
    """`‖A x − value x‖ = residual`: the largest eigenvalue found, and its unit vector x."""

    value: jax.Array
    residual: jax.Array
    vector: PyTree


class SharpnessState(NamedTuple):
    """The last measurement; `measured_at` is the number of updates before it, −1 without any.

    `preconditioned` is that of P^(−1/2) H P^(−1/2), None without a second moment to precondition
    with. `products` with the curvature operator are those of all measurements so far.
    """

    inner: PyTree
    curvature: Leading
    preconditioned: Leading | None
    products: jax.Array
    measured_at: jax.Array

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes the eigenvalues with their residuals, their step, and the products so far."""
        found = {
            "sharpness": self.curvature.value,
            "sharpness_residual": self.curvature.residual,
            "sharpness_step": self.measured_at,
            "sharpness_products": self.products,
        }
        if self.preconditioned is not None:
            found["preconditioned_sharpness"] = self.preconditioned.value
            found["preconditioned_sharpness_residual"] = self.preconditioned.residual
        return found


def track_sharpness(
    inner: optax.GradientTransformation,
    *,
    every: int = 10,
    tol: float = 1e-2,
    max_products: int = 20,
) -> Link:
    """Publishes the largest eigenvalue λ_max of the curvature every so many steps.

    The updates are those of the inner transformation. `gk.metrics(state)` has `sharpness`, its
    residual, and `sharpness_step`, the number of updates before the one that measured it: it is the
    λ_max at the parameters, and of the loss, which that update was given.

    Where the inner transformation holds the second moment v of one Adam or RMSProp over all
    parameters, `preconditioned_sharpness` is the λ_max of P⁻¹ᐟ² H P⁻¹ᐟ² at the same parameters, P
    that of the update made from there: (1 − β₁ᵗ) (√(v̂ + ε_root) + ε) for the t-th update of Adam,
    √(v + ε) for RMSProp, as `gk.adam` and `gk.rmsprop` have them by default. Full-batch gradient
    descent is stable up to λ_max = 2/η, Adam up to a preconditioned one of
    (2 + 2 β₁) / ((1 − β₁) η).

    An eigenvector is followed: the search begins at the last one, a little disturbed. A direction
    that overtakes it without being coupled to it is found a few measurements later.

    Source: Cohen et al. (2021), "Gradient descent on neural networks typically occurs at the edge
    of stability"; Cohen et al. (2022), "Adaptive gradient methods at the edge of stability", for P;
    Knyazev (2001), algorithm 4.1 (LOBPCG) with one vector and no preconditioner for the search.
    Differs: from Knyazev's in that the three vectors are kept orthonormal.

    Cost: every so many steps one linearization, 4 to `max_products` products and 11 trees of
    memory, with a second moment twice as many products and 17 trees; one tree in between, or two.
    It runs within a compiled loop, in which a CPU is slow at convolutions.

    Args:
        inner: a transformation, of gradkit or optax. The hyperparameters of optax's Adam and
            RMSProp are taken from `optax.inject_hyperparams`, or else to be optax's defaults.
        every: steps from one measurement to the next; the first is at step 0.
        tol: a measurement ends with a residual of at most tol times the largest |λ| met.
        max_products: most products of one search.

    Raises:
        ValueError: an argument is out of range.
        TypeError: `update` was called without the extra argument `curvature`.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> tx, x = gk.track_sharpness(gk.sgd(0.1)), jnp.array([1.0, 1.0])
        >>> point = gk.observe(lambda x, _: x[0] ** 2 + 3 * x[1] ** 2, x, None, gk.hessian)
        >>> updates, state = tx.update(point.grad, tx.init(x), x, **point.extras)
        >>> round(float(gk.metrics(state)["sharpness"]), 4)
        6.0
    """
    needs_count(every, "every", member="track_sharpness")
    needs_count(max_products, "max_products", member="track_sharpness")
    if not (isinstance(tol, numbers.Real) and tol > 0):
        raise ValueError(f"track_sharpness: tol must be a positive number, got {tol!r}")
    part = as_link(inner)

    def init(params, step):
        held = part.start(params, step)
        unknown = _unknown(params)
        return SharpnessState(
            inner=held,
            curvature=unknown,
            preconditioned=_unknown(params) if _second_moment(held, params, step) else None,
            products=jnp.zeros((), jnp.int32),
            measured_at=jnp.full((), -1, jnp.int32),
        )

    def update(updates, state, params, h, **extra):
        curvature = required(extra, "curvature", member="track_sharpness")
        arrays = all(isinstance(x, jax.Array) for x in jax.tree.leaves(curvature))
        u, following = part.advance(updates, state.inner, params, h.step, extra)

        def measure(last, step, moment, traced):
            A = (curvature if traced is None else traced)()
            options = {"noise": step.astype(jnp.uint32), "tol": tol, "most": max_products}
            found, spent = _largest(A, None, last.curvature.vector, **options)
            last = last._replace(curvature=found, products=last.products + spent)
            if moment is not None:
                root = moment.inverse_root()
                found, spent = _largest(A, root, last.preconditioned.vector, **options)
                last = last._replace(preconditioned=found, products=last.products + spent)
            return last._replace(measured_at=step)

        moment = None
        if state.preconditioned is not None:
            moment = _second_moment(following, state.curvature.vector, h.step + 1)
        context = h.step, moment, curvature if arrays else None
        due, last = h.step % every == 0, state._replace(inner=())
        if tree.traced(due):
            last = run_if(due, measure, last, *context)
        elif due:  # eager: nothing to compile but the search, once
            last = measure(last, *context)
        return u, last._replace(inner=following)

    return link(init, update, around=part)


def _unknown(params: PyTree) -> Leading:
    nothing = jnp.full((), jnp.nan, tree.scalar_dtype(params))
    return Leading(nothing, jnp.array(nothing), tree.wide_zeros(params))


class _Search(NamedTuple):
    """`‖A x − λ x‖ = residual` and `⟨x, A p⟩ = 0`, with x, p and w orthonormal.

    Attributes:
        x, p, w: the eigenvector so far; the direction in which it changed last; the next one, which
            is the residual. Zeros where there is none yet.
        Ax, Ap: products.
        G: diag(λ, ⟨p, A p⟩).
        scale: the largest |⟨·, A ·⟩| met, at most ‖A‖.
        goes_on: whether w has anything that x and p have not.
        products: how many were made.
    """

    x: PyTree
    p: PyTree
    w: PyTree
    Ax: PyTree
    Ap: PyTree
    G: jax.Array
    residual: jax.Array
    scale: jax.Array
    goes_on: jax.Array
    products: jax.Array


@jax.jit
def _largest(
    A: Operator, root: PyTree | None, start: PyTree, *, noise: jax.Array, tol: float, most: int
) -> tuple[Leading, jax.Array]:
    """The largest eigenvalue of A, or of diag(root) A diag(root), and the products spent.

    The search begins at the last eigenvector and some noise, whose seed is given. A start that is
    not finite is left out, and so is zero, as before the first search: the noise alone remains.
    """
    w = tree.hashed_normal(noise, start)
    w = tree.scaled(tol / tree.norm(w), w)
    usable = jnp.isfinite(tree.norm(start))
    w = jax.tree.map(lambda x, n: jnp.where(usable, x, 0) + n, start, w)
    zero, dtype = jax.tree.map(jnp.zeros_like, w), tree.scalar_dtype(w)
    begin = _Search(
        x=zero,
        p=zero,
        w=tree.scaled(1 / tree.norm(w), w),
        Ax=zero,
        Ap=zero,
        G=jnp.zeros((2, 2), dtype),
        residual=jnp.zeros((), dtype),
        scale=jnp.zeros((), dtype),
        goes_on=jnp.array(True),
        products=jnp.zeros((), jnp.int32),
    )

    def unfinished(s):
        rough = (s.residual > tol * s.scale) | (s.products < LEAST_PRODUCTS)
        return s.goes_on & rough & (s.products < most)

    s = jax.lax.while_loop(unfinished, lambda s: _step(A, root, s), begin)
    return Leading(s.G[0, 0], s.residual, s.x), s.products


def _step(A: Operator, root: PyTree | None, s: _Search) -> _Search:
    """Rayleigh–Ritz on x, p and w: three vectors know nearly all that the whole history would."""
    basis = s.x, s.p, s.w
    products = s.Ax, s.Ap, _product(A, root, s.w)
    g = jnp.stack([tree.inner(v, products[2]) for v in basis]).astype(s.G.dtype)
    G = jnp.zeros((3, 3), s.G.dtype).at[:2, :2].set(s.G).at[2, :].set(g).at[:, 2].set(g)
    scale = jnp.maximum(s.scale, jnp.max(jnp.abs(G)))
    there = jnp.array([s.products > 0, s.products > 1, True])
    low = -4 * scale  # below all Ritz values: a vector that is not there is never chosen
    values, Y = jnp.linalg.eigh(G + jnp.diag(jnp.where(there, 0, low)))
    value, y = values[2], Y[:, 2]
    rest = jnp.linalg.norm(y[1:])
    unit = jnp.where(rest > 0, y[1:] / jnp.where(rest > 0, rest, 1), jnp.array([0, 1], y.dtype))
    z = jnp.array([-rest, *(y[0] * unit)])  # of p: orthogonal to y, and nearest to what is new in x

    x, p, Ax, Ap = (_combined(c, vs) for vs in (basis, products) for c in (y, z))
    w = r = tree.add_scaled(Ax, -value, x)
    for _ in range(2):  # twice is enough
        w = tree.scaled(1 / tree.norm(w), w)
        for v in (x, p):
            w = tree.add_scaled(w, -tree.inner(v, w), v)
    new = tree.norm(w)
    return _Search(
        *(x, p, tree.scaled(1 / new, w), Ax, Ap),
        G=jnp.diag(jnp.array([value, z @ G @ z])),
        residual=tree.norm(r).astype(s.residual.dtype),
        scale=scale,
        goes_on=new > 0.5,
        products=s.products + 1,
    )


def _product(A: Operator, root: PyTree | None, v: PyTree) -> PyTree:
    v = v if root is None else _times(root, v)
    Av = jax.tree.map(wide, A.matvec(optax.tree.cast_like(v, A.domain)))
    return Av if root is None else _times(root, Av)


def _times(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: (x * y).astype(y.dtype), a, b)


def _combined(c: jax.Array, vectors: tuple[PyTree, PyTree, PyTree]) -> PyTree:
    return jax.tree.map(lambda x, p, w: (c[0] * x + c[1] * p + c[2] * w).astype(x.dtype), *vectors)


class _SecondMoment(NamedTuple):
    """`P = weight · (√(v / correction + inside) + outside)`."""

    v: PyTree
    weight: Any
    correction: Any
    inside: Any
    outside: Any

    def inverse_root(self) -> PyTree:
        """Returns P⁻¹ᐟ²."""

        def leaf(v):
            root = jnp.sqrt(wide(v) / self.correction + self.inside)
            return jax.lax.rsqrt(self.weight * (root + self.outside)).astype(wide(v).dtype)

        return jax.tree.map(leaf, self.v)


def _second_moment(state: PyTree, like: PyTree, made: Any) -> _SecondMoment | None:
    """The one second moment over all parameters in a state after so many updates, if there is."""
    found = list(_second_moments(state, made, {}))
    if len(found) != 1 or tree.differences(like, found[0].v):
        return None
    return found[0]


def _second_moments(node: Any, made: Any, injected: dict[str, Any]) -> Iterator[_SecondMoment]:
    match node:
        case LinkState(memory=MomentsState(since=since, nu=nu)) if "b1" in node.hyperparams:
            yield _of_adam(nu, made - since, node.b1, node.b2, node.eps, node.eps_root)
        case LinkState(memory=RmsState(nu=nu)):
            yield _SecondMoment(nu, 1, 1, node.eps, 0)
        case optax.ScaleByAdamState(count=t, nu=nu):
            yield _of_adam(nu, t, **{k: injected.get(k, v) for k, v in _OPTAX_ADAM.items()})
        case optax.ScaleByRmsState(nu=nu):
            yield _SecondMoment(nu, 1, 1, injected.get("eps", _OPTAX_EPS), 0)
        case _:
            if isinstance(node, optax.InjectStatefulHyperparamsState):
                injected = node.hyperparams
            counters = [f for f in getattr(node, "_fields", ()) if f in _COUNTERS]
            made = getattr(node, counters[0]) if counters else made
            children = jax.tree_util.default_registry.flatten_one_level(node)
            for child in children[0] if children is not None else ():
                yield from _second_moments(child, made, injected)


def _of_adam(nu: PyTree, t: Any, b1: Any, b2: Any, eps: Any, eps_root: Any) -> _SecondMoment:
    return _SecondMoment(nu, 1 - b1**t, 1 - b2**t, eps_root, eps)
