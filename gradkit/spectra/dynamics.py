"""How gradient descent moves on a quadratic: mode by mode, each as if there were no other."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradkit.tree import wide

KINDS = ("decays", "oscillates", "diverges", "neutral", "not a number")


class Dynamics(NamedTuple):
    """`θ_t − θ* = Q diag(amplitudes[t]) Qᵀ (θ₀ − θ*)` for a Hessian Q diag(λ) Qᵀ.

    Attributes:
        amplitudes: shape (steps + 1, modes), 1 at first; infinite once they overflow.
        rate: shape (modes,), by how much a step multiplies an amplitude in the long run.
        code: shape (modes,), index into `KINDS`.
    """

    amplitudes: jax.Array
    rate: jax.Array
    code: jax.Array

    @property
    def kinds(self) -> np.ndarray:
        """For each mode its kind in words; what oscillates decays as well."""
        return np.asarray(KINDS)[np.asarray(self.code)]


def dynamics(
    eigenvalues: ArrayLike,
    *,
    learning_rate: float | jax.Array,
    momentum: float | jax.Array = 0.0,
    steps: int = 100,
) -> Dynamics:
    """Returns what gradient descent, or the heavy ball, does to each mode of a quadratic.

    The iteration is v ← μ v + g, θ ← θ − η v from v = 0, that of `gk.sgd(η, momentum=μ)`. Mode by
    mode, with a = η λ, x_{t+1} = (1 + μ − a) x_t − μ x_{t−1}, whose rate is the larger |r| of
    r² − (1 + μ − a) r + μ = 0; without momentum x_t = (1 − a)ᵗ. A mode

    - decays without a change of sign for 0 < a ≤ (1 − √μ)², where both r are positive;
    - oscillates and decays up to a = 2 (1 + μ): r is complex, or the larger one negative;
    - diverges for a < 0 and beyond 2 (1 + μ); is neutral at a = 0 and a = 2 (1 + μ).

    Source: Polyak (1964), "Some methods of speeding up the convergence of iteration methods".
    Differs: amplitudes come from the iteration, with the rounding of x carried along, and not from
    the roots, so that a double root and modes too slow to show in one step are exact to rounding.

    Cost: steps · modes numbers; no products.

    Args:
        eigenvalues: λ, shape (modes,), or any other, which the results then have in its place
            [loss/param²].
        learning_rate: η.
        momentum: μ, 0 ≤ μ < 1.
        steps: how many.

    Raises:
        ValueError: learning rate, momentum or steps out of range.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> found = gk.dynamics(jnp.array([0.5, 1.5, 2.5]), learning_rate=1.0, steps=2)
        >>> found.kinds.tolist(), found.rate.tolist()
        (['decays', 'oscillates', 'diverges'], [0.5, 0.5, 1.5])
        >>> found.amplitudes.tolist()
        [[1.0, 1.0, 1.0], [0.5, -0.5, -1.5], [0.25, 0.25, 2.25]]
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: expected a positive whole number, got {steps!r}")
    if isinstance(learning_rate, int | float) and not learning_rate > 0:
        raise ValueError(f"learning_rate: expected a positive number, got {learning_rate!r}")
    needs_momentum(momentum)
    return _dynamics(wide(jnp.asarray(eigenvalues)), learning_rate, momentum, steps=steps)


@functools.partial(jax.jit, static_argnames="steps")
def _dynamics(values: jax.Array, eta: Any, mu: Any, *, steps: int) -> Dynamics:
    a, mu = (eta * values).astype(values.dtype), jnp.asarray(mu, values.dtype)
    root = jnp.sqrt(mu)
    critical, limit = ((1 - mu) / (1 + root)) ** 2, 2 * (1 + mu)
    discriminant = (critical - a) * ((1 + root) ** 2 - a)  # (1 + μ − a)² − 4 μ
    spread = jnp.sqrt(jnp.maximum(discriminant, 0))
    rate = jnp.where(discriminant < 0, root, (jnp.abs(1 + mu - a) + spread) / 2)
    cases = [jnp.isnan(a), (a < 0) | (a > limit), (a == 0) | (a == limit), a > critical]
    code = jnp.select(cases, [jnp.full(a.shape, kind, jnp.int32) for kind in (4, 2, 3, 1)], 0)

    def step(carry, _):
        x, lost, w = carry
        w = mu * w + a * x  # w = η v
        move = lost - w
        following = x + move
        lost = move - (following - x)  # what rounding took from the move
        following = jnp.where(jnp.isfinite(x), following, x)
        return (following, lost, w), x

    start = (jnp.ones_like(a), jnp.zeros_like(a), jnp.zeros_like(a))
    _, amplitudes = jax.lax.scan(step, start, length=steps + 1)
    return Dynamics(amplitudes, rate, code)


def needs_momentum(value: Any) -> None:
    """Raises a `ValueError` if a Python number is no momentum."""
    if isinstance(value, int | float) and not 0 <= value < 1:
        raise ValueError(f"momentum: expected 0 <= momentum < 1, got {value!r}")
