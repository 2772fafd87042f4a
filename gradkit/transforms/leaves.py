"""The leaves that a transformation takes: arrays of floating-point numbers, and what to do else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import tree
from gradkit.validation import REMEDY, describe, is_parameter

PyTree = Any


def split(params: PyTree) -> tuple[PyTree, list[str]]:
    """Returns the parameters with None for each leaf that is none, and a line about each of those.

    Python's and NumPy's numbers become arrays.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    fit = [is_parameter(leaf) for _, leaf in leaves]
    lines = [_line(path, leaf) for (path, leaf), fits in zip(leaves, fit, strict=True) if not fits]
    whole = [_array(leaf) if fits else None for (_, leaf), fits in zip(leaves, fit, strict=True)]
    return structure.unflatten(whole), lines


def refuse(lines: list[str], what: str, *, member: str) -> None:
    """Raises a `TypeError` about leaves that are not parameters."""
    shown = "\n".join(lines[:8] + ["  ..."] * (len(lines) > 8))
    raise TypeError(
        f"{member}: {what} must be arrays of floating-point numbers, got\n{shown}\n{REMEDY}"
    )


def check_updates(updates: PyTree, params: PyTree, *, member: str) -> tuple[PyTree, PyTree]:
    """Returns updates and parameters as trees of arrays that are alike.

    Leaves of the parameters that are none, such as functions, may stand where there is no update.

    Raises:
        TypeError: an update is not an array of floating-point numbers.
        ValueError: the updates are not a tree like the parameters.
    """
    updates, lines = split(updates)
    if lines:
        refuse(lines, "the updates", member=member)
    if params is None:
        return updates, None
    params, lines = split(params)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    same = jax.tree.structure(params) == jax.tree.structure(updates)
    if same and shapes == [jnp.shape(leaf) for leaf in jax.tree.leaves(updates)]:
        return updates, params
    if lines and {line.split(":")[0].strip() for line in lines} & _paths(updates):
        refuse(lines, "the parameters", member=member)
    differing = tree.differences(params, updates)
    if not differing:  # the same leaves in other containers
        return updates, params
    missing = [line for line in differing if line.endswith("got no leaf")]
    hint = f"\nWhere a gradient is None, the parameter must be left out too. {REMEDY}"
    shown = "\n".join(differing[:8] + ["  ..."] * (len(differing) > 8))
    raise ValueError(
        f"{member}: update: the updates must be a tree like the parameters\n{shown}"
        + hint * bool(missing)
    )


def explain_missing(updates: PyTree, error: Exception, *, member: str) -> None:
    """Raises a `ValueError` that names the updates that are None, if there are any."""
    leaves = jax.tree_util.tree_leaves_with_path(updates, is_leaf=lambda x: x is None)
    nothing = [f"  {tree.path_name(path)}: None" for path, leaf in leaves if leaf is None]
    if nothing:
        shown = "\n".join(nothing[:8] + ["  ..."] * (len(nothing) > 8))
        raise ValueError(
            f"{member}: update: the updates do not fit the parameters that init was given; there "
            f"is no update for\n{shown}\nLeave them out at init too. {REMEDY}"
        ) from error


def _line(path: tuple, leaf: Any) -> str:
    return f"  {tree.path_name(path) or 'the leaf'}: {describe(leaf)}"


def _paths(whole: PyTree) -> set[str]:
    return {tree.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(whole)}


def _array(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else jnp.asarray(leaf)
