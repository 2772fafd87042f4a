"""Low-precision parameters that still make small steps."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.core import needs_params
from gradkit.transforms.foreign import as_link
from gradkit.transforms.link import Link, link, state_type, transformation
from gradkit.transforms.views import seen_from_inside
from gradkit.tree import wide

PyTree = Any


@transformation
def master_weights(inner: optax.GradientTransformation) -> Link:
    """Runs an optimizer on a float32 copy of low-precision parameters, which follow it rounded.

    A step of less than half a unit in the last place is not lost: it is kept in the copy. The
    updates are float32, so that `optax.apply_updates` makes the parameters the copy, rounded. Where
    a parameter is not the copy rounded, it was changed from outside, and the copy takes it over.

    Source: Micikevicius et al. (2018), "Mixed precision training", section 3.1.

    Cost: one tree of float32 memory beside the optimizer's.

    Args:
        inner: a whole optimizer, learning rate included.

    Raises:
        ValueError: `update` was called without the parameters.
    """
    part = as_link(inner)
    state_of = state_type((part.name, "master"))

    def init(params, step):
        master = tree.wide_copy(params)
        return state_of(part.start(master, step), master)

    def update(updates, state, params, h, **extra):
        needs_params(params, member="master_weights")
        held = jax.tree.map(
            lambda m, p: jnp.where(m.astype(p.dtype) == p, m, wide(p)), state.master, params
        )
        widened = functools.partial(jax.tree.map, wide)
        lowered = functools.partial(optax.tree.cast_like, other_tree=params)
        extra = seen_from_inside(extra, widened, lowered, lowered)
        now = h.now._replace(dtypes=jax.tree.map(jnp.result_type, held))
        u, inner_state = part.advance(widened(updates), state[0], held, now, extra)
        master = jax.tree.map(lambda m, u: (m + wide(u)).astype(m.dtype), held, u)
        following = jax.tree.map(lambda m, p: wide(m.astype(p.dtype)) - wide(p), master, params)
        return following, state_of(inner_state, master)

    return link(init, update, around=part, traits={"cast": tree.as_they_are})


@transformation
def stochastic_rounding(key: jax.Array | int = 0) -> Link:
    """Rounds θ + u to the parameters' dtype up or down at random, right in the mean.

    The last member of a chain: small steps of low-precision parameters are made with the
    probability that is their part of a unit in the last place. Updates are float32, so that
    `optax.apply_updates` adds them exactly; float32 parameters are left alone.

    Source: Gupta et al. (2015), "Deep learning with limited numerical precision", section 3.
    Differs: in bits: random ones are added below the last place kept, and the sum is cut off.

    Cost: one random number a parameter.

    Args:
        key: random key, or the seed of one; each update folds its step into it.

    Raises:
        ValueError: `update` was called without the parameters.
        TypeError: a parameter is float16, whose range differs from float32's.
    """

    def update(updates, state, params, h, **_):
        needs_params(params, member="stochastic_rounding")
        drawn = jax.random.fold_in(jax.random.key(key) if isinstance(key, int) else key, h.step)
        leaves, structure = jax.tree.flatten(updates)
        keys = structure.unflatten(
            list(jax.random.split(drawn, max(len(leaves), 1)))[: len(leaves)]
        )

        def leaf(u, p, key):
            if p.dtype == jnp.float16:
                raise TypeError("stochastic_rounding: expected bfloat16 or float32, got float16")
            if p.dtype != jnp.bfloat16:
                return u
            noise = jax.random.bits(key, p.shape, jnp.uint16).astype(jnp.uint32)
            return cut_off(wide(p) + wide(u), noise) - wide(p)

        return jax.tree.map(leaf, updates, params, keys), state

    return link(None, update, traits={"cast": tree.as_they_are})


def cut_off(x: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns float32 numbers cut off to bfloat16's, once 16 bits of noise are added below."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
