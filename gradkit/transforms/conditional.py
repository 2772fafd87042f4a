"""Work that is done at some steps only, in place."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial

from gradkit import tree

PyTree = Any


def every_so_often(
    step: jax.Array, every: int, function: Callable, operand: PyTree, *context: PyTree
) -> PyTree:
    """Returns function(operand, *context) at each step that `every` divides, else the operand.

    Args:
        step: a scalar.
        every: steps from one call to the next.
        function: maps a tree to one of the same structure, shapes and dtypes.
        operand: the tree.
        *context: trees that the function needs, as for `run_if`.
    """
    if every == 1:
        return function(operand, *context)
    return when(step % every == 0, function, operand, *context)


def when(due: jax.Array, function: Callable, operand: PyTree, *context: PyTree) -> PyTree:
    """Returns what `run_if` does, without compiling where `due` is known."""
    if tree.traced(due):
        return run_if(due, function, operand, *context)
    return function(operand, *context) if due else operand


def deferred(function: Callable) -> Callable:
    """Returns a function without arguments as a tree that crosses into a loop.

    The arrays of a `Partial`, as `observe` makes them, are its leaves; those that another function
    closes over are constants of it.
    """
    if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(function)):
        return function
    return Partial(function)


def run_if(pred: jax.Array, function: Callable, operand: PyTree, *context: PyTree) -> PyTree:
    """Returns function(operand, *context) if `pred` is true, else the operand, not copied.

    `jax.lax.cond` copies what a branch passes on, and on CPU runs a branch on one core. A loop of
    no or one step works in place; derivatives, forward and reverse, are those of the `cond`.

    Args:
        pred: a scalar boolean.
        function: maps a tree to one of the same structure, shapes and dtypes.
        operand: the tree.
        *context: trees that the function needs. It may close over more; what it makes of those
            alone is computed in any case.
    """
    function, constants = jax.closure_convert(function, operand, *context)
    return _looped(function, pred, operand, (*context, *constants))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _looped(function: Callable, pred: jax.Array, operand: PyTree, context: tuple) -> PyTree:
    def body(carry):
        pred, operand = carry
        held = jax.lax.optimization_barrier((pred, context))[1]  # or XLA computes with it outside
        return ~pred, function(operand, *held)

    return jax.lax.while_loop(lambda carry: carry[0], body, (pred, operand))[1]


@_looped.defjvp
def _looped_jvp(function, primals, tangents):
    def branched(pred, operand, context):
        return jax.lax.cond(pred, lambda: function(operand, *context), lambda: operand)

    return jax.jvp(branched, primals, tangents)
