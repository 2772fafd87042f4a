"""Many small leaves handled together."""

from __future__ import annotations

import collections
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit.transforms.link import Link, as_link, link, seen_from_inside, state_type

PyTree = Any


def stack_small_leaves(
    inner: optax.GradientTransformation, *, largest: int = 16_384, group: int = 32
) -> Link:
    """Runs a transformation on stacks of the small leaves, with its state kept stacked.

    Leaves of one shape and dtype with at most `largest` numbers are stacked, `group` at a time;
    larger ones stay alone. The updates are the same. A tree of thousands of small leaves compiles
    and runs in a fraction of the time; one of large leaves alone is not changed.

    The inner transformation must not look at whole leaves: clipping by the global norm is allowed,
    by each leaf's norm is not, nor are masks, labels and members that gradkit does not know. Those
    go around this one: `gk.partition({"decay": gk.stack_small_leaves(...), ...}, labels)`.

    Cost: one more copy of the small leaves of gradient and parameters an update.

    Args:
        inner: a transformation of gradkit's.
        largest: most numbers of a leaf to be stacked.
        group: most leaves in a stack.

    Raises:
        TypeError: a member of the inner transformation looks at whole leaves; the message names it.
    """
    part = as_link(inner)
    if part.leafwise:
        raise TypeError(
            f"stack_small_leaves: {part.leafwise} may look at whole leaves, at their shapes or "
            "paths, and cannot be stacked; use it outside, or select leaves with gk.partition"
        )
    state_of = state_type((part.name,))

    def init(params, step):
        return state_of(part.start(_stacked(params, _groups(params, largest, group)), step))

    def update(updates, state, params, h, **extra):
        like = updates if params is None else params
        groups = _groups(like, largest, group)

        def inward(whole):
            return _stacked(whole, groups)

        def outward(stacks):
            return _unstacked(stacks, like, groups)

        inner_params = None if params is None else inward(params)
        seen = seen_from_inside(extra, inward, outward, outward)
        u, following = part.advance(inward(updates), state[0], inner_params, h.step, seen)
        return outward(u), state_of(following)

    return link(init, update, around=part)


def _groups(whole: PyTree, largest: int, group: int) -> list[list[int]]:
    """The positions of the leaves in each stack; a list of one is a leaf that stays alone."""
    alike = collections.defaultdict(list)
    for index, leaf in enumerate(jax.tree.leaves(whole)):
        alone = index if leaf.size > largest else None
        alike[leaf.shape, leaf.dtype, alone].append(index)
    return [
        members[start : start + group]
        for members in alike.values()
        for start in range(0, len(members), group)
    ]


def _stacked(whole: PyTree, groups: list[list[int]]) -> list[jax.Array]:
    leaves = jax.tree.leaves(whole)
    return [
        jnp.stack([leaves[i] for i in members]) if len(members) > 1 else leaves[members[0]]
        for members in groups
    ]


def _unstacked(stacks: list[jax.Array], whole: PyTree, groups: list[list[int]]) -> PyTree:
    leaves, structure = jax.tree.flatten(whole)
    for stack, members in zip(stacks, groups, strict=True):
        rows = stack if len(members) > 1 else [stack]
        for row, index in zip(rows, members, strict=True):
            leaves[index] = row
    return structure.unflatten(leaves)
