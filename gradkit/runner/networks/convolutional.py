"""A convolutional network for images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gradkit.runner.activations import Activation, own
from gradkit.runner.initializers import Initializer


class Convolutional(nnx.Module):
    """Convolutions of 3 × 3, each followed by an activation and halved; then a dense layer.

    Attributes:
        convolutions: each keeps height and width, but where it halves them by its stride.
        norms: batch norm before each activation; may be none.
        output: the dense layer.
    """

    def __init__(
        self,
        image: tuple[int, int, int],
        channels: Sequence[int],
        outputs: int,
        activation: Activation,
        begin: tuple[Initializer, Initializer],
        *,
        pooling: str,
        batch_norm: bool,
        dropout: float,
        rngs: nnx.Rngs,
    ):
        kernel_init, bias_init = begin
        given: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": bias_init, "rngs": rngs}
        self.pooling = pooling
        self.dropout = nnx.Dropout(dropout)
        strides = 2 if pooling == "stride" else 1
        convolutions, norms = [], []
        height, width, seen = image
        for made in channels:
            layer = nnx.Conv(seen, made, (3, 3), strides=strides, padding=1, **given)
            convolutions.append(layer)
            norms += [nnx.BatchNorm(made, rngs=rngs)] if batch_norm else []
            seen = jax.eval_shape(activation, jnp.zeros((1, made))).shape[-1]  # of maxout fewer
            height, width = (  # a stride rounds up, a pool down
                (-(-n // 2) if pooling == "stride" else n // 2) for n in (height, width)
            )
        self.convolutions = nnx.List(convolutions)
        self.norms = nnx.List(norms)
        self.activations = own(activation, len(channels))
        self.output = nnx.Linear(height * width * seen, outputs, **given)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns outputs (examples, outputs) for images (examples, height, width, ...).

        Args:
            x: the images, with an axis of channels or without.
            key: for dropout in training; without one the model is evaluated.
        """
        x = x.reshape(*x.shape[:3], -1)
        for i, activation in enumerate(self.activations):
            x = self.convolutions[i](x)
            if self.norms:
                x = self.norms[i](x, use_running_average=key is None)
            x = activation(x)
            if self.pooling != "stride":
                pool = nnx.max_pool if self.pooling == "max" else nnx.avg_pool
                x = pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        if key is not None and self.dropout.rate:
            x = self.dropout(x, deterministic=False, rngs=nnx.Rngs(dropout=key))
        return self.output(x)
