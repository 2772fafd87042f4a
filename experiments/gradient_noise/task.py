"""Softmax regression whose figures tell how far a batch's gradient is from that of all examples."""

import jax
import jax.numpy as jnp

from gradkit.runner.losses import cross_entropy


class Softmax:
    """A linear classifier from zero weights.

    `noise` is ‖gradient of the batch − gradient of all examples‖ at those zero weights: it is read
    from runs at a rate of 0.
    """

    criterion = staticmethod(cross_entropy)
    likelihood = "categorical"

    def __init__(self, data):
        self.data = data
        x, y = data.x_train, data.y_train
        start = jnp.zeros((len(x), data.classes))
        self.gradient = gradient(start, {"x": jnp.asarray(x), "y": jnp.asarray(y)})
        self.metrics = {"noise": self.noise}

    def init(self, key):
        """Zero weights."""
        features = self.data.x_train[0].size
        return {
            "kernel": jnp.zeros((features, self.data.classes)),
            "bias": jnp.zeros(self.data.classes),
        }

    def predict(self, params, batch):
        """The scores of the classes."""
        return batch["x"].reshape(len(batch["x"]), -1) @ params["kernel"] + params["bias"]

    def noise(self, scores, batch):
        """How far the batch's gradient is from that of all examples [nats/weight]."""
        return jnp.linalg.norm(gradient(scores, batch) - self.gradient)


def gradient(scores, batch):
    """The cross-entropy's gradient in kernel and bias, shape (features + 1, classes)."""
    wrong = jax.nn.softmax(scores) - jax.nn.one_hot(batch["y"], scores.shape[-1])
    x = batch["x"].reshape(len(wrong), -1)
    return jnp.concatenate([x, jnp.ones((len(x), 1))], axis=1).T @ wrong / len(x)
