"""The models that a config can name: functions of sizes and arguments, which return a `Net`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

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
