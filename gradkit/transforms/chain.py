"""Composition: the output of each transformation is the input of the next."""

from __future__ import annotations

import collections

import optax

from gradkit import tree
from gradkit.transforms.link import Link, as_link, check_state, state_type


def chain(*members: optax.GradientTransformation, **named: optax.GradientTransformation) -> Link:
    """Returns the transformation that applies its members one after the other.

    Members of gradkit and of optax mix freely, and the chain is itself a member of either's chains.
    Extra arguments of `update` reach every member. The state has one field a member and `step`, the
    number of updates so far, which the members share; `init(params, step=k)` begins at k.

    Args:
        *members: gradient transformations, in the order in which gradients pass them. Their states
            are fields with the names of their factories; of a second one of a kind, `name_2`.
        **named: the same with names of your own.

    Raises:
        TypeError: a member is not a gradient transformation, or some have names and some have not.
        ValueError: a member is called `step`.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> tx = gk.chain(clip=gk.clip_by_global_norm(1.0), descent=gk.sgd(0.5))
        >>> updates, state = tx.update(jnp.array([0.0, 4.0]), tx.init(jnp.zeros(2)))
        >>> updates
        Array([-0. , -0.5], dtype=float32)
        >>> state.clip.norm, state.step
        (Array(4., dtype=float32), Array(1, dtype=int32))
    """
    if members and named:
        raise TypeError(
            f"chain: give every member a name or none, got {len(members)} without and "
            f"{', '.join(named)}"
        )
    if "step" in named:
        raise ValueError(
            "chain: 'step' is the name of the chain's own counter; name the member otherwise"
        )
    for place, member in named.items() if named else enumerate(members):
        if not isinstance(member, optax.GradientTransformation):
            hint = f"; call it: {member.__name__}(...)" if hasattr(member, "__name__") else ""
            raise TypeError(
                f"chain: member {place} must be a gradient transformation, "
                f"got {type(member).__name__}{hint}"
            )
    links = [as_link(member) for member in (*members, *named.values())]
    names = tuple(named) or _numbered([link.name for link in links])
    state_of = state_type(names)

    def start(params, step):
        return state_of(*(link.start(params, step) for link in links))

    def advance(updates, state, params, step, extra):
        check_state(state, names)
        following = []
        for link, link_state in zip(links, state, strict=True):
            updates, link_state = link.advance(updates, link_state, params, step, extra)
            following.append(link_state)
        return updates, state_of(*following)

    cast = links[-1].cast if links else tree.cast_updates
    leafwise = next((link.leafwise for link in links if link.leafwise), None)
    evaluates = bool(links) and links[-1].evaluates
    about = {"cast": cast, "leafwise": leafwise, "evaluates": evaluates}
    return Link("chain", start, advance, names, **about)


def _numbered(names: list[str]) -> tuple[str, ...]:
    seen: collections.Counter[str] = collections.Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return tuple(numbered)
