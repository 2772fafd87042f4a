"""Trials along a line: what every line search is told and returns, and the loop that makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any


class Trial(NamedTuple):
    """φ(α) = f(x + α d): `value` is φ(α) and `slope` φ′(α), NaN where it was not computed."""

    alpha: jax.Array
    value: jax.Array
    slope: jax.Array


class Rules(NamedTuple):
    """What makes a trial acceptable.

    Attributes:
        decrease: c₁ of Armijo's φ(α) ≤ φ(0) + c₁ α φ′(0).
        curvature: c₂ of the strong Wolfe condition |φ′(α)| ≤ c₂ |φ′(0)|.
        shrink: factor between one trial of backtracking and the next.
        noise: how much of a difference of values is rounding.
    """

    decrease: Any
    curvature: Any
    shrink: Any
    noise: Any


class Method(NamedTuple):
    """A line search: a state machine on scalars that is told of one trial at a time.

    Its state is a NamedTuple of scalars with at least these: `alpha`, the next α to try; `done`,
    whether it asks for no more; `satisfied`, whether the last trial is acceptable.

    Attributes:
        init: (start, alpha, rules) -> state, `start` the trial at α = 0.
        step: (state, trial) -> state, for a trial at `state.alpha`.
        slopes: whether trials need their slope.
    """

    init: Callable[[Trial, jax.Array, Rules], Any]
    step: Callable[[Any, Trial], Any]
    slopes: bool


class Found(NamedTuple):
    """The trial that was accepted, or else the lowest there was, α = 0 included.

    Attributes:
        trial: α, φ(α) and φ′(α).
        carried: what φ returned beside them there.
        trials: how many were made.
        satisfied: whether the trial meets the rules of the search.
    """

    trial: Trial
    carried: PyTree
    trials: jax.Array
    satisfied: jax.Array


def sound(trial: Trial) -> jax.Array:
    """Whether value and slope are finite numbers: if not, the trial has failed."""
    return jnp.isfinite(trial.value) & jnp.isfinite(trial.slope)


def falls(start: Trial, alpha: jax.Array) -> jax.Array:
    """Whether φ falls at α = 0 and the first α is one to try: if not, no search begins."""
    return sound(start) & (start.slope < 0) & (alpha > 0) & jnp.isfinite(alpha)


def decreases(trial: Trial, start: Trial, rules: Rules) -> jax.Array:
    """Armijo's φ(α) ≤ φ(0) + c₁ α φ′(0), up to rounding."""
    return trial.value <= start.value + rules.decrease * trial.alpha * start.slope + rules.noise


def in_dtype(rules: Rules, start: Trial) -> Rules:
    """Returns the rules as numbers of the trials' dtype, as a loop has to carry them."""
    return Rules(*(jnp.asarray(rule, start.slope.dtype) for rule in rules))


def along(
    phi: Callable[[jax.Array], tuple[jax.Array, jax.Array, PyTree]],
    start: Trial,
    carried: PyTree,
    method: Method,
    rules: Rules,
    *,
    alpha: jax.Array,
    max_steps: int,
) -> Found:
    """Returns what the method found.

    Args:
        phi: α -> (φ(α), φ′(α), carried), the last a tree of the same structure wherever it is.
        start: the trial at α = 0.
        carried: what φ would return there beside value and slope.
        method: the line search.
        rules: of the method.
        alpha: the first α to try.
        max_steps: most trials.
    """

    def go_on(search):
        state, found = search
        return ~state.done & (found.trials < max_steps)

    def attempt(search):
        state, found = search
        value, slope, here = phi(state.alpha)
        trial = Trial(state.alpha, value.astype(start.value.dtype), slope.astype(start.slope.dtype))
        state = method.step(state, trial)
        finite = sound(trial) if method.slopes else jnp.isfinite(trial.value)
        kept = state.satisfied | (finite & (trial.value < found.trial.value))
        best, beside = optax.tree.where(kept, (trial, here), (found.trial, found.carried))
        return state, Found(best, beside, found.trials + 1, state.satisfied)

    none = Found(start, carried, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    return jax.lax.while_loop(go_on, attempt, (method.init(start, alpha, rules), none))[1]
