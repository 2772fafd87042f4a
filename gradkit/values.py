"""Equality of what is made of functions: two closures that were built alike are one value.

Python compares functions by identity, so that two learning-rate schedules with the same numbers
differ, and whatever holds them compiles twice. Here functions are equal if their code is the same
and what they close over is equal.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

_PLAIN = int | str | types.CodeType


def equal(a: Any, b: Any) -> bool:
    """Returns whether two values are alike: numbers, arrays, containers, functions made of them.

    A traced array is equal to itself only, and so is a function that refers to itself.
    """
    try:
        return _equal(a, b)
    except RecursionError:
        return False


def hash_of(a: Any) -> int:
    """Returns a hash that equal values share. Of what may change it is that of the type."""
    match a:
        case types.FunctionType():
            held = map(_content, a.__closure__ or ())
            codes = [getattr(x, "__code__", x) for x in held]
            return hash((a.__code__, *(x for x in codes if isinstance(x, _PLAIN))))
        case functools.partial():
            return hash((functools.partial, hash_of(a.func)))
        case tuple() if type(a).__hash__ is tuple.__hash__:
            return hash((type(a), *map(hash_of, a)))
        case float() if a != a:
            return hash(float)
        case np.ndarray() | jax.Array() | Mapping():
            return hash(type(a).__name__)
    try:
        return hash(a)
    except TypeError:
        return hash(type(a))


class Static:
    """A function as a static argument of `jax.jit`: equal functions compile once.

    Attributes:
        function: the function.
    """

    def __init__(self, function: Any):
        self.function = function
        self._hash = hash_of(function)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and equal(self.function, other.function)

    def __hash__(self) -> int:
        return self._hash


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b) or isinstance(a, jax.core.Tracer):
        return False
    match a:
        case types.FunctionType():
            same = a.__code__ == b.__code__ and a.__globals__ is b.__globals__
            return same and _equal(_parts(a), _parts(b))
        case types.MethodType():
            return a.__func__ is b.__func__ and _equal(a.__self__, b.__self__)
        case functools.partial():
            return _equal((a.func, a.args, a.keywords), (b.func, b.args, b.keywords))
        case np.ndarray() | jax.Array():
            return _equal(_bits(a), _bits(b))
        case float() | complex():
            return a == b or (a != a and b != b)
        case tuple() | list() if type(a).__eq__ in (tuple.__eq__, list.__eq__):
            return len(a) == len(b) and all(map(_equal, a, b))
        case Mapping():
            return a.keys() == b.keys() and all(_equal(value, b[key]) for key, value in a.items())
    try:
        return bool(a == b)
    except Exception:  # of a type that compares with its own kind only, or to no single answer
        return False


def _parts(function: types.FunctionType) -> tuple:
    """What a function is made of, besides its code."""
    cells = map(_content, function.__closure__ or ())
    return function.__defaults__, function.__kwdefaults__, *cells


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a name that has no value yet
        return cell


def _bits(array: Any) -> tuple:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return str(array.dtype), _bits(jax.random.key_data(array))
    return str(array.dtype), array.shape, np.asarray(array).tobytes()
