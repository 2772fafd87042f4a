"""A small network that is normalized by the batch at hand, as in training, whenever it is used.

So the Hessian that is looked at is that of the loss that is trained.
"""

import itertools

import jax
import jax.numpy as jnp

from gradkit.runner.losses import accuracy, cross_entropy


class Net:
    """64-24-24-10 with tanh; with `batch_norm` each hidden unit is normalized over the batch."""

    metrics = {"accuracy": accuracy}  # noqa: RUF012
    criterion = staticmethod(cross_entropy)
    likelihood = "categorical"

    def __init__(self, data, batch_norm=False):
        self.data, self.batch_norm = data, batch_norm

    def init(self, key):
        """Weights of variance 1/fan_in."""
        widths = (self.data.x_train[0].size, 24, 24, self.data.classes)
        initial = jax.nn.initializers.lecun_normal()
        layers = []
        for i, shape in enumerate(itertools.pairwise(widths)):
            layer = {"w": initial(jax.random.fold_in(key, i), shape), "b": jnp.zeros(shape[1])}
            if self.batch_norm and i < 2:
                layer |= {"scale": jnp.ones(shape[1])}
            layers.append(layer)
        return layers

    def predict(self, params, batch):
        """The scores of the classes."""
        h = batch["x"].reshape(len(batch["x"]), -1)
        for layer in params[:-1]:
            h = h @ layer["w"]
            if self.batch_norm:
                h = jax.nn.standardize(h, axis=0, epsilon=1e-5) * layer["scale"]
            h = jnp.tanh(h + layer["b"])
        return h @ params[-1]["w"] + params[-1]["b"]
