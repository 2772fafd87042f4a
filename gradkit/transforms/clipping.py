"""Clipping: bounds on how large an update may be."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree


class GlobalNormState(NamedTuple):
    """`norm`: of the last updates before clipping. `clipped`: whether it was above the limit."""

    norm: jax.Array
    clipped: jax.Array

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes both."""
        return {"norm_before_clipping": self.norm, "clipped": self.clipped}


def clip_by_global_norm(max_norm: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    """Scales updates g by c/‖g‖ if ‖g‖ > c, the norm over all leaves; else leaves them as they are.

    A norm that is not finite makes the updates NaN: it is not hidden.

    Source: Pascanu, Mikolov & Bengio (2013), algorithm 1.
    Differs: from optax in the norm, which is accumulated in float32 at least.

    Cost: two passes over the updates.

    Args:
        max_norm: c [the unit of the updates].
    """

    def init(params):
        return GlobalNormState(jnp.zeros((), tree.scalar_dtype(params)), jnp.zeros((), bool))

    def update(updates, state, params=None, **_):
        norm = tree.norm(updates)
        clipped = ~(norm <= max_norm)  # a NaN norm counts as too large
        factor = jnp.where(clipped, max_norm / jnp.where(clipped, norm, 1), 1)
        state = GlobalNormState(norm.astype(state.norm.dtype), clipped)
        return tree.scaled(factor, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def clip(max_delta: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    """Clips every element of the updates to [−c, c]. NaN stays NaN.

    Args:
        max_delta: c [the unit of the updates].
    """

    def update(updates, state, params=None, **_):
        clipped = jax.tree.map(
            lambda g: jnp.clip(g, -max_delta, max_delta).astype(g.dtype), updates
        )
        return clipped, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
