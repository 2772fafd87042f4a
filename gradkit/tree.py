"""Inner products and bases of pytrees: what `optax.tree` lacks.

A *basis* is a tree whose leaves carry one leading axis of equal length: row j of every leaf is the
j-th vector. Inner products are sums of elementwise products, never a ravelled copy, so that leaves
keep whatever sharding they have; they accumulate in float32 at least.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from gradkit import shardings

PyTree = Any


def inner(a: PyTree, b: PyTree) -> jax.Array:
    """Returns ⟨a, b⟩ = Σ Re(ā b), a scalar in `scalar_dtype`.

    Complex leaves count as pairs of real numbers, the geometry in which `jax.grad` descends.
    """

    def leaf(x, y):
        x, y = wide(x), wide(y)
        return jnp.sum(jnp.real(jnp.conj(x) * y) if jnp.iscomplexobj(x) else x * y)

    products = jax.tree.leaves(jax.tree.map(leaf, a, b))
    return sum(products, start=jnp.zeros((), jnp.float32))


def norm(a: PyTree) -> jax.Array:
    """Returns the Euclidean norm ‖a‖ over all leaves, a scalar; infinite where its square is.

    For vectors near unit length, as in Krylov spaces. Of gradients, whose squares may leave the
    range, it is `transforms.norms.scaled_norm`.
    """
    return root(inner(a, a))


def largest(a: PyTree) -> jax.Array:
    """Returns ‖a‖∞, the largest number in magnitude, a scalar; NaN if there is one."""
    dtype = scalar_dtype(a)
    tops = [jnp.max(jnp.abs(wide(x)), initial=0).astype(dtype) for x in jax.tree.leaves(a)]
    return jnp.max(jnp.stack(tops)) if tops else jnp.zeros((), dtype)


def scale(a: PyTree) -> jax.Array:
    """Returns a power of two near the largest number of `a` in magnitude; 1 where that is 0 or NaN.

    Numbers are divided by it, which is exact, where their squares might leave the range. Its
    inverse is a normal number too.
    """
    top = largest(a)
    exponent = jnp.frexp(jnp.where((top > 0) & jnp.isfinite(top), top, 1))[1]
    lowest = jnp.finfo(top.dtype).minexp
    return jnp.ldexp(jnp.ones_like(top), jnp.clip(exponent, lowest, -lowest))


@jax.custom_jvp
def root(x: jax.Array) -> jax.Array:
    """Returns √x, with derivative 0 at 0, so that what depends on a zero gradient stays finite."""
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(primals, tangents):
    y = root(*primals)
    return y, jnp.where(y > 0, tangents[0] / (2 * jnp.where(y > 0, y, 1)), 0)


def add_scaled(a: PyTree, alpha: Any, b: PyTree) -> PyTree:
    """Returns a + α b with the dtypes of a, whatever the dtype of the scalar α."""
    return jax.tree.map(lambda x, y: (x + alpha * y).astype(x.dtype), a, b)


def scaled(alpha: Any, a: PyTree) -> PyTree:
    """Returns α a with the dtypes of a, whatever the dtype of the scalar α."""
    return jax.tree.map(lambda x: (alpha * x).astype(x.dtype), a)


def scalar_dtype(domain: PyTree) -> jnp.dtype:
    """Returns the real dtype in which scalars about trees like `domain` are computed.

    The widest of the leaves' dtypes, and float32 at least.
    """
    dtypes = [jnp.result_type(x) for x in jax.tree.leaves(domain) if hasattr(x, "dtype")]
    real = [jnp.finfo(dtype).dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]
    return jnp.result_type(jnp.float32, *real)


def shapes(domain: PyTree) -> PyTree:
    """Returns `domain` with every array replaced by its shape and dtype."""

    def leaf(x):
        return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=shardings.of(x))

    return jax.tree.map(leaf, domain)


def as_arrays(a: PyTree) -> PyTree:
    """Returns `a` with NumPy arrays and Python numbers as JAX arrays; what is abstract stays so."""

    def leaf(x):
        return x if isinstance(x, jax.Array | jax.ShapeDtypeStruct) else jnp.asarray(x)

    return jax.tree.map(leaf, a)


def ravel(a: PyTree) -> tuple[jax.Array, Callable[[jax.Array], PyTree]]:
    """Returns all numbers as one vector, on every device, and the function that makes it a tree."""
    vector, unravel = ravel_pytree(jax.tree.map(shardings.gathered, a))
    return vector, lambda v: jax.tree.map(shardings.spread, unravel(v), a)


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Structure, shapes and dtypes of a tree in hashable form: what compiled code is shared by."""

    leaves: tuple
    structure: Any

    @classmethod
    def of(cls, a: PyTree) -> Shapes:
        """Returns those of a tree of arrays or of `jax.ShapeDtypeStruct`."""
        leaves, structure = jax.tree.flatten(shapes(a))
        return cls(tuple(leaves), structure)

    def unflatten(self) -> PyTree:
        """Returns the tree of `jax.ShapeDtypeStruct`."""
        return self.structure.unflatten(self.leaves)


