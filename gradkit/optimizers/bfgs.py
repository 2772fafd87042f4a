"""BFGS: the inverse Hessian, from differences of the gradient, as a matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import shardings, tree
from gradkit.core import needs_params
from gradkit.optimizers.differences import (
    Before,
    Counts,
    Pair,
    damped,
    descends,
    expected,
    first_scale,
    held,
    needs_fraction,
    nothing_before,
    pair,
    scale_after,
    seen,
    unit,
)
from gradkit.optimizers.lengths import stepping
from gradkit.transforms.line_search import line_search
from gradkit.transforms.link import Link, link, transformation
from gradkit.transforms.norms import scaled_norm

PyTree = Any


class BfgsState(NamedTuple):
    """What the update before saw, and the matrix.

    Attributes:
        before: parameters and gradient of the last update.
        H: the inverse Hessian over the ravelled tree [param²/loss]; of no meaning without pairs.
        pairs: how many it has been made of.
        scale: γ = sᵀy / yᵀy of the last pair; 0 before the first.
        direction_norm: ‖d‖ of the last direction.
        counts: what went otherwise than hoped.
    """

    before: Before
    H: jax.Array
    pairs: jax.Array
    scale: jax.Array
    direction_norm: jax.Array
    counts: Counts

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes of how many pairs the matrix is made."""
        return {"pairs": self.pairs}


LARGEST = 10.0  # factor of self-scaling


@transformation
def scale_by_bfgs(
    *,
    self_scaling: bool = True,
    min_cosine: optax.ScalarOrSchedule = 1e-12,
    damping: float = 0.0,
) -> Link:
    """Scales a gradient g to d = H g, H the inverse Hessian that all pairs s, y so far tell.

    s = x − x₋ and y = g − g₋ are the differences between two updates. H is the matrix nearest to
    the last that fits the new pair, H y = s; it begins as γI, γ = sᵀy / yᵀy of the first. A pair
    is refused unless sᵀy > c ‖s‖‖y‖. H is dropped and d = γg where the last update has changed
    nothing, as when a line search has failed, and where −H g is no direction of descent. The first
    d has a sensible length, whatever the scale of the loss, and so has the one after a step along
    γg that has changed nothing. A gradient whose norm is not finite passes as it is and leaves no
    trace.

    Curvature that H⁻¹ overrates is slow to mend: the steps that would show it are short. Where
    sᵀH⁻¹s > sᵀy, H is therefore multiplied by their ratio before the pair is added (self-scaling),
    which of 229 classical problems solved 220 instead of 217, with a fifth fewer gradients.

    **A batch that changes is no use here**: y would be the difference of two functions. Where
    `value_fn` is among the extras, as it is from `observe`, a change of the batch is seen, the pair
    refused, H dropped and the metric `function_changes` counts it: if that grows, these are steps
    of gradient descent. Without `value_fn` nothing is known and every pair is taken.

    Source: Nocedal & Wright (2006), (6.17) and (6.20); Al-Baali (1998) for the self-scaling; Powell
    (1978) for `damping`.

    Differs: H is scaled at most tenfold, with H⁻¹s taken to be −α g₋, as it is for s = −α d₋; all
    is computed on unit vectors, so that no square leaves the range.

    Cost: 4 n² multiplications; n² numbers and 2 trees of memory: for a few thousand parameters.

    Args:
        self_scaling: whether to; without, H is the inverse after n exact steps on a quadratic.
        min_cosine: c, smallest cosine between s and y.
        damping: smallest sᵀy over sᵀH⁻¹s, below which y is drawn to H⁻¹s instead of refused; 0.2
            is usual for searches that know no slopes and for rates, 0 (default) does nothing.

    Raises:
        ValueError: damping is not in [0, 1).
    """
    needs_fraction(damping, "damping", member="scale_by_bfgs")

    def init(params, step):
        dtype = tree.scalar_dtype(params)
        n = ravelled(params).size
        return BfgsState(
            before=nothing_before(params),
            H=jnp.eye(n, dtype=dtype),
            pairs=jnp.zeros((), jnp.int32),
            scale=jnp.zeros((), dtype),
            direction_norm=jnp.zeros((), dtype),
            counts=Counts.none(),
        )

    def update(updates, state, params, h, *, value_fn=None, free=None, **_):
        needs_params(params, member="scale_by_bfgs")
        here = seen(updates, params, value_fn)
        new = pair(state.before, here, free)
        if damping:
            new = damped(new, state.before, state.direction_norm, damping)
        taken = new.usable & (new.cosine > h.min_cosine)
        pairs = jnp.where(new.changed | new.stuck, 0, state.pairs)
        gamma = scale_after(new, taken, state.scale, state.pairs == 0)
        plain = jnp.where(gamma > 0, gamma, first_scale(here.g, new.s_norm))
        H = jnp.where(pairs > 0, state.H, plain * jnp.eye(len(state.H), dtype=gamma.dtype))
        if self_scaling:
            ratio = expected(new, state.before, state.direction_norm).ratio.astype(H.dtype)
            overrated = taken & (pairs > 0) & (ratio > 1)
            H = H * jnp.where(overrated, jnp.minimum(ratio, LARGEST), 1)
        H = jnp.where(taken, updated(H, new), H)
        q, g_norm = unit(held(here.g, free))
        d = held(unravelled(H @ ravelled(q).astype(H.dtype), q), free)
        descending = descends(d, q) | ~new.finite | (g_norm == 0)
        d = optax.tree.where(descending, d, tree.scaled(plain, q))
        d_norm = (scaled_norm(d).value * g_norm).astype(gamma.dtype)
        state = BfgsState(
            before=optax.tree.where(new.finite, here, state.before),
            H=H,
            pairs=jnp.where(descending, pairs + taken, 0),
            scale=gamma,
            direction_norm=jnp.where(new.finite, d_norm, state.direction_norm),
            counts=state.counts.plus(
                restarts=new.stuck | ~descending,
                refused=new.usable & ~taken,
                changes=new.changed,
            ),
        )
        return optax.tree.where(new.finite, tree.scaled(g_norm, d), updates), state

    return link(init, update, min_cosine=min_cosine)


