"""The learning rate: how far to go along an update."""

from __future__ import annotations

import jax
import optax

from gradkit.transforms.link import Link, link, transformation
from gradkit.tree import wide


@transformation
def scale_by_learning_rate(
    learning_rate: optax.ScalarOrSchedule, *, flip_sign: bool = True
) -> Link:
    """Scales updates u to −η u, the step to add to the parameters.

    Differs: `learning_rate` must be given; optax without one leaves the updates and their sign
    as they are.

    Args:
        learning_rate: η, a number or a schedule: a function of the number of updates so far.
        flip_sign: turn a gradient into a descent step (default); False keeps the sign.
    """

    def update(updates, state, params, h, **_):
        eta = -h.learning_rate if flip_sign else h.learning_rate
        return jax.tree.map(lambda u: eta * wide(u), updates), state

    return link(None, update, steps=flip_sign, learning_rate=learning_rate)
