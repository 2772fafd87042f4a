"""AdaHessian: Adam with the diagonal of the Hessian in the place of the gradient's squares."""

from __future__ import annotations

import optax

from gradkit.transforms.chain import chain
from gradkit.transforms.curvature_scaling import scale_by_adahessian
from gradkit.transforms.decay import add_decayed_weights
from gradkit.transforms.learning_rate import scale_by_learning_rate
from gradkit.transforms.link import Link, transformation
from gradkit.transforms.selection import Labels


@transformation
def adahessian(
    learning_rate: optax.ScalarOrSchedule = 0.15,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-4,
    power: optax.ScalarOrSchedule = 1.0,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Labels | None = None,
    *,
    every: int = 1,
) -> Link:
    """AdaHessian: θ ← (1 − η w) θ − η m̂ / (v̂^(k/2) + ε), v̂ the average of D², D diagonal.

    Its `update` takes what `observe` returns: `tx.update(point.grad, state, params,
    **point.extras)`, with `curvature=gk.hessian` and a `key`.

    Source: Yao et al. (2021), "AdaHessian: an adaptive second order optimizer for machine
    learning", algorithm 1; η is theirs for images.
    Differs: see `gk.scale_by_adahessian`.

    Cost: one linearization and one product every so many steps; two trees of memory.

    Args:
        learning_rate: η, a number or a schedule.
        b1: β₁, decay of the average of g.
        b2: β₂, decay of the average of D².
        eps: ε [the unit of D to the power k].
        power: k, 0 < k ≤ 1.
        weight_decay: w, a number or a schedule; multiplied by the learning rate.
        mask: which leaves decay; see `gk.add_decayed_weights`.
        every: steps from one diagonal to the next.

    Raises:
        TypeError: `update` was called without the extra arguments of `observe`.
        ValueError: `every` is not a positive whole number.
    """
    return chain(
        scale_by_adahessian(b1, b2, eps, power, every=every),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    ).named("adahessian")