def traced(*trees: PyTree) -> bool:
    """Returns whether an array in one of the trees is traced, as within `jit`, `vmap` or `grad`."""
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(trees))


def differences(expected: PyTree, got: PyTree) -> list[str]:
    """Returns a line for each leaf whose path or shape differs; none where they are alike."""
    wanted, came = (
        {path_name(path): jnp.shape(x) for path, x in jax.tree_util.tree_leaves_with_path(t)}
        for t in (expected, got)
    )
    return [
        f"  {name or 'the leaf'}: expected {_shape(wanted.get(name))}, got {_shape(came.get(name))}"
        for name in {**wanted, **came}
        if wanted.get(name) != came.get(name)
    ]


def _shape(shape: tuple[int, ...] | None) -> str:
    return "no leaf" if shape is None else f"shape {shape}"


def path_name(path: tuple) -> str:
    """Returns a leaf's path as dotted text, such as `layers.0.kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def leaf_name(path: tuple) -> str:
    """Returns a leaf's path as `path_name` does, less the variable that flax.nnx wraps it in."""
    wrapped = path[-1:] == (jax.tree_util.GetAttrKey("value"),)
    return path_name(path[:-1] if wrapped else path)


def random_unit(key: jax.Array, domain: PyTree) -> PyTree:
    """Returns a unit vector like `domain`, uniformly distributed on the sphere."""
    v = hashed_normal(jax.random.bits(key, (), jnp.uint32), domain)
    return scaled(1 / norm(v), v)


def hashed_normal(seed: jax.Array, domain: PyTree) -> PyTree:
    """Returns a tree like `domain` of standard normal numbers, a hash of seed and position each.

    For start vectors, of which there is one a run: `jax.random.normal` is the better generator, but
    takes 0.2 to 1 s to compile for each shape of leaf on a CPU, this less than 0.1 s.

    Source: `hashed` on Weyl sequences; normal by the inverse distribution function.

    Args:
        seed: unsigned 32-bit scalar.
        domain: tree of arrays or of `jax.ShapeDtypeStruct`.
    """

    def leaf(number, x):
        h = hashed(hashed(seed) + jnp.uint32(number))
        for axis in range(len(x.shape)):
            position = _positions(x, axis)
            h = hashed(h + position * jnp.uint32(0x9E3779B1))
        odd = 2 * (h >> 9).astype(jnp.float32) + 1  # 24 bits, exact: the fraction is never 0 or 1
        normal = jnp.sqrt(2.0) * jax.lax.erf_inv(odd / 2**23 - 1)
        return jnp.broadcast_to(normal, x.shape).astype(x.dtype)

    leaves, structure = jax.tree.flatten(domain)
    return structure.unflatten([leaf(number, x) for number, x in enumerate(leaves)])


def random_signs(key: jax.Array, domain: PyTree) -> PyTree:
    """Returns a tree like `domain` of random signs ±1, a hash of key and position each.

    Source: as `hashed_normal`, for the same reason: it compiles in a tenth of the time of
    `jax.random.rademacher`.
    Differs: positions count through all leaves and are mixed with 64 bits of the key, so that no
    two of 2³² entries share their sign and no two probes are shifted copies.
    """

    def leaf(bits, x):
        return (1 - 2 * (bits >> 31).astype(jnp.int32)).astype(x.dtype)

    return jax.tree.map(leaf, random_bits(key, domain), domain)


