"""Sharpness: the largest eigenvalue of the curvature, followed during training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.core import needs_count, needs_positive, required
from gradkit.states import LinkState, Work
from gradkit.transforms.adaptive import MomentsState, RmsState
from gradkit.transforms.conditional import deferred, every_so_often
from gradkit.transforms.foreign import as_link
from gradkit.transforms.leading import Leading, largest, unknown
from gradkit.transforms.link import Link, integer_power, link, no_updates, one_more, transformation
from gradkit.tree import wide

PyTree = Any

# The defaults of optax, whose states hold no hyperparameters unless they were injected.
_OPTAX_EPS = 1e-8
_OPTAX_ADAM = {"b1": 0.9, "b2": 0.999, "eps": _OPTAX_EPS, "eps_root": 0.0}


class SharpnessState(NamedTuple):
    """The last measurement; `measured_at` is the number of updates before it, −1 without any.

    `preconditioned` is that of P^(−1/2) H P^(−1/2), None without a second moment to precondition
    with. `products` with the curvature operator are those of all measurements so far. `age`: the
    updates that this state has seen, every few of which it measures.
    """

    inner: PyTree
    age: jax.Array
    curvature: Leading
    preconditioned: Leading | None
    products: jax.Array
    measured_at: jax.Array

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes the eigenvalues with their residuals, their step, and the products so far."""
        found = {
            "sharpness": self.curvature.eigenvalue,
            "sharpness_residual": self.curvature.residual,
            "sharpness_step": self.measured_at,
            "sharpness_products": self.products,
        }
        if self.preconditioned is not None:
            found["preconditioned_sharpness"] = self.preconditioned.eigenvalue
            found["preconditioned_sharpness_residual"] = self.preconditioned.residual
        return found


@transformation
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
    _check(every, tol, max_products, member="track_sharpness")
    part = as_link(inner)

    def init(params, step):
        held = part.start(params, step)
        nothing = unknown(params)
        return SharpnessState(
            inner=held,
            age=no_updates(),
            curvature=nothing,
            preconditioned=unknown(params) if _second_moment(held, params) else None,
            products=jnp.zeros((), jnp.int32),
            measured_at=jnp.full((), -1, jnp.int32),
        )

    def update(updates, state, params, h, **extra):
        curvature = deferred(required(extra, "curvature", member="track_sharpness"))
        u, following = part.advance(updates, state.inner, params, h.now, extra)

        def measure(last, step, moment, curvature):
            A = curvature()
            options = {"noise": step.astype(jnp.uint32), "tol": tol, "most": max_products}
            found, spent = largest(A, None, last.curvature.vector, **options)
            last = last._replace(curvature=found, products=last.products + spent)
            if moment is not None:
                root = moment.inverse_root()
                found, spent = largest(A, root, last.preconditioned.vector, **options)
                last = last._replace(preconditioned=found, products=last.products + spent)
            return last._replace(measured_at=step)

        moment = None
        if state.preconditioned is not None:
            moment = _second_moment(following, state.curvature.vector)
        context = h.step, moment, curvature
        last = every_so_often(state.age, every, measure, state._replace(inner=()), *context)
        return u, last._replace(inner=following, age=one_more(state.age))

    return link(init, update, around=part)


