"""Bounds lower ≤ x ≤ upper, and what they make of a point and a gradient."""

from __future__ import annotations

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import tree

PyTree = Any


class Bounds(NamedTuple):
    """Trees like the parameters, infinite where there is no bound."""

    lower: PyTree
    upper: PyTree

    def project(self, x: PyTree) -> PyTree:
        """Returns the nearest point within."""
        return jax.tree.map(jnp.clip, x, self.lower, self.upper)

    def projected_gradient(self, x: PyTree, g: PyTree) -> PyTree:
        """Returns g, cut where x − g leaves the bounds: zero at a minimum within them."""

        def leaf(x, g, lower, upper):
            return jnp.clip(g, jnp.minimum(x - upper, 0), jnp.maximum(x - lower, 0))

        return jax.tree.map(leaf, x, g, self.lower, self.upper)

    def free(self, x: PyTree, g: PyTree) -> PyTree:
        """Returns 1 for what may move along −g, 0 for what is at a bound and would cross it."""

        def leaf(x, g, lower, upper):
            held = ((x <= lower) & (g > 0)) | ((x >= upper) & (g < 0))
            return jnp.where(held, 0, 1).astype(x.dtype)

        return jax.tree.map(leaf, x, g, self.lower, self.upper)


def as_bounds(bounds: tuple[Any, Any], x0: PyTree) -> Bounds:
    """Returns the pair, each None, a number or a tree, as trees like x0.

    Raises:
        ValueError: it is no pair, a tree does not fit x0, or a lower bound is above the upper one.
    """
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise ValueError(
            "bounds: expected a pair (lower, upper), each None, a number or a tree like x0; got "
            f"{bounds!r}"
        )
    lower = _like(bounds[0], -jnp.inf, x0, "lower")
    upper = _like(bounds[1], jnp.inf, x0, "upper")
    if not tree.traced(lower, upper):
        apart = jax.tree.map(lambda a, b: bool(jnp.all(a <= b)), lower, upper)
        paths = jax.tree_util.tree_leaves_with_path(apart)
        wrong = [tree.path_name(path) or "x0" for path, fine in paths if not fine]
        if wrong:
            raise ValueError(f"bounds: a lower bound is above the upper one, or NaN, in {wrong[0]}")
    return Bounds(lower, upper)


def _like(bound: Any, default: float, x0: PyTree, side: str) -> PyTree:
    """The bound as a tree like x0: None and a number are the same for every leaf."""
    bound = default if bound is None else bound
    if isinstance(bound, numbers.Real):
        number = float(bound)
        return jax.tree.map(lambda x: jnp.full_like(x, number), x0)
    lines = [] if _broadcasts(bound, x0) else tree.differences(x0, bound)
    if lines:
        raise ValueError(f"bounds: the {side} one must be a tree like x0\n" + "\n".join(lines))
    return jax.tree.map(lambda x, b: jnp.broadcast_to(jnp.asarray(b, x.dtype), x.shape), x0, bound)


def _broadcasts(bound: PyTree, x0: PyTree) -> bool:
    """Whether the bound is a tree like x0, up to leaves that are single numbers."""
    leaves = jax.tree.leaves(bound)
    return jax.tree.structure(bound) == jax.tree.structure(x0) and all(
        jnp.shape(b) in ((), x.shape) for b, x in zip(leaves, jax.tree.leaves(x0), strict=True)
    )