def random_bits(key: jax.Array, domain: PyTree) -> PyTree:
    """Returns a tree in the shapes of `domain` of 32 random bits each, a hash of key and position.

    Source: as `random_signs`.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)

    def leaf(start, x):
        position = jnp.uint32(start % 2**32)
        for axis in range(len(x.shape)):
            stride = jnp.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
            position += stride * _positions(x, axis)
        return hashed(hashed(position ^ first) ^ second)

    leaves, structure = jax.tree.flatten(domain)
    starts = [sum(x.size for x in leaves[:number]) for number in range(len(leaves))]
    return structure.unflatten([leaf(s, x) for s, x in zip(starts, leaves, strict=True)])


def _positions(x: Any, axis: int) -> jax.Array:
    """The place along an axis of each number of x."""
    return jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis, out_sharding=shardings.of(x))


def hashed(h: jax.Array) -> jax.Array:
    """Returns unsigned 32-bit integers scattered, each its own: MurmurHash3's finalizer.

    Source: Appleby (2008).
    """
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> shift)) * jnp.uint32(factor)
    return h ^ (h >> 16)


def mark(a: PyTree) -> jax.Array:
    """Returns two unsigned 32-bit numbers by which arrays and numbers in `a` are told from others.

    Trees that differ in one number differ in their marks; other trees do but for one chance in 2⁶⁴,
    or so. What is neither, such as a function, is left out.

    Source: multilinear hashing, Σ aᵢ xᵢ modulo 2³², with odd aᵢ that are a hash of the position.

    Cost: one pass over the tree.
    """
    total = jnp.zeros(2, jnp.uint32)
    numeric = jax.Array | np.ndarray | np.number | np.bool_ | bool | int | float | complex
    arrays = [x for x in jax.tree.leaves(a) if isinstance(x, numeric)]
    for number, x in enumerate(arrays):
        bits = _bits(x if isinstance(x, jax.Array) else jnp.asarray(np.asarray(x)))
        weyl = jnp.zeros(bits.shape, jnp.uint32)
        for axis, odd in enumerate(range(3, 2 * bits.ndim + 3, 2)):
            position = _positions(bits, axis)
            weyl = weyl + position * jnp.uint32((odd * 0x9E3779B1) & 0xFFFFFFFF)
        for half, shift in enumerate((7, 15)):
            factor = (weyl ^ (weyl >> shift)) * jnp.uint32(0x85EBCA6B) | 1
            total = total.at[half].add(jnp.sum(bits * factor, dtype=jnp.uint32))
        total = hashed(total + jnp.uint32(number))
    return total


def is_key(leaf: Any) -> bool:
    """Whether a leaf holds random keys, which are no numbers."""
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _bits(x: jax.Array) -> jax.Array:
    """The array as unsigned 32-bit numbers."""
    if is_key(x):
        x = jax.random.key_data(x)
    if jnp.iscomplexobj(x):
        x = jnp.stack([jnp.real(x), jnp.imag(x)])
    width = jnp.dtype(x.dtype).itemsize
    if x.dtype == bool or width < 4:
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return jax.lax.bitcast_convert_type(
            x.astype(jnp.float32 if floating else jnp.int32), jnp.uint32
        )
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def zeros(domain: PyTree) -> PyTree:
    """Returns zeros like `domain`, a tree of arrays or of `jax.ShapeDtypeStruct`."""

    def leaf(x):
        return jnp.zeros(x.shape, x.dtype, out_sharding=shardings.of(x))

    return jax.tree.map(leaf, domain)


def empty_basis(rows: int, domain: PyTree, dtype: Any = None) -> PyTree:
    """Returns a basis of `rows` zero vectors like `domain`, or in `dtype`."""

    def leaf(x):
        shape = rows, *x.shape
        return jnp.zeros(shape, dtype or x.dtype, out_sharding=shardings.of(x, 1))

    return jax.tree.map(leaf, domain)


def basis_row(V: PyTree, j: Any, domain: PyTree) -> PyTree:
    """Returns row j of the basis V, a tree with the dtypes of `domain`."""

    def leaf(rows, x):
        return jax.lax.dynamic_index_in_dim(rows, j, keepdims=False).astype(x.dtype)

    return jax.tree.map(leaf, V, domain)


def basis_set(V: PyTree, j: Any, v: PyTree) -> PyTree:
    """Returns the basis V with its row j replaced by the vector v."""

    def leaf(rows, x):
        return jax.lax.dynamic_update_index_in_dim(rows, x.astype(rows.dtype), j, axis=0)

    return jax.tree.map(leaf, V, v)


def basis_project(V: PyTree, v: PyTree) -> jax.Array:
    """Returns the coefficients Vᵀv, one for each row of V: shape (rows,).

    Rows that are stored narrow are widened one by one, so that no wide copy of the basis is made.
    """

    def leaf(rows, x):
        if wide(rows) is not rows:
            return jax.lax.map(lambda row: jnp.sum(wide(row) * wide(x)), rows)
        x = wide(x)
        if shardings.of(rows) is not None:
            return jnp.sum(rows * x, axis=tuple(range(1, rows.ndim)))
        axes = tuple(range(1, rows.ndim)), tuple(range(x.ndim))
        highest = jax.lax.Precision.HIGHEST
        return jax.lax.dot_general(rows, x, (axes, ((), ())), precision=highest)

    return jax.tree.reduce(operator.add, jax.tree.map(leaf, V, v))


def basis_combine(V: PyTree, c: jax.Array, domain: PyTree | None = None) -> PyTree:
    """Returns V c, with the dtypes of `domain` or else of V.

    A vector for c of shape (rows,), a basis of k vectors for shape (rows, k). Rows that are stored
    narrow are widened one by one, so that no wide copy of the basis is made.
    """

    def leaf(rows, x):
        if wide(rows) is rows:
            combined = jnp.tensordot(c.T, rows, axes=1, precision=jax.lax.Precision.HIGHEST)
            return combined.astype(x.dtype)

        def add(j, total):
            return total + jnp.multiply.outer(c[j], wide(rows[j]))

        shape, row = (*c.shape[1:], *rows.shape[1:]), jax.eval_shape(lambda: rows[0])
        start = jnp.zeros(shape, wide(c).dtype, out_sharding=shardings.of(row, c.ndim - 1))
        return jax.lax.fori_loop(0, len(rows), add, start).astype(x.dtype)

    return jax.tree.map(leaf, V, V if domain is None else domain)


def wide(x: jax.Array) -> jax.Array:
    """Returns x in the dtype in which its arithmetic is done: float32 at least."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return x if x.dtype == dtype else x.astype(dtype)


