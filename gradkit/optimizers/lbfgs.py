"""L-BFGS: the inverse Hessian from the last few differences of the gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.core import needs_count, needs_params
from gradkit.optimizers.differences import (
    Before,
    Counts,
    Pair,
    damped,
    descends,
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


class Pairs(NamedTuple):
    """The last pairs s, y, as `Pair` has them; row `place` is the next to be overwritten.

    Attributes:
        s: basis of unit vectors.
        y: basis of unit vectors.
        ratio: ‖s‖ / ‖y‖ of each.
        cosine: sᵀy of each.
        place: a row.
        stored: how many there are.
    """

    s: PyTree
    y: PyTree
    ratio: jax.Array
    cosine: jax.Array
    place: jax.Array
    stored: jax.Array


class LbfgsState(NamedTuple):
    """What the update before saw, and the last pairs.

    Attributes:
        before: parameters and gradient of the last update.
        pairs: the memory.
        scale: γ of the initial inverse Hessian γI [param²/loss]; 0 before the first pair.
        direction_norm: ‖d‖ of the last direction.
        counts: what went otherwise than hoped.
    """

    before: Before
    pairs: Pairs
    scale: jax.Array
    direction_norm: jax.Array
    counts: Counts

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes how many pairs are in memory."""
        return {"pairs": self.pairs.stored}


