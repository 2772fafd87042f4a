"""Scaling by the diagonal of the curvature, estimated from one product with random signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from gradkit import tree
from gradkit.core import needs_count, required
from gradkit.states import Work
from gradkit.transforms.conditional import deferred, every_so_often
from gradkit.transforms.link import Link, integer_power, link, no_updates, one_more, transformation
from gradkit.transforms.norms import bounded
from gradkit.tree import wide, wide_zeros

PyTree = Any
ScalarOrSchedule = optax.ScalarOrSchedule


class CurvatureMomentsState(NamedTuple):
    """`mu`: average of the `age` updates g so far. `diagonal`: that of the measured diagonals.

    `measured` counts the diagonals, `clipped` is the share of the last updates that was.
    """

    age: jax.Array
    mu: PyTree
    diagonal: PyTree
    measured: jax.Array
    clipped: jax.Array
    work: Work

    @classmethod
    def none(cls, params: PyTree, step: ArrayLike) -> CurvatureMomentsState:
        """Returns what is known before the first update."""
        share, count = jnp.zeros((), tree.scalar_dtype(params)), jnp.zeros((), jnp.int32)
        trees = wide_zeros(params), wide_zeros(params)
        return cls(no_updates(), *trees, count, share, Work.none())

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes the number of diagonals, and the share of the updates that was clipped."""
        return {"diagonals": self.measured, "clipped": self.clipped}

    def measured_anew(
        self, h: Any, every: int, extra: dict[str, Any], member: str, of: Callable
    ) -> CurvatureMomentsState:
        """Returns the state with `of` the diagonal in `nu`, if the step is one to measure at."""
        diagonal, asked = _diagonal(extra, h.step, member=member)

        def measure(state, diagonal):
            mean = h.averaged("b2", state.diagonal, of(diagonal()))
            mean = optax.tree.cast_like(mean, state.diagonal)
            work = state.work.plus(**asked)
            return state._replace(diagonal=mean, measured=state.measured + 1, work=work)

        return every_so_often(self.age, every, measure, self, diagonal)

    def averaged(self, updates: PyTree, h: Any) -> CurvatureMomentsState:
        """Returns the state with the updates in `mu`; their number is left for `older`."""
        return self._replace(mu=optax.tree.cast_like(h.averaged("b1", self.mu, updates), self.mu))

    def older(self) -> CurvatureMomentsState:
        """Returns the state with one update more."""
        return self._replace(age=one_more(self.age))


@transformation
def scale_by_adahessian(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-4,
    power: ScalarOrSchedule = 1.0,
    *,
    every: int = 1,
) -> Link:
    """Scales updates g to m̂ / (v̂^(k/2) + ε), m̂ and v̂ the corrected averages of g and D².

    D is the diagonal of the curvature, estimated as z ⊙ A z with random signs z. In a leaf with
    more than two axes, such as the kernel of a convolution, it is averaged over all but the last
    two.

    Source: Yao et al. (2021), "AdaHessian: an adaptive second order optimizer for machine
    learning", algorithm 1 and equation 10.
    Differs: with `every` > 1 a diagonal enters v̂ once, not at each step until the next. The
    authors' code averages |D|, their paper D, as here.

    Cost: one linearization and one product every so many steps, or what the extra argument
    `diagonal` costs; two trees of memory. With `every` > 1 it runs within a compiled loop, in which
    a CPU is slow at convolutions.

    Args:
        b1: β₁, decay of the average of g.
        b2: β₂, decay of the average of D².
        eps: ε [the unit of D to the power k].
        power: k, 0 < k ≤ 1, from plain momentum to the full curvature.
        every: steps from one diagonal to the next.

    Raises:
        TypeError: `update` was called without the extra arguments `curvature` and `key`, or
            `diagonal` in their place.
        ValueError: `every` is not a positive whole number.
    """
    needs_count(every, "every", member="scale_by_adahessian")

    def update(updates, state, params, h, **extra):
        state = state.averaged(jax.tree.map(bounded, updates), h)
        state = state.measured_anew(h, every, extra, "scale_by_adahessian", _averaged_squares)
        c1, c2 = h.bias("b1", state.age), 1 - integer_power(h.b2, state.measured)

        def scaled(m, v):
            return m / c1 / ((v / c2) ** (h.power / 2) + h.eps)

        return jax.tree.map(scaled, state.mu, state.diagonal), state.older()

    return link(
        CurvatureMomentsState.none, update, b1=b1, b2=b2, eps=eps, power=power, leafwise=True
    )


