"""AdaGrad: gradients divided by the root of the sum of their squares."""

from __future__ import annotations

import jax
import optax

from gradkit.transforms.adaptive import scale_by_rss
from gradkit.transforms.chain import chain
from gradkit.transforms.learning_rate import scale_by_learning_rate
from gradkit.transforms.link import Link, transformation


@transformation
def adagrad(
    learning_rate: optax.ScalarOrSchedule = 1e-1,
    initial_accumulator_value: float | jax.Array = 0.1,
    eps: optax.ScalarOrSchedule = 1e-7,
    *,
    eps_in_sqrt: bool = True,
) -> Link:
    """AdaGrad: θ ← θ − η g/√(r + ε), with r ← r + g².

    Source: Duchi, Hazan & Singer (2011).
    Differs: from optax in `eps_in_sqrt`. The textbook form η g/(ε + √r) from r = 0 is
    `adagrad(eta, 0.0, eps_in_sqrt=False)`.

    Cost: one tree of memory.

    Args:
        learning_rate: η, a number or a schedule.
        initial_accumulator_value: r before the first update [the unit of g²].
        eps: ε, in the unit of g² inside the root, of g outside.
        eps_in_sqrt: √(r + ε) (default), or √r + ε.
    """
    return chain(
        scale_by_rss(initial_accumulator_value, eps, eps_in_sqrt=eps_in_sqrt),
        scale_by_learning_rate(learning_rate),
    ).named("adagrad")
