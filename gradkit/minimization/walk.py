"""The loop of a minimization: a step of the optimizer, then a look at where it led."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.core import Problem, known
from gradkit.minimization.bounds import Bounds
from gradkit.minimization.status import Course, Status, Stops, judged
from gradkit.operators import Operator
from gradkit.states import Work, work

PyTree = Any


class History(NamedTuple):
    """Of the first points, the start included: arrays of one length, NaN where there was none.

    Attributes:
        value: the loss.
        gradient_norm: the largest magnitude in its gradient.
        work: gradient-equivalents spent so far.
    """

    value: jax.Array
    gradient_norm: jax.Array
    work: jax.Array


class Visit(NamedTuple):
    """The loss at some parameters."""

    params: PyTree
    value: jax.Array
    grad: PyTree


class Walk(NamedTuple):
    """A minimization under way: where it is, the best point it has seen, and what was spent."""

    here: Visit
    best: Visit
    optimizer: PyTree
    course: Course
    status: jax.Array
    steps: jax.Array
    work: Work
    history: History | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be run: hashable, so that two calls that ask for the same share compiled code.

    Attributes:
        problem: the loss, of parameters and arguments.
        tx: the optimizer.
        curvature: (problem, params, args) -> (value, grad, Operator), for an optimizer that asks
            for curvature.
        asks: whether it does.
        hands_over: whether its state knows loss and gradient where its updates lead.
        searches: whether a step that is no progress is a sign that there will be none.
    """

    problem: Problem
    tx: optax.GradientTransformationExtraArgs
    curvature: Callable[[Problem, PyTree, PyTree], tuple[jax.Array, PyTree, Operator]]
    asks: bool
    hands_over: bool
    searches: bool


class Given(NamedTuple):
    """What the steps read and do not change: arguments of the loss, tests, and bounds if any."""

    args: PyTree
    stops: Stops
    bounds: Bounds | None


def start(plan: Plan, x0: PyTree, given: Given, length: int) -> Walk:
    """Returns the walk at x0, looked at already where the optimizer hands over what it knows."""
    dtype = tree.scalar_dtype(x0)
    nan = jnp.asarray(jnp.nan, dtype)
    here = Visit(x0, nan, jax.tree.map(jnp.zeros_like, x0))
    zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
    course = Course(
        goal=nan,
        floor=nan,
        lowest=nan,
        least=nan,
        norm=nan,
        drop=zero,
        change=zero,
        stride=zero,
        idle=none,
        stuck=none,
        noisy=none > 0,
        finite=none == 0,
    )
    blank = jnp.full(length, jnp.nan, dtype)
    walk = Walk(
        here=here,
        best=here,
        optimizer=plan.tx.init(x0),
        course=course,
        status=none,
        steps=none,
        work=Work.none(),
        history=History(blank, blank, blank) if length else None,
    )
    if not plan.hands_over:
        return walk
    walk = walk._replace(work=walk.work.plus(1, 1))
    return looked(plan, walk, *_evaluated(plan, x0, given.args), given)


def stepper(plan: Plan) -> Callable[[Given, Walk], Walk]:
    """Returns the step of the loop, `step(given, walk) -> walk`."""
    return _relay_step(plan) if plan.hands_over else _plain_step(plan)


@functools.lru_cache(maxsize=256)
def _relay_step(plan: Plan) -> Callable[[Given, Walk], Walk]:
    def step(given, walk):
        walk = moved(plan, walk, given, None)
        found: Any = known(walk.optimizer)
        return looked(plan, walk, found.value, found.grad, given)

    return step


@functools.lru_cache(maxsize=256)
def _plain_step(plan: Plan) -> Callable[[Given, Walk], Walk]:
    def step(given, walk):
        if plan.asks:
            value, grad, A = plan.curvature(plan.problem, walk.here.params, given.args)
        else:
            (value, grad), A = _evaluated(plan, walk.here.params, given.args), None
        walk = looked(plan, walk._replace(work=walk.work.plus(1, 1)), value, grad, given)
        running = walk.status == Status.RUNNING
        return jax.lax.cond(running, lambda w: moved(plan, w, given, A), lambda w: w, walk)

    return step


def ended(walk: Walk) -> jax.Array:
    """Returns whether the walk has ended."""
    return walk.status != Status.RUNNING


def _evaluated(plan: Plan, params: PyTree, args: PyTree) -> tuple[jax.Array, PyTree]:
    value, grad = jax.value_and_grad(plan.problem.value)(params, args)
    return value, jax.tree.map(jnp.conj, grad)


