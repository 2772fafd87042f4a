"""Sophia: momentum over the diagonal of the curvature, clipped."""

from __future__ import annotations

import optax

from gradkit.transforms.chain import chain
from gradkit.transforms.curvature_scaling import scale_by_sophia
from gradkit.transforms.decay import add_decayed_weights
from gradkit.transforms.learning_rate import scale_by_learning_rate
from gradkit.transforms.link import Link, transformation
from gradkit.transforms.selection import Labels


@transformation
def sophia(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: optax.ScalarOrSchedule = 0.96,
    b2: optax.ScalarOrSchedule = 0.99,
    eps: optax.ScalarOrSchedule = 1e-12,
    gamma: optax.ScalarOrSchedule = 0.01,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Labels | None = None,
    *,
    every: int = 10,
) -> Link:
    """Sophia: θ ← (1 − η w) θ − η clip(m / max(γ h, ε), ±1), m and h averages of g and diagonals.

    Its `update` takes what `observe` returns: `tx.update(point.grad, state, params,
    **point.extras)`, with `curvature=gk.hessian` and a `key` for Sophia-H, or
    `diagonal=functools.partial(gk.fisher_diagonal, key=key, likelihood="categorical")` for
    Sophia-G.

    Source: Liu et al. (2024), "Sophia: a scalable stochastic second-order optimizer for language
    model pre-training", algorithm 3.
    Differs: see `gk.scale_by_sophia`; weights do not decay unless they are told to.

    Cost: one linearization and one product every so many steps; two trees of memory.

    Args:
        learning_rate: η, a number or a schedule.
        b1: β₁, decay of the average of g.
        b2: β₂, decay of the average of the diagonal.
        eps: ε [the unit of γ h].
        gamma: γ.
        weight_decay: w, a number or a schedule; multiplied by the learning rate.
        mask: which leaves decay; see `gk.add_decayed_weights`.
        every: steps from one diagonal to the next.

    Raises:
        TypeError: `update` was called without the extra arguments of `observe`.
        ValueError: `every` is not a positive whole number.
    """
    return chain(
        scale_by_sophia(b1, b2, eps, gamma, every=every),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    ).named("sophia")
