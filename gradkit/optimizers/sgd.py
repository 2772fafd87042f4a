"""Gradient descent, with momentum and Nesterov momentum."""

from __future__ import annotations

import optax
from jax.typing import DTypeLike

from gradkit.transforms.chain import chain
from gradkit.transforms.learning_rate import scale_by_learning_rate
from gradkit.transforms.link import Link, transformation
from gradkit.transforms.momentum import heavy_ball


@transformation
def sgd(
    learning_rate: optax.ScalarOrSchedule = 1e-2,
    momentum: optax.ScalarOrSchedule | None = None,
    nesterov: bool = False,
    accumulator_dtype: DTypeLike | None = None,
) -> Link:
    """Gradient descent: θ ← θ − η g, or θ ← θ − η v with momentum v ← μ v + g.

    Full-batch, mini-batch and single-example descent are this with different batches.

    Source: Robbins & Monro (1951); Polyak (1964); Nesterov (1983).

    Cost: none but the update; one tree of memory with momentum.

    Args:
        learning_rate: η, a number or a schedule.
        momentum: μ, 0 ≤ μ < 1; None (default) keeps no velocity.
        nesterov: see `gk.heavy_ball`.
        accumulator_dtype: dtype of the velocity; float32 at least by default.
    """
    if momentum is None:
        return chain(scale_by_learning_rate(learning_rate)).named("sgd")
    return chain(
        heavy_ball(momentum, nesterov, accumulator_dtype), scale_by_learning_rate(learning_rate)
    ).named("sgd")
