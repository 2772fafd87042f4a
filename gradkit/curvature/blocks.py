"""The diagonal blocks of an operator, by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from gradkit import tree
from gradkit.operators import Operator

PyTree = Any


def layer(path: str) -> str:
    """Returns the name of the layer of a parameter: its dotted path without the last part.

    Of a path of one part, the path itself. The `.value` of flax nnx is no part.
    """
    path = path.removesuffix(".value")
    return path.rpartition(".")[0] or path


def blocks(A: Operator, *, by: Callable[[str], str] = layer) -> dict[str, Operator]:
    """Returns the diagonal blocks of A, one for each group of leaves, by name in order.

    Cost: as A; a product of a block is one with all of A.

    Args:
        A: symmetric operator.
        by: from the dotted path of a leaf to the name of its block; by default its layer.

    Returns:
        For each name `A.restrict` to its leaves.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> params = {"hidden": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, "head": jnp.ones(3)}
        >>> def loss(p, x):
        ...     return jnp.mean(jnp.tanh(x @ p["hidden"]["w"] + p["hidden"]["b"]) @ p["head"])
        >>> H = gk.hessian(loss, params, jnp.ones((4, 2)))
        >>> {name: block.dimension for name, block in gk.blocks(H).items()}
        {'head': 3, 'hidden': 9}
    """
    names = _names(A, by)
    return {
        name: A.restrict(lambda path, name=name: by(path) == name) for name in dict.fromkeys(names)
    }


def block_diagonal(A: Operator, *, by: Callable[[str], str] = layer) -> Operator:
    """Returns A without the entries between different blocks, an operator on the same domain.

    Cost: as many products with A as there are blocks.

    Args:
        A: symmetric operator.
        by: from the dotted path of a leaf to the name of its block; by default its layer.
    """
    return Operator(Partial(_Blockwise(tuple(_names(A, by))), A.matvec), A.domain, A.traceable)


def _names(A: Operator, by: Callable[[str], str]) -> list[str]:
    return [by(tree.path_name(path)) for path, _ in jax.tree_util.tree_leaves_with_path(A.domain)]


@dataclasses.dataclass(frozen=True)
class _Blockwise:
    """Equal ones compare equal, so that jit recognizes them.

    Attributes:
        names: the block of each leaf.
    """

    names: tuple[str, ...]

    def __call__(self, matvec: Callable, v: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(v)
        result = list(leaves)
        for name in dict.fromkeys(self.names):
            inside = [other == name for other in self.names]
            block = [x if own else jnp.zeros_like(x) for x, own in zip(leaves, inside, strict=True)]
            product = jax.tree.leaves(matvec(structure.unflatten(block)))
            result = [y if own else x for x, y, own in zip(result, product, inside, strict=True)]
        return structure.unflatten(result)
