"""Schedules: numbers that are functions of the number of updates so far.

Each is a pure function of the step, for jit and vmap, in JAX's default float type. Of all of them
`warmup_inverse_time` alone fulfills both conditions of Robbins & Monro (1951), Σ η = ∞ and
Σ η² < ∞. A number out of range is a `ValueError` when the schedule is made.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

LAST_STEP = 2**31 - 1  # where a counter of updates stops


def warmup_linear(
    peak: float, steps: int, warmup: int = 0, start: float = 0.0, end: float = 0.0
) -> optax.Schedule:
    """Rises to the peak, then falls in a straight line.

    Source: Goodfellow, Bengio & Courville (2016), equation 8.14.

    Args:
        peak: largest value.
        steps: updates in all, warm-up included; the value is `end` from then on.
        warmup: steps of linear rise.
        start: value at step 0 of a warm-up.
        end: final value.
    """
    return _warmed(lambda k: _ramp(k, warmup, steps, peak, end), peak, warmup, start, end, steps)


def warmup_cosine(
    peak: float, steps: int, warmup: int = 0, start: float = 0.0, end: float = 0.0
) -> optax.Schedule:
    """Rises to the peak, then falls along half a cosine.

    Source: Loshchilov & Hutter (2017), equation 5, without restarts.

    Args:
        peak, steps, warmup, start, end: see `warmup_linear`.
    """
    return _warmed(
        lambda k: _ramp(k, warmup, steps, peak, end, _cosine), peak, warmup, start, end, steps
    )


def warmup_polynomial(
    peak: float, steps: int, warmup: int = 0, power: float = 2, start: float = 0.0, end: float = 0.0
) -> optax.Schedule:
    """Rises to the peak, then falls as a power of the share of the steps still ahead.

    Source: Chen et al. (2018), "DeepLab", section 4.1, with a power of 0.9.

    Args:
        peak, steps, warmup, start, end: see `warmup_linear`.
        power: above 0. More than 1 falls fastest at first, less than 1 at last.
    """
    _check("warmup_polynomial", "a number above 0", lambda x: 0 < x < math.inf, power=power)

    def shape(a):
        return jnp.where(a > 0, jnp.where(a > 0, a, 1) ** power, 0)  # no infinite slope at 0

    return _warmed(
        lambda k: _ramp(k, warmup, steps, peak, end, shape), peak, warmup, start, end, steps
    )


def warmup_exponential(
    peak: float, steps: int, warmup: int = 0, start: float = 0.0, *, end: float
) -> optax.Schedule:
    """Rises to the peak, then falls by the same factor at each step.

    Args:
        peak, steps, warmup, start: see `warmup_linear`.
        end: final value, above 0.
    """
    _check("warmup_exponential", "a number above 0", lambda x: x > 0, end=end)

    def fall(k):
        value = peak * (end / peak) ** _ramp(k, warmup, steps, 0, 1)
        return jnp.where(k < steps, value, end)  # exactly

    return _warmed(fall, peak, warmup, start, end, steps)


def warmup_inverse_sqrt(peak: float, warmup: int = 0, start: float = 0.0) -> optax.Schedule:
    """Rises to the peak, then falls as peak √(warmup / k), or peak / √(k + 1) without a warm-up.

    Σ η diverges, as Robbins & Monro (1951) ask; so does Σ η², like a logarithm, against them.

    Source: Vaswani et al. (2017), equation 3, whose peak is 1 / √(d_model · warmup).

    Args:
        peak, start: see `warmup_linear`.
        warmup: steps of linear rise, and the scale of the fall.
    """
    w = max(warmup, 1)
    return _warmed(
        lambda k: peak / jnp.sqrt(1 + jnp.maximum(k - warmup, 0) / w), peak, warmup, start
    )


def warmup_inverse_time(
    peak: float, scale: float, warmup: int = 0, start: float = 0.0
) -> optax.Schedule:
    """Rises to the peak, then falls as peak / (1 + (k − warmup) / scale).

    Source: Robbins & Monro (1951), both of whose conditions it fulfills: Σ η = ∞ and Σ η² < ∞.

    Args:
        peak, warmup, start: see `warmup_linear`.
        scale: steps after the warm-up until the value is half the peak.
    """
    _check("warmup_inverse_time", "a number above 0", lambda x: 0 < x < math.inf, scale=scale)
    return _warmed(lambda k: peak / (1 + jnp.maximum(k - warmup, 0) / scale), peak, warmup, start)


def warmup_stable_decay(
    peak: float,
    steps: int,
    warmup: int = 0,
    decay: int | None = None,
    start: float = 0.0,
    end: float = 0.0,
) -> optax.Schedule:
    """Rises to the peak, stays there, and falls in a straight line over the last steps.

    Source: Hu et al. (2024), "MiniCPM", section 4.
    Differs: the fall is theirs to choose, and exponential in their experiments.

    Args:
        peak, steps, warmup, start, end: see `warmup_linear`.
        decay: steps of the fall, which may not reach into the warm-up; a tenth of all by default.
    """
    last = steps - (max(steps // 10, 1) if decay is None else decay)
    rate = _warmed(lambda k: _ramp(k, last, steps, peak, end), peak, warmup, start, end, steps)
    _check_whole("warmup_stable_decay", 1, steps - warmup, decay=steps - last)
    return rate


def step_decay(
    peak: float, at: tuple[int, ...] | None = None, factor: float = 0.1, every: int | None = None
) -> optax.Schedule:
    """Falls by a factor at each of the given steps, or every so many: `every=n, factor=0.5` halves.

    Args:
        peak: value at first.
        at: increasing steps, from each of which on the value is `factor` times that before.
        factor: above 0, at most 1.
        every: steps from one fall to the next, in place of `at`.
    """
    _check("step_decay", "above 0 and at most 1", lambda x: 0 < x <= 1, factor=factor)
    if (at is None) == (every is None):
        raise ValueError(f"step_decay: give one of at and every, got at={at}, every={every}")
    for before, drop in itertools.pairwise((0, *(at or ()))):
        _check_whole("step_decay", before + 1, at=drop)
    _check_whole("step_decay", 1, every=1 if every is None else every)

    def fall(k):
        return peak * factor ** (_passed(k, at) if every is None else k // every)

    return _warmed(fall, peak)


def warm_restarts(
    peak: float, period: int, multiplier: float = 1.0, end: float = 0.0
) -> optax.Schedule:
    """Falls along half a cosine, and again from the peak after each period.

    Source: Loshchilov & Hutter (2017), equation 5.
    Differs: the multiplier need not be whole; restarts are at the nearest whole steps.

    Args:
        peak: value at each restart, the largest.
        period: steps of the first period.
        multiplier: length of a period over that of the one before; 1, or from 1.001 to 1000.
        end: value approached at the end of each period.
    """
    _check_whole("warm_restarts", 1, period=period)
    rule = "1, or from 1.001 to 1000"
    _check("warm_restarts", rule, lambda x: x == 1 or 1.001 <= x <= 1000, multiplier=multiplier)
    place = _place_in_period(period, multiplier)
    return _warmed(lambda k: _ramp(*place(k), peak, end, _cosine), peak, end=end)


def one_cycle(
    peak: float,
    steps: int,
    warmup: int | None = None,
    start: float | None = None,
    end: float | None = None,
) -> optax.Schedule:
    """Rises to the peak along half a cosine, then falls along another.

    Source: Smith & Topin (2018).
    Differs: theirs is of straight lines; momentum, which they lower meanwhile, is left alone.

    Args:
        peak, steps: see `warmup_linear`.
        warmup: steps of the rise; 30% of all by default.
        start: value at step 0; peak / 25 by default.
        end: final value; peak / 10⁴ by default.
    """
    start = peak / 25 if start is None else start
    end = peak / 1e4 if end is None else end
    top = 3 * steps // 10 if warmup is None else warmup
    return _warmed(
        lambda k: _ramp(k, top, steps, peak, end, _cosine), peak, top, start, end, steps, _cosine
    )


def scaled_by_batch_size(
    rate: optax.ScalarOrSchedule, batch_size: int, reference: int = 256
) -> optax.ScalarOrSchedule:
    """Returns the rate, or the schedule of rates, times batch_size / reference.

    Source: Goyal et al. (2017), the linear scaling rule.

    Args:
        rate: a number or a schedule, right for batches of the reference size.
        batch_size: examples in a batch.
        reference: examples in a batch for which the rate is right.
    """
    _check_whole("scaled_by_batch_size", 1, batch_size=batch_size, reference=reference)
    factor = batch_size / reference
    return (lambda step: rate(step) * factor) if callable(rate) else rate * factor


def _warmed(
    fall: Callable, peak: Any, warmup=0, start=0.0, end=0.0, steps=LAST_STEP, shape=lambda a: a
) -> optax.Schedule:
    """The schedule `fall(k)` after a rise. Errors carry the name of the function around `fall`."""
    name = fall.__qualname__.partition(".")[0]
    top = math.inf if isinstance(peak, jax.Array) else peak
    _check(name, "a finite number of at least 0", lambda x: 0 <= x < math.inf, peak=peak)
    _check(name, f"from 0 to peak = {peak}", lambda x: 0 <= x <= top, start=start, end=end)
    _check_whole(name, 1, steps=steps)
    _check_whole(name, 0, steps, warmup=warmup)

    def rate(step):
        k = jnp.maximum(jnp.asarray(step, jnp.result_type(step, jnp.int_)), 0)
        rise = _ramp(k, 0, warmup, start, peak, shape)
        return jnp.where(k < warmup, rise, fall(k)).astype(float)

    return rate


def _ramp(k: jax.Array, first, last, x, y, shape=lambda a: a) -> jax.Array:
    """Exactly x up to the step first and y from last on; between them a mix of the given shape."""
    length = jnp.maximum(last - first, 1)
    left = last - jnp.clip(k, first, last)
    return jnp.where(left < length, y + shape(left / length) * (x - y), x)


def _cosine(a: jax.Array) -> jax.Array:
    return jnp.sin(jnp.pi / 2 * a) ** 2  # (1 − cos π a) / 2


def _place_in_period(period: int, multiplier: float) -> Callable[[Any], tuple[Any, Any, Any]]:
    """k -> (steps since the restart, 0, length of the period), exact for any step in float32."""
    if multiplier == 1:
        return lambda k: (k % period, 0, period)
    restarts, length = [0.0], float(period)
    while restarts[-1] <= LAST_STEP:
        restarts.append(restarts[-1] + length)
        length *= multiplier
    starts, lengths = np.rint(restarts[:-1]), np.diff(np.rint(restarts))

    def place(k):
        i = _passed(k, starts) - 1
        return k - jnp.asarray(starts, k.dtype)[i], 0, jnp.asarray(lengths)[i]

    return place


def _passed(k: jax.Array, steps: Any) -> jax.Array:
    """How many of the steps have come."""
    return jnp.sum(k[..., None] >= jnp.asarray(steps, k.dtype), axis=-1)


def _check_whole(factory: str, low: int, high: int = LAST_STEP, **given) -> None:
    rule = f"a whole number from {low} to {high}"
    _check(factory, rule, lambda x: isinstance(x, int | np.integer) and low <= x <= high, **given)


def _check(factory: str, rule: str, holds: Callable, **given) -> None:
    """Raises a `ValueError` for a value that breaks the rule; arrays of JAX go unread."""
    for name, value in given.items():
        if not (isinstance(value, jax.Array) or holds(value)):
            raise ValueError(f"{factory}: {name} must be {rule}, got {value}")
