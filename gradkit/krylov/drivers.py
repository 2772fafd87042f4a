"""Two ways to run a recurrence `step(A, state) -> state` until it says that it is done.

Both give the same numbers; a method is written once. `in_jit` compiles the whole loop. `on_host`
compiles one step and loops in Python, which allows progress, checkpoints and, on CPU, products with
convolutions, which XLA runs some 40 times slower inside a compiled loop.

`step` and `until` must be the same function objects from call to call, or they are compiled anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

PyTree = Any
Step = Callable[[Any, PyTree], PyTree]
Until = Callable[[PyTree], Any]
Drive = Callable[..., PyTree]


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
) -> PyTree:
    """Returns the first state for which `until` holds, from a Python loop over a compiled step.

    Args:
        step: the recurrence.
        A: its operator, or any pytree that the step reads and does not change.
        state: where to start; its buffers are given up to the loop.
        until: whether a state is the last.
        watch: called with the state after each step, to show progress or to save. Bind it with
            `functools.partial(gk.on_host, watch=...)`.
    """
    advance, done = _compiled(step, until)
    while not done(state):
        state = advance(A, state)
        if watch is not None:
            watch(state)
    return state


@functools.cache
def _compiled(step: Step, until: Until) -> tuple[Callable, Callable]:
    return jax.jit(step, donate_argnums=1), jax.jit(until)
