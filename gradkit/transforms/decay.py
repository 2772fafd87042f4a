"""Weight decay as a transformation."""

from __future__ import annotations

import optax

from gradkit.transforms.link import Link, link, transformation
from gradkit.transforms.selection import Labels, mask_checked, on_params, traits_of
from gradkit.tree import wide


@transformation
def add_decayed_weights(
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Labels | None = None,
    *,
    flip_sign: bool = False,
) -> Link:
    """Adds w θ to the updates.

    The place in the chain decides what is decayed by how much. Before an adaptive scaling it is L2
    regularization, ½ w ‖θ‖² in the loss. Between the scaling and the learning rate it is decoupled,
    times the rate: θ ← (1 − η w) θ − η u. After the learning rate, with `flip_sign`, it is
    decoupled from the rate too: θ ← (1 − w) θ − η u, where a schedule for w is the multiplier.

    Source: Loshchilov & Hutter (2019), algorithm 2.
    Differs: from optax in `flip_sign`, and in that the mask may be a pattern of paths.

    Args:
        weight_decay: w, a number or a schedule.
        mask: which leaves decay, as in `gk.masked`; all of them by default.
        flip_sign: subtract w θ, for a place after the learning rate.

    Raises:
        ValueError: the mask does not fit, or `update` was called without the parameters.
    """

    member = "add_decayed_weights"

    def update(updates, state, params, h, **_):
        w = -h.weight_decay if flip_sign else h.weight_decay

        def decayed(p, u, decays):
            return wide(u) + w * wide(p) if decays else u

        return on_params(decayed, updates, params, mask, member), state

    init = mask_checked(mask, member)
    return link(init, update, **traits_of(mask), weight_decay=weight_decay)
