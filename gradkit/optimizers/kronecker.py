"""Second moments of a leaf's gradient along each of its axes: a Kronecker product of factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from gradkit import shardings, tree
from gradkit.transforms.link import no_updates, one_more
from gradkit.transforms.norms import bounded
from gradkit.transforms.stacked import Stacked, beside_stack, layer_shape, stack_axes
from gradkit.tree import wide_zeros

PyTree = Any
Axes = Callable[[str, tuple[int, ...]], Sequence[int]]

HIGHEST = jax.lax.Precision.HIGHEST


class KroneckerState(NamedTuple):
    """What is known of the `age` gradients g so far. Trees are like the parameters.

    Attributes:
        m: average of g. v: average of g². SOAP has both in the eigenbases.
        factors: for each leaf a tuple, with the average of G Gᵀ for each axis that has a factor, G
            the gradient as a matrix of that axis and the others: shape (blocks, width, width).
        matrices: made of the factors, in the same shapes: their inverse roots, or eigenbases.
    """

    age: ArrayLike
    m: PyTree
    v: PyTree
    factors: PyTree
    matrices: PyTree


class Cut(NamedTuple):
    """How a leaf is cut into blocks, each with factors of its own.

    Attributes:
        shape: of the leaf.
        widths: of a block along each axis. counts: of blocks along each, which cover the leaf.
        axes: those of a block that have a factor.
        stack: the axis along which layers are stacked; a block is of one of them, without it.
    """

    shape: tuple[int, ...]
    widths: tuple[int, ...]
    counts: tuple[int, ...]
    axes: tuple[int, ...]
    stack: int | None

    @classmethod
    def of(
        cls,
        path: str,
        shape: tuple[int, ...],
        block_size: int,
        axes: Axes,
        stack: int | None = None,
    ) -> Cut:
        """Returns the cut into the fewest equal blocks that are no wider than `block_size`."""
        layer = layer_shape(shape, stack)
        chosen = tuple(sorted(axis % len(layer) for axis in axes(path, layer)))
        wide = beside_stack(chosen, stack)
        counts = [-(-n // block_size) if k in wide else 1 for k, n in enumerate(shape)]
        if stack is not None:
            counts[stack] = shape[stack]
        widths = tuple(-(-n // count) for n, count in zip(shape, counts, strict=True))
        return cls(shape, widths, tuple(counts), chosen, stack)

    @property
    def blocks(self) -> int:
        """How many there are."""
        return math.prod(self.counts)

    @property
    def squares(self) -> int:
        """How many squares of a layer's numbers its factors and averages have room for."""
        return 2**8 * max(math.prod(layer_shape(self.shape, self.stack)), 1)

    @property
    def block(self) -> tuple[int, ...]:
        """The shape of one."""
        return layer_shape(self.widths, self.stack)

    def blocked(self, x: jax.Array) -> jax.Array:
        """Returns the blocks of a leaf, padded with zeros: shape (blocks, *block).

        Where axes are sharded in Explicit mode, they are gathered; in Auto mode XLA decides.
        """
        x = shardings.gathered(x)
        if self.blocks == 1:
            return jnp.reshape(x, (1, *self.block))
        sizes = [n * width for n, width in zip(self.counts, self.widths, strict=True)]
        x = jnp.pad(x, [(0, size - n) for size, n in zip(sizes, self.shape, strict=True)])
        pairs = [n for pair in zip(self.counts, self.widths, strict=True) for n in pair]
        k = len(self.shape)
        x = jnp.transpose(jnp.reshape(x, pairs), [*range(0, 2 * k, 2), *range(1, 2 * k, 2)])
        return jnp.reshape(x, (self.blocks, *self.block))

    def whole(self, x: jax.Array) -> jax.Array:
        """Returns the leaf of its blocks."""
        if self.blocks == 1:
            return jnp.reshape(x, self.shape)
        k = len(self.shape)
        order = [axis for pair in zip(range(k), range(k, 2 * k), strict=True) for axis in pair]
        x = jnp.transpose(jnp.reshape(x, (*self.counts, *self.widths)), order)
        sizes = [n * width for n, width in zip(self.counts, self.widths, strict=True)]
        return jnp.reshape(x, sizes)[tuple(slice(n) for n in self.shape)]


