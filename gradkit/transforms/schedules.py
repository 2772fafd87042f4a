"""Schedules: numbers that are functions of the number of updates so far.

Those with a warm-up rise in a straight line to the peak before they fall as their name says.
Stochastic descent converges for rates with Σ η = ∞ and Σ η² < ∞ (Robbins & Monro 1951); of all
these `warmup_inverse_time` alone has both. Every factory raises a `ValueError` for a number out of
range.
"""

from __future__ import annotations

import itertools
import math
import numbers
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

    def fall(k):
        return _ramp(k, warmup, steps, peak, end, _half_cosine)

    return _warmed(fall, peak, warmup, start, end, steps)


def warmup_polynomial(
    peak: float,
    steps: int,
    warmup: int = 0,
    power: float = 2.0,
    start: float = 0.0,
    end: float = 0.0,
) -> optax.Schedule:
    """Rises to the peak, then falls as a power of the share of the steps still ahead.

    Source: Chen et al. (2018), "DeepLab", section 4.1, with a power of 0.9.

    Args:
        peak, steps, warmup, start, end: see `warmup_linear`.
        power: above 0. More than 1 falls fastest at first, less than 1 at last.
    """
    _check("warmup_polynomial", "a number above 0", lambda x: 0 < x < math.inf, power=power)

    def fall(k):
        return _ramp(k, warmup, steps, peak, end, shape)

    def shape(a):
        return jnp.where(a > 0, jnp.where(a > 0, a, 1) ** power, 0)  # no infinite slope at 0

    return _warmed(fall, peak, warmup, start, end, steps)


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
        a = _ahead(k, warmup, steps)
        return jnp.where(a > 0, peak * (end / peak) ** (1 - a), end)

    return _warmed(fall, peak, warmup, start, end, steps)


def warmup_inverse_sqrt(peak: float, warmup: int = 0, start: float = 0.0) -> optax.Schedule:
    """Rises to the peak, then falls as peak √(warmup / k), or peak / √(k + 1) without a warm-up.

    Σ η diverges, as Robbins & Monro (1951) ask; so does Σ η², like a logarithm, against them.

    Source: Vaswani et al. (2017), equation 3, whose peak is 1 / √(d_model · warmup).

    Args:
        peak, start: see `warmup_linear`.
        warmup: steps of linear rise, and the scale of the fall.
    """
    scale = max(warmup, 1)
    return _warmed(lambda k: peak / jnp.sqrt(1 + _since(k, warmup) / scale), peak, warmup, start)


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
    return _warmed(lambda k: peak / (1 + _since(k, warmup) / scale), peak, warmup, start)


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
    last = max(steps // 10, 1) if decay is None else decay
    fall = functools.partial(_ramp, first=steps - last)
    rate = _warmed(
        lambda k: _ramp(k, steps - last, steps, peak, end), peak, warmup, start, end, steps
    )
    _check_whole("warmup_stable_decay", 1, steps - warmup, decay=last)
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
    if every is not None:
        _check_whole("step_decay", 1, every=every)

    def fall(k):
        drops = _passed(k, at) if every is None else k // every
        return peak * factor ** drops.astype(float)

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
        multiplier: length of a period over that of the one before; 1, or at least 1.001.
        end: value approached at the end of each period.
    """
    _check_whole("warm_restarts", 1, period=period)
    rule = "1 or a number of at least 1.001"
    _check("warm_restarts", rule, lambda x: x == 1 or 1.001 <= x < math.inf, multiplier=multiplier)
    place = _place_in_period(period, multiplier)

    def fall(k):
        return _ramp(*place(k), peak, end, _half_cosine)

    return _warmed(fall, peak, end=end)


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

    def fall(k):
        return _ramp(k, top, steps, peak, end, _half_cosine)

    return _warmed(fall, peak, top, start, end, steps, shape=_half_cosine)


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
    fall: Callable,
    peak: float,
    warmup: int = 0,
    start: float = 0.0,
    end: float = 0.0,
    steps: int = LAST_STEP,
    shape: Callable = lambda a: a,
) -> optax.Schedule:
    """The schedule `fall(k)` after a rise. Errors carry the name of the function around `fall`."""
    name = fall.__qualname__.partition(".")[0]
    top = math.inf if isinstance(peak, jax.Array) else peak
    _check(name, "a finite number of at least 0", lambda x: 0 <= x < math.inf, peak=peak)
    _check(name, f"from 0 to peak = {peak}", lambda x: 0 <= x <= top, start=start, end=end)
    _check_whole(name, 1, steps=steps)
    _check_whole(name, 0, steps, warmup=warmup)

    def rate(step):
        k = jnp.maximum(jnp.asarray(step, jnp.result_type(step, jnp.int32)), 0)
        return jnp.where(k < warmup, _ramp(k, 0, warmup, start, peak, shape), fall(k))

    return rate


def _ahead(k: jax.Array, first: Any, last: Any) -> jax.Array:
    """The share of the steps from first to last still to come: exactly 1 before, 0 after them."""
    return (last - jnp.clip(k, first, last)).astype(float) / jnp.maximum(last - first, 1)


def _ramp(
    k: jax.Array, first: Any, last: Any, x: Any, y: Any, shape: Callable = lambda a: a
) -> jax.Array:
    """Exactly x before, y after the steps from first to last, and a mix of them on the way."""
    a = shape(_ahead(k, first, last))
    return a * x + (1 - a) * y


def _half_cosine(a: jax.Array) -> jax.Array:
    return jnp.sin(jnp.pi / 2 * a) ** 2  # (1 − cos π a) / 2


def _since(k: jax.Array, first: int) -> jax.Array:
    return (jnp.maximum(k, first) - first).astype(float)


def _passed(k: jax.Array, steps: Any) -> jax.Array:
    """How many of the steps have come."""
    return jnp.sum(k[..., None] >= jnp.asarray(steps, k.dtype), axis=-1)


def _check_whole(factory: str, low: int, high: int = LAST_STEP, **given) -> None:
    def whole(x):
        return isinstance(x, numbers.Integral) and low <= int(x) <= high

    _check(factory, f"a whole number from {low} to {high}", whole, **given)


def _check(factory: str, rule: str, holds: Callable, **given) -> None:
    """Raises a `ValueError` for a value that breaks the rule; arrays of JAX go unread."""
    for name, value in given.items():
        if not (isinstance(value, jax.Array) or holds(value)):
            raise ValueError(f"{factory}: {name} must be {rule}, got {value}")
