"""A deep network whose figures are the deviation of its activations at each depth."""

import jax.numpy as jnp
from flax import nnx

from gradkit.runner.losses import cross_entropy
from gradkit.runner.making import made
from gradkit.runner.members import resolve_one
from gradkit.runner.models import Sizes, mlp

DEPTH, WIDTH = 10, 128


def named(written, kind):
    """What a name, or a name with arguments, stands for."""
    member, problems = resolve_one(written, kind)
    if problems:
        raise ValueError(problems[0][1])
    return made(member, kind=kind)


def deviation(depth):
    """The figure of one depth."""
    return lambda outputs, batch: outputs["deviations"][depth - 1]


class Deep:
    """A classifier of 10 hidden layers of 128 units."""

    metrics = {f"deviation_{d:02}": deviation(d) for d in range(1, DEPTH + 1)} | {
        "apart": lambda outputs, batch: outputs["apart"]
    }

    def __init__(self, data, activation="tanh", kernel_init="glorot_uniform"):
        self.data = data
        sizes = Sizes(data.x_train.shape[1:], data.classes, None)
        activation, kernel_init = named(activation, "activation"), named(kernel_init, "initializer")
        self.net = mlp(sizes, (WIDTH,) * DEPTH, activation, kernel_init)
        self.graph = nnx.split(nnx.eval_shape(lambda: self.net(nnx.Rngs(0))))[0]

    def init(self, key):
        """Weights as the initializer draws them."""
        return nnx.split(self.net(nnx.Rngs(key)))[1]

    def predict(self, params, batch):
        """Scores; each layer's deviation over the examples, as root mean square over its units;
        and how far the units of the first layer are apart."""
        net = nnx.merge(self.graph, params)
        x, seen = batch["x"].reshape(len(batch["x"]), -1), []
        for layer, activation in zip(net.layers, net.activations, strict=False):
            x = activation(layer(x))
            seen.append(x)
        deviations = jnp.stack([jnp.sqrt(jnp.mean(jnp.var(h, axis=0))) for h in seen])
        apart = jnp.mean(jnp.std(seen[0], axis=1))
        return {"scores": net.layers[-1](x), "deviations": deviations, "apart": apart}

    def criterion(self, outputs, batch):
        """The cross-entropy of the scores."""
        return cross_entropy(outputs["scores"], batch)
