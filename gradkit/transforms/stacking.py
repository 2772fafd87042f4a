"""Many small leaves handled together."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import shardings
from gradkit.transforms.foreign import as_link
from gradkit.transforms.link import Link, link, state_type, transformation
from gradkit.transforms.views import seen_from_inside

PyTree = Any


class Stacked(NamedTuple):
    """A tree whose small leaves are stacked.

    Attributes:
        stacks: name -> (leaves, *shape of each).
        alone: the tree, with None for each leaf that is in a stack.
    """

    stacks: dict[str, jax.Array]
    alone: PyTree


@transformation
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

    A stack, and what is kept for it, is whole on every device, however its leaves are sharded.

    Cost: one more copy of the small leaves of gradient and parameters an update.

    Args:
        inner: a transformation of gradkit's.
        largest: most numbers of a leaf to be stacked.
        group: most leaves in a stack.

    Raises:
        TypeError: a member of the inner transformation looks at whole leaves; the message names it.
    """
    part = as_link(inner)
    if part.traits.leafwise:
        raise TypeError(
            f"stack_small_leaves: {part.traits.leafwise} may look at whole leaves, at their shapes "
            "or paths, and cannot be stacked; use it outside, or select leaves with gk.partition"
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
        now = h.now._replace(dtypes=None)
        u, following = part.advance(inward(updates), state[0], inner_params, now, seen)
        return outward(u), state_of(following)

    return link(init, update, around=part)


def _groups(whole: PyTree, largest: int, group: int) -> list[list[int]]:
    """The positions of the leaves in each stack; a leaf that is in none stays alone."""
    alike = collections.defaultdict(list)
    for index, leaf in enumerate(jax.tree.leaves(whole)):
        if leaf.size <= largest:
            alike[leaf.shape, leaf.dtype].append(index)
    stacks = (
        members[start : start + group]
        for members in alike.values()
        for start in range(0, len(members), group)
    )
    return [members for members in stacks if len(members) > 1]


def _stacked(whole: PyTree, groups: list[list[int]]) -> Stacked:
    leaves, structure = jax.tree.flatten(whole)
    stacks = {}
    for number, members in enumerate(groups):
        stacks[f"stack {number}"] = jnp.stack([shardings.gathered(leaves[i]) for i in members])
        for i in members:
            leaves[i] = None
    return Stacked(stacks, structure.unflatten(leaves))


def _unstacked(stacked: Stacked, whole: PyTree, groups: list[list[int]]) -> PyTree:
    like, structure = jax.tree.flatten(whole)
    leaves = structure.flatten_up_to(stacked.alone)
    for number, members in enumerate(groups):
        for row, i in zip(stacked.stacks[f"stack {number}"], members, strict=True):
            leaves[i] = shardings.spread(row, like[i])
    return structure.unflatten(leaves)
