"""Gradients perturbed, and gradients centered."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from gradkit.transforms.link import Link, link, transformation
from gradkit.tree import wide


@transformation
def add_noise(
    eta: optax.ScalarOrSchedule, gamma: optax.ScalarOrSchedule, key: jax.Array | int = 0
) -> Link:
    """Adds normal noise of variance η / tᵞ to the t-th update.

    Source: Neelakantan et al. (2015), equation 1.
    Differs: from optax in `key`, which has a default and into which the step is folded (no `seed`),
    so that a run that goes on draws what it would have; the numbers are others.

    Cost: one random number a parameter.

    Args:
        eta: η, the variance at the first update [the unit of the updates, squared].
        gamma: γ, by which it falls; 0.55 in the paper.
        key: random key, or the seed of one.
    """

    def update(updates, state, params, h, **_):
        drawn = jax.random.fold_in(jax.random.key(key) if isinstance(key, int) else key, h.step)
        deviation = jnp.sqrt(h.eta / (h.step + 1) ** h.gamma)
        leaves, structure = jax.tree.flatten(updates)
        keys = jax.random.split(drawn, max(len(leaves), 1))
        noisy = [
            wide(g) + deviation * jax.random.normal(k, g.shape, wide(g).dtype)
            for g, k in zip(leaves, keys, strict=False)
        ]
        return structure.unflatten(noisy), state

    return link(None, update, eta=eta, gamma=gamma)


@transformation
def centralize(*, unit_axis: int = 0) -> Link:
    """Subtracts from each unit's update its mean: leaves with two axes or more.

    Source: Yong et al. (2020), "Gradient centralization", equation 1.
    Differs: from optax in `unit_axis`. optax's units lie along the first axis, which for kernels as
    flax lays them out, `(in, out)`, mixes the outputs.

    Args:
        unit_axis: the axis along which the units of a leaf lie; the mean is over all others. 0 is
            that of optax and of equinox's weights, −1 that of flax's kernels.
    """

    def update(updates, state, params, h, **_):
        def leaf(g):
            if g.ndim < 2:
                return g
            g = wide(g)
            others = tuple(axis for axis in range(g.ndim) if axis != unit_axis % g.ndim)
            return g - jnp.mean(g, axis=others, keepdims=True)

        return jax.tree.map(leaf, updates), state

    return link(None, update, leafwise=True)