def every_matrix(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the axes longer than 1 of a leaf with two of them at least: none for vectors."""
    del path
    long = tuple(axis for axis, n in enumerate(shape) if n > 1)
    return long if len(long) > 1 else ()


class Plan(NamedTuple):
    """How every leaf is cut.

    Attributes:
        member: who cuts, for messages.
        block_size: widest block.
        axes: (dotted path, shape of a layer) -> the axes that have a factor.
        stacked: of `transforms.stacked.stack_axes`.
    """

    member: str
    block_size: int
    axes: Axes
    stacked: Stacked | None

    def cuts(self, params: PyTree) -> list[Cut]:
        """Returns how each leaf is cut, in the order of the leaves."""
        leaves = jax.tree_util.tree_leaves_with_path(params)
        stacks = stack_axes(self.stacked, params, member=self.member)
        return [
            Cut.of(tree.path_name(path), jnp.shape(x), self.block_size, self.axes, stack)
            for (path, x), stack in zip(leaves, stacks, strict=True)
        ]


def begun(params: PyTree, plan: Plan, *, blocked: bool) -> KroneckerState:
    """Returns the state before the first update.

    Args:
        params: tree of parameters.
        plan: how leaves are cut.
        blocked: whether the averages are kept by blocks, where a leaf is cut.
    """
    plans = plan.cuts(params)
    leaves, structure = jax.tree.flatten(wide_zeros(params))

    def zeros(cut, x):
        return jnp.zeros((cut.blocks, *cut.block), x.dtype) if blocked and cut.blocks > 1 else x

    def real_zeros(cut, x):
        return zeros(cut, jnp.zeros_like(x, jnp.finfo(x.dtype).dtype))

    def matrices(cut, x):
        widths = (cut.block[axis] for axis in cut.axes)
        return tuple(jnp.zeros((cut.blocks, n, n), x.dtype) for n in widths)

    def each(function):
        return structure.unflatten([function(c, x) for c, x in zip(plans, leaves, strict=True)])

    trees = each(zeros), each(real_zeros), each(matrices), each(matrices)
    return KroneckerState(no_updates(), *trees)


class Leaves(NamedTuple):
    """An update leaf by leaf, and a state whose `factors` have it in.

    Attributes:
        cuts: how each leaf is cut. structure: of the tree. age: of the state.
        g: the updates, in float32 at least, so bounded that the factors stay finite.
        mu, nu, factors, matrices: those of the state.
    """

    cuts: list[Cut]
    structure: Any
    age: ArrayLike
    g: list[jax.Array]
    mu: list[jax.Array]
    nu: list[jax.Array]
    factors: list[tuple]
    matrices: list[tuple]

    @classmethod
    def of(cls, updates: PyTree, state: KroneckerState, h: Any, plan: Plan) -> Leaves:
        """Returns the leaves of an update, with the hyperparameter `b2`."""
        plans = plan.cuts(updates)
        leaves, structure = jax.tree.flatten(updates)
        mu, nu, factors, matrices = (structure.flatten_up_to(part) for part in state[1:])
        g = [bounded(x, cut.squares) for cut, x in zip(plans, leaves, strict=True)]
        outer = [grams(cut, cut.blocked(x)) for cut, x in zip(plans, g, strict=True)]
        factors = optax.tree.cast_like(h.averaged("b2", factors, outer), factors)
        return cls(plans, structure, state.age, g, mu, nu, factors, matrices)

    def ended(
        self, u: list[jax.Array], mu: list[jax.Array], nu: list[jax.Array], matrices: list[tuple]
    ) -> tuple[PyTree, KroneckerState]:
        """Returns the tree of updates u, and the state that follows, its dtypes as they were."""
        mu, nu = optax.tree.cast_like((mu, nu), (self.mu, self.nu))
        parts = mu, nu, self.factors, matrices
        trees = (self.structure.unflatten(part) for part in parts)
        return self.structure.unflatten(u), KroneckerState(one_more(self.age), *trees)


def grams(cut: Cut, g: jax.Array) -> tuple[jax.Array, ...]:
    """Returns G Gᵀ of each block g for each factor, G the matrix of its axis and the others."""

    def gram(axis):
        G = jnp.reshape(jnp.moveaxis(g, axis + 1, 1), (cut.blocks, cut.block[axis], -1))
        return jnp.einsum("bim,bjm->bij", G, jnp.conj(G), precision=HIGHEST)

    return tuple(gram(axis) for axis in cut.axes)


def applied(
    cut: Cut, matrices: Sequence[jax.Array], x: jax.Array, *, transposed: bool = False
) -> jax.Array:
    """Returns the blocks x, each multiplied along its axes by P, or by Pᵀ, for each factor."""
    for axis, P in zip(cut.axes, matrices, strict=True):
        P = jnp.conj(jnp.matrix_transpose(P)) if transposed else P
        y = jnp.einsum("bij,bj...->bi...", P, jnp.moveaxis(x, axis + 1, 1), precision=HIGHEST)
        x = jnp.moveaxis(y, 1, axis + 1)
    return x
