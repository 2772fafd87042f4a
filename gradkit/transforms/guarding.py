"""Guards: updates that are not finite, or far out of the ordinary, are not applied."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from gradkit import tree
from gradkit.core import required
from gradkit.transforms.foreign import as_link
from gradkit.transforms.link import Link, Now, integer_power, link, transformation
from gradkit.transforms.norms import scaled_norm
from gradkit.tree import wide

PyTree = Any


class FiniteState(NamedTuple):
    """`not_finite`: in a row, up to now. `skipped`: in all. `applied`: the inner's own step."""

    inner: PyTree
    not_finite: ArrayLike
    skipped: ArrayLike
    applied: ArrayLike

    def metrics(self) -> dict[str, Any]:
        """Publishes the count of skipped updates."""
        return {"skipped": self.skipped}


class SpikeState(NamedTuple):
    """Mean and mean square of the logarithm of what is watched, over `seen` ordinary updates.

    `spikes` counts those that were not; `applied` is the inner transformation's own step.
    """

    inner: PyTree
    mean: ArrayLike
    square: ArrayLike
    seen: ArrayLike
    spikes: ArrayLike
    applied: ArrayLike
    deviation: ArrayLike

    def metrics(self) -> dict[str, Any]:
        """Publishes the count, and how many standard deviations above the mean the last one was."""
        return {"spikes": self.spikes, "deviation": self.deviation}


@transformation
def apply_if_finite(inner: optax.GradientTransformation, max_consecutive_errors: int = 5) -> Link:
    """Skips updates with a NaN or an infinity: a zero update, and the inner state as it was.

    After more than `max_consecutive_errors` in a row they are let through, so that a run that has
    broken down shows it.

    Differs: from optax in the default of `max_consecutive_errors`, and in the counts, which are
    published: `gk.metrics(state)["skipped"]`.

    Cost: one pass over the updates.

    Args:
        inner: the transformation.
        max_consecutive_errors: updates in a row that may be skipped.
    """
    part = as_link(inner)

    def init(params, step):
        zero = jnp.zeros((), jnp.int32)
        return FiniteState(part.start(params, step), zero, jnp.array(zero), jnp.array(step))

    def update(updates, state, params, h, **extra):
        finite = jnp.array(True)
        for leaf in jax.tree.leaves(updates):
            finite &= jnp.all(jnp.isfinite(leaf))
        row = jnp.where(finite, 0, state.not_finite + 1)
        applies = finite | (row > max_consecutive_errors)
        u, following = _if(applies, part, updates, state, params, h.now, extra)
        return u, FiniteState(
            inner=following,
            not_finite=row,
            skipped=state.skipped + ~applies,
            applied=state.applied + applies,
        )

    return link(init, update, around=part)


@transformation
def guard_spikes(
    inner: optax.GradientTransformation,
    watch: Literal["gradient_norm", "value"] = "gradient_norm",
    action: Literal["skip", "clip"] = "skip",
    *,
    deviations: optax.ScalarOrSchedule = 6.0,
    decay: optax.ScalarOrSchedule = 0.98,
    warmup: int = 20,
) -> Link:
    """Skips or clips updates whose gradient norm or loss is far above what it was of late.

    The logarithm x of what is watched, asinh for a loss, has a running mean m and a standard
    deviation s, to which 0.01 is added. More than m + k s is a spike and enters the averages as
    m + k s, so that a lasting change of level is followed; NaN is a spike and enters as nothing.
    Nothing is read back to the host.

    Source: the running statistics of AutoClip (Seetharaman et al. 2020), with moments in place of a
    percentile.

    Cost: one pass over the updates.

    Args:
        inner: the transformation.
        watch: "gradient_norm" of the incoming updates, or "value", the extra argument of `update`.
        action: "skip": a zero update, and the inner state as it was; "clip": the updates scaled by
            exp(m + k s − x), and those with a NaN skipped.
        deviations: k.
        decay: β of the two averages, 0 ≤ β < 1.
        warmup: updates watched before the first that can be a spike.

    Raises:
        ValueError: `watch` or `action` is none of these.
        TypeError: `value` is watched and `update` was called without it.
    """
    if watch not in ("gradient_norm", "value") or action not in ("skip", "clip"):
        raise ValueError(
            "guard_spikes: expected watch 'gradient_norm' or 'value' and action 'skip' or 'clip', "
            f"got {watch!r} and {action!r}"
        )
    part = as_link(inner)

    def init(params, step):
        zero, count = jnp.zeros((), tree.scalar_dtype(params)), jnp.zeros((), jnp.int32)
        floats = dict.fromkeys(("mean", "square", "deviation"), zero)
        counts = dict.fromkeys(("seen", "spikes"), count)
        own = jax.tree.map(jnp.array, floats | counts)  # each in a buffer of its own
        return SpikeState(inner=part.start(params, step), applied=jnp.array(step), **own)

    def update(updates, state, params, h, **extra):
        if watch == "value":
            x = jnp.arcsinh(required(extra, "value", member="guard_spikes"))
            unit = jnp.ones((), state.mean.dtype)
        else:
            norm = scaled_norm(updates)
            x, unit = norm.log(), norm.scale.astype(state.mean.dtype)
        x = x.astype(state.mean.dtype)
        weight = 1 - integer_power(h.decay, state.seen)
        m = state.mean / jnp.where(weight > 0, weight, 1)
        variance = state.square / jnp.where(weight > 0, weight, 1) - m * m
        s = tree.root(jnp.maximum(variance, 0)) + 1e-2  # one percent is never out of the ordinary
        limit = m + h.deviations * s
        finite = jnp.isfinite(x)
        spike = ~finite | ((state.seen >= warmup) & (x > limit))
        applies = ~spike if action == "skip" else finite
        if action == "clip":
            spiked = spike & finite
            unit = jnp.where(spiked, unit, 1)  # the factor alone may be no normal number
            factor = jnp.where(spiked, jnp.exp(limit - (x - jnp.log(unit))), 1)
            updates = jax.tree.map(lambda g: factor * (wide(g) * (1 / unit)), updates)
        u, following = _if(applies, part, updates, state, params, h.now, extra)
        typical = jnp.where(finite, jnp.where(spike, limit, x), m)
        rest = h.complement("decay")
        return u, SpikeState(
            inner=following,
            mean=jnp.where(finite, h.decay * state.mean + rest * typical, state.mean),
            square=jnp.where(finite, h.decay * state.square + rest * typical**2, state.square),
            seen=state.seen + finite,
            spikes=state.spikes + spike,
            applied=state.applied + applies,
            deviation=jnp.where(state.seen > 0, (x - m) / s, 0),
        )

    return link(init, update, around=part, deviations=deviations, decay=decay)


def _if(
    applies: jax.Array,
    part: Link,
    updates: PyTree,
    state: Any,
    params: PyTree,
    now: Now,
    extra: dict,
) -> tuple[PyTree, PyTree]:
    """The inner transformation's update where it applies, else a zero one and its old state."""
    now = now._replace(step=state.applied)
    u, following = part.advance(updates, state.inner, params, now, extra)
    held = optax.tree.where(applies, following, state.inner)
    return jax.tree.map(lambda x: jnp.where(applies, x, 0), u), held