class SharpnessRateState(NamedTuple):
    """The eigenpair λ_max of the last measurement, and the work of all so far in `age` updates."""

    age: jax.Array
    curvature: Leading
    rate: jax.Array
    work: Work

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes λ_max with its residual, and the learning rate that follows from it."""
        return {
            "sharpness": self.curvature.eigenvalue,
            "sharpness_residual": self.curvature.residual,
            "sharpness_rate": self.rate,
        }


@transformation
def scale_by_sharpness(
    factor: optax.ScalarOrSchedule = 1.0,
    max_learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    every: int = 10,
    tol: float = 1e-2,
    max_products: int = 20,
) -> Link:
    """Replaces updates g by −η g with η = factor / λ_max: in the place of a learning rate.

    λ_max is the largest eigenvalue of the curvature, found every so many steps as by
    `gk.track_sharpness`. Where a quadratic is as sharp as the loss, gradient descent with a factor
    of 1 lowers it by ‖g‖² / (2 λ_max) at least, and beyond 2 it diverges; with heavy-ball momentum
    μ the limit is 2 + 2 μ. Where no curvature is positive, η = max_learning_rate.

    Source: LeCun, Simard & Pearlmutter (1992), "Automatic learning rate maximization by on-line
    estimation of the Hessian's eigenvectors".
    Differs: the eigenvalue is of the present batch, by LOBPCG with one vector, not a running
    average of power iterations.

    Cost: every so many steps one linearization, 4 to `max_products` products and 11 trees of
    memory; one tree in between. It runs within a compiled loop, in which a CPU is slow at
    convolutions.

    Args:
        factor: of the rate at which a quadratic is minimized along its sharpest direction.
        max_learning_rate: largest η.
        every: steps from one measurement to the next; the first is at step 0.
        tol: a measurement ends with a residual of at most tol times the largest |λ| met.
        max_products: most products of one search.

    Raises:
        ValueError: an argument is out of range.
        TypeError: `update` was called without the extra argument `curvature`.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> tx, x = gk.scale_by_sharpness(), jnp.array([1.0, 1.0])
        >>> point = gk.observe(lambda x, _: x[0] ** 2 + 4 * x[1] ** 2, x, None, gk.hessian)
        >>> updates, state = tx.update(point.grad, tx.init(x), x, **point.extras)
        >>> updates.round(4)
        Array([-0.25, -1.  ], dtype=float32)
    """
    _check(every, tol, max_products, member="scale_by_sharpness")

    def init(params, step):
        nothing = unknown(params)
        return SharpnessRateState(no_updates(), nothing, jnp.array(nothing.eigenvalue), Work.none())

    def update(updates, state, params, h, **extra):
        curvature = deferred(required(extra, "curvature", member="scale_by_sharpness"))

        def measure(last, step, curvature):
            options = {"noise": step.astype(jnp.uint32), "tol": tol, "most": max_products}
            found, spent = largest(curvature(), None, last.curvature.vector, **options)
            return last._replace(curvature=found, work=last.work.plus(products=spent))

        last = every_so_often(state.age, every, measure, state, h.step, curvature)
        sharpness = last.curvature.eigenvalue
        usual = sharpness * h.max_learning_rate > h.factor
        eta = jnp.where(usual, h.factor / jnp.where(usual, sharpness, 1), h.max_learning_rate)
        eta = jnp.where(jnp.isnan(sharpness), jnp.nan, eta).astype(last.rate.dtype)
        return optax.tree.scale(-eta, jax.tree.map(wide, updates)), last._replace(
            rate=eta, age=one_more(state.age)
        )

    return link(init, update, steps=True, factor=factor, max_learning_rate=max_learning_rate)


def _check(every: int, tol: float, max_products: int, *, member: str) -> None:
    needs_count(every, "every", member=member)
    needs_count(max_products, "max_products", member=member)
    needs_positive(tol, "tol", member=member)


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


def _second_moment(state: PyTree, like: PyTree) -> _SecondMoment | None:
    """The one second moment over all parameters in a state, if there is."""
    found = list(_second_moments(state, {}))
    if len(found) != 1 or tree.differences(like, found[0].v):
        return None
    return found[0]


def _second_moments(node: Any, injected: dict[str, Any]) -> Iterator[_SecondMoment]:
    match node:
        case LinkState(memory=MomentsState(age=t, nu=nu)) if "b1" in node.hyperparams:
            yield _of_adam(nu, t, node.b1, node.b2, node.eps, node.eps_root)
        case LinkState(memory=RmsState(nu=nu)):
            yield _SecondMoment(nu, 1, 1, node.eps, 0)
        case optax.ScaleByAdamState(count=t, nu=nu):
            yield _of_adam(nu, t, **{k: injected.get(k, v) for k, v in _OPTAX_ADAM.items()})
        case optax.ScaleByRmsState(nu=nu):
            yield _SecondMoment(nu, 1, 1, injected.get("eps", _OPTAX_EPS), 0)
        case _:
            if isinstance(node, optax.InjectStatefulHyperparamsState):
                injected = node.hyperparams
            children = jax.tree_util.default_registry.flatten_one_level(node)
            for child in children[0] if children is not None else ():
                yield from _second_moments(child, injected)


def _of_adam(nu: PyTree, t: Any, b1: Any, b2: Any, eps: Any, eps_root: Any) -> _SecondMoment:
    return _SecondMoment(nu, 1 - integer_power(b1, t), 1 - integer_power(b2, t), eps_root, eps)
