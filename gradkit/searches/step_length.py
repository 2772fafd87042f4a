"""How far to go along a line, for a function of one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gradkit.searches.line import Method, Rules, Trial, along
from gradkit.searches.methods import method_named

PyTree = Any

NOISE = 4  # rounding of φ, in ε |φ(0)|


class StepLength(NamedTuple):
    """A step along a line: one that meets the conditions, or else the lowest that was tried.

    Attributes:
        alpha: α; 0 where no trial was below φ(0).
        value: φ(α).
        slope: φ′(α); NaN where "backtracking" did not need it.
        evaluations: trials, each one evaluation of φ; that at 0 comes on top.
        satisfied: whether α meets the conditions of the method.
        aux: what φ returned beside its value at α, or None.
    """

    alpha: jax.Array
    value: jax.Array
    slope: jax.Array
    evaluations: jax.Array
    satisfied: jax.Array
    aux: PyTree


def step_length(
    phi: Callable[[jax.Array], Any],
    *,
    method: Literal["backtracking", "more_thuente", "hager_zhang"] = "hager_zhang",
    initial: float | jax.Array = 1.0,
    decrease: float | jax.Array = 1e-4,
    curvature: float | jax.Array = 0.9,
    shrink: float | jax.Array = 0.5,
    max_steps: int = 20,
    has_aux: bool = False,
) -> StepLength:
    """Returns α > 0 with φ(α) sufficiently below φ(0), and φ′(α) sufficiently flat.

    "backtracking" ends at the first of α, s α, s² α … with φ(α) ≤ φ(0) + c₁ α φ′(0), Armijo's
    condition. "more_thuente" and "hager_zhang" demand |φ′(α)| ≤ c₂ |φ′(0)| besides: the strong
    Wolfe conditions. Armijo's may hold up to rounding; where it holds so only, "hager_zhang" asks
    for φ′(α) ≤ (2 c₁ − 1) φ′(0) as well.

    Source: Nocedal & Wright (2006), algorithm 3.1; Moré & Thuente (1994); Hager & Zhang (2005).
    Differs: a φ(α) that is NaN or infinite is a failed trial, from which the search turns back; a
    difference of 4 ε |φ(0)| counts as rounding; nothing but `max_steps` limits α from above.

    Cost: one value and gradient of φ at 0 and a trial; "backtracking": one value a trial. Called
    outside of `jax.jit` it compiles its loop each time.

    Args:
        phi: α -> φ(α), a scalar, or (φ(α), aux) with `has_aux`.
        method: "backtracking", "more_thuente" or "hager_zhang".
        initial: the first α to try; traced or not, as are the next three.
        decrease: c₁, 0 < c₁ < ½.
        curvature: c₂, c₁ <= c₂ < 1; not used by "backtracking".
        shrink: s, 0 < s < 1; used by "backtracking" only.
        max_steps: most trials.
        has_aux: whether φ returns a tree of arrays beside its value.

    Returns:
        A `StepLength`. A φ that does not fall at 0, or is not finite there, gets α = 0.

    Raises:
        ValueError: an unknown method, or a number out of its range.
        TypeError: φ(α) is not a real scalar.

    Example:
        >>> import jax, gradkit as gk
        >>> search = jax.jit(lambda start: gk.step_length(lambda a: (a - 3) ** 2, initial=start))
        >>> found = search(100.0)
        >>> float(found.alpha), bool(found.satisfied), int(found.evaluations)
        (3.0, True, 2)
    """
    search = method_named(method)
    _check(search, initial, decrease, curvature, shrink, max_steps)

    def with_aux(alpha):
        return phi(alpha) if has_aux else (phi(alpha), None)

    dtype = _dtype(with_aux, initial)
    slope_too = jax.value_and_grad(with_aux, has_aux=True)

    def attempt(alpha):
        if not search.slopes:
            value, aux = with_aux(alpha)
            return value, jnp.full_like(value, jnp.nan), aux
        (value, aux), slope = slope_too(alpha)
        return value, slope, aux

    zero = jnp.zeros((), dtype)
    (value, aux), slope = slope_too(zero)
    start = Trial(zero, value.astype(dtype), slope.astype(dtype))
    noise = NOISE * jnp.finfo(value.dtype).eps * jnp.abs(start.value)
    found = along(
        attempt,
        start,
        aux,
        search,
        Rules(decrease, curvature, shrink, noise),
        alpha=jnp.asarray(initial, dtype),
        max_steps=max_steps,
    )
    return StepLength(*found.trial, found.trials, found.satisfied, found.carried)


def _dtype(phi: Callable, initial: Any) -> Any:
    """What α is a number of: what φ computes with, float32 at least."""
    value = jax.eval_shape(phi, 1.0 * jnp.asarray(initial))[0]
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", jnp.int32)
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"phi: expected a real scalar φ(α), got {value}; a pair (φ(α), aux) needs has_aux=True"
        )
    return jnp.promote_types(dtype, jnp.float32)


def _check(
    method: Method, initial: Any, decrease: Any, curvature: Any, shrink: Any, max_steps: Any
) -> None:
    _within("initial", initial, 0, float("inf"))
    _within("decrease", decrease, 0, 0.5)
    _within("shrink", shrink, 0, 1)
    _within("curvature", curvature, 0, 1)
    _within("max_steps", max_steps, 0, float("inf"))
    numbers = isinstance(decrease, float | int) and isinstance(curvature, float | int)
    if method.slopes and numbers and curvature < decrease:
        raise ValueError(
            f"curvature: expected at least decrease = {decrease}, got {curvature}; "
            "below it, no α may meet both conditions"
        )


def _within(name: str, number: Any, low: float, high: float) -> None:
    if isinstance(number, float | int) and not low < number < high:
        raise ValueError(f"{name}: expected a number above {low} and below {high}, got {number}")