def square(x: jax.Array) -> jax.Array:
    """Returns |x|², elementwise, in float32 at least."""
    x = wide(x)
    return jnp.real(x * jnp.conj(x)) if jnp.iscomplexobj(x) else x * x


def wide_zeros(params: PyTree, dtype: Any = None) -> PyTree:
    """Returns zeros like `params`, in `dtype` or else in float32 at least.

    A leaf that is complex stays so.
    """

    def leaf(p):
        given = p.dtype if dtype is None else dtype
        kept = p.dtype if jnp.iscomplexobj(p) else given
        return jnp.zeros_like(
            p, kept if dtype is not None else jnp.promote_types(kept, jnp.float32)
        )

    return jax.tree.map(leaf, params)


def wide_copy(params: PyTree) -> PyTree:
    """Returns a copy of `params` in float32 at least, each leaf in a buffer of its own."""
    return jax.tree.map(lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32)), params)


def cast_updates(updates: PyTree, incoming: PyTree, params: PyTree) -> PyTree:
    """Returns updates in the wider of the dtypes of the incoming ones and the parameters."""
    if params is None:
        return optax.tree.cast_like(updates, incoming)

    def leaf(u, g, p):
        if u.dtype == g.dtype == p.dtype:
            return u
        dtype = jnp.promote_types(g.dtype, p.dtype)
        return u if u.dtype == dtype else u.astype(dtype)

    return jax.tree.map(leaf, updates, incoming, params)


def as_they_are(updates: PyTree, incoming: PyTree, params: PyTree) -> PyTree:
    """Returns the updates, for a transformation whose updates must not be rounded."""
    del incoming, params
    return updates
