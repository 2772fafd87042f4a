"""Step and momentum from the exact quadratic model in the plane of two directions."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.core import needs_params, needs_positive, required
from gradkit.operators import Operator
from gradkit.states import Work
from gradkit.transforms.link import Link, link, transformation
from gradkit.transforms.norms import scaled_norm

PyTree = Any

POOR, GOOD = 0.25, 0.75  # gain ratio below which the damping grows, and above which it falls
CHANGE = 19 / 20  # by which it falls at an update


class QuadraticModelState(NamedTuple):
    """The last update d = −α Δ + μ d₋, and how well the model foretold it.

    Attributes:
        damping: λ of the next update [loss/param²].
        last: d.
        rate: α, of the direction Δ. momentum: μ, of the update before.
        ratio: ρ, of the true change of the loss to the model's; NaN for no step.
        length: √(dᵀ A d), before it was limited.
        negative_curvature: updates in whose plane A had a negative eigenvalue.
        work: of all updates so far.
    """

    damping: jax.Array
    last: PyTree
    rate: jax.Array
    momentum: jax.Array
    ratio: jax.Array
    length: jax.Array
    negative_curvature: jax.Array
    work: Work

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes everything but the last update and the work."""
        return {k: v for k, v in self._asdict().items() if k not in ("last", "work")}


@transformation
def scale_by_quadratic_model(
    damping: float = 1.0, *, max_length: optax.ScalarOrSchedule | None = None
) -> Link:
    """Replaces a direction Δ by d = −α Δ + μ d₋, the least of the loss's quadratic model.

    With d₋ the last update, α and μ minimize gᵀd + ½ dᵀ(A + λ I) d in the plane of Δ and d₋, for
    A what `curvature` gives, `gk.gauss_newton` as a rule. λ grows where the model foretells the
    loss badly and falls where it does well. It takes the place of learning rate and momentum behind
    any scaling of the gradient: `gk.chain(gk.scale_by_soap(), gk.scale_by_quadratic_model())`.

    Source: Martens & Grosse (2015), "Optimizing neural networks with Kronecker-factored approximate
    curvature", sections 6.4, 6.5 and 7; Ba, Grosse & Martens (2017), "Distributed second-order
    optimization using Kronecker-factored approximations", section 5, for the limit on dᵀ A d.
    Differs: λ is changed at each update, by 19/20 or its inverse, where theirs is at each fifth by
    the fifth power. Curvature that is negative, which a Hessian may have, counts by its absolute
    value. An update that is not finite or would raise the loss is made all the same, as theirs is:
    λ grows. One that is not finite is not taken for d₋.

    Cost: one gradient to linearize, two products and one evaluation of the loss an update; one tree
    of memory, five while it works.

    Args:
        damping: λ of the first update [loss/param²].
        max_length: largest √(dᵀ A d), to which longer updates are shortened; None for no limit.

    Raises:
        TypeError: `update` was called without `value`, `grad`, `value_fn` or `curvature`.
        ValueError: the damping is not a positive number.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> tx, x = gk.scale_by_quadratic_model(damping=1e-6), jnp.array([4.0, 1.0])
        >>> state = tx.init(x)
        >>> for _ in range(2):  # two directions span the plane: the second step ends
        ...     point = gk.observe(lambda x, _: x[0] ** 2 + 8 * x[1] ** 2, x, None, gk.hessian)
        ...     updates, state = tx.update(point.grad, state, x, **point.extras)
        ...     x = x + updates
        >>> bool(jnp.abs(x).max() < 1e-5)
        True
    """
    needs_positive(damping, "damping", member="scale_by_quadratic_model")

    def init(params, step):
        dtype = tree.scalar_dtype(params)
        names = ("rate", "momentum", "ratio", "length")
        return QuadraticModelState(
            damping=jnp.full((), damping, dtype),
            last=optax.tree.zeros_like(params),
            **{name: jnp.zeros((), dtype) for name in names},
            negative_curvature=jnp.zeros((), jnp.int32),
            work=Work.none(),
        )

    def update(updates, state, params, h, **extra):
        value, g, value_fn, curvature = (
            required(extra, name, member="scale_by_quadratic_model")
            for name in ("value", "grad", "value_fn", "curvature")
        )
        needs_params(params, member="scale_by_quadratic_model")
        lam, dtype = state.damping, state.damping.dtype
        plane = Plane.of(curvature(), optax.tree.cast_like(updates, params), state.last)
        slopes = jnp.stack([tree.inner(e, g) for e in plane.basis]).astype(dtype)
        theta, Q = jnp.linalg.eigh(plane.T)
        rounding = 100 * jnp.finfo(dtype).eps * jnp.abs(theta[1])
        damped = jnp.abs(theta) + lam
        y = -Q @ ((Q.T @ slopes) / damped)
        unit = tree.scale(y)
        length = unit * jnp.sqrt(jnp.maximum((y / unit) @ plane.T @ (y / unit), 0))
        if max_length is not None:
            y = y * jnp.minimum(1, h.max_length / jnp.where(length > 0, length, 1))
        d = plane.combined(y)

        nothing = jax.tree.map(jnp.zeros_like, params)
        foretold = slopes @ y + y @ (Q * damped) @ Q.T @ y / 2
        reached = value_fn(tree.add_scaled(params, 1, d))
        ratio = ((reached - value) / jnp.where(foretold < 0, foretold, jnp.nan)).astype(dtype)
        poor = (ratio < POOR) | (~jnp.isfinite(reached) & jnp.isfinite(value))
        growth = jnp.where(poor, 1 / CHANGE, jnp.where(ratio > GOOD, CHANGE, 1))
        rate, momentum = plane.coefficients(y)
        return d, QuadraticModelState(
            damping=(lam * growth).astype(dtype),
            last=optax.tree.where(jnp.isfinite(y).all(), optax.tree.cast_like(d, params), nothing),
            rate=-rate,
            momentum=momentum,
            ratio=ratio,
            length=length,
            negative_curvature=state.negative_curvature + (theta[0] < -rounding),
            work=state.work.plus(evaluations=1, products=2),
        )

    limit: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
    return link(init, update, steps=True, **limit)


