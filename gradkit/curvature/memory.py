"""Whether the residuals of a linearization fit in memory: what `linearize=None` goes by."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax

SHARE = 1 / 4  # of the memory: the rest is for the model, the data and a basis of vectors


def fits(linearized: Callable, *args: Any) -> bool:
    """Returns whether what `linearized(*args)` would keep takes a quarter of the memory at most."""
    return residual_bytes(linearized, *args) <= SHARE * device_bytes()


def residual_bytes(linearized: Callable, *args: Any) -> int:
    """Returns the bytes of the arrays that `linearized(*args)` would return.

    Copies of arguments among them, which `jit` makes, count as well; all are taken to lie on one
    device. Nothing is computed: the function is traced, once for all arguments of the same shapes,
    and a call of it that follows is not traced again.

    Args:
        linearized: a function compiled by `jax.jit`.
        *args: its arguments, trees of arrays, traced or not.
    """
    leaves, structure = jax.tree.flatten(args)
    return _residual_bytes(linearized, structure, tuple(map(jax.typeof, leaves)))


@functools.lru_cache(maxsize=256)
def _residual_bytes(linearized: Any, structure: Any, types: tuple) -> int:
    outputs = linearized.trace(*structure.unflatten(types)).out_info
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(outputs))


@functools.cache
def device_bytes() -> int:
    """Returns the memory of the first device, or of the machine where the device does not tell."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        return limit
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such call on Windows
        return 8 * 2**30
