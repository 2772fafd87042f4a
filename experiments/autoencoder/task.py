"""A deep autoencoder of images: logistic units, a linear code, pixels as probabilities."""

import itertools

import jax
import jax.numpy as jnp
import optax

from gradkit.runner.initializers import sparse


class Autoencoder:
    """Layers down to a code and up again, for the cross-entropy of the pixels.

    Source: Hinton and Salakhutdinov (2006); weights begin as in Martens (2010), section 5.
    """

    def __init__(self, data, hidden=(128, 64, 32), code=16):
        pixels = data.x_train[0].size
        self.data, self.coded = data, len(hidden)
        self.widths = [pixels, *hidden, code, *reversed(hidden), pixels]

    def init(self, key):
        """Fifteen weights of a unit are not zero."""
        pairs = [*itertools.pairwise(self.widths)]
        keys = jax.random.split(key, len(pairs))
        return [
            {"kernel": sparse(15)(k, pair), "bias": jnp.zeros(pair[1])}
            for k, pair in zip(keys, pairs, strict=True)
        ]

    def predict(self, params, batch):
        """The logits of the pixels."""
        x = batch["x"].reshape(len(batch["x"]), -1)
        for depth, layer in enumerate(params):
            x = x @ layer["kernel"] + layer["bias"]
            if depth not in (self.coded, len(params) - 1):
                x = jax.nn.sigmoid(x)
        return x

    def criterion(self, logits, batch):
        """The cross-entropy of an image's pixels [nats], mean over images."""
        pixels = batch["x"].reshape(logits.shape)
        losses = optax.losses.sigmoid_binary_cross_entropy(logits, pixels)
        return jnp.mean(jnp.sum(losses, axis=-1))

    @property
    def metrics(self):
        """The squared error of an image, by which autoencoders are compared."""

        def squared_error(logits, batch):
            wrong = jax.nn.sigmoid(logits) - batch["x"].reshape(logits.shape)
            return jnp.mean(jnp.sum(wrong**2, axis=-1))

        return {"squared_error": squared_error}
