"""Shardings that are part of the types of arrays, as in JAX's Explicit mode.

In Auto mode, in which the compiler decides, all of these leave arrays as they are.
"""

from __future__ import annotations

import math
from typing import Any

import jax

PyTree = Any


def of(x: Any, leading: int = 0) -> jax.sharding.NamedSharding | None:
    """Returns the sharding that is part of an array's type, as in JAX's Explicit mode.

    None where no axis is sharded, and in Auto mode, in which the compiler decides.

    Args:
        x: array or `jax.ShapeDtypeStruct`.
        leading: axes before those of x, which are not sharded.
    """
    given = jax.typeof(x).sharding
    if all(axis is None for axis in given.spec):
        return None
    spec = jax.sharding.PartitionSpec(*[None] * leading, *given.spec)
    return jax.sharding.NamedSharding(given.mesh, spec)


def gathered(x: jax.Array, *axes: int) -> jax.Array:
    """Returns x with these axes whole on every device, or all, where Explicit mode asks for it."""
    given = of(x)
    if given is None:
        return x
    whole = {axis % x.ndim for axis in axes or range(x.ndim)}
    spec = (None if axis in whole else name for axis, name in enumerate(given.spec))
    kept = jax.sharding.PartitionSpec(*spec)
    return jax.reshard(x, jax.sharding.NamedSharding(given.mesh, kept))


def shards(x: Any, axis: int) -> int:
    """Returns over how many devices the type of x says that an axis is split."""
    given = of(x)
    return 1 if given is None else math.prod(given.mesh.shape[n] for n in _names(given, axis))


def not_split_as(batch: PyTree, a: PyTree) -> PyTree:
    """Returns a tree whole along the axes of a mesh that the examples of a batch are split over."""
    given = [of(x) for x in jax.tree.leaves(batch)]
    taken = {name for each in given if each is not None for name in _names(each, 0)}

    def leaf(x):
        sharding = of(x)
        axes = [i for i in range(x.ndim) if sharding and taken.intersection(_names(sharding, i))]
        return gathered(x, *axes) if axes else x

    return jax.tree.map(leaf, a)


def spread(x: jax.Array, like: Any) -> jax.Array:
    """Returns x sharded as the type of `like` says."""
    wanted = of(like)
    return x if wanted is None else jax.reshard(x, wanted)


def _names(given: jax.sharding.NamedSharding, axis: int) -> tuple[str, ...]:
    """The axes of the mesh that an axis of an array is split over."""
    names = given.spec[axis]
    return (names,) if isinstance(names, str) else names or ()
