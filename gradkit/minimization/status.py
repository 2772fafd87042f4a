"""How a minimization ended, and the tests that say so."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PATIENCE = 15  # steps without progress after which there will be none


class Status(enum.IntEnum):
    """How a minimization ended; the first three are convergence, and hold at what was returned.

    With f, g, x at the point returned, f₀, g₀, x₀ at the start, norms the largest magnitudes, and
    "the last step" the one that led there:

    Attributes:
        RUNNING: it has not ended.
        GRADIENT: ‖g‖ ≤ tol · min(1, max(‖g₀‖, |f₀|/max(1, ‖x₀‖))): small against what it was.
        FUNCTION: the last step lowered f by at most `function` · |f|.
        STEP: the last step changed no parameter by more than `step` · ‖x‖.
        STEP_LIMIT: `max_steps` were made.
        EVALUATION_LIMIT: the budget of gradient-equivalents is spent.
        SEARCH_FAILED: twice in a row no lower loss was found along a direction.
        NO_PROGRESS: rounding hides what progress there might be: for 15 steps neither loss nor
            gradient fell, or no step changed anything where the loss was down to its rounding.
        NONFINITE_START: loss or gradient is NaN or infinite at x₀.
        UNBOUNDED: f fell by more than 1/ε times its scale at the start, or to −∞.
        SADDLE: GRADIENT holds, and the Hessian has a negative eigenvalue there.
        DIVERGED: the optimizer made a parameter NaN or infinite. The best point is returned.
    """

    RUNNING = 0
    GRADIENT = 1
    FUNCTION = 2
    STEP = 3
    STEP_LIMIT = 4
    EVALUATION_LIMIT = 5
    SEARCH_FAILED = 6
    NO_PROGRESS = 7
    NONFINITE_START = 8
    UNBOUNDED = 9
    SADDLE = 10
    DIVERGED = 11


CONVERGED = (Status.GRADIENT, Status.FUNCTION, Status.STEP)

MESSAGES = {
    Status.RUNNING: "not ended",
    Status.GRADIENT: "converged: the gradient is within its tolerance",
    Status.FUNCTION: "converged: the last step lowered the loss by less than its tolerance",
    Status.STEP: "converged: the last step was shorter than its tolerance",
    Status.STEP_LIMIT: "stopped at max_steps; raise it, or try another method",
    Status.EVALUATION_LIMIT: "stopped as its budget is spent; raise it, or try another method",
    Status.SEARCH_FAILED: "no lower loss was found along the direction; is the gradient right, and "
    "the loss smooth?",
    Status.NO_PROGRESS: "no further progress at this precision; float64 or a better scaled loss "
    "would go on",
    Status.NONFINITE_START: "loss or gradient is NaN or infinite at the start; start elsewhere",
    Status.UNBOUNDED: "the loss seems to have no lower bound",
    Status.SADDLE: "the gradient is zero, and the curvature negative in some direction: a saddle "
    "or a maximum; start elsewhere",
    Status.DIVERGED: "a parameter became NaN or infinite; lower the learning rate",
}


class Stops(NamedTuple):
    """When to stop: what `minimize` was asked for.

    Attributes:
        gradient: the relative tolerance of the gradient.
        function: that of the last decrease, 0 for never.
        step: that of the last step, 0 for never.
        max_steps: most steps.
        budget: most gradient-equivalents.
    """

    gradient: Any
    function: Any
    step: Any
    max_steps: Any
    budget: Any


class Course(NamedTuple):
    """What a test looks at, scalars all: where the walk began, is, and has been.

    Attributes:
        goal: what the norm of the gradient is to reach.
        floor: what the loss falls below where it has no lower bound.
        lowest: of the losses. least: of the gradient norms.
        norm: of the gradient at the best point.
        drop: by how much the last step lowered the loss; infinite if it led to no better point.
        change: the largest change of a parameter relative to the largest parameter, likewise.
        stride: the largest change of a parameter in the last step that changed any.
        idle: steps in a row without progress. stuck: steps in a row that changed nothing.
        noisy: whether the loss is down to its rounding.
        finite: whether the parameters are.
    """

    goal: jax.Array
    floor: jax.Array
    lowest: jax.Array
    least: jax.Array
    norm: jax.Array
    drop: jax.Array
    change: jax.Array
    stride: jax.Array
    idle: jax.Array
    stuck: jax.Array
    noisy: jax.Array
    finite: jax.Array


def judged(course: Course, steps: jax.Array, spent: jax.Array, stops: Stops) -> jax.Array:
    """Returns the status: the first of these that holds."""
    c, later, size = course, steps > 0, jnp.abs(course.lowest)
    cases = [
        (~jnp.isfinite(c.norm), Status.NONFINITE_START),
        (c.norm <= c.goal, Status.GRADIENT),
        (c.lowest < c.floor, Status.UNBOUNDED),
        (later & (stops.function > 0) & (c.drop <= stops.function * size), Status.FUNCTION),
        (later & (stops.step > 0) & (c.change <= stops.step), Status.STEP),
        (~c.finite, Status.DIVERGED),
        (((c.stuck >= 2) & c.noisy) | (c.idle >= PATIENCE), Status.NO_PROGRESS),
        (c.stuck >= 2, Status.SEARCH_FAILED),
        (spent >= stops.budget, Status.EVALUATION_LIMIT),
        (steps >= stops.max_steps, Status.STEP_LIMIT),
    ]
    status = jnp.asarray(Status.RUNNING, jnp.int32)
    for holds, name in reversed(cases):
        status = jnp.where(holds, jnp.int32(name), status)
    return status
