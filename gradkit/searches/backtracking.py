"""Backtracking: the first of α, s α, s² α … that lowers φ enough."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradkit.searches.line import Method, Rules, Trial, decreases, falls, in_dtype


class BacktrackingState(NamedTuple):
    """The next trial, and what it is compared with."""

    alpha: jax.Array
    done: jax.Array
    satisfied: jax.Array
    start: Trial
    rules: Rules


def init(start: Trial, alpha: jax.Array, rules: Rules) -> BacktrackingState:
    """Returns the state before the first trial; it is done where φ does not fall at 0."""
    alpha = jnp.asarray(alpha, start.slope.dtype)
    no = jnp.zeros((), bool)
    return BacktrackingState(alpha, ~falls(start, alpha), no, start, in_dtype(rules, start))


def step(state: BacktrackingState, trial: Trial) -> BacktrackingState:
    """Accepts a trial that meets Armijo's condition; a value that is not finite fails."""
    _, _, _, start, rules = state
    passed = jnp.isfinite(trial.value) & decreases(trial, start, rules)
    alpha = jnp.where(passed, trial.alpha, rules.shrink * trial.alpha)
    return BacktrackingState(alpha, passed, passed, start, rules)


# Source: Nocedal & Wright (2006), algorithm 3.1.
backtracking = Method(init, step, slopes=False)
