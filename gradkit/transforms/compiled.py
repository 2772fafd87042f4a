"""Updates outside `jit`: a rule runs as one compiled program, shared by all that are alike.

Operation by operation, an update outside `jit` pays a dispatch for each, and its loops and branches
compile at every call. A loss that a rule is given is traced at each update, so that it is right
where it reads what has changed, and is compiled again only where the trace is another program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
import numpy as np
from jax.tree_util import Partial

from gradkit import values

PyTree = Any

_ARRAY = jax.Array | np.ndarray | np.number | bool | int | float | complex

OF_PARAMS = ("value_fn", "project")  # extra arguments that are functions of the parameters


def call(rule: values.Static, extra: dict[str, Any], params: PyTree, *args: PyTree) -> Any:
    """Returns rule(params, *args, **extra), compiled where it can be.

    Args:
        rule: a function of trees of arrays; those that are equal compile once.
        extra: arguments of `update`, functions among them.
        params: tree of parameters, or None.
        *args: trees of arrays and numbers.
    """
    try:
        data, programs = _split(extra, params)
    except _NotATreeError:
        return rule.function(params, *args, **extra)
    try:
        return _run(rule, programs, data, params, *args)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        return rule.function(params, *args, **extra)  # it looks at numbers, as a mask may


class _NotATreeError(Exception):
    """An extra argument holds something else than arrays."""


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(rule: values.Static, programs: tuple, data: dict, params: PyTree, *args: PyTree) -> Any:
    extra = dict(data)
    for name, program in programs:
        leaves, consts = data[name]
        extra[name] = Partial(functools.partial(program.run, consts), *leaves)
    return rule.function(params, *args, **extra)


class _Program:
    """A traced function: equal where the function's code and the text of the trace are."""

    def __init__(self, jaxpr: Any, result: Any, function: Callable):
        self.jaxpr, self.result = jaxpr, jax.tree.structure(result)
        self.key = str(jaxpr), self.result, _without_arrays(function)

    def run(self, consts: list, *leaves_and_params: PyTree) -> PyTree:
        """Returns what the function returns."""
        whole = jax.extend.core.ClosedJaxpr(self.jaxpr, consts)
        found = jax.extend.core.jaxpr_as_fun(whole)(*jax.tree.leaves(leaves_and_params))
        return self.result.unflatten(found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Program) and values.equal(self.key, other.key)

    def __hash__(self) -> int:
        return hash(self.key[0])


def _split(extra: dict[str, Any], params: PyTree) -> tuple[dict[str, Any], tuple]:
    """The arrays of the extra arguments, and the programs of those that are functions."""
    data, programs = {}, []
    for name, given in extra.items():
        if name in OF_PARAMS and given is not None:
            data[name], program = _traced(given, params)
            programs.append((name, program))
        elif all(isinstance(x, _ARRAY) for x in jax.tree.leaves(given)):
            data[name] = given
        else:
            raise _NotATreeError
    return data, tuple(programs)


def _traced(function: Callable, params: PyTree) -> tuple[tuple[list, list], _Program]:
    """The arrays that a function holds and those that it reads elsewhere, and its program."""
    leaves, structure = [], None
    if isinstance(function, Partial):
        leaves, structure = jax.tree.flatten(function)
        if not all(isinstance(x, _ARRAY) for x in leaves):
            raise _NotATreeError

    def whole(*leaves_and_params):
        *held, params = leaves_and_params
        return (function if structure is None else structure.unflatten(held))(params)

    closed, result = jax.make_jaxpr(whole, return_shape=True)(*leaves, params)
    return (leaves, closed.consts), _Program(
        closed.jaxpr, result, function if structure is None else structure
    )


def _without_arrays(function: Any) -> Any:
    """What a function is, less the arrays it holds, which the trace has as constants."""
    code = getattr(function, "__code__", None)
    if code is None:
        return function
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    held = function.__defaults__, function.__kwdefaults__, cells
    return code, jax.tree.map(lambda x: None if isinstance(x, jax.Array | np.ndarray) else x, held)
