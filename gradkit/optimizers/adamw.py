"""AdamW: Adam with decoupled weight decay."""

from __future__ import annotations

import optax
from jax.typing import DTypeLike

from gradkit.transforms.adaptive import scale_by_adam
from gradkit.transforms.chain import chain
from gradkit.transforms.decay import add_decayed_weights
from gradkit.transforms.learning_rate import scale_by_learning_rate
from gradkit.transforms.link import Link, transformation
from gradkit.transforms.selection import Labels


@transformation
def adamw(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    eps_root: optax.ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: optax.ScalarOrSchedule = 1e-4,
    mask: Labels | None = None,
    *,
    nesterov: bool = False,
    nu_dtype: DTypeLike | None = None,
) -> Link:
    """AdamW: θ ← (1 − η w) θ − η u, with u the scaled update of Adam.

    Source: Loshchilov & Hutter (2019), algorithm 2, with their schedule multiplier in η.

    Differs: from optax in `nu_dtype` and the moments' dtypes: see `gk.scale_by_adam`.

    Cost: two trees of memory.

    Args:
        learning_rate: η, a number or a schedule.
        b1: β₁, decay of the average of g.
        b2: β₂, decay of the average of g².
        eps: ε outside the root [the unit of g].
        eps_root: ε inside the root [the unit of g²].
        mu_dtype: dtype of the average of g; float32 at least by default.
        weight_decay: w, a number or a schedule; multiplied by the learning rate.
        mask: which leaves decay; see `gk.add_decayed_weights`.
        nesterov: see `gk.scale_by_adam`.
        nu_dtype: dtype of the average of g²; float32 at least by default.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov, nu_dtype=nu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    ).named("adamw")
