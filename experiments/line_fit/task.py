"""A line to be fitted, whose intercept and slope are figures of the run."""

import jax.numpy as jnp

from gradkit.runner.losses import squared_error


def slope(outputs, batch):
    """The slope of outputs that lie on a line."""
    x, y = batch["x"][:, 0], outputs[:, 0]
    return jnp.sum((x - x.mean()) * (y - y.mean())) / jnp.sum((x - x.mean()) ** 2)


def intercept(outputs, batch):
    """Where that line is at x = 0."""
    return outputs[:, 0].mean() - slope(outputs, batch) * batch["x"][:, 0].mean()


class Line:
    """y = intercept + slope · x, from (10, 5)."""

    metrics = {"intercept": intercept, "slope": slope}  # noqa: RUF012
    criterion = staticmethod(squared_error)

    def __init__(self, data):
        self.data = data

    def init(self, key):
        """Where the fit begins."""
        return {"intercept": jnp.array(10.0), "slope": jnp.array(5.0)}

    def predict(self, params, batch):
        """The line at the inputs."""
        return params["intercept"] + params["slope"] * batch["x"]
