"""Clipping: bounds on how large an update may be."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.core import needs_params
from gradkit.transforms.link import Link, link, transformation
from gradkit.transforms.norms import ScaledNorm, scaled_norm, scaled_norms
from gradkit.transforms.stacked import Stacked, beside_stack, layer_shape, stack_axes
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

    Finite updates of any size are clipped to the norm c, also where ‖g‖² or ‖g‖ is larger than any
    number. A NaN or an infinity in them makes all updates NaN: it is not hidden.

    Source: Pascanu, Mikolov & Bengio (2013), algorithm 1.
    Differs: from optax in the norm, which is accumulated in float32 at least and does not overflow,
    in that an infinity makes every update NaN, and in that the factor is part of the next link's
    arithmetic: no clipped gradient is written to memory.

    Cost: one more pass over the updates; two where squares leave the range.

    Args:
        max_norm: c [the unit of the updates].
    """

    def init(params, step):
        return GlobalNormState(jnp.zeros((), tree.scalar_dtype(params)), jnp.zeros((), bool))

    def update(updates, state, params, h, **_):
        norm = scaled_norm(updates)
        clipped = jax.tree.map(lambda g: norm.clip(g, h.max_norm), updates)
        value = norm.value.astype(state.norm.dtype)
        return clipped, GlobalNormState(value, norm.exceeds(h.max_norm))

    return link(init, update, max_norm=max_norm)


@transformation
def clip_by_leaf_norm(max_norm: optax.ScalarOrSchedule, *, stacked: Stacked | None = None) -> Link:
    """Scales each leaf g of the updates by c/‖g‖ if its own norm ‖g‖ > c.

    As in `gk.clip_by_global_norm`, finite updates may have any size; a NaN or an infinity makes its
    leaf NaN.

    Differs: it turns the update as a whole, which `gk.clip_by_global_norm` does not.

    Cost: one more pass over the updates; two where squares leave the range.

    Args:
        max_norm: c [the unit of the updates].
        stacked: leaves in which layers are stacked, as for `jax.lax.scan`: each
            layer has a norm of its own.
            A pattern of paths or several for axis 0, `"layers.*"`, patterns with the axis of each,
            `{"layers.*": 1}`, or a function of the parameters that returns a tree of axes and
            False.
    """

    def init(params, step):
        stack_axes(stacked, params, member="clip_by_leaf_norm")
        return ClippedState(jnp.zeros(()))

    def update(updates, state, params, h, **_):
        leaves, structure = jax.tree.flatten(updates)
        limits = [h.max_norm] * len(leaves)
        stacks = stack_axes(stacked, updates, member="clip_by_leaf_norm")
        along = [
            tuple(k for k in range(g.ndim) if k != s) for g, s in zip(leaves, stacks, strict=True)
        ]
        norms = scaled_norms(leaves, along, limits)
        return _clipped(structure, leaves, norms, limits)

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
    *,
    stacked: Stacked | None = None,
) -> Link:
    """Scales each unit's update g to the norm λ max(‖θ‖, ε) if it is longer, θ the unit's weights.

    A unit is one output of a layer, for kernels as flax lays them out: all axes of a leaf but the
    last of `(in, out)` and `(height, width, in, out)`, the first of `(in, heads, out)`; a leaf with
    at most one axis longer than 1 is one unit. As in `gk.clip_by_global_norm`, finite updates may
    have any size; a NaN or an infinity makes its unit NaN.

    Source: Brock, De, Smith & Simonyan (2021), equation 3.
    Differs: from optax in that the norms are accumulated in float32 at least and do not overflow,
    in `stacked`, in that leaves may have more than five axes, in limits below 10⁻⁶, which optax
    does not reach, and in that an infinity is not hidden.

    Cost: one more pass over the updates and one over the parameters; two where squares leave the
    range.

    Args:
        clipping: λ, the largest ratio of an update's norm to its weights'.
        eps: ε, the least norm of the weights that counts [the unit of the parameters].
        axis: the axes within a unit, those of one layer where layers are stacked.
        stacked: leaves in which layers are stacked, as for `jax.lax.scan`: units are
            within a layer.
            A pattern of paths or several for axis 0, `"layers.*"`, patterns with the axis of each,
            `{"layers.*": 1}`, or a function of the parameters that returns a tree of axes and
            False.

    Raises:
        ValueError: `update` was called without the parameters, or `stacked` does not fit.
    """

    def init(params, step):
        stack_axes(stacked, params, member="adaptive_grad_clip")
        return ClippedState(jnp.zeros(()))

    def update(updates, state, params, h, **_):
        needs_params(params, member="adaptive_grad_clip")
        leaves, structure = jax.tree.flatten(updates)
        weights, count = jax.tree.leaves(params), len(leaves)
        stacks = stack_axes(stacked, updates, member="adaptive_grad_clip")
        along = [
            beside_stack(_units(layer_shape(g.shape, s), axis), s)
            for g, s in zip(leaves, stacks, strict=True)
        ]
        least = [h.clipping * h.eps] * count + [h.eps] * count
        norms = scaled_norms([*leaves, *weights], along * 2, least)
        limits = [h.clipping * jnp.maximum(n.value, h.eps) for n in norms[count:]]
        return _clipped(structure, leaves, norms[:count], limits)

    return link(init, update, leafwise=True, clipping=clipping, eps=eps)


def _units(shape: tuple[int, ...], axis: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """The axes within a unit, as optax has them: attention's kernels are (in, heads, out)."""
    ndim = len(shape)
    if axis is not None:
        return tuple(k % ndim for k in unit_axes(ndim, axis))
    if sum(n != 1 for n in shape) <= 1:
        return tuple(range(ndim))
    return (0,) if ndim == 3 else unit_axes(ndim)


def unit_axes(ndim: int, axis: int | tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Returns the axes within a unit of a leaf: those given, else all but the last of several."""
    if axis is None:
        return tuple(range(ndim - 1 if ndim > 1 else ndim))
    return (axis,) if isinstance(axis, int) else axis


def _clipped(
    structure: Any, leaves: list[jax.Array], norms: list[ScaledNorm], limits: list[jax.Array]
) -> tuple[PyTree, ClippedState]:
    """Each leaf, or part of one, clipped by its own norm; and the share that was."""
    each = list(zip(leaves, norms, limits, strict=True))
    flags = [norm.exceeds(limit) for _, norm, limit in each]
    total = sum((jnp.sum(flag, dtype=jnp.float32) for flag in flags), start=jnp.zeros(()))
    share = total / max(sum(flag.size for flag in flags), 1)
    return structure.unflatten([norm.clip(g, c) for g, norm, c in each]), ClippedState(share)