@transformation
def scale_by_sophia(
    b1: ScalarOrSchedule = 0.96,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-12,
    gamma: ScalarOrSchedule = 0.01,
    *,
    every: int = 10,
) -> Link:
    """Scales updates g to clip(m / max(γ h, ε), ±1), m and h averages of g and of the diagonal.

    Every so many steps the diagonal of the curvature is estimated: as z ⊙ A z with random signs z,
    which is Sophia-H, or by the extra argument `diagonal`, which with `gk.fisher_diagonal` makes it
    Sophia-G. Where h is negative or small, the update has the size of a sign. `clipped` among the
    metrics is the share of parameters whose update is; the paper tunes γ until it is 0.5 to 0.9.

    Source: Liu et al. (2024), "Sophia: a scalable stochastic second-order optimizer for language
    model pre-training", algorithm 3; γ is theirs for Sophia-H, 0.05 for Sophia-G.
    Differs: z are signs, whose estimate has a smaller variance than that of their normal numbers.
    `optax.contrib.sophia` of 2024 took the squared gradient of the data's labels for the diagonal,
    which is neither of the paper's estimates.

    Cost: one linearization and one product every so many steps, or what `diagonal` costs; two trees
    of memory. It runs within a compiled loop, in which a CPU is slow at convolutions.

    Args:
        b1: β₁, decay of the average of g.
        b2: β₂, decay of the average of the diagonal.
        eps: ε [the unit of γ h].
        gamma: γ.
        every: steps from one diagonal to the next.

    Raises:
        TypeError: `update` was called without the extra arguments `curvature` and `key`, or
            `diagonal` in their place.
        ValueError: `every` is not a positive whole number.
    """
    needs_count(every, "every", member="scale_by_sophia")

    def update(updates, state, params, h, **extra):
        state = state.averaged(updates, h)
        state = state.measured_anew(h, every, extra, "scale_by_sophia", lambda D: D)
        u = jax.tree.map(lambda m, d: m / jnp.maximum(h.gamma * d, h.eps), state.mu, state.diagonal)
        size = sum(x.size for x in jax.tree.leaves(u))
        beyond = sum(jnp.sum(jnp.abs(x) > 1) for x in jax.tree.leaves(u))
        clipped = jnp.asarray(beyond / max(size, 1), state.clipped.dtype)
        return jax.tree.map(lambda x: jnp.clip(x, -1, 1), u), state.older()._replace(
            clipped=clipped
        )

    return link(CurvatureMomentsState.none, update, b1=b1, b2=b2, eps=eps, gamma=gamma)


def _diagonal(
    extra: dict[str, Any], step: jax.Array, *, member: str
) -> tuple[Callable, dict[str, int]]:
    """The diagonal that was given, or Hutchinson's of the curvature, to call; and its work."""
    if extra.get("diagonal") is not None:
        return deferred(extra["diagonal"]), {"evaluations": 1, "gradients": 1}
    curvature = deferred(required(extra, "curvature", member=member))
    key = jax.random.fold_in(required(extra, "key", member=member), step)
    return Partial(_sampled, curvature, key), {"products": 1}


def _sampled(curvature: Callable, key: jax.Array) -> PyTree:
    """z ⊙ A z, whose mean over signs z is the diagonal of A."""
    A = curvature()
    z = tree.random_signs(key, A.domain)
    return jax.tree.map(lambda z, Az: wide(z) * wide(Az), z, A.matvec(z))


def _averaged_squares(D: PyTree) -> PyTree:
    def leaf(d):
        axes = tuple(range(d.ndim - 2))
        return jnp.broadcast_to(jnp.mean(bounded(d), axis=axes, keepdims=True) ** 2, d.shape)

    return jax.tree.map(leaf, D)
