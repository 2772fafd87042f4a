"""Adadelta: steps of the parameters' own unit."""

from __future__ import annotations

import optax

from gradkit.transforms.adaptive import scale_by_adadelta
from gradkit.transforms.chain import chain
from gradkit.transforms.decay import add_decayed_weights
from gradkit.transforms.learning_rate import scale_by_learning_rate
from gradkit.transforms.link import Link, transformation
from gradkit.transforms.selection import Labels


@transformation
def adadelta(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    rho: optax.ScalarOrSchedule = 0.9,
    eps: optax.ScalarOrSchedule = 1e-6,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Labels | None = None,
) -> Link:
    """Adadelta: θ ← θ − η u, with u = g √(x + ε)/√(r + ε), r and x averages of g² and u².

    Source: Zeiler (2012), algorithm 1; his ρ is 0.95.
    Differs: from optax in the default of `learning_rate`, the paper's 1, where optax without one
    ascends; and in the name of `mask`, `weight_decay_mask` there.

    Cost: two trees of memory.

    Args:
        learning_rate: η, a number or a schedule; 1 is the method without one.
        rho: ρ of both averages, 0 ≤ ρ < 1.
        eps: ε [the unit of g² and of the parameters squared]; it sets the size of the first steps.
        weight_decay: w of L2 regularization, g + w θ.
        mask: which leaves decay, as in `gk.masked`.
    """
    return chain(
        add_decayed_weights(weight_decay, mask),
        scale_by_adadelta(rho, eps),
        scale_by_learning_rate(learning_rate),
    ).named("adadelta")
