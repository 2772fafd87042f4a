"""A transformer that predicts each next token of a text."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gradkit.runner.activations import Activation, own
from gradkit.runner.initializers import Initializer, normal


class Transformer(nnx.Module):
    """Blocks of causal attention and a dense network, each added to what it reads normalized.

    Attributes:
        tokens: their vectors.
        places: the vectors of positions; None with rotary ones.
        blocks: one after the other.
        norm, output: what makes scores of the last block's vectors.
    """

    def __init__(
        self,
        tokens: int,
        length: int,
        shape: tuple[int, int, int],
        activation: Activation,
        kernel_init: Initializer,
        *,
        rotary: bool,
        rngs: nnx.Rngs,
    ):
        layers, width, heads = shape
        embedding = normal(0.02)  # as in GPT-2
        self.tokens = nnx.Embed(tokens, width, embedding_init=embedding, rngs=rngs)
        self.places = (
            None if rotary else nnx.Embed(length, width, embedding_init=embedding, rngs=rngs)
        )
        given: dict[str, Any] = {"kernel_init": kernel_init, "rngs": rngs}
        self.blocks = nnx.List(
            [Block(width, heads, own(activation, 1), given, rotary=rotary) for _ in range(layers)]
        )
        self.norm = nnx.LayerNorm(width, use_fast_variance=False, rngs=rngs)
        self.output = nnx.Linear(width, tokens, **given)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns scores (examples, length, tokens) of the token after each (examples, length).

        Those at a position depend on the tokens up to it alone.
        """
        vectors = self.tokens(x)
        if self.places is not None:
            vectors += self.places(jnp.arange(x.shape[1]))
        for block in self.blocks:
            vectors = block(vectors)
        return self.output(self.norm(vectors))


class Block(nnx.Module):
    """x + attention(norm(x)), then the same with a dense network of one hidden layer.

    Source: Vaswani et al. (2017); the norm before, as in Xiong et al. (2020).
    """

    def __init__(
        self, width: int, heads: int, activations: nnx.List, given: dict[str, Any], *, rotary: bool
    ):
        rngs = given["rngs"]
        self.norms = nnx.List(
            [nnx.LayerNorm(width, use_fast_variance=False, rngs=rngs) for _ in range(2)]
        )
        self.attention = nnx.MultiHeadAttention(
            heads,
            width,
            attention_fn=_rotary_attention if rotary else nnx.dot_product_attention,
            deterministic=True,
            decode=False,
            keep_rngs=False,
            **given,
        )
        self.up = nnx.Linear(width, 4 * width, **given)
        self.activations = activations
        seen = jax.eval_shape(activations[0], jnp.zeros((1, 4 * width))).shape[-1]
        self.down = nnx.Linear(seen, width, **given)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns vectors (examples, length, width) for such vectors."""
        x += self.attention(self.norms[0](x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.down(self.activations[0](self.up(self.norms[1](x))))


def _rotary_attention(query: jax.Array, key: jax.Array, *rest, **options) -> jax.Array:
    return nnx.dot_product_attention(rotated(query), rotated(key), *rest, **options)


def rotated(x: jax.Array) -> jax.Array:
    """Returns vectors (..., length, heads, features), each pair of numbers turned by its position.

    The inner product of two then depends on how far apart they are, not on where.

    Source: Su et al. (2021), "RoFormer".
    """
    length, _, features = x.shape[-3:]
    rates = 10_000.0 ** (-np.arange(features // 2) / (features // 2))
    angles = np.outer(np.arange(length), rates)[:, None].astype(np.float32)  # radians
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
