"""Weight decay as a transformation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from gradkit.tree import wide

PyTree = Any


class DecayState(NamedTuple):
    """How many updates have passed."""

    step: ArrayLike


def add_decayed_weights(
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adds w θ to the updates.

    Before an adaptive scaling this is L2 regularization, ½ w ‖θ‖² in the loss; between it and the
    learning rate it is decoupled decay, θ ← (1 − η w) θ − η u.

    Source: Loshchilov & Hutter (2019), algorithm 2.

    Args:
        weight_decay: w, a number or a schedule.
        mask: tree of booleans like the parameters or a prefix of them, or a function that makes one
            from the parameters; False leaves are not decayed.

    Raises:
        ValueError: `update` was called without the parameters.
    """

    def init(params):
        return DecayState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **_):
        if params is None:
            raise ValueError(
                "add_decayed_weights decays the parameters: call update(updates, state, params)"
            )
        w = weight_decay(state.step) if callable(weight_decay) else weight_decay
        chosen = mask(params) if callable(mask) else True if mask is None else mask
        decayed = jax.tree.map(
            lambda m, u, p: (wide(u) + w * wide(p)).astype(u.dtype) if m else u,
            jax.tree.broadcast(chosen, updates),
            updates,
            params,
        )
        return decayed, DecayState(optax.safe_increment(state.step))

    return optax.GradientTransformationExtraArgs(init, update)
