"""Differences between one update and the next: what quasi-Newton methods learn curvature from."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree

PyTree = Any


class Before(NamedTuple):
    """What the update before saw.

    Attributes:
        x: the parameters x₋, in float32 at least.
        g: the gradient g₋, in float32 at least.
        mark: of the arrays in the loss, which are the batch: see `tree.mark`.
        known: whether there was one.
    """

    x: PyTree
    g: PyTree
    mark: jax.Array
    known: jax.Array


class Pair(NamedTuple):
    """The differences s = x − x₋ and y = g − g₋, as unit vectors: the same for any scale of f.

    Attributes:
        s: s / ‖s‖, zero for s = 0.
        y: y / ‖y‖, zero for y = 0.
        s_norm: ‖s‖ [param]; 0 at the first update.
        y_norm: ‖y‖ [loss/param].
        cosine: sᵀy / (‖s‖‖y‖): curvature along s, relative to the change of the gradient.
        usable: whether the pair is of one finite loss, and s is not zero.
        stuck: whether s is zero, as the last update has changed nothing, and g is not.
        changed: whether the loss is not that of the update before.
        finite: whether the norms of g and y are numbers.
    """

    s: PyTree
    y: PyTree
    s_norm: jax.Array
    y_norm: jax.Array
    cosine: jax.Array
    usable: jax.Array
    stuck: jax.Array
    changed: jax.Array
    finite: jax.Array

    @property
    def inverse_curvature(self) -> jax.Array:
        """γ = sᵀy / yᵀy [param²/loss], between the ends of the spectrum of H⁻¹."""
        return self.cosine * self.s_norm / jnp.where(self.y_norm > 0, self.y_norm, 1)


class Counts(NamedTuple):
    """What went otherwise than hoped, in all updates so far.

    Attributes:
        restarts: steepest descents, as nothing had moved or the direction did not descend.
        refused: pairs that were not taken, as there was no positive curvature in them.
        changes: updates whose loss was not that of the update before.
    """

    restarts: jax.Array
    refused: jax.Array
    changes: jax.Array

    @classmethod
    def none(cls) -> Counts:
        """Returns zeros."""
        return cls(*(jnp.zeros((), jnp.int32) for _ in cls._fields))

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes the three."""
        return {
            "restarts": self.restarts,
            "refused_pairs": self.refused,
            "function_changes": self.changes,
        }

    def plus(self, restarts: jax.Array, refused: jax.Array, changes: jax.Array) -> Counts:
        """Returns the counts, each one more where that is so."""
        more = restarts, refused, changes
        return Counts(*(a + b.astype(a.dtype) for a, b in zip(self, more, strict=True)))


def nothing_before(params: PyTree) -> Before:
    """Returns what is known before the first update."""
    mark, known = jnp.zeros(2, jnp.uint32), jnp.zeros((), bool)
    return Before(tree.wide_zeros(params), tree.wide_zeros(params), mark, known)


def seen(grad: PyTree, params: PyTree, value_fn: Any) -> Before:
    """Returns what this update sees, for the next one."""
    x, g = jax.tree.map(tree.wide, (params, optax.tree.cast_like(grad, params)))
    return Before(x, g, tree.mark(value_fn), jnp.ones((), bool))


def pair(before: Before, here: Before, free: PyTree | None = None) -> Pair:
    """Returns the differences between the update before and this one, in what is free.

    Cost: five passes over two trees.
    """
    s, s_norm = unit(held(jax.tree.map(jnp.subtract, here.x, before.x), free))
    s_norm = jnp.where(before.known, s_norm, 0)
    y, y_norm = unit(held(jax.tree.map(jnp.subtract, here.g, before.g), free))
    top = tree.largest(here.g)
    finite = top <= jnp.finfo(top.dtype).max / (2 * max(optax.tree.size(here.g), 1) ** 0.5)
    changed = before.known & finite & jnp.any(here.mark != before.mark)
    same = before.known & finite & ~changed
    stuck = same & (s_norm == 0) & (top > 0)
    usable = same & (s_norm > 0)
    return Pair(s, y, s_norm, y_norm, tree.inner(s, y), usable, stuck, changed, finite)


class Expected(NamedTuple):
    """B s for a pair, B the curvature that the update before went by, as s is a part of its step.

    B s is taken to be −α g₋, which it is where s = −α d₋ and d₋ = B⁻¹ g₋.

    Attributes:
        Bs: unit vector.
        Bs_norm: ‖B s‖ [loss/param].
        ratio: sᵀB s / sᵀy, how much the curvature along s was overrated; 1 where it is not known.
    """

    Bs: PyTree
    Bs_norm: jax.Array
    ratio: jax.Array


