"""Two ways to run a recurrence `step(A, state) -> state` until it says that it is done.

Both give the same numbers; a method is written once. `in_jit` compiles the whole loop. `on_host`
compiles one step and loops in Python, which allows progress, saved states, operators that cannot be
traced, and, on CPU, products with convolutions, which XLA runs some 40 times slower inside a
compiled loop.

`step` and `until` must be the same function objects from call to call, or they are compiled anew. A
step calls its operators at its top level, not within a `cond` or a loop of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax

from gradkit import tree
from gradkit.operators import Operator

PyTree = Any
Step = Callable[[Any, PyTree], PyTree]
Until = Callable[[PyTree], Any]
Drive = Callable[..., PyTree]


def chosen(drive: Drive | None, *, owned: bool = False) -> Drive:
    """Returns the driver that was asked for, or else one that does what suits the operator.

    Args:
        drive: the one that was asked for.
        owned: whether the state is nobody else's: the default driver may then write over it.
    """
    return functools.partial(_suited, owned=owned) if drive is None else drive


@functools.partial(jax.jit, static_argnames=("step", "until"))
def in_jit(step: Step, A: Any, state: PyTree, *, until: Until) -> PyTree:
    """Returns the first state for which `until` holds, from one compiled `while_loop`."""
    return jax.lax.while_loop(lambda s: ~until(s), lambda s: step(A, s), state)


def on_host(
    step: Step,
    A: Any,
    state: PyTree,
    *,
    until: Until,
    watch: Callable[[PyTree], None] | None = None,
    state_on: Any = None,
) -> PyTree:
    """Returns the first state for which `until` holds, from a Python loop over a compiled step.

    Args:
        step: the recurrence.
        A: its operator, or any pytree that the step reads and does not change.
        state: where to start; its buffers are given up to the loop.
        until: whether a state is the last.
        watch: called with the state after each step, to show progress or to save. Bind it with
            `functools.partial(gk.on_host, watch=...)`.
        state_on: the device that holds the state, a basis of vectors above all, and computes all
            of a step but its products; by default the operator's. With
            `functools.partial(gk.on_host, state_on=jax.devices("cpu")[0])` a basis too large for
            an accelerator lies in the memory of the host.
    """
    if state_on is not None:
        state = jax.device_put(state, state_on)
    apart = state_on is not None or any(not B.traceable for B in operators(A))
    advance = _advance_apart if apart else _advance
    done = _compiled_test(until)
    while not done(state):
        state = advance(step, A, state)
        if watch is not None:
            watch(state)
    return state


def _suited(step: Step, A: Any, state: PyTree, *, until: Until, owned: bool) -> PyTree:
    by_host = not tree.traced(A, state) and any(B.loops_on_host for B in operators(A))
    drive = on_host if by_host else _in_place if owned else in_jit
    return drive(step, A, state, until=until)


@functools.partial(jax.jit, static_argnames=("step", "until"), donate_argnames="state")
def _in_place(step: Step, A: Any, state: PyTree, *, until: Until) -> PyTree:
    return in_jit(step, A, state, until=until)


def _advance(step: Step, A: Any, state: PyTree) -> PyTree:
    return _compiled(step)(A, state)


def _advance_apart(step: Step, A: Any, state: PyTree) -> PyTree:
    """One step whose products are made outside compiled code.

    The step is replayed up to the product it needs next, from the products so far.
    """
    every, frame = operators(A), _frame(A)
    needed, finished = _replayed(step)
    products = []
    while asked := needed(frame, state, products):
        ((number, v),) = asked.items()
        B = every[number]
        products.append(_moved(B @ _moved(v, like=B), like=state))
    return finished(frame, state, products)


class _ProductNeededError(Exception):
    """Carries the number of an operator and what it is to be applied to."""


@functools.cache
def _replayed(step: Step) -> tuple[Callable, Callable]:
    """Two compiled functions of what a step has: its next product to make, and its result."""

    def replay(frame, state, products):
        known = iter(products)

        def matvec(number, v):
            product = next(known, None)
            if product is None:
                raise _ProductNeededError(number, v)
            return product

        def filled(B):
            if not isinstance(B, Operator):
                return B
            hole: Any = B.matvec
            return Operator(functools.partial(matvec, hole.func.number), B.domain)

        return step(jax.tree.map(filled, frame, is_leaf=_is_operator), state)

    def needed(frame, state, products):
        try:
            replay(frame, state, products)
        except _ProductNeededError as product:
            number, v = product.args
            return {number: v}
        return {}

    return jax.jit(needed), jax.jit(replay, donate_argnums=1)


@dataclasses.dataclass(frozen=True)
class _Hole:
    """Stands for the matvec of the operator of this number."""

    number: int

    def __call__(self, v):
        raise TypeError("filled with a matvec before it is called")


def _frame(A: Any) -> Any:
    """A with a hole in the place of each operator's matvec."""
    numbers = itertools.count()

    def hole(x):
        return Operator(_Hole(next(numbers)), x.domain) if isinstance(x, Operator) else x

    return jax.tree.map(hole, A, is_leaf=_is_operator)


def _is_operator(x: Any) -> bool:
    return isinstance(x, Operator)


def operators(A: Any) -> list[Operator]:
    """Returns the operators in a pytree, in the order of its leaves."""
    return [x for x in jax.tree.leaves(A, is_leaf=_is_operator) if isinstance(x, Operator)]


def _moved(v: PyTree, like: PyTree) -> PyTree:
    """v on the device of the arrays in `like`, the default one without any; as it is for many."""
    arrays = [x for x in jax.tree.leaves(like) if isinstance(x, jax.Array)]
    devices = set().union(*(x.sharding.device_set for x in arrays)) or {jax.local_devices()[0]}
    return jax.device_put(v, devices.pop()) if len(devices) == 1 else v


@functools.cache
def _compiled(step: Step) -> Callable:
    return jax.jit(step, donate_argnums=1)


@functools.cache
def _compiled_test(until: Until) -> Callable:
    return jax.jit(until)