def moved(plan: Plan, walk: Walk, given: Given, A: Operator | None) -> Walk:
    """Returns the walk one update of its optimizer on, not yet looked at."""
    here, args, built = walk.here, given.args, []

    def curvature():
        if A is not None:
            return A
        built.append(1)
        return plan.curvature(plan.problem, here.params, args)[2]

    extras = {"value": here.value, "grad": here.grad, "curvature": curvature}
    extras["value_fn"] = value_function(plan.problem, args)
    if given.bounds is not None:
        extras["free"] = given.bounds.free(here.params, here.grad)
        extras["project"] = given.bounds.project
    updates, optimizer = plan.tx.update(here.grad, walk.optimizer, here.params, **extras)
    params = optax.apply_updates(here.params, updates)
    if given.bounds is not None:
        params = given.bounds.project(params)
    stride, size = tree.largest(optax.tree.sub(params, here.params)), tree.largest(params)
    course = walk.course._replace(
        change=stride,
        stride=jnp.where(stride == 0, walk.course.stride, stride),
        stuck=jnp.where(stride == 0, walk.course.stuck + plan.searches, 0),
        finite=jnp.isfinite(size),
    )
    trials = _optax_trials(optimizer)
    return walk._replace(
        here=here._replace(params=params),
        optimizer=optimizer,
        course=course,
        steps=walk.steps + 1,
        work=walk.work.plus(trials + len(built), trials + len(built)),
    )


def value_function(problem: Problem, args: PyTree) -> Callable[..., jax.Array]:
    """Returns the loss as optimizers are handed it, with the signature of an observed one."""

    def value_fn(params, *, curvature=None, key=None):
        del curvature, key
        return problem.value(params, args)

    return value_fn


def _optax_trials(state: PyTree) -> jax.Array:
    """The trials of the last line search of optax, of which its states keep no sum."""
    kinds = optax.ScaleByZoomLinesearchState | optax.ScaleByBacktrackingLinesearchState
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds))
    trials = [node.info.num_linesearch_steps for node in nodes if isinstance(node, kinds)]
    return sum(trials, jnp.zeros((), jnp.int32)).astype(jnp.int32)


def looked(plan: Plan, walk: Walk, value: jax.Array, grad: PyTree, given: Given) -> Walk:
    """Returns the walk with the loss where it is now, and what the tests say to it."""
    c, first = walk.course, walk.steps == 0
    dtype = c.norm.dtype
    value, grad = value.astype(dtype), optax.tree.cast_like(grad, walk.best.grad)
    here = Visit(walk.here.params, value, grad)
    bounds, stops = given.bounds, given.stops
    slope = grad if bounds is None else bounds.projected_gradient(here.params, grad)
    norm = tree.largest(slope).astype(dtype)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    noise = 4 * jnp.finfo(dtype).eps * jnp.abs(c.lowest)
    lower = value < c.lowest - noise
    level = (value <= c.lowest + noise) & (norm < c.norm)
    better = first | (finite & (lower | level))
    best = optax.tree.where(better, here, walk.best)
    change = jnp.abs(value - walk.here.value)
    progress = first | (finite & (lower | (norm < 0.9 * c.least)))
    going = progress if plan.searches else progress | ~(change <= noise)

    size = tree.largest(here.params).astype(dtype)
    scale = jnp.maximum(norm, jnp.abs(value) / jnp.maximum(size, 1))
    depth = jnp.maximum(jnp.abs(value), norm * jnp.maximum(size, 1))
    lost, rounding = jnp.where(finite, 0, jnp.inf), 100 * jnp.finfo(dtype).eps
    course = c._replace(
        goal=jnp.where(first, (stops.gradient * jnp.minimum(scale, 1)).astype(dtype), c.goal),
        floor=jnp.where(first, value - depth / jnp.finfo(dtype).eps, c.floor),
        lowest=jnp.where(first, value, jnp.where(value < c.lowest, value, c.lowest)),
        least=jnp.where(first, norm, jnp.where(norm < c.least, norm, c.least)),
        norm=jnp.where(first, norm + lost, jnp.where(better, norm, c.norm)),
        drop=jnp.where(better & (c.stuck == 0), jnp.abs(walk.here.value - value), jnp.inf),
        change=jnp.where(better & (c.stuck == 0), c.change / size, jnp.inf),
        idle=jnp.where(going, 0, c.idle + 1),
        noisy=(norm * c.stride <= rounding * jnp.abs(value)) | (c.stride <= rounding * size),
    )
    walk = walk._replace(here=here, best=best, course=course)
    spent = gradient_equivalents(total(walk))
    return walk._replace(
        status=judged(course, walk.steps, spent, stops),
        history=_recorded(walk.history, walk.steps, value, norm, spent),
    )


def total(walk: Walk) -> Work:
    """Returns what was spent, by the optimizer and by looking."""
    return walk.work.plus(*work(walk.optimizer))


def gradient_equivalents(spent: Work) -> jax.Array:
    """Returns the work in gradients: a loss is a third of one, its gradient the rest."""
    return (spent.evaluations + 2 * spent.gradients) / 3 + spent.products


def _recorded(history: History | None, index: Any, *row: jax.Array) -> History | None:
    """The history with a row set, dropped where there is no room."""
    if history is None:
        return None
    columns = zip(history, row, strict=True)
    return History(*(h.at[index].set(x.astype(h.dtype), mode="drop") for h, x in columns))