def expected(new: Pair, before: Before, direction_norm: jax.Array) -> Expected:
    """Returns what the pair was expected to be.

    Args:
        new: the pair.
        before: what the update before saw.
        direction_norm: ‖d₋‖ of the direction that it returned.
    """
    g, g_norm = unit(before.g)
    alpha = new.s_norm / jnp.where(direction_norm > 0, direction_norm, 1)
    Bs, Bs_norm = tree.scaled(-1, g), alpha * g_norm
    sBs, sy = tree.inner(new.s, Bs) * Bs_norm, new.cosine * new.y_norm  # both over ‖s‖
    known = new.usable & (direction_norm > 0) & (sBs > 0) & (sy != 0)
    return Expected(Bs, Bs_norm, jnp.where(known, sBs / jnp.where(known, sy, 1), 1))


def damped(new: Pair, before: Before, direction_norm: jax.Array, damping: float) -> Pair:
    """Returns the pair with y so near to B s that sᵀy is no less than `damping` · sᵀB s.

    Source: Powell (1978); Nocedal & Wright (2006), procedure 18.2, with `damping` = 0.2.
    Differs: B s as `expected` has it; a pair with sᵀB s ≤ 0 is left as it is.

    Args:
        new: the pair.
        before: what the update before saw.
        direction_norm: ‖d₋‖ of the direction that it returned.
        damping: 0 < damping < 1.
    """
    Bs, Bs_norm, ratio = expected(new, before, direction_norm)
    short = (ratio < 0) | (damping * ratio > 1)
    theta = jnp.where(short, (1 - damping) * ratio / jnp.where(short, ratio - 1, 1), 1)
    y, y_norm = unit(
        jax.tree.map(lambda y, b: theta * new.y_norm * y + (1 - theta) * Bs_norm * b, new.y, Bs)
    )
    y, y_norm = optax.tree.where(short, (y, y_norm), (new.y, new.y_norm))
    return new._replace(y=y, y_norm=y_norm, cosine=tree.inner(new.s, y))


def unit(a: PyTree) -> tuple[PyTree, jax.Array]:
    """Returns a / ‖a‖ and ‖a‖, without squares that leave the range; 0 and 0 for a = 0."""
    scale = tree.scale(a)
    a = jax.tree.map(lambda x: x / scale.astype(jnp.finfo(x.dtype).dtype), a)
    length = tree.norm(a)
    inverse = 1 / jnp.where(length > 0, length, 1)
    return tree.scaled(inverse, a), length.astype(scale.dtype) * scale


def descends(d: PyTree, g: PyTree) -> jax.Array:
    """Returns whether −d is finite and clearly a direction of descent, gᵀd > 10 ε ‖g‖‖d‖."""
    cosine = tree.inner(unit(d)[0], unit(g)[0])
    return cosine > 10 * jnp.finfo(cosine.dtype).eps  # not for NaN


def first_scale(grad: PyTree, last: jax.Array) -> jax.Array:
    """Returns t > 0 such that −t g is a sensible first step, whatever the scale of the loss.

    Args:
        grad: g.
        last: length of the step before, which a step without a pair goes beyond: where the loss is
            linear, steps grow.
    """
    _, g_norm = unit(grad)
    return jnp.maximum(last, 1) / jnp.where(g_norm > 0, g_norm, 1)


def scale_after(new: Pair, taken: jax.Array, last: jax.Array, plain: jax.Array) -> jax.Array:
    """Returns γ of the pair if it is taken, else the last one.

    0, for `first_scale`, where a step along γ g has changed nothing: γ may be of one huge gradient.

    Args:
        new: the pair.
        taken: whether it is.
        last: γ before.
        plain: whether the last direction was γ g.
    """
    kept = jnp.where(new.stuck & plain, 0, last)
    return jnp.where(taken, new.inverse_curvature.astype(last.dtype), kept)


def held(a: PyTree, free: PyTree | None) -> PyTree:
    """Returns the tree with zeros for what is not free, as at a bound; None for all that is."""
    return a if free is None else jax.tree.map(lambda x, f: jnp.where(f > 0, x, 0), a, free)


def needs_fraction(value: Any, name: str, *, member: str) -> None:
    """Raises a `ValueError` unless the argument is a number in [0, 1)."""
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(
            f"{member}: {name} must be a number from 0 to 1, 1 excluded; got {value!r}"
        )
