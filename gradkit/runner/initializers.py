"""The initializers that a config can name: functions of its arguments, which return one.

An initializer is (key, shape, dtype) -> array, as in `jax.nn.initializers`; the last axis of a
weight is the outputs, the one before the inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Initializer = Callable[..., jax.Array]

_initializers = jax.nn.initializers


def zeros() -> Initializer:
    """All weights 0: every unit of a layer stays like every other."""
    return _initializers.zeros


def constant(value: float = 0.1) -> Initializer:
    """All weights the same: every unit of a layer stays like every other."""
    return _initializers.constant(value)


def normal(stddev: float = 0.01) -> Initializer:
    """Normal with this standard deviation."""
    return _initializers.normal(stddev)


def uniform(bound: float = 0.05) -> Initializer:
    """Uniform in [−bound, bound]."""

    def draw(key, shape, dtype=jnp.float32, **_):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


def lecun_normal() -> Initializer:
    """Normal with variance 1/fan_in, cut at two deviations.

    Source: LeCun, Bottou, Orr and Müller (1998).
    """
    return _initializers.lecun_normal()


def glorot_uniform(gain: float = 1.0) -> Initializer:
    """Uniform with variance gain² 2/(fan_in + fan_out); gain 4 suits the sigmoid.

    Source: Glorot and Bengio (2010).
    """
    return _initializers.variance_scaling(gain**2, "fan_avg", "uniform")


def glorot_normal(gain: float = 1.0) -> Initializer:
    """Normal with variance gain² 2/(fan_in + fan_out), cut at two deviations.

    Source: Glorot and Bengio (2010).
    """
    return _initializers.variance_scaling(gain**2, "fan_avg", "truncated_normal")


def he_normal() -> Initializer:
    """Normal with variance 2/fan_in, cut at two deviations: for relu.

    Source: He, Zhang, Ren and Sun (2015).
    """
    return _initializers.he_normal()


def he_uniform() -> Initializer:
    """Uniform with variance 2/fan_in: for relu.

    Source: He, Zhang, Ren and Sun (2015).
    """
    return _initializers.he_uniform()


def orthogonal(gain: float = 1.0) -> Initializer:
    """A random orthogonal matrix times the gain.

    Source: Saxe, McClelland and Ganguli (2013).
    """
    return _initializers.orthogonal(gain)


def sparse(nonzero: int = 15, stddev: float = 1.0) -> Initializer:
    """Normal for exactly so many inputs of each unit, drawn at random, and 0 for all others.

    Source: Martens (2010), section 5.
    """

    def draw(key, shape, dtype=jnp.float32, **_):
        *_, inputs, outputs = shape
        if len(shape) != 2 or nonzero > inputs:
            raise ValueError(
                f"sparse: expected a matrix of at least nonzero={nonzero} inputs, got shape {shape}"
            )
        drawn, placed = jax.random.split(key)
        orders = jax.vmap(lambda k: jax.random.permutation(k, inputs))(
            jax.random.split(placed, outputs)
        )
        return stddev * jax.random.normal(drawn, shape, dtype) * (nonzero > orders.T)

    return draw
