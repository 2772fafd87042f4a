"""The models that a config can name: functions of sizes and arguments, which return a `Net`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gradkit.runner.activations import Activation, relu
from gradkit.runner.initializers import Initializer, lecun_normal, zeros

Net = Callable[[nnx.Rngs], nnx.Module]
"""Makes a model: called with inputs (examples, ...) and a key in training, it gives outputs."""


class Sizes(NamedTuple):
    """What a model is for.

    Attributes:
        inputs: shape of one example's input.
        outputs: how many numbers it gives for each.
        shares: of each class among the training examples; None without classes.
    """

    inputs: tuple[int, ...]
    outputs: int
    shares: np.ndarray | None


def mlp(
    sizes: Sizes,
    hidden: Sequence[int] = (32,),
    activation: Activation = relu(),
    kernel_init: Initializer = lecun_normal(),
    bias_init: Initializer = zeros(),
    bias: bool = True,
    batch_norm: bool = False,
    dropout: float = 0.0,
    class_bias: bool = False,
) -> Net:
    """Dense layers of these widths, and an activation after each but the last.

    With `batch_norm` each hidden unit is normalized over the batch before its activation, with
    `dropout` that share of hidden units is left out in a training step and the others grow in
    proportion. With `class_bias` the first outputs are the classes' shares: softmax(b) = shares.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected a share from 0 to below 1, got {dropout}")
    if not all(isinstance(width, int) and width > 0 for width in hidden):
        raise ValueError(f"hidden: expected whole numbers > 0, got {list(hidden)}")
    if class_bias and (sizes.shares is None or len(sizes.shares) != sizes.outputs or not bias):
        raise ValueError("class_bias: needs a score for each class, and bias: true")
    start = jnp.log(jnp.asarray(sizes.shares)) if class_bias else None

    def net(rngs: nnx.Rngs) -> nnx.Module:
        return Mlp(
            (int(np.prod(sizes.inputs)), *hidden, sizes.outputs),
            activation,
            (kernel_init, bias_init if bias else None, start),
            batch_norm=batch_norm,
            dropout=dropout,
            rngs=rngs,
        )

    return net


class Mlp(nnx.Module):
    """Dense layers; between them an activation, and where asked for batch norm and dropout."""

    def __init__(
        self,
        widths: Sequence[int],
        activation: Activation,
        begin: tuple[Initializer, Initializer | None, jax.Array | None],
        *,
        batch_norm: bool,
        dropout: float,
        rngs: nnx.Rngs,
    ):
        kernel_init, bias_init, last_bias = begin
        self.activation = activation
        self.dropout = nnx.Dropout(dropout)
        given = {"use_bias": bias_init is not None, "bias_init": bias_init or zeros()}
        layers, norms = [], []
        seen, *hidden, outputs = widths
        for width in hidden:
            layers.append(nnx.Linear(seen, width, kernel_init=kernel_init, rngs=rngs, **given))
            norms += [nnx.BatchNorm(width, rngs=rngs)] if batch_norm else []
            seen = jax.eval_shape(activation, jnp.zeros((1, width))).shape[
                -1
            ]  # maxout leaves fewer
        layers.append(nnx.Linear(seen, outputs, kernel_init=kernel_init, rngs=rngs, **given))
        if last_bias is not None:
            layers[-1].bias[...] = last_bias
        self.layers = nnx.List(layers)
        self.norms = nnx.List(norms)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns outputs (examples, outputs) for inputs (examples, ...).

        Args:
            x: the inputs, whose axes after the first are features.
            key: for dropout in training; without one the model is evaluated.
        """
        x = x.reshape(len(x), -1)
        for i, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            if self.norms:
                x = self.norms[i](x, use_running_average=key is None)
            x = self.activation(x)
            if key is not None and self.dropout.rate:
                rngs = nnx.Rngs(dropout=jax.random.fold_in(key, i))
                x = self.dropout(x, deterministic=False, rngs=rngs)
        return self.layers[-1](x)


def polynomial(
    sizes: Sizes, degree: int = 2, basis: Literal["powers", "legendre"] = "powers"
) -> Net:
    """A polynomial of the inputs, linear in its coefficients, which begin at 0.

    Its terms are products of one power, or one Legendre polynomial, of each input, all those of up
    to this degree in total. Legendre polynomials are orthogonal on [−1, 1], so that inputs of that
    range have a Hessian far better conditioned.
    """
    if degree < 0:
        raise ValueError(f"degree: expected 0 or more, got {degree}")
    inputs = int(np.prod(sizes.inputs))
    chosen = itertools.combinations_with_replacement(range(inputs + 1), degree)  # the last: none
    exponents = np.array([np.bincount(c, minlength=inputs + 1)[:inputs] for c in chosen], int)
    exponents = exponents[np.argsort(exponents.sum(axis=1), kind="stable")]
    return lambda rngs: Polynomial(exponents, sizes.outputs, legendre=basis == "legendre")


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
