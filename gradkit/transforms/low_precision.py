"""Moments in two bytes or one: what an optimizer keeps for each parameter, in fewer bits."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from gradkit import shardings, tree
from gradkit.core import needs_count
from gradkit.states import parameter_of
from gradkit.transforms.foreign import as_link
from gradkit.transforms.link import Link, link, transformation
from gradkit.transforms.precision import cut_off
from gradkit.tree import wide

PyTree = Any

LEVELS = 127  # of a magnitude in eight bits
POWER = 4  # of which they are the roots: magnitudes of 8.4 decades


class Packed(NamedTuple):
    """A leaf of a state in few bits.

    Attributes:
        codes: bfloat16 or int8 numbers, in the leaf's shape.
        scales: of the blocks of int8 codes, in float32: (..., blocks of the last axis).
    """

    codes: jax.Array
    scales: jax.Array | None


@transformation
def low_precision(
    inner: optax.GradientTransformation,
    dtype: Literal["bfloat16", "int8"] | DTypeLike = "bfloat16",
    *,
    block_size: int = 256,
    min_size: int = 4096,
) -> Link:
    """Runs a transformation whose state keeps trees like the parameters in fewer bits.

    Between updates each leaf of the state that is like a parameter, such as Adam's m and v, is in
    bfloat16, rounded up or down at random so that the mean is right, or in 8 bits: the sign and
    the nearest of 127 levels of (|x|/s)^¼, s the largest of a block of the last axis. Arithmetic is
    in float32. Nothing but zero becomes zero, so that a quotient m/(√v + ε) stays finite. All other
    leaves stay as they are: steps, scalars, factors, bases. It is for averages, not for members
    that keep parameters or gradients themselves, as L-BFGS, `average_params`, `master_weights` do.

    Source: Dettmers et al. (2022), "8-bit optimizers via block-wise quantization", for blocks;
    Gupta et al. (2015), "Deep learning with limited numerical precision", section 3, for rounding.
    Differs: levels are fourth roots, computed, where theirs are a table; in each decade from the
    largest on there are as many, or nearly: 56, 31, 18, 10, 6, 3, 2, 1 against 64, 32, 16 and so
    on. Blocks are along the last axis, equal, and a power of two in number, so that they are split
    as a sharded leaf is; where a device has less of the axis than a block, it is gathered. Random
    bits are a hash of the step and the position: a run repeats itself.

    Cost: 2 bytes a number, or 1 and 4 a block, where float32 takes 4: Adam's state is 4 or 2.03
    bytes a parameter between updates. In one, on a CPU, XLA holds 4 or 10 more for a while, and
    takes 2.7 or 6.7 times as long as for Adam in float32; on an accelerator it was not measured.

    Args:
        inner: a transformation of gradkit or optax.
        dtype: bfloat16 or int8.
        block_size: numbers with a scale of their own, of int8, at most.
        min_size: leaves of fewer numbers stay as they are.

    Raises:
        ValueError: another dtype, or a size that is not a positive whole number.
    """
    needs_count(block_size, "block_size", member="low_precision")
    needs_count(min_size, "min_size", member="low_precision")
    kind = jnp.dtype(dtype)
    if kind not in (jnp.bfloat16, jnp.int8):
        raise ValueError(f"low_precision: dtype must be bfloat16 or int8, got {kind}")
    part = as_link(inner)

    def packed(state, params, step):
        of = parameter_of(params)
        drawn = jax.random.fold_in(jax.random.key(0), step)
        paths, structure = jax.tree_util.tree_flatten_with_path(state)

        def leaf(number, path, x):
            large = jnp.issubdtype(jnp.result_type(x), jnp.floating) and x.size >= min_size
            parameter = of(path)
            if not large or parameter is None or jnp.shape(parameter) != jnp.shape(x):
                return x
            if kind == jnp.int8:
                return quantized(x, block_size)
            return Packed(randomly_rounded(x, jax.random.fold_in(drawn, number)), None)

        return structure.unflatten([leaf(n, *pair) for n, pair in enumerate(paths)])

    def init(params, step):
        # Of constants XLA would compute the codes while it compiles, in minutes.
        one = jax.lax.optimization_barrier(jnp.ones(()))

        def unknown(x):
            return x * one.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

        return packed(jax.tree.map(unknown, part.start(params, step)), params, step)

    def update(updates, state, params, h, **extra):
        held = jax.tree.map(
            lambda x: unpacked(x, block_size) if isinstance(x, Packed) else x, state, is_leaf=_whole
        )
        following, held = part.advance(updates, held, params, h.now, extra)
        return following, packed(held, updates, h.step + 1)

    return link(init, update, around=part)


def quantized(x: jax.Array, block_size: int) -> Packed:
    """Returns x in 8 bits, with a scale for each block of its last axis."""
    blocks = _blocks(wide(x).astype(jnp.float32), block_size)
    scales = jnp.maximum(jnp.max(blocks, axis=-1), -jnp.min(blocks, axis=-1))
    share = jnp.abs(blocks) / jnp.where(scales == 0, 1, scales)[..., None]
    level = jnp.round(LEVELS * jnp.sqrt(jnp.sqrt(share)))
    codes = jnp.sign(blocks) * jnp.maximum(level, 1)  # zero of zero alone
    codes = shardings.spread(_whole_axis(codes, x.shape).astype(jnp.int8), x)
    return Packed(codes, shardings.gathered(scales, -1))


def unpacked(x: Packed, block_size: int) -> jax.Array:
    """Returns the numbers in float32."""
    codes = x.codes.astype(jnp.float32)
    if x.scales is None:
        return codes
    blocks = _blocks(codes, block_size)
    share = (blocks / LEVELS) ** 2
    numbers = jnp.sign(blocks) * x.scales[..., None] * share * share
    return shardings.spread(_whole_axis(numbers, codes.shape), codes)


def randomly_rounded(x: jax.Array, key: jax.Array) -> jax.Array:
    """Returns x in bfloat16, rounded up or down at random, right in the mean."""
    cut = cut_off(x.astype(jnp.float32), tree.random_bits(key, x) >> 16)
    return jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16)


def _whole(x: Any) -> bool:
    return isinstance(x, Packed)


def _blocks(x: jax.Array, size: int) -> jax.Array:
    """Equal blocks of the last axis, padded with zeros: (..., blocks, width).

    Their number is a power of two, so that a sharded axis is split between them where it can be.
    """
    x = jnp.atleast_1d(x)
    n = x.shape[-1]
    count = 1 << (-(-n // size) - 1).bit_length()
    width = -(-n // count)
    if n % count or count % shardings.shards(x, -1):
        x = shardings.gathered(x, -1)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, count * width - n)])
    return jnp.reshape(x, (*x.shape[:-1], count, width))


def _whole_axis(blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The numbers of blocks in the shape that they were cut from."""
    flat = jnp.reshape(blocks, (*blocks.shape[:-2], -1))
    return jnp.reshape(flat[..., : shape[-1]] if shape else flat, shape)
