"""The models that a config can name."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
from flax import nnx


class Mlp(nnx.Module):
    """Dense layers; between them an activation, and where asked for batch norm and dropout."""

    def __init__(
        self,
        widths: Sequence[int],
        activation: str,
        *,
        bias: bool = True,
        batch_norm: bool = False,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        pairs = itertools.pairwise(widths)
        self.layers = nnx.List([nnx.Linear(m, n, use_bias=bias, rngs=rngs) for m, n in pairs])
        hidden = widths[1:-1] if batch_norm else ()
        self.norms = nnx.List([nnx.BatchNorm(n, rngs=rngs) for n in hidden])
        self.dropout = nnx.Dropout(dropout)
        self.activation = getattr(jax.nn, activation)

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
