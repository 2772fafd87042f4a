"""Composition: the output of each transformation is the input of the next."""

from __future__ import annotations

import collections

import optax

from gradkit.transforms.foreign import as_link
from gradkit.transforms.link import Link, Traits, check_state, state_type, transformation


@transformation
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

    def advance(updates, state, params, now, extra):
        check_state(state, names)
        following = []
        for link, link_state in zip(links, state, strict=True):
            updates, link_state = link.advance(updates, link_state, params, now, extra)
            following.append(link_state)
        return updates, state_of(*following)

    def steps(params):
        of_leaves = zip(*(link.traits.steps(params) for link in links), strict=True)
        return [next((s for s in (True, None) if s in flags), False) for flags in of_leaves]

    last = links[-1].traits if links else Traits()
    traits = last._replace(
        leafwise=next((link.traits.leafwise for link in links if link.traits.leafwise), None),
        passes_on=next((link.traits.passes_on for link in links if link.traits.passes_on), None),
    )
    return Link("chain", start, advance, names, traits._replace(steps=steps) if links else traits)


def _numbered(names: list[str]) -> tuple[str, ...]:
    seen: collections.Counter[str] = collections.Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return tuple(numbered)
