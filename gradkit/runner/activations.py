"""The activations that a config can name: functions of its arguments, which return one."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

Activation = Callable[[jax.Array], jax.Array]
"""Of hidden units (..., units); a module where it has parameters."""


def own(activation: Activation, layers: int) -> nnx.List:
    """Returns the activation of each of some layers, each with parameters of its own if any."""
    learns = isinstance(activation, nnx.Module)
    return nnx.List([nnx.clone(activation) if learns else activation for _ in range(layers)])


def relu() -> Activation:
    """The larger of x and 0."""
    return jax.nn.relu


def leaky_relu(negative_slope: float = 0.01) -> Activation:
    """x, below 0 times a small slope."""
    return functools.partial(jax.nn.leaky_relu, negative_slope=negative_slope)


def prelu(negative_slope: float = 0.25) -> Activation:
    """x, below 0 times a slope that each layer learns, from this one on.

    Source: He, Zhang, Ren and Sun (2015).
    """
    return nnx.PReLU(negative_slope)


def elu(alpha: float = 1.0) -> Activation:
    """x, below 0 α (eˣ − 1)."""
    return functools.partial(jax.nn.elu, alpha=alpha)


def selu() -> Activation:
    """1.0507 times x, below 0 1.67326 (eˣ − 1): means near 0 and variances near 1 through depth.

    Source: Klambauer, Unterthiner, Mayr and Hochreiter (2017).
    """
    return jax.nn.selu


def gelu(approximate: bool = True) -> Activation:
    """x Φ(x), with Φ of the normal distribution, or an approximation by tanh.

    Source: Hendrycks and Gimpel (2016).
    """
    return functools.partial(jax.nn.gelu, approximate=approximate)


def silu() -> Activation:
    """x times its sigmoid."""
    return jax.nn.silu


def softplus() -> Activation:
    """log(1 + eˣ), a smooth relu."""
    return jax.nn.softplus


def tanh() -> Activation:
    """The hyperbolic tangent."""
    return jnp.tanh


def sigmoid() -> Activation:
    """1 / (1 + e⁻ˣ)."""
    return jax.nn.sigmoid


def softmax() -> Activation:
    """eˣ over its sum over the units."""
    return jax.nn.softmax


def linear() -> Activation:
    """x itself: a deep linear network."""
    return lambda x: x


def step() -> Activation:
    """1 above 0, else 0; its derivative is 0 everywhere, so that nothing below it learns."""
    return lambda x: jnp.heaviside(x, 0)


def lecun_tanh() -> Activation:
    """1.7159 tanh(⅔ x), which maps ±1 to ±1.

    Source: LeCun, Bottou, Orr and Müller (1998), "Efficient BackProp", section 4.4.
    """
    return lambda x: 1.7159 * jnp.tanh(2 * x / 3)


def modified_tanh(a: float = 1.0, b: float = 1.0, c: float = 1.0, d: float = 1.0) -> Activation:
    """(eᵃˣ − e⁻ᵇˣ) / (eᶜˣ + e⁻ᵈˣ), which is tanh where all four are 1."""

    def function(x):
        exponents = a * x, -b * x, c * x, -d * x
        largest = functools.reduce(jnp.maximum, exponents)  # taken out, so that none overflows
        up, down, left, right = (jnp.exp(exponent - largest) for exponent in exponents)
        return (up - down) / (left + right)

    return function


def gaussian() -> Activation:
    """e^(−x²)."""
    return lambda x: jnp.exp(-(x**2))


def maxout(pieces: int = 2) -> Activation:
    """The largest of each few neighboring units, of which there are so many fewer after it.

    Source: Goodfellow, Warde-Farley, Mirza, Courville and Bengio (2013).
    """
    return lambda x: jnp.max(x.reshape(*x.shape[:-1], -1, pieces), axis=-1)
