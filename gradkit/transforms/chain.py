"""Composition: the output of each transformation is the input of the next."""

from __future__ import annotations

from typing import Any

import optax


def chain(*members: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation that applies `members` one after the other.

    Members of gradkit and of optax mix freely, and the chain is itself a member of either's chains.
    Extra arguments of `update` reach every member; its state is the tuple of the members' states.

    Args:
        *members: gradient transformations, in the order in which gradients pass them.

    Raises:
        TypeError: a member is not a gradient transformation; the message gives its position.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> tx = gk.chain(gk.clip_by_global_norm(1.0), gk.sgd(0.5))
        >>> updates, state = tx.update(jnp.array([0.0, 4.0]), tx.init(jnp.zeros(2)))
        >>> updates
        Array([-0. , -0.5], dtype=float32)
    """
    for position, member in enumerate(members):
        if not isinstance(member, optax.GradientTransformation):
            hint = f"; call it: {member.__name__}(...)" if hasattr(member, "__name__") else ""
            raise TypeError(
                f"chain: member {position} must be a gradient transformation, "
                f"got {type(member).__name__}{hint}"
            )
    links = [optax.with_extra_args_support(member) for member in members]

    def init(params):
        return tuple(link.init(params) for link in links)

    def update(updates, state, params=None, **extra: Any):
        if len(state) != len(links):
            raise ValueError(
                f"chain: the state is of a chain of {len(state)} members, this one has "
                f"{len(links)}: pass what its own init returned"
            )
        following = []
        for link, link_state in zip(links, state, strict=True):
            updates, link_state = link.update(updates, link_state, params, **extra)
            following.append(link_state)
        return updates, tuple(following)

    return optax.GradientTransformationExtraArgs(init, update)
