"""Clipping: bounds on how large an update may be."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.core import needs_params
from gradkit.transforms.link import Link, link, transformation
from gradkit.tree import wide

PyTree = Any


class GlobalNormState(NamedTuple):
    """`norm`: of the last updates before clipping. `clipped`: whether it was above the limit."""

    norm: jax.Array
    clipped: jax.Array

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes both."""
        return {"norm_before_clipping": self.norm, "clipped": self.clipped}


class ClippedState(NamedTuple):
    """`clipped`: the share of what could be clipped that was: leaves, units or numbers."""

    clipped: jax.Array

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes it."""
        return {"clipped": self.clipped}


@transformation
def clip_by_global_norm(max_norm: optax.ScalarOrSchedule) -> Link:
    """Scales updates g by c/‖g‖ if ‖g‖ > c, the norm over all leaves; else leaves them as they are.

    A norm that is not finite makes the updates NaN: it is not hidden.

    Source: Pascanu, Mikolov & Bengio (2013), algorithm 1.
    Differs: from optax in the norm, which is accumulated in float32 at least, and in that the
    factor is part of the next link's arithmetic: no clipped gradient is written to memory.

    Cost: one more pass over the updates.

    Args:
        max_norm: c [the unit of the updates].
    """

    def init(params, step):
        return GlobalNormState(jnp.zeros((), tree.scalar_dtype(params)), jnp.zeros((), bool))

    def update(updates, state, params, h, **_):
        norm = tree.norm(updates)
        factor = _factor(norm, h.max_norm)
        following = GlobalNormState(norm.astype(state.norm.dtype), ~(norm <= h.max_norm))
        return jax.tree.map(lambda g: factor * wide(g), updates), following

    return link(init, update, max_norm=max_norm)


@transformation
def clip_by_leaf_norm(max_norm: optax.ScalarOrSchedule) -> Link:
    """Scales each leaf g of the updates by c/‖g‖ if its own norm ‖g‖ > c.

    Differs: it turns the update as a whole, which `gk.clip_by_global_norm` does not.

    Cost: one more pass over the updates.

    Args:
        max_norm: c [the unit of the updates].
    """

    def init(params, step):
        return ClippedState(jnp.zeros(()))

    def update(updates, state, params, h, **_):
        norms = jax.tree.map(tree.norm, updates)
        clipped = jax.tree.map(lambda g, n: _factor(n, h.max_norm) * wide(g), updates, norms)
        return clipped, _share(jax.tree.map(lambda n: ~(n <= h.max_norm), norms))

    return link(init, update, leafwise=True, max_norm=max_norm)


@transformation
def clip(max_delta: optax.ScalarOrSchedule) -> Link:
    """Clips every element of the updates to [−c, c]. NaN stays NaN.

    Args:
        max_delta: c [the unit of the updates].
    """

    def update(updates, state, params, h, **_):
        return jax.tree.map(lambda g: jnp.clip(wide(g), -h.max_delta, h.max_delta), updates), state

    return link(None, update, max_delta=max_delta)


@transformation
def adaptive_grad_clip(
    clipping: optax.ScalarOrSchedule,
    eps: optax.ScalarOrSchedule = 1e-3,
    axis: int | tuple[int, ...] | None = None,
) -> Link:
    """Scales each unit's update g to the norm λ max(‖θ‖, ε) if it is longer, θ the unit's weights.

    A unit is one output of a layer: all axes of a leaf but the last, for kernels as flax lays them
    out (`(in, out)`, `(height, width, in, out)`); a leaf with at most one axis is one unit.

    Source: Brock, De, Smith & Simonyan (2021), equation 3.
    Differs: from optax in that the norms are accumulated in float32 at least, and in the units of a
    leaf with three axes, where optax takes the norm along the first alone, and of shape (1, n),
    which is one unit there.

    Cost: one more pass over the updates and one over the parameters.

    Args:
        clipping: λ, the largest ratio of an update's norm to its weights'.
        eps: ε, the least norm of the weights that counts [the unit of the parameters].
        axis: the axes within a unit; by default all but the last.

    Raises:
        ValueError: `update` was called without the parameters.
    """

    def init(params, step):
        return ClippedState(jnp.zeros(()))

    def update(updates, state, params, h, **_):
        needs_params(params, member="adaptive_grad_clip")
        of_units = lambda x: unit_norms(x, axis)  # noqa: E731
        norms = jax.tree.map(of_units, updates)
        limits = jax.tree.map(lambda p: h.clipping * jnp.maximum(of_units(p), h.eps), params)
        clipped = jax.tree.map(lambda g, n, c: _factor(n, c) * wide(g), updates, norms, limits)
        return clipped, _share(jax.tree.map(lambda n, c: ~(n <= c), norms, limits))

    return link(init, update, leafwise=True, clipping=clipping, eps=eps)


def unit_norms(x: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """Returns the norm of each unit's weights, with the reduced axes kept as 1."""
    if axis is None:
        axis = tuple(range(x.ndim - 1)) if x.ndim > 1 else tuple(range(x.ndim))
    x = wide(x)
    squares = jnp.real(x * jnp.conj(x)) if jnp.iscomplexobj(x) else x * x
    return tree.root(jnp.sum(squares, axis=axis, keepdims=True))


def _factor(norm: jax.Array, limit: jax.Array) -> jax.Array:
    """What to multiply by: 1, c/‖g‖ if that is less, NaN for a norm that is not finite."""
    above = norm > limit
    return jnp.where(
        jnp.isfinite(norm), jnp.where(above, limit / jnp.where(above, norm, 1), 1), jnp.nan
    )


def _share(clipped: PyTree) -> ClippedState:
    flags = jax.tree.leaves(clipped)
    total = sum((jnp.sum(flag, dtype=jnp.float32) for flag in flags), start=jnp.zeros(()))
    return ClippedState(total / max(sum(flag.size for flag in flags), 1))
