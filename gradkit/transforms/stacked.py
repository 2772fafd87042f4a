"""Layers that are stacked in one leaf, as `jax.lax.scan` over layers takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import tree
from gradkit.transforms.selection import broadcast_prefix, by_path

PyTree = Any
Stacked = str | Sequence[str] | Mapping[str, int] | Callable[[PyTree], PyTree]
"""A pattern of paths or several, whose leaves are stacked along axis 0; patterns with the axis of
each; or a function of the parameters -> a tree of axes or a prefix of one, False or None where
nothing is stacked."""

_ALONE = False


def stack_axes(stacked: Stacked | None, params: PyTree, *, member: str) -> list[int | None]:
    """Returns for each leaf the axis along which layers are stacked, or None.

    Raises:
        ValueError: a pattern matches no leaf, a leaf has no such axis, or a tree of axes does not
            fit; the message says which.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if stacked is None or not leaves:
        return [None] * len(leaves)
    if callable(stacked):
        labels = stacked(params)
    else:
        patterns = [stacked] if isinstance(stacked, str) else stacked
        axes = patterns if isinstance(patterns, Mapping) else dict.fromkeys(patterns, 0)
        labels = by_path(axes, default=_ALONE)(params)
    found = []
    must = f"{member}: stacked must give"
    each = broadcast_prefix(labels, params, must, is_leaf=lambda axis: axis is None)
    for (path, leaf), axis in zip(leaves, each, strict=True):
        ndim = jnp.ndim(leaf)
        if axis is _ALONE or axis is None:
            found.append(None)
            continue
        if isinstance(axis, bool) or not isinstance(axis, int) or not -ndim <= axis < ndim:
            raise ValueError(
                f"{member}: stacked must give an axis of each leaf, or False; got {axis!r} for "
                f"{tree.leaf_name(path) or 'the leaf'} of shape {jnp.shape(leaf)}"
            )
        found.append(axis % ndim)
    return found


def layer_shape(shape: tuple[int, ...], stack: int | None) -> tuple[int, ...]:
    """Returns the shape of one layer of a leaf."""
    return tuple(n for axis, n in enumerate(shape) if axis != stack)


def beside_stack(axes: tuple[int, ...], stack: int | None) -> tuple[int, ...]:
    """Returns the axes of a layer as axes of the leaf that it is stacked in."""
    return tuple(k if stack is None or k < stack else k + 1 for k in axes)
