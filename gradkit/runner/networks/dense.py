"""A network of dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gradkit.runner.activations import Activation, own
from gradkit.runner.initializers import Initializer, constant, zeros


class Mlp(nnx.Module):
    """Dense layers; between them an activation, and where asked for batch norm, gates and dropout.

    Attributes:
        layers: the dense layers.
        norms, gates: one before, one after the activation of each but the last; may be none.
        activations: of each but the last.
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: Activation,
        begin: tuple[Initializer, Initializer | None, jax.Array | None],
        *,
        batch_norm: bool,
        gate_bias: float | None,
        dropout: float,
        rngs: nnx.Rngs,
    ):
        kernel_init, bias_init, last_bias = begin
        self.dropout = nnx.Dropout(dropout)
        given: dict[str, Any] = {"use_bias": bias_init is not None}
        given |= {"bias_init": bias_init or zeros(), "kernel_init": kernel_init, "rngs": rngs}
        layers, norms, gates = [], [], []
        seen, *hidden, outputs = widths
        for width in hidden:
            layers.append(nnx.Linear(seen, width, **given))
            norms += [nnx.BatchNorm(width, rngs=rngs)] if batch_norm else []
            left = jax.eval_shape(activation, jnp.zeros((1, width))).shape[-1]  # of maxout fewer
            if gate_bias is not None:
                opened = constant(gate_bias)
                gates.append(
                    nnx.Linear(seen, left, kernel_init=zeros(), bias_init=opened, rngs=rngs)
                )
            seen = left
        layers.append(nnx.Linear(seen, outputs, **given))
        if last_bias is not None:
            layers[-1].bias[...] = last_bias
        self.layers = nnx.List(layers)
        self.norms = nnx.List(norms)
        self.gates = nnx.List(gates)
        self.activations = own(activation, len(hidden))

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns outputs (examples, outputs) for inputs (examples, ...).

        Args:
            x: the inputs, whose axes after the first are features.
            key: for dropout in training; without one the model is evaluated.
        """
        x = x.reshape(len(x), -1)
        for i, activation in enumerate(self.activations):
            below, x = x, self.layers[i](x)
            if self.norms:
                x = self.norms[i](x, use_running_average=key is None)
            x = activation(x)
            if self.gates:
                x = x * jax.nn.sigmoid(self.gates[i](below))
            if key is not None and self.dropout.rate:
                rngs = nnx.Rngs(dropout=jax.random.fold_in(key, i))
                x = self.dropout(x, deterministic=False, rngs=rngs)
        return self.layers[-1](x)
