"""The models that a config can name: functions of sizes and arguments, which return a `Net`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gradkit.runner.activations import Activation, gelu, relu
from gradkit.runner.initializers import Initializer, lecun_normal, zeros
from gradkit.runner.networks import radial
from gradkit.runner.networks.attention import Transformer
from gradkit.runner.networks.convolutional import Convolutional
from gradkit.runner.networks.dense import Mlp
from gradkit.runner.networks.polynomial import Polynomial

Net = Callable[[nnx.Rngs], nnx.Module]
"""Makes a model: called with inputs (examples, ...) and a key in training, it gives outputs."""

OF_TOKENS = ("transformer",)
"""The models whose inputs are the tokens of a text; those of all others are numbers."""


class Sizes(NamedTuple):
    """What a model is for.

    Attributes:
        inputs: shape of one example's input.
        outputs: how many numbers it gives for each.
        shares: of each class among the training examples; None without classes.
        train: the training examples, `x` and `y`, for a model that begins at them.
    """

    inputs: tuple[int, ...]
    outputs: int
    shares: np.ndarray | None
    train: Mapping[str, np.ndarray] | None = None


def mlp(
    sizes: Sizes,
    hidden: Sequence[int] = (32,),
    activation: Activation = relu(),
    kernel_init: Initializer = lecun_normal(),
    bias_init: Initializer = zeros(),
    bias: bool = True,
    batch_norm: bool = False,
    gate_bias: float | None = None,
    dropout: float = 0.0,
    class_bias: bool = False,
) -> Net:
    """Dense layers of these widths, and an activation after each but the last.

    With `batch_norm` each hidden unit is normalized over the batch before its activation, with
    `dropout` that share of hidden units is left out in a training step and the others grow in
    proportion. With `gate_bias` each hidden unit is multiplied by a gate, a sigmoid of the layer's
    inputs that begins at sigmoid(gate_bias): open at 5, 0.993. With `class_bias` the first outputs
    are the classes' shares: softmax(b) = shares.
    """
    _check_share("dropout", dropout)
    _check_counts("hidden", *hidden)
    if class_bias and (sizes.shares is None or len(sizes.shares) != sizes.outputs or not bias):
        raise ValueError("class_bias: needs a score for each class, and bias: true")
    start = jnp.log(jnp.asarray(sizes.shares)) if class_bias else None

    def net(rngs: nnx.Rngs) -> nnx.Module:
        return Mlp(
            (int(np.prod(sizes.inputs)), *hidden, sizes.outputs),
            activation,
            (kernel_init, bias_init if bias else None, start),
            batch_norm=batch_norm,
            gate_bias=gate_bias,
            dropout=dropout,
            rngs=rngs,
        )

    return net


def polynomial(
    sizes: Sizes, degree: int = 2, basis: Literal["powers", "legendre"] = "powers"
) -> Net:
    """A polynomial of the inputs, linear in its coefficients, which begin at 0.

    Its terms are products of one power, or one Legendre polynomial, of each input, all those of up
    to this degree in total. Legendre polynomials are orthogonal on [−1, 1], so that inputs of that
    range have a Hessian far better conditioned.
    """
    if degree < 0:
        raise ValueError(f"degree: expected 0 or more, got {degree}")
    inputs = int(np.prod(sizes.inputs))
    chosen = itertools.combinations_with_replacement(range(inputs + 1), degree)  # the last: none
    exponents = np.array([np.bincount(c, minlength=inputs + 1)[:inputs] for c in chosen], int)
    exponents = exponents[np.argsort(exponents.sum(axis=1), kind="stable")]
    return lambda rngs: Polynomial(exponents, sizes.outputs, legendre=basis == "legendre")


def rbf(sizes: Sizes, units: int = 20, stages: int = 2) -> Net:
    """Radial basis functions exp(−‖x − c‖² / 2σ²), whose weighted sum is the output.

    The first stage finds the centers c by k-means of the training inputs, and takes for each width
    σ the distance to the nearest other center; the second solves the weights by least squares, of
    a class for its unit vector. There training begins, of the weights alone, or of everything as
    the third stage. The start is the same for every seed.

    Source: Moody and Darken (1989); Schwenker, Kestler and Palm (2001).
    """
    if stages not in (2, 3):
        raise ValueError(f"stages: expected 2 or 3, got {stages}")
    if sizes.train is None:
        raise ValueError("rbf begins at the training examples, and there are none")
    wanted = np.asarray(sizes.train["y"], float)
    if sizes.shares is not None:
        several = sizes.outputs > 1
        wanted = np.eye(sizes.outputs)[sizes.train["y"]] if several else 2 * wanted[:, None] - 1
    begin = radial.start(sizes.train["x"], wanted, units)
    return lambda rngs: radial.Radial(begin, trained=stages == 3, rngs=rngs)


def conv(
    sizes: Sizes,
    channels: Sequence[int] = (8, 16),
    activation: Activation = relu(),
    kernel_init: Initializer = lecun_normal(),
    bias_init: Initializer = zeros(),
    pooling: Literal["max", "average", "stride"] = "max",
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> Net:
    """Convolutions of 3 × 3 with so many channels, each halving the image, and a dense layer.

    An image is halved by the largest or the mean of 2 × 2 pixels, or by a convolution at every
    second. `batch_norm` comes before each activation, `dropout` before the dense layer.
    """
    _check_share("dropout", dropout)
    _check_counts("channels", *channels)
    height, width, colors = (*sizes.inputs, 1, 1, 1)[:3]
    if len(sizes.inputs) not in (2, 3) or min(height, width) < 2 ** len(channels):
        raise ValueError(
            f"channels: expected images of {2 ** len(channels)} pixels or more a side to halve "
            f"{len(channels)} times, got inputs of shape {sizes.inputs}"
        )
    return lambda rngs: Convolutional(
        (height, width, colors),
        channels,
        sizes.outputs,
        activation,
        (kernel_init, bias_init),
        pooling=pooling,
        batch_norm=batch_norm,
        dropout=dropout,
        rngs=rngs,
    )


def transformer(
    sizes: Sizes,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    activation: Activation = gelu(),
    kernel_init: Initializer = lecun_normal(),
    positions: Literal["learned", "rotary"] = "learned",
) -> Net:
    """A causal transformer on a text: at each token, scores of the next one.

    Each layer is attention with so many heads, then a dense network four times as wide; each
    reads its inputs normalized and adds to them. Positions are vectors that are learned, or angles
    by which queries and keys are turned.

    Source: Vaswani et al. (2017); Xiong et al. (2020); Su et al. (2021) for rotary positions.
    """
    _check_counts("layers, width, heads", layers, width, heads)
    if width % heads or (positions == "rotary" and width // heads % 2):
        even = ", and an even number for each with rotary positions" if width % heads == 0 else ""
        raise ValueError(f"width: expected a multiple of heads={heads}{even}, got {width}")
    return lambda rngs: Transformer(
        sizes.outputs,
        sizes.inputs[0],
        (layers, width, heads),
        activation,
        kernel_init,
        rotary=positions == "rotary",
        rngs=rngs,
    )


def _check_share(name: str, share: float) -> None:
    if not 0 <= share < 1:
        raise ValueError(f"{name}: expected a share from 0 to below 1, got {share}")


def _check_counts(name: str, *counts: int) -> None:
    if not all(isinstance(count, int) and count > 0 for count in counts):
        raise ValueError(f"{name}: expected whole numbers > 0, got {list(counts)}")
