"""A polynomial of its inputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Polynomial(nnx.Module):
    """Coefficients of products of powers, or of Legendre polynomials, of the inputs.

    Attributes:
        coefficients: (terms, outputs), by total degree; of one input the constant's first.
    """

    def __init__(self, exponents: np.ndarray, outputs: int, *, legendre: bool):
        self.exponents = tuple(map(tuple, exponents.tolist()))
        self.legendre = legendre
        self.coefficients = nnx.Param(jnp.zeros((len(exponents), outputs)))

    def terms(self, x: jax.Array) -> jax.Array:
        """Returns the terms (examples, terms) that the coefficients multiply."""
        x = x.reshape(len(x), -1)
        exponents = np.array(self.exponents)
        powers = [jnp.ones_like(x), x]
        for k in range(2, exponents.max(initial=0) + 1):
            following = x * powers[-1]
            if self.legendre:
                following = ((2 * k - 1) * following - (k - 1) * powers[-2]) / k
            powers.append(following)
        of_each = jnp.stack(powers)[
            exponents, :, np.arange(x.shape[1])
        ]  # (terms, inputs, examples)
        return jnp.prod(of_each, axis=1).T

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns outputs (examples, outputs) for inputs (examples, ...)."""
        return self.terms(x) @ self.coefficients[...]