def updated(H: jax.Array, new: Pair) -> jax.Array:
    """Returns the matrix nearest to H with H y = s.

    Source: Nocedal & Wright (2006), (6.17): H ← (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ.
    Differs: multiplied out, so that it takes n² and not n³ operations; on unit vectors.
    """
    s, y = ravelled(new.s).astype(H.dtype), ravelled(new.y).astype(H.dtype)
    cosine = jnp.where(new.cosine > 0, new.cosine, 1).astype(H.dtype)
    ratio = (new.s_norm / jnp.where(new.y_norm > 0, new.y_norm, 1)).astype(H.dtype)
    z = H @ y
    w = ((y @ z / cosine + ratio) * s / 2 - z) / cosine
    sw = jnp.outer(s, w)
    return H + (sw + sw.T)


def ravelled(a: PyTree) -> jax.Array:
    """Returns all numbers of a tree as one vector, those of complex leaves as pairs."""
    leaves = [tree.wide(shardings.gathered(x)) for x in jax.tree.leaves(a)]
    parts = [
        part.ravel()
        for x in leaves
        for part in ([jnp.real(x), jnp.imag(x)] if jnp.iscomplexobj(x) else [x])
    ]
    return jnp.concatenate([jnp.zeros(0, tree.scalar_dtype(a)), *parts])


def unravelled(vector: jax.Array, domain: PyTree) -> PyTree:
    """Returns the tree like `domain` that has the numbers of the vector."""
    leaves, structure = jax.tree.flatten(domain)
    start, found = 0, []
    for x in leaves:
        many = 2 if jnp.iscomplexobj(x) else 1
        parts = vector[start : start + many * x.size].reshape(many, *x.shape)
        whole = (parts[0] + 1j * parts[1] if many == 2 else parts[0]).astype(x.dtype)
        found.append(shardings.spread(whole, x))
        start += many * x.size
    return structure.unflatten(found)


@transformation
def bfgs(
    learning_rate: optax.ScalarOrSchedule | None = None,
    linesearch: optax.GradientTransformation | None = None,
    *,
    self_scaling: bool = True,
    min_cosine: optax.ScalarOrSchedule = 1e-12,
    damping: float = 0.0,
) -> Link:
    """BFGS: x ← x − α H g, with H from differences of x and g, and α from a line search.

    Its `update` takes what `observe` returns:
    `tx.update(point.grad, state, params, **point.extras)`. For deterministic losses: a batch that
    changes drops H, see `gk.scale_by_bfgs`.

    Source: Nocedal & Wright (2006), algorithm 6.1; Al-Baali (1998) for the self-scaling.

    Cost: 4 n² multiplications, n² numbers of memory, and the line search's gradients, mostly one an
    update.

    Args:
        learning_rate: a number or a schedule for α; None (default) searches the line.
        linesearch: `gk.line_search(...)`, or a search of optax; None (default) is
            `gk.line_search("hager_zhang")` unless there is a rate.
        self_scaling: see `gk.scale_by_bfgs`.
        min_cosine: see `gk.scale_by_bfgs`.
        damping: see `gk.scale_by_bfgs`.

    Raises:
        TypeError: `update` was called without the extra arguments of `observe`.
        ValueError: there is a learning rate and a line search of gradkit.
    """
    direction = scale_by_bfgs(self_scaling=self_scaling, min_cosine=min_cosine, damping=damping)
    search = line_search("hager_zhang")
    return stepping(direction, learning_rate, search, linesearch).named("bfgs")
