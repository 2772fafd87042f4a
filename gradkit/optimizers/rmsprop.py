"""RMSProp: gradients divided by the root of their running mean square."""

from __future__ import annotations

import jax
import optax

from gradkit.transforms.adaptive import scale_by_rms, scale_by_stddev
from gradkit.transforms.chain import chain
from gradkit.transforms.learning_rate import scale_by_learning_rate
from gradkit.transforms.link import Link, transformation
from gradkit.transforms.momentum import heavy_ball


@transformation
def rmsprop(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    decay: optax.ScalarOrSchedule = 0.9,
    eps: optax.ScalarOrSchedule = 1e-8,
    initial_scale: float | jax.Array = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: optax.ScalarOrSchedule | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> Link:
    """RMSProp: θ ← θ − η g/√(r + ε), with r ← ρ r + (1 − ρ) g².

    Source: Hinton (2012), lecture 6e; Graves (2013) for `centered`.

    Cost: one tree of memory, one more each for `centered` and `momentum`.

    Args:
        learning_rate: η, a number or a schedule.
        decay: ρ, 0 ≤ ρ < 1.
        eps: ε, in the unit of g² inside the root, of g outside.
        initial_scale: r before the first update.
        eps_in_sqrt: √(r + ε) (default), or √r + ε.
        centered: use the variance r − m² in place of r.
        momentum: μ of a velocity v ← μ v − η u kept after the learning rate; None for none.
        nesterov: see `gk.heavy_ball`.
        bias_correction: divide r by 1 − ρᵗ.
    """
    scale = scale_by_stddev if centered else scale_by_rms
    link = scale(decay, eps, initial_scale, eps_in_sqrt, bias_correction)
    links = [link, scale_by_learning_rate(learning_rate)]
    if momentum is not None:
        links.append(heavy_ball(momentum, nesterov))
    return chain(*links).named("rmsprop")