@transformation
def scale_by_lbfgs(
    memory_size: int = 10,
    scale_init_precond: bool = True,
    *,
    min_cosine: optax.ScalarOrSchedule = 1e-12,
    damping: float = 0.0,
) -> Link:
    """Scales a gradient g to d = H g, H the inverse Hessian that the last pairs s, y tell.

    s = x − x₋ and y = g − g₋ are the differences between two updates. H is γI, γ = sᵀy / yᵀy of
    the last, updated by each pair in turn as in `gk.scale_by_bfgs`, and never formed. A pair is
    refused unless sᵀy > c ‖s‖‖y‖. The memory is dropped and d = γg where the last update has
    changed nothing, as when a line search has failed, and where −H g is no direction of descent.
    The first d has a sensible length, whatever the scale of the loss, and so has the one after a
    step along γg that has changed nothing. A gradient whose norm is not finite passes as it is and
    leaves no trace.

    **A batch that changes is no use here**: y would be the difference of two functions. Where
    `value_fn` is among the extras, as it is from `observe`, a change of the batch is seen, the pair
    refused, the memory dropped and the metric `function_changes` counts it: if that grows, these
    are steps of gradient descent. Without `value_fn` nothing is known and every pair is taken.

    Source: Nocedal (1980); Nocedal & Wright (2006), algorithm 7.4 and (7.20); Powell (1978) for
    `damping`.

    Differs: from optax in the first step, in that pairs are tested and the memory dropped, and in
    `min_cosine` and `damping`. All is computed on unit vectors, so that no square leaves the range.

    Cost: 4 m n multiplications, m the memory; 2 m + 2 trees of memory. One pass over the batch.

    Args:
        memory_size: m, most pairs.
        scale_init_precond: with γ (default), or else H begins as the identity and the first d is g.
        min_cosine: c, smallest cosine between s and y.
        damping: smallest sᵀy over sᵀH⁻¹s, below which y is drawn to H⁻¹s instead of refused; 0.2
            is usual for searches that know no slopes and for rates, 0 (default) does nothing.

    Raises:
        ValueError: the memory is no positive number, or damping is not in [0, 1).
    """
    needs_count(memory_size, "memory_size", member="scale_by_lbfgs")
    needs_fraction(damping, "damping", member="scale_by_lbfgs")

    def init(params, step):
        dtype = tree.scalar_dtype(params)
        zero = jnp.zeros((), dtype)
        none = _no_pairs(memory_size, params, dtype)
        return LbfgsState(nothing_before(params), none, zero, jnp.zeros((), dtype), Counts.none())

    def update(updates, state, params, h, *, value_fn=None, free=None, **_):
        needs_params(params, member="scale_by_lbfgs")
        here = seen(updates, params, value_fn)
        new = pair(state.before, here, free)
        if damping:
            new = damped(new, state.before, state.direction_norm, damping)
        taken = new.usable & (new.cosine > h.min_cosine)
        forgotten = new.changed | new.stuck
        pairs = _with(state.pairs, new, taken, forgotten)
        gamma = scale_after(new, taken, state.scale, state.pairs.stored == 0)
        q, g_norm = unit(held(here.g, free))
        if scale_init_precond:
            plain = jnp.where(gamma > 0, gamma, first_scale(here.g, new.s_norm))
        else:
            plain = jnp.ones_like(gamma)
        d = held(two_loops(pairs, q, plain), free)
        descending = descends(d, q) | ~new.finite | (g_norm == 0)
        d = optax.tree.where(descending, d, tree.scaled(plain, q))
        d_norm = (scaled_norm(d).value * g_norm).astype(gamma.dtype)
        state = LbfgsState(
            before=optax.tree.where(new.finite, here, state.before),
            pairs=pairs._replace(stored=jnp.where(descending, pairs.stored, 0)),
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


def two_loops(pairs: Pairs, q: PyTree, gamma: jax.Array) -> PyTree:
    """Returns H q for the inverse Hessian H that γI becomes by the stored pairs.

    Source: Nocedal (1980); Nocedal & Wright (2006), algorithm 7.4.
    Differs: on unit vectors s and y, with the ratio of their lengths beside them.

    Cost: 4 m n multiplications for m pairs.
    """
    size = len(pairs.ratio)

    def row(i):
        """The pair before the last i."""
        j = (pairs.place - 1 - i) % size
        s, y = tree.basis_row(pairs.s, j, q), tree.basis_row(pairs.y, j, q)
        return j, s, y, pairs.ratio[j], pairs.cosine[j]

    def back(i, carry):
        q, a = carry
        j, s, y, _, cosine = row(i)
        a_j = tree.inner(s, q).astype(a.dtype) / cosine
        return tree.add_scaled(q, -a_j, y), a.at[j].set(a_j)

    def forth(i, r):
        j, s, y, ratio, cosine = row(pairs.stored - 1 - i)
        b = tree.inner(y, r).astype(a.dtype) / cosine
        return tree.add_scaled(r, ratio * a[j] - b, s)

    q, a = jax.lax.fori_loop(0, pairs.stored, back, (q, jnp.zeros_like(pairs.ratio)))
    return jax.lax.fori_loop(0, pairs.stored, forth, tree.scaled(gamma, q))


def _no_pairs(rows: int, params: PyTree, dtype: Any) -> Pairs:
    domain = tree.wide_zeros(params)
    zeros, place = jnp.zeros(rows, dtype), jnp.zeros((), jnp.int32)
    s, y = tree.empty_basis(rows, domain), tree.empty_basis(rows, domain)
    return Pairs(s, y, zeros, jnp.copy(zeros), place, jnp.copy(place))


def _with(pairs: Pairs, new: Pair, taken: jax.Array, forgotten: jax.Array) -> Pairs:
    """The pairs and the new one if it is taken; no pair if they are to be forgotten."""
    j = pairs.place
    old = tree.basis_row(pairs.s, j, new.s), tree.basis_row(pairs.y, j, new.y)
    s, y = optax.tree.where(taken, (new.s, new.y), old)
    ratio = new.s_norm / jnp.where(new.y_norm > 0, new.y_norm, 1)
    size = len(pairs.ratio)
    stored = jnp.where(forgotten, 0, jnp.minimum(pairs.stored + taken, size))
    return Pairs(
        s=tree.basis_set(pairs.s, j, s),
        y=tree.basis_set(pairs.y, j, y),
        ratio=pairs.ratio.at[j].set(jnp.where(taken, ratio, pairs.ratio[j])),
        cosine=pairs.cosine.at[j].set(jnp.where(taken, new.cosine, pairs.cosine[j])),
        place=(j + taken) % size,
        stored=stored,
    )


@transformation
def lbfgs(
    learning_rate: optax.ScalarOrSchedule | None = None,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    linesearch: optax.GradientTransformation | None = None,
    *,
    min_cosine: optax.ScalarOrSchedule = 1e-12,
    damping: float = 0.0,
) -> Link:
    """L-BFGS: x ← x − α H g, with H from the last differences of x and g, and α from a search.

    Its `update` takes what `observe` returns:
    `tx.update(point.grad, state, params, **point.extras)`. For deterministic losses: a batch that
    changes drops the memory, see `gk.scale_by_lbfgs`.

    Source: Nocedal (1980); Liu & Nocedal (1989).

    Differs: from optax, whose `linesearch` is its zoom search: Hager and Zhang's here, and a member
    of gradkit takes the place of the rate; in `min_cosine` and `damping`.

    Cost: 2 m + 3 trees of memory, and the line search's gradients, mostly one an update.

    Args:
        learning_rate: a number or a schedule for α; None (default) searches the line.
        memory_size: m, most pairs.
        scale_init_precond: see `gk.scale_by_lbfgs`.
        linesearch: `gk.line_search(...)`, or a search of optax; None (default) is
            `gk.line_search("hager_zhang")` unless there is a rate.
        min_cosine: see `gk.scale_by_lbfgs`.
        damping: see `gk.scale_by_lbfgs`.

    Raises:
        TypeError: `update` was called without the extra arguments of `observe`.
        ValueError: there is a learning rate and a line search of gradkit.

    Example:
        >>> import jax.numpy as jnp, optax, gradkit as gk
        >>> tx, x = gk.lbfgs(), jnp.array([-1.2, 1.0])
        >>> def loss(x, _):
        ...     return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
        >>> state = tx.init(x)
        >>> for _ in range(40):
        ...     point = gk.observe(loss, x, None)
        ...     updates, state = tx.update(point.grad, state, x, **point.extras)
        ...     x = optax.apply_updates(x, updates)
        >>> bool(jnp.allclose(x, 1, atol=1e-3))
        True
    """
    direction = scale_by_lbfgs(
        memory_size, scale_init_precond, min_cosine=min_cosine, damping=damping
    )
    search = line_search("hager_zhang")
    return stepping(direction, learning_rate, search, linesearch).named("lbfgs")
