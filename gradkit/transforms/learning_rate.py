"""The learning rate: how far to go along an update."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from gradkit import tree


class LearningRateState(NamedTuple):
    """`step`: updates so far. `learning_rate`: the rate of the last one."""

    step: ArrayLike
    learning_rate: jax.Array

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes the rate."""
        return {"learning_rate": self.learning_rate}


def scale_by_learning_rate(
    learning_rate: optax.ScalarOrSchedule, *, flip_sign: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Scales updates u to −η u, the step to add to the parameters.

    Differs: a rate must be given; optax without one leaves the updates and their sign as they are.

    Args:
        learning_rate: η, a number or a schedule: a function of the number of updates so far.
            It is kept in float32 at least, whatever the parameters are.
        flip_sign: turn a gradient into a descent step (default); False keeps the sign.
    """

    def rate(step):
        value = learning_rate(step) if callable(learning_rate) else learning_rate
        return jnp.array(value, jnp.promote_types(jnp.float32, jnp.result_type(value)))

    def init(params):
        step = jnp.zeros((), jnp.int32)
        return LearningRateState(step, rate(step))

    def update(updates, state, params=None, **_):
        eta = rate(state.step)
        step = tree.scaled(-eta if flip_sign else eta, updates)
        return step, LearningRateState(optax.safe_increment(state.step), eta)

    return optax.GradientTransformationExtraArgs(init, update)
