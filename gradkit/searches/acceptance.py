"""Trials of steps that a model proposes, until the loss falls as the model said it would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any


class Trial(NamedTuple):
    """A step that was tried.

    Attributes:
        control: what limits the step: a radius, or the weight of a penalty.
        value: of the loss at its end.
        reduction: by how much the model falls.
        slope: of the loss at its start, gᵀp.
        norm: ‖p‖.
        limited: whether the control kept it from being longer.
        moves: whether it leads anywhere else, in the precision of the parameters.
        carried: whatever comes with it.
    """

    control: jax.Array
    value: jax.Array
    reduction: jax.Array
    slope: jax.Array
    norm: jax.Array
    limited: jax.Array
    moves: jax.Array
    carried: PyTree


class Rules(NamedTuple):
    """When a trial is accepted, and what follows one.

    Attributes:
        accept: a trial with ρ ≥ this is accepted.
        good: with ρ ≥ this, a trial that its control has limited is followed by a longer one.
        tighter: (trial, q) -> the control that makes the step q times as long.
        looser: trial -> a control that makes it longer.
        max_steps: most trials.
    """

    accept: Any
    good: Any
    tighter: Callable[[Trial, jax.Array], jax.Array]
    looser: Callable[[Trial], jax.Array]
    max_steps: int


class Found(NamedTuple):
    """The accepted trial with the lowest loss, or else the last.

    Attributes:
        trial: the trial.
        ratio: ρ, of the true reduction to the model's, there; −inf where the loss is not finite.
        accepted: whether it is.
        trials: how many were made.
        control: where the next would have begun after a rejection.
    """

    trial: Trial
    ratio: jax.Array
    accepted: jax.Array
    trials: jax.Array
    control: jax.Array


def ratio(before: jax.Array, after: jax.Array, reduction: jax.Array) -> jax.Array:
    """Returns (f − f₊ + δ) / (reduction + δ) with δ = 10 ε |f|, −inf if f₊ is not finite.

    Where both reductions are rounding this is near 1, and the step is the model's alone.

    Source: Conn, Gould & Toint (2000), section 17.4.2.
    """
    noise = 10 * jnp.finfo(before.dtype).eps * jnp.abs(before)
    predicted = reduction.astype(before.dtype) + noise
    actual = before - after + noise
    positive = predicted > 0
    rho = jnp.where(positive, actual / jnp.where(positive, predicted, 1), -jnp.inf)
    return jnp.where(jnp.isfinite(after), rho, -jnp.inf).astype(reduction.dtype)


def shrinkage(trial: Trial, before: jax.Array) -> jax.Array:
    """Returns by how much to shorten a step: to the minimum of a parabola, within [0.1, 0.5].

    The parabola has the loss and the slope at the start, and the loss at the end.
    """
    bend = (trial.value - before).astype(trial.slope.dtype) - trial.slope
    usable = jnp.isfinite(bend) & (bend > 0)
    q = jnp.where(usable, -trial.slope / (2 * jnp.where(usable, bend, 1)), 0.25)
    return jnp.clip(q, 0.1, 0.5)


def until_accepted(
    attempt: Callable[[jax.Array], Trial],
    before: jax.Array,
    control: jax.Array,
    rules: Rules,
    usable: jax.Array,
) -> Found:
    """Returns what the trials have found.

    A trial that is rejected is followed by a shorter one, until it moves nothing. One that is
    accepted is the last, unless it is good and was limited: then longer ones follow while the loss
    falls.

    Args:
        attempt: control -> trial.
        before: the loss at the start.
        control: of the first trial.
        rules: see there.
        usable: whether to try at all.
    """

    def go_on(search):
        found, done = search
        return ~done & (found.trials < rules.max_steps)

    def advance(search):
        found, _ = search
        trial = attempt(found.control)
        rho = ratio(before, trial.value, trial.reduction)
        passed = (rho >= rules.accept) & trial.moves
        better = passed & ~(found.accepted & (trial.value >= found.trial.value))
        kept = better | ~found.accepted
        best, best_rho = optax.tree.where(kept, (trial, rho), (found.trial, found.ratio))
        accepted = found.accepted | passed
        # After a rejection, a longer step than the accepted one is not worth trying.
        first = found.accepted | (found.trials == 0)
        further = better & first & trial.limited & (rho >= rules.good)
        shorter = rules.tighter(trial, shrinkage(trial, before))
        control = jnp.where(passed, rules.looser(trial), shorter)
        done = jnp.where(accepted, ~further, ~trial.moves)
        return Found(best, best_rho, accepted, found.trials + 1, control), done

    shapes = jax.eval_shape(attempt, control)

    def zeros(x):
        return jnp.zeros(x.shape, x.dtype, out_sharding=x.sharding)

    blank = jax.tree.map(zeros, shapes)
    none = jnp.zeros((), jnp.int32)
    start = Found(blank, jnp.zeros_like(blank.reduction), jnp.zeros((), bool), none, control)
    return jax.lax.while_loop(go_on, advance, (start, ~usable))[0]
