"""Whether the leaves of a tree can be parameters or arguments: checked before anything is traced.

A tree of a model often holds more than its parameters: activation functions, names, counters and
random keys. JAX says of such a leaf that it is "not a valid JAX type", and not which one it is.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

PyTree = Any

MOST_LINES = 8  # of a message, one for each leaf

REMEDY = (
    "Pass the floating-point leaves alone: eqx.filter(model, eqx.is_inexact_array) for equinox, "
    "nnx.state(model, nnx.Param) for flax.nnx. Put the model together again inside the loss, with "
    "eqx.combine or nnx.merge. Write a number as 1.0, not 1."
)

_ARRAY = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct | jax.core.ShapedArray


def check_parameters(params: PyTree, *, member: str, name: str = "the parameters") -> None:
    """Raises a `TypeError` unless every leaf is a floating-point or complex array or number.

    Shapes and dtypes are all it looks at, so leaves may be traced, or `jax.ShapeDtypeStruct`.

    Args:
        params: tree of parameters. `None` has no leaf, and neither has optax's `MaskedNode`.
        member: the public function that takes them, which begins the message.
        name: what that function calls them.
    """
    if lines := list_bad_leaves(params):
        raise TypeError(
            f"{member}: {name} must be floating-point arrays or numbers, got\n"
            + "\n".join(lines)
            + f"\n{REMEDY}"
        )


def check_arguments(args: Any, *, member: str, name: str = "args") -> None:
    """Raises a `TypeError` unless every leaf is an array or a number, of whatever dtype.

    Args:
        args: tree of what a function takes besides its parameters.
        member: the public function that takes it, which begins the message.
        name: what that function calls it: the first part of every path.
    """
    if lines := _list_leaves(args, _is_array, root=name):
        raise TypeError(
            f"{member}: {name} must be arrays, numbers or random keys, got\n"
            + "\n".join(lines)
            + "\nLet the function close over what is not an array. Of a model, pass "
            f"eqx.filter(model, eqx.is_array) or nnx.state(model) in {name}."
        )


def list_bad_leaves(tree: PyTree) -> list[str]:
    """Returns a line for each leaf that cannot be a parameter; none where all of them can.

    A line is the leaf's path and what it is, such as `  layers.0.activation: a function (relu)`.
    Beyond 8 leaves, a last line has the number of the others.
    """
    return _list_leaves(tree, is_parameter, bare="the parameter")


def list_non_arrays(tree: PyTree) -> list[str]:
    """Returns a line for each leaf that is not an array or a number, of whatever dtype."""
    return _list_leaves(tree, _is_array, bare="the leaf")


def _list_leaves(
    tree: PyTree, fits: Callable[[Any], bool], *, bare: str = "", root: str = ""
) -> list[str]:
    """The lines of the leaves that do not fit; every path begins with `root`."""
    if all(map(fits, jax.tree.leaves(tree))):
        return []
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    lines = [
        f"  {_path_name(path, root) or bare}: {_describe(x)}" for path, x in leaves if not fits(x)
    ]
    more = len(lines) - MOST_LINES
    return lines if more <= 0 else [*lines[:MOST_LINES], f"  ... and {more} more"]


def _path_name(path: tuple, root: str) -> str:
    dotted = jax.tree_util.keystr(path, simple=True, separator=".")
    return ".".join(part for part in (root, dotted) if part)


def is_parameter(leaf: Any) -> bool:
    """Returns whether a leaf is a floating-point or complex array or number."""
    if isinstance(leaf, _ARRAY):
        return _is_inexact(leaf.dtype)
    return isinstance(leaf, float | complex)


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, _ARRAY):
        return _is_jax_dtype(leaf.dtype)
    return isinstance(leaf, bool | int | float | complex)


@functools.cache
def _is_inexact(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)


@functools.cache
def _is_jax_dtype(dtype: Any) -> bool:
    kinds = jnp.number, jnp.bool_, jax.dtypes.extended
    return any(jnp.issubdtype(dtype, kind) for kind in kinds)


def _describe(leaf: Any) -> str:
    """What a leaf is, in a few words."""
    kind = type(leaf).__name__
    if isinstance(leaf, _ARRAY) and not isinstance(leaf, str | bytes):
        dtype = "float0" if leaf.dtype == jax.dtypes.float0 else leaf.dtype
        what = f"{dtype}{list(leaf.shape)}"
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return f"{what}, a random key" if is_key else what
    if isinstance(leaf, type):
        return f"a class ({leaf.__name__})"
    if isinstance(leaf, np.dtype):
        return f"a dtype ({leaf})"
    if isinstance(leaf, str | bytes | int | enum.Enum):
        return f"{_article(kind)} {kind} ({_shorten(repr(leaf))})"
    function = leaf.func if isinstance(leaf, functools.partial) else leaf
    if callable(leaf) and isinstance(name := getattr(function, "__name__", None), str):
        return f"a function ({_shorten(name)})"
    return f"{_article(kind)} {kind}"


def _article(noun: str) -> str:
    return "an" if noun[:1].lower() in tuple("aeiou") else "a"


def _shorten(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