class Plane(NamedTuple):
    """`Eᵀ A E = T` and `(u, v) = E R`, with E two orthonormal vectors, or zero in place of one.

    Attributes:
        basis: E. T: shape (2, 2). R: upper triangular, shape (2, 2).
    """

    basis: tuple[PyTree, PyTree]
    T: jax.Array
    R: jax.Array

    @classmethod
    def of(cls, A: Operator, u: PyTree, v: PyTree) -> Plane:
        """Returns the plane of two trees, from the products with both."""
        dtype = tree.scalar_dtype(u)
        eps = jnp.finfo(dtype).eps
        e, r11 = _unit(u)
        size = scaled_norm(v).value
        rest, r12 = v, jnp.zeros((), dtype)
        for _ in range(2):  # twice is enough
            part = tree.inner(e, rest)
            rest, r12 = tree.add_scaled(rest, -part, e), r12 + part
        f, r22 = _unit(rest)
        apart = r22 > jnp.sqrt(eps) * size
        f, r22 = tree.scaled(jnp.where(apart, 1, 0), f), jnp.where(apart, r22, 0)
        Ae, Af = A @ e, A @ f
        cross = (tree.inner(e, Af) + tree.inner(f, Ae)) / 2
        T = jnp.array([[tree.inner(e, Ae), cross], [cross, tree.inner(f, Af)]], dtype)
        return cls((e, f), T, jnp.array([[r11, r12], [0, r22]], dtype))

    def combined(self, y: jax.Array) -> PyTree:
        """Returns E y."""
        e, f = self.basis
        return tree.add_scaled(tree.scaled(y[0], e), y[1], f)

    def coefficients(self, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns those of u and v in E y."""
        (r11, r12), r22 = self.R[0], self.R[1, 1]
        of_v = y[1] * _inverse(r22)
        return (y[0] - r12 * of_v) * _inverse(r11), of_v


def _unit(a: PyTree) -> tuple[PyTree, jax.Array]:
    """a / ‖a‖ and ‖a‖; 0 and 0 for a = 0."""
    norm = scaled_norm(a)
    a = jax.tree.map(lambda x: (x * (1 / norm.scale)).astype(x.dtype), a)
    return tree.scaled(_inverse(norm.rest), a), norm.value


def _inverse(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, 0, 1 / jnp.where(x == 0, 1, x))
