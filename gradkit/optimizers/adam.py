"""Adam: momentum over a rate for every parameter."""

from __future__ import annotations

import jax
import optax
from jax.typing import DTypeLike

from gradkit.transforms.adaptive import scale_by_adam
from gradkit.transforms.chain import chain
from gradkit.transforms.learning_rate import scale_by_learning_rate


def adam(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    eps_root: float | jax.Array = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Adam: θ ← θ − η m̂ / (√(v̂ + ε_root) + ε), m̂ and v̂ the corrected averages of g and g².

    Source: Kingma & Ba (2015), algorithm 1.

    Cost: two trees of memory.

    Args:
        learning_rate: η, a number or a schedule.
        b1: β₁, decay of the average of g.
        b2: β₂, decay of the average of g².
        eps: ε outside the root [the unit of g].
        eps_root: ε inside the root [the unit of g²].
        mu_dtype: dtype of the average of g; the parameters' by default.
        nesterov: see `gk.scale_by_adam`.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )
