"""The leaves that a transformation takes: arrays of floating-point numbers, and what to do else."""

from __future__ import annotations

import re
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from gradkit import tree
from gradkit.validation import REMEDY, check_parameters, is_parameter

PyTree = Any

NO_LEAF = "got no leaf"  # as `tree.differences` has it


def split(params: PyTree) -> tuple[PyTree, PyTree]:
    """Returns the leaves that are parameters, as arrays, and those that are none.

    Both are trees like the one given, with None for the leaves of the other.
    """
    fit = jax.tree.map(is_parameter, params)
    taken = jax.tree.map(lambda fits, leaf: _array(leaf) if fits else None, fit, params)
    return taken, jax.tree.map(lambda fits, leaf: None if fits else leaf, fit, params)


class Given(NamedTuple):
    """What `update` was given, as trees that are alike.

    Attributes:
        updates: the updates.
        params: the parameters, without those that have no update; None where none were given.
        missing: those that have no update, a tree of the same structure.
    """

    updates: PyTree
    params: PyTree
    missing: PyTree


def checked(updates: PyTree, params: PyTree, *, member: str) -> Given:
    """Returns updates and parameters as trees of arrays.

    Leaves of the parameters that are none, such as functions, may stand where there is no update.
    The same leaves may be in other containers.

    Raises:
        TypeError: an update, or the parameter that it is for, is no floating-point array.
        ValueError: the updates are not a tree like the parameters.
    """
    if _are_alike(updates, params):
        return Given(updates, params, None)
    check_parameters(updates, member=member, name="the updates")
    updates = jax.tree.map(_array, updates)
    if params is None:
        return Given(updates, None, None)
    params, others = split(params)
    if _are_alike(updates, params):
        return Given(updates, params, None)
    there = _paths(updates)
    if _paths(others) & there:
        check_parameters(others, member=member)
    differing = tree.differences(params, updates)
    if not all(line.endswith(NO_LEAF) for line in differing):
        _refuse(differing, member=member)

    def part(wanted):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if (tree.path_name(path) in there) is wanted else None, params
        )

    held, missing = part(True), part(False)
    alike = jax.tree.structure(held).unflatten(jax.tree.leaves(updates))
    return Given(alike, held, missing if differing else None)


def refuse_missing(updates: PyTree, missing: PyTree, *, member: str) -> None:
    """Raises a `ValueError` about parameters that have no update, or updates that are None."""
    if missing is not None:
        differing = tree.differences(missing, updates)
        _refuse([line for line in differing if line.endswith(NO_LEAF)], member=member)
    found = jax.tree_util.tree_leaves_with_path(updates, is_leaf=lambda x: x is None)
    if nothing := [f"  {tree.path_name(path)}: {NO_LEAF}" for path, x in found if x is None]:
        _refuse(nothing, member=member)


def is_about_trees(error: Exception) -> bool:
    """Returns whether an error says that trees differ, as where an update is None."""
    return re.search("None|tree|structure", str(error)) is not None


def _refuse(lines: list[str], *, member: str) -> NoReturn:
    shown = "\n".join(lines[:8] + ["  ..."] * (len(lines) > 8))
    hint = f"\nWhere a gradient is None, leave the parameter out too, at init and update. {REMEDY}"
    raise ValueError(
        f"{member}: update: the updates must be a tree like the parameters\n{shown}"
        + hint * any(line.endswith(NO_LEAF) for line in lines)
    )


def _are_alike(updates: PyTree, params: PyTree) -> bool:
    """Whether both are the same tree of JAX's arrays of floating-point numbers, as a rule they are.

    Every update outside `jit` asks, so that it is one pass over both.
    """
    leaves, structure = jax.tree.flatten(params)
    others, other = jax.tree.flatten(updates)
    return structure == other and all(
        isinstance(x, jax.Array)
        and isinstance(y, jax.Array)
        and x.shape == y.shape
        and is_parameter(x)
        and is_parameter(y)
        for x, y in zip(leaves, others, strict=True)
    )


def _paths(whole: PyTree) -> set[str]:
    return {tree.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(whole)}


def _array(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return leaf
    return jnp.asarray(leaf, jnp.result_type(leaf))  # of a dtype that does not give way
