"""One unconstrained test problem: a function, its standard start and its best known value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

Source = Literal["literature", "computed"]


@dataclass(frozen=True)
class Unconstrained:
    """A smooth function of one vector, to be made small from its standard start.

    Attributes:
        name: distinct among all problems; ends in the dimension where the problem has several.
        fun: scalar function of a vector, in whatever floating dtype the vector has.
        x0: standard start, float64.
        n: number of variables.
        best: least known value; where that is known only as zero or at infinity, the limit.
        source: where `best` comes from: printed with the problem, or computed from the standard
            start by several methods in float64.
        residuals: vector of the terms where `fun` is the sum of their squares.
        local: values at further minimizers (some at infinity) where a method may rightly end.
    """

    name: str
    fun: Callable[[jax.Array], jax.Array]
    x0: np.ndarray
    n: int
    best: float
    source: Source = "literature"
    residuals: Callable[[jax.Array], jax.Array] | None = None
    local: tuple[float, ...] = ()


@cache
def _computed() -> dict[str, float]:
    lines = (Path(__file__).parent / "computed.txt").read_text().splitlines()
    return {name: float(value) for name, value in map(str.split, lines)}


def _known(name: str, best: float | None) -> tuple[float, Source]:
    return (_computed()[name], "computed") if best is None else (best, "literature")


def general(
    name: str,
    fun: Callable[[jax.Array], jax.Array],
    x0: ArrayLike,
    best: float | None = None,
    *,
    local: Sequence[float] = (),
) -> Unconstrained:
    """The problem of a plain function; without `best` the computed value is looked up."""
    start = np.array(x0, dtype=np.float64)
    value, source = _known(name, best)
    return Unconstrained(name, fun, start, start.size, value, source, None, tuple(local))


def squares(
    name: str,
    residuals: Callable[[jax.Array], jax.Array],
    x0: ArrayLike,
    best: float | None = None,
    *,
    local: Sequence[float] = (),
) -> Unconstrained:
    """The problem of a sum of squares, without a factor one half; `best` as for `general`."""

    def fun(x: jax.Array) -> jax.Array:
        return jnp.sum(residuals(x) ** 2)

    start = np.array(x0, dtype=np.float64)
    value, source = _known(name, best)
    return Unconstrained(name, fun, start, start.size, value, source, residuals, tuple(local))


def like(values: ArrayLike, x: jax.Array) -> jax.Array:
    """The constants as an array of the dtype of `x`, so that they never decide the dtype."""
    return jnp.asarray(values, x.dtype)


def counting(n: int, x: jax.Array) -> jax.Array:
    """1, 2, …, n in the dtype of `x`."""
    return jnp.arange(1, n + 1, dtype=x.dtype)
