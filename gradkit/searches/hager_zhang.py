"""Hager and Zhang's line search: it goes by slopes where values are too coarse to tell.

Near a minimum φ is flat, and a value tells α to √ε at best, a slope to ε. Where Armijo's condition
holds up to rounding only, it is therefore replaced by one of slopes, "approximate Wolfe", which is
what lets a search in float32 succeed.

Source: Hager & Zhang (2005), "A new conjugate gradient method with guaranteed descent and an
efficient line search", section 4, with its names: `bracket`, secant², update U0 to U3, L0 to L3.
Differs: either set of conditions asks for |φ′(α)| ≤ c₂ |φ′(0)|, the strong form. The approximate
one is φ′(α) ≤ (2 c₁ − 1) φ′(0) and Armijo's condition up to `rules.noise`, not just φ(α) ≤ φ(0) up
to it, so that a decrease that can be seen is never too small. `bracket` bisects from the last point
that it passed, not from 0. A trial that is not finite is one that is too high, and the next is at a
tenth of the way to it. It ends where rounding leaves nothing between the ends of the interval.
Cost: one value and slope a trial.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradkit.searches.line import Method, Rules, Trial, decreases, falls, in_dtype, sound

EXPAND = 5.0  # ρ, from one trial of `bracket` to the next
SHRINK = 0.66  # γ, what secant² has to make of the interval, else it is bisected
BISECT = 0.5  # θ
RETREAT = 0.1  # of the way to a trial that is not finite
RESOLUTION = 4  # width, in ε of the larger end, at which an interval has nothing left to try

BRACKET, SECANT, SECANT_AGAIN, MIDDLE, DIVIDE = range(5)  # what the next trial is for


class End(NamedTuple):
    """An end of the interval: α and φ′(α)."""

    alpha: jax.Array
    slope: jax.Array


class HagerZhangState(NamedTuple):
    """The interval and the next trial in it.

    Attributes:
        alpha, done, satisfied: as of every line search.
        phase: what the next trial is for: BRACKET, the two of secant², MIDDLE of L2, DIVIDE of U3.
        low: where φ falls and is at most φ(0) + noise.
        high: where φ rises; in the phase DIVIDE, where it is too high.
        width: of the interval as the iteration began.
        start, rules: of the search.
    """

    alpha: jax.Array
    done: jax.Array
    satisfied: jax.Array
    phase: jax.Array
    low: End
    high: End
    width: jax.Array
    start: Trial
    rules: Rules


def init(start: Trial, alpha: jax.Array, rules: Rules) -> HagerZhangState:
    """Returns the state before the first trial; it is done where φ does not fall at 0."""
    alpha = jnp.asarray(alpha, start.slope.dtype)
    infinite = jnp.full_like(alpha, jnp.inf)
    return HagerZhangState(
        alpha=alpha,
        done=~falls(start, alpha),
        satisfied=jnp.zeros((), bool),
        phase=jnp.full((), BRACKET, jnp.int32),
        low=End(start.alpha, start.slope),
        high=End(infinite, infinite),
        width=infinite,
        start=start,
        rules=in_dtype(rules, start),
    )


def step(state: HagerZhangState, trial: Trial) -> HagerZhangState:
    """Accepts a trial that meets either set of conditions, or else narrows the interval."""
    start, rules, phase = state.start, state.rules, state.phase
    here = End(trial.alpha, trial.slope)
    finite = sound(trial)
    satisfied = finite & _acceptable(trial, start, rules)

    rises = finite & (trial.slope >= 0)  # U1
    falls = finite & ~rises & (trial.value <= start.value + rules.noise)  # U2
    low = End(*_choose(falls, here, state.low))
    high = End(*_choose(falls, state.high, here))

    # U3, until φ rises at the upper end.
    divide = ~rises & (~falls | (phase == DIVIDE))
    theta = jnp.where(finite, BISECT, RETREAT)
    divided = low.alpha + theta * (high.alpha - low.alpha)

    # S2, S3: from the end that has moved and where it was before.
    again = _secant(_choose(rises, state.high, state.low), here)
    again_inside = (phase == SECANT) & _inside(again, low, high)

    # L2 and L1: the middle, if the interval is still wide, or else the next iteration.
    width = high.alpha - low.alpha
    secant = _secant(low, high)
    middle = (width > SHRINK * state.width) | ~_inside(secant, low, high)
    onward = jnp.where(middle, low.alpha + BISECT * width, secant)
    alpha = jnp.where(again_inside, again, onward)
    following = jnp.where(again_inside, SECANT_AGAIN, jnp.where(middle, MIDDLE, SECANT))
    alpha, following = _choose(divide, (divided, DIVIDE), (alpha, following))
    expand = (phase == BRACKET) & falls
    alpha, following = _choose(expand, (EXPAND * trial.alpha, BRACKET), (alpha, following))

    begins = ~(divide | again_inside | middle | expand)  # an iteration
    eps = jnp.finfo(width.dtype).eps
    spent = (width <= RESOLUTION * eps * high.alpha) & ~expand
    return HagerZhangState(
        alpha=jnp.where(satisfied, trial.alpha, alpha),
        done=satisfied | spent | ~jnp.isfinite(alpha),
        satisfied=satisfied,
        phase=following.astype(jnp.int32),
        low=low,
        high=high,
        width=jnp.where(begins, width, state.width),
        start=start,
        rules=rules,
    )


def _acceptable(trial: Trial, start: Trial, rules: Rules) -> jax.Array:
    flat = jnp.abs(trial.slope) <= -rules.curvature * start.slope
    exact = decreases(trial, start, rules._replace(noise=0))
    approximate = decreases(trial, start, rules) & (
        (2 * rules.decrease - 1) * start.slope >= trial.slope
    )
    return flat & (exact | approximate)


def _choose(condition: jax.Array, new, old):
    return tuple(jnp.where(condition, a, b) for a, b in zip(new, old, strict=True))


def _secant(a, b) -> jax.Array:
    """Where the line through the slopes at a and b is zero."""
    (a, da), (b, db) = a, b
    return a - da / (db - da) * (b - a)


def _inside(alpha: jax.Array, low, high) -> jax.Array:
    return (alpha > low[0]) & (alpha < high[0])


hager_zhang = Method(init, step, slopes=True)
