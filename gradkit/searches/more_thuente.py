"""Moré and Thuente's line search: an interval of α that keeps a point of the strong Wolfe kind.

Source: Moré & Thuente (1994), "Line search algorithms with guaranteed sufficient decrease", in
the order of tests of their MINPACK-2 code; the four cases of a trial are those of its section 4.
Differs: there is no largest step: it extrapolates until `max_steps` end it. A trial that is not
finite becomes the upper end of the interval, and the next is at a tenth of the way to it. Values
that differ by no more than `rules.noise` count as equal, so that slopes decide between them. Where
interpolation meets an end of the interval, it is bisected; it ends where rounding leaves nothing
between its ends.
Cost: one value and slope a trial.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradkit.searches.line import Method, Rules, Trial, decreases, falls, in_dtype, sound

EXTRAPOLATE = (1.1, 4.0)  # least and most, in units of the last step
SHRINK = 0.66  # what two trials have to make of the interval, else it is bisected
RETREAT = 0.1  # of the way to a trial that is not finite
RESOLUTION = 4  # width, in ε of the larger end, at which an interval has nothing left to try


class Bracket(NamedTuple):
    """The interval: φ is lowest at `low`, and falls from there toward `high`, if `closed`."""

    low: Trial
    high: Trial
    closed: jax.Array


class MoreThuenteState(NamedTuple):
    """The interval and the next trial in it.

    Attributes:
        alpha, done, satisfied: as of every line search.
        bracket: the interval.
        second: whether φ itself is looked at, and no more ψ(α) = φ(α) − φ(0) − c₁ α φ′(0).
        widths: of the interval, now and one trial before; infinite before it is closed.
        bounds: between which the next trial but one may be.
        start, rules: of the search.
    """

    alpha: jax.Array
    done: jax.Array
    satisfied: jax.Array
    bracket: Bracket
    second: jax.Array
    widths: tuple[jax.Array, jax.Array]
    bounds: tuple[jax.Array, jax.Array]
    start: Trial
    rules: Rules


def init(start: Trial, alpha: jax.Array, rules: Rules) -> MoreThuenteState:
    """Returns the state before the first trial; it is done where φ does not fall at 0."""
    alpha = jnp.asarray(alpha, start.slope.dtype)
    no, infinite = jnp.zeros((), bool), jnp.full_like(alpha, jnp.inf)
    return MoreThuenteState(
        alpha=alpha,
        done=~falls(start, alpha),
        satisfied=no,
        bracket=Bracket(start, start, no),
        second=no,
        widths=(infinite, infinite),
        bounds=(jnp.zeros_like(alpha), (1 + EXTRAPOLATE[1]) * alpha),
        start=start,
        rules=in_dtype(rules, start),
    )


def step(state: MoreThuenteState, trial: Trial) -> MoreThuenteState:
    """Accepts a trial that meets the strong Wolfe conditions, or else narrows the interval."""
    start, rules = state.start, state.rules
    low = state.bracket.low
    finite = sound(trial)
    enough = finite & decreases(trial, start, rules)
    satisfied = enough & (jnp.abs(trial.slope) <= -rules.curvature * start.slope)
    second = state.second | (enough & (trial.slope >= 0))

    # Until the second stage, ψ guides the search where φ has fallen, but not enough.
    auxiliary = ~second & ~enough & (trial.value <= low.value)
    tilt = jnp.where(auxiliary, rules.decrease * start.slope, 0)
    next_alpha, bracket = _next(state.bracket, trial, finite, tilt, state.bounds, rules.noise)

    low, high, closed = bracket
    width = jnp.abs(high.alpha - low.alpha)
    least = jnp.where(closed, jnp.minimum(low.alpha, high.alpha), 0)
    most = jnp.where(closed, jnp.maximum(low.alpha, high.alpha), jnp.inf)
    slow = closed & (width >= SHRINK * state.widths[1])
    outside = ~((next_alpha > least) & (next_alpha < most))
    middle = low.alpha + 0.5 * (high.alpha - low.alpha)
    next_alpha = jnp.where(closed & (slow | outside), middle, next_alpha)

    eps = jnp.finfo(width.dtype).eps
    spent = (closed & (width <= RESOLUTION * eps * most)) | ~(jnp.abs(next_alpha) < jnp.inf)
    ahead = next_alpha - low.alpha
    return MoreThuenteState(
        alpha=jnp.where(satisfied, trial.alpha, next_alpha),
        done=satisfied | spent,
        satisfied=satisfied,
        bracket=bracket,
        second=second,
        widths=(jnp.where(closed, width, state.widths[0]), state.widths[0]),
        bounds=(
            jnp.where(closed, least, next_alpha + EXTRAPOLATE[0] * ahead),
            jnp.where(closed, most, next_alpha + EXTRAPOLATE[1] * ahead),
        ),
        start=start,
        rules=rules,
    )


def _next(
    bracket: Bracket,
    trial: Trial,
    finite: jax.Array,
    tilt: jax.Array,
    bounds: tuple[jax.Array, jax.Array],
    noise: jax.Array,
) -> tuple[jax.Array, Bracket]:
    """Returns the next α and the interval, `tilt` being the slope of the line that φ is less."""
    low, high, closed = bracket
    (x, fx, dx), (y, fy, dy), (p, fp, dp) = (_less(t, tilt) for t in (low, high, trial))
    higher = ~(finite & (fp <= fx + noise))
    opposite = ~higher & (jnp.sign(dp) * jnp.sign(dx) < 0)
    flatter = ~higher & ~opposite & (jnp.abs(dp) < jnp.abs(dx))
    steeper = ~higher & ~opposite & ~flatter

    # One cubic serves all cases: from x to p, from p to x, or from p to y.
    a, fa, da = _choose(higher, (x, fx, dx), (p, fp, dp))
    b, fb, db = _choose(steeper, (y, fy, dy), _choose(higher, (p, fp, dp), (x, fx, dx)))
    r, gamma = _cubic(a, fa, da, b, fb, db)
    cubic = a + r * (b - a)
    secant = p + dp / (dp - dx) * (x - p)
    quadratic = x + 0.5 * dx / ((fx - fp) / (p - x) + dx) * (p - x)

    # 1: the cubic step, or half way to the quadratic one where that is further from x.
    first = jnp.where(
        jnp.abs(cubic - x) <= jnp.abs(quadratic - x), cubic, cubic + 0.5 * (quadratic - cubic)
    )
    # 2, 3: the further from p of cubic and secant step, or in an interval in case 3 the nearer.
    limit = jnp.where(p > x, bounds[1], bounds[0])
    cubic = jnp.where(flatter & ~((r < 0) & (gamma != 0)), limit, cubic)
    further = jnp.abs(cubic - p) > jnp.abs(secant - p)
    second = jnp.where(further ^ (flatter & closed), cubic, secant)
    reach = p + SHRINK * (y - p)
    inside = jnp.where(p > x, jnp.minimum(reach, second), jnp.maximum(reach, second))
    third = jnp.where(closed, inside, jnp.clip(second, *bounds))
    # 4: the cubic step from p to y; half way where φ(y) is not finite, as far as allowed without y.
    within = jnp.where(jnp.isfinite(fy), cubic, p + 0.5 * (y - p))
    fourth = jnp.where(closed, within, limit)

    step = jnp.where(higher, first, jnp.where(opposite, second, fourth))
    step = jnp.where(flatter, third, step)
    step = jnp.where(finite, step, x + RETREAT * (p - x))
    # A trial that is not finite is a higher one.
    high = Trial(*_choose(higher, trial, _choose(opposite, low, high)))
    low = Trial(*_choose(higher, low, trial))
    return step, Bracket(low, high, closed | higher | opposite)


def _less(trial: Trial, tilt: jax.Array) -> Trial:
    return Trial(trial.alpha, trial.value - trial.alpha * tilt, trial.slope - tilt)


def _choose(condition: jax.Array, new: tuple, old: tuple) -> tuple:
    return tuple(jnp.where(condition, a, b) for a, b in zip(new, old, strict=True))


def _cubic(a, fa, da, b, fb, db) -> tuple[jax.Array, jax.Array]:
    """Returns r with a + r (b − a) the minimizer of the cubic through both ends, and the root γ."""
    # XLA would simplify through the nested selects, for five times as long as the rest compiles.
    a, fa, da, b, fb, db = jax.lax.optimization_barrier((a, fa, da, b, fb, db))
    theta = 3 * (fa - fb) / (b - a) + da + db
    s = jnp.maximum(jnp.abs(theta), jnp.maximum(jnp.abs(da), jnp.abs(db)))
    root = s * jnp.sqrt(jnp.maximum((theta / s) ** 2 - (da / s) * (db / s), 0))
    gamma = jnp.where(b < a, -root, root)
    return ((gamma - da) + theta) / (((gamma - da) + gamma) + db), gamma


more_thuente = Method(init, step, slopes=True)
