"""Norms and squares of updates of any size, also where their squares leave the range of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import tree
from gradkit.transforms.conditional import when
from gradkit.tree import root, square, wide

PyTree = Any

ROOM = 40  # binary digits kept free for sums: of up to 2⁴⁰ squares


class ScaledNorm(NamedTuple):
    """‖a‖ = scale · rest, which may be larger than any number.

    Attributes:
        scale: a power of two, 1 unless squares of numbers in a leave the range.
        rest: ‖a / scale‖; not finite where a is not.
    """

    scale: jax.Array
    rest: jax.Array

    @property
    def value(self) -> jax.Array:
        """‖a‖, infinite where it is larger than any number."""
        return self.scale * self.rest

    def log(self) -> jax.Array:
        """Returns log ‖a‖; that of the smallest normal number where ‖a‖ is less."""
        tiny = jnp.finfo(self.rest.dtype).tiny
        logarithm = jnp.log(jnp.maximum(self.rest, tiny)) + jnp.log(self.scale)
        return jnp.maximum(logarithm, jnp.log(tiny))

    def exceeds(self, limit: jax.Array) -> jax.Array:
        """Returns whether the norm is above the limit, or not finite."""
        return ~(self.rest <= limit / self.scale)

    def clip(self, x: jax.Array, limit: jax.Array) -> jax.Array:
        """Returns x c/‖a‖ where ‖a‖ > c, else x; NaN where ‖a‖ is not finite.

        By one factor after the other: their product may be no normal number.
        """
        above = self.rest > limit / self.scale
        first = jnp.where(above, 1 / self.scale, 1)
        second = jnp.where(above, limit / jnp.where(above, self.rest, 1), 1)
        return wide(x) * first * jnp.where(jnp.isfinite(self.rest), second, jnp.nan)


def scaled_norm(a: PyTree) -> ScaledNorm:
    """Returns the Euclidean norm over all leaves, of any finite numbers.

    The squares are summed as in `tree.norm`. Where that is not finite, or so small that squares
    were lost, they are summed again, of numbers that are multiplied by a power of two first. Where
    the hardware takes denormal numbers for zeros, as XLA's CPU code does, they count as zeros.

    Source: Blue (1978), "A portable Fortran program to find the Euclidean norm of a vector", for
    the constant powers of two.

    Cost: one pass over the tree; a second one where the first fails.
    """
    plain = tree.inner(a, a)
    lost = _lost(plain, sum(x.size for x in jax.tree.leaves(a)))

    def again(found, plain, lost, a):
        scale = _scale(plain, lost)

        def leaf(x):
            x = x.astype(jnp.promote_types(x.dtype, plain.dtype))
            return jnp.sum(square(x * (1 / scale)))

        squares = [leaf(x) for x in jax.tree.leaves(a)]
        return ScaledNorm(scale, root(sum(squares, start=jnp.zeros_like(plain))))

    found = ScaledNorm(jnp.ones_like(plain), root(plain))
    return when(~jnp.isfinite(plain) | lost, again, found, plain, lost, a)


def scaled_norms(
    leaves: Sequence[Any],
    axes: Sequence[tuple[int, ...]],
    least: Sequence[Any] | None = None,
    of: Callable[[Any], jax.Array] = wide,
) -> list[ScaledNorm]:
    """Returns the norms of parts of leaves, of any finite numbers: as `scaled_norm`.

    Args:
        leaves: arrays, or what `of` makes arrays of.
        axes: for each leaf those within a part; they are kept with length 1.
        least: for each leaf a norm below which it does not matter how small a norm is. Parts of
            zeros, which are no rarity, then cost no second pass.
        of: made of each leaf before its norm is taken, within the pass.
    """
    leaves = list(leaves)
    each = [(of(leaf), along) for leaf, along in zip(leaves, axes, strict=True)]
    plain = [jnp.sum(square(x), axis=along, keepdims=True) for x, along in each]
    sizes = [math.prod(x.shape[k] for k in along) for x, along in each]
    lost = [_lost(s, n) for s, n in zip(plain, sizes, strict=True)]
    if least is not None:
        lost = [
            few & (bound < math.sqrt(_smallest(s.dtype, n)))
            for few, bound, s, n in zip(lost, least, plain, sizes, strict=True)
        ]
    failed = [jnp.any(~jnp.isfinite(s) | few) for s, few in zip(plain, lost, strict=True)]

    def again(found, plain, lost, leaves):
        scales = [_scale(s, few) for s, few in zip(plain, lost, strict=True)]
        return [
            ScaledNorm(t, root(jnp.sum(square(of(x) * (1 / t)), axis=along, keepdims=True)))
            for x, t, along in zip(leaves, scales, axes, strict=True)
        ]

    found = [ScaledNorm(jnp.ones_like(s), root(s)) for s in plain]
    failed = sum(failed, start=jnp.zeros((), jnp.int32)) > 0
    return when(failed, again, found, plain, lost, leaves)


def bounded(x: jax.Array, terms: int = 2**8) -> jax.Array:
    """Returns x in float32 at least, finite numbers so bounded that `terms` squares can be summed.

    The bound, 2⁶⁰ in float32 by default, is far above any gradient that means something. An average
    of squares thus never becomes infinite of finite numbers, from which it would not recover.
    Infinities and NaN pass, as they must not be hidden.

    Args:
        x: array.
        terms: how many squares must have room.
    """
    given, x = jnp.finfo(x.dtype), wide(x)
    bound = 2.0 ** ((jnp.finfo(x.dtype).maxexp - math.ceil(math.log2(terms))) // 2)
    if given.maxexp <= math.log2(bound):
        return x
    if not jnp.iscomplexobj(x):
        return jnp.where(jnp.isfinite(x), jnp.clip(x, -bound, bound), x)
    size = jnp.maximum(jnp.abs(jnp.real(x)), jnp.abs(jnp.imag(x)))
    beyond = (size > bound) & jnp.isfinite(size)
    return jnp.where(beyond, x * (bound / jnp.where(beyond, size, 1)), x)


def _lost(squares: jax.Array, n: int) -> jax.Array:
    """Whether a sum of n squares is so small that those below the range may count in it."""
    return squares < _smallest(squares.dtype, n)


def _smallest(dtype: Any, n: int) -> float:
    info = jnp.finfo(dtype)
    return max(n, 1) * float(info.tiny) / float(info.eps)


def _scale(squares: jax.Array, lost: jax.Array) -> jax.Array:
    """The power of two to divide by before squaring, where the sum of the squares is known."""
    info = jnp.finfo(squares.dtype)
    large = 2.0 ** (info.maxexp // 2 + ROOM // 2)
    small = 2.0 ** -((info.nmant + ROOM + 1 - info.minexp) // 2)
    return jnp.where(jnp.isfinite(squares), jnp.where(lost, small, 1.0), large).astype(
        squares.dtype
    )
