"""Checks of arguments."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

REMEDY = (
    "Select what is trained: eqx.filter(model, eqx.is_inexact_array) in equinox, "
    "nnx.state(model, nnx.Param) in flax."
)


def is_parameter(leaf: Any) -> bool:
    if isinstance(leaf, bool | int | str) or callable(leaf):
        return False
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return isinstance(leaf, float | complex)
    return jnp.issubdtype(dtype, jnp.inexact)


def describe(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None:
        return f"{dtype} of shape {jnp.shape(leaf)}"
    if callable(leaf):
        return f"a function ({getattr(leaf, '__name__', type(leaf).__name__)})"
    return f"a {type(leaf).__name__} ({leaf!r:.60})"
