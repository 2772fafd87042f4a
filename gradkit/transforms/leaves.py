"""The leaves that a transformation takes: arrays of floating-point numbers, and what to do else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import tree
from gradkit.validation import REMEDY, check_parameters, is_parameter

PyTree = Any


def split(params: PyTree) -> tuple[PyTree, PyTree]:
    """Returns the leaves that are parameters, as arrays, and those that are none.

    Both are trees like the one given, with None for the leaves of the other.
    """
    fit = jax.tree.map(is_parameter, params)
    taken = jax.tree.map(lambda fits, leaf: _array(leaf) if fits else None, fit, params)
    return taken, jax.tree.map(lambda fits, leaf: None if fits else leaf, fit, params)


def check_updates(updates: PyTree, params: PyTree, *, member: str) -> tuple[PyTree, PyTree]:
    """Returns updates and parameters as trees of arrays that are alike.

    Leaves of the parameters that are none, such as functions, may stand where there is no update.

    Raises:
        TypeError: an update, or the parameter that it is for, is no floating-point array.
        ValueError: the updates are not a tree like the parameters.
    """
    check_parameters(updates, member=member, name="the updates")
    updates = jax.tree.map(_array, updates)
    if params is None:
        return updates, None
    params, others = split(params)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    alike = jax.tree.structure(params) == jax.tree.structure(updates)
    if alike and shapes == [jnp.shape(leaf) for leaf in jax.tree.leaves(updates)]:
        return updates, params
    if _paths(others) & _paths(updates):
        check_parameters(others, member=member)
    differing = tree.differences(params, updates)
    if not differing:  # the same leaves in other containers
        return updates, params
    shown = "\n".join(differing[:8] + ["  ..."] * (len(differing) > 8))
    hint = f"\nWhere a gradient is None, leave the parameter out too. {REMEDY}"
    raise ValueError(
        f"{member}: update: the updates must be a tree like the parameters\n{shown}"
        + hint * any(line.endswith("got no leaf") for line in differing)
    )


def explain_missing(updates: PyTree, error: Exception, *, member: str) -> None:
    """Raises a `ValueError` that names the updates that are None, if there are any."""
    found = jax.tree_util.tree_leaves_with_path(updates, is_leaf=lambda x: x is None)
    nothing = [f"  {tree.path_name(path)}: None" for path, leaf in found if leaf is None]
    if nothing:
        shown = "\n".join(nothing[:8] + ["  ..."] * (len(nothing) > 8))
        raise ValueError(
            f"{member}: update: the updates do not fit the parameters that init was given; there "
            f"is no update for\n{shown}\nLeave them out at init too. {REMEDY}"
        ) from error


def _paths(whole: PyTree) -> set[str]:
    return {tree.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(whole)}


def _array(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else jnp.asarray(leaf)
