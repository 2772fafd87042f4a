"""Regularizers that act on the parameters themselves: proximal steps and projections."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit.transforms.clipping import unit_axes
from gradkit.transforms.link import Link, link, transformation
from gradkit.transforms.norms import scaled_norms
from gradkit.transforms.selection import Labels, mask_checked, on_params, traits_of
from gradkit.tree import wide


@transformation
def proximal_step(
    learning_rate: optax.ScalarOrSchedule,
    l1: optax.ScalarOrSchedule = 0.0,
    l2: optax.ScalarOrSchedule = 0.0,
    mask: Labels | None = None,
) -> Link:
    """Makes the step θ ← prox(θ − η u) of the penalty λ₁ ‖θ‖₁ + ½ λ₂ ‖θ‖₂².

    It takes the place of a learning rate. prox(x) = sign(x) max(|x| − η λ₁, 0) / (1 + η λ₂):
    parameters become exactly zero. λ₂ = 0 is the lasso, both together are the elastic net.

    Source: Parikh & Boyd (2014), "Proximal algorithms", sections 4.2 and 6.5; Zou & Hastie (2005).
    Differs: after an adaptive scaling it is the prox in the Euclidean norm, not in the scaled one.

    Args:
        learning_rate: η, a number or a schedule.
        l1: λ₁ [loss/param].
        l2: λ₂ [loss/param²].
        mask: which leaves are penalized, as in `gk.masked`; all of them by default.

    Raises:
        ValueError: the mask does not fit, or `update` was called without the parameters.
    """

    def update(updates, state, params, h, **_):
        eta = h.learning_rate

        def step(p, u, penalized):
            x = wide(p) - eta * wide(u)
            if not penalized:
                return -eta * wide(u)
            kept = jnp.maximum(jnp.abs(x) - eta * h.l1, 0) / (1 + eta * h.l2)
            return jnp.where(kept > 0, jnp.sign(x) * kept, x * 0) - wide(p)

        return on_params(step, updates, params, mask, "proximal_step"), state

    init = mask_checked(mask, "proximal_step")
    about = traits_of(mask)
    return link(init, update, **about, steps=True, learning_rate=learning_rate, l1=l1, l2=l2)


@transformation
def project_max_norm(max_norm: optax.ScalarOrSchedule, mask: Labels | None = None) -> Link:
    """Scales the weights that come into each unit to the norm c, where the step left them longer.

    The last member of a chain, after the learning rate. A unit is one output of a layer, as in
    `gk.adaptive_grad_clip`; leaves with at most one axis, such as biases, are left alone.

    Source: Srebro & Shraibman (2005); Srivastava et al. (2014), section 5.1.

    Args:
        max_norm: c [the unit of the parameters].
        mask: which leaves are bounded, as in `gk.masked`; all with two axes or more by default.

    Raises:
        ValueError: the mask does not fit, or `update` was called without the parameters.
    """

    def update(updates, state, params, h, **_):
        pairs = []

        def collect(p, u, bounded):
            if bounded and p.ndim > 1:
                pairs.append((p, u))
            return u

        on_params(collect, updates, params, mask, "project_max_norm")
        along, least = [unit_axes(p.ndim) for p, _ in pairs], [h.max_norm] * len(pairs)
        norms = iter(scaled_norms(pairs, along, least, of=_moved))

        def step(p, u, bounded):
            if not bounded or p.ndim < 2:
                return u
            norm, x = next(norms), _moved((p, u))
            above = norm.rest > h.max_norm / norm.scale
            return jnp.where(above, norm.clip(x, h.max_norm) - wide(p), u)

        return on_params(step, updates, params, mask, "project_max_norm"), state

    init = mask_checked(mask, "project_max_norm")
    about: dict[str, Any] = traits_of(mask) | {"leafwise": True}
    return link(init, update, **about, max_norm=max_norm)


def _moved(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Where a step leads."""
    p, u = pair
    return wide(p) + wide(u)
