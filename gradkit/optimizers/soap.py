"""SOAP: Adam in the eigenbases of Shampoo's factors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import shardings
from gradkit.core import needs_count
from gradkit.optimizers import kronecker
from gradkit.optimizers.kronecker import HIGHEST, Axes, Cut, Leaves, Plan, applied
from gradkit.transforms.chain import chain
from gradkit.transforms.conditional import when
from gradkit.transforms.decay import add_decayed_weights
from gradkit.transforms.learning_rate import scale_by_learning_rate
from gradkit.transforms.link import Link, link, transformation
from gradkit.transforms.selection import Labels
from gradkit.transforms.stacked import Stacked
from gradkit.tree import root, square

PyTree = Any


@transformation
def scale_by_soap(
    b1: optax.ScalarOrSchedule = 0.95,
    b2: optax.ScalarOrSchedule = 0.95,
    eps: optax.ScalarOrSchedule = 1e-8,
    *,
    every: int = 10,
    block_size: int = 1024,
    axes: Axes = kronecker.every_matrix,
    stacked: Stacked | None = None,
) -> Link:
    """Scales updates as Adam does, in bases Q of the eigenvectors of each axis's second moments.

    Of a matrix G with L ← β₂ L + (1 − β₂) G Gᵀ, and R likewise of Gᵀ G, the update is
    Q_L (M / (√V + ε)) Q_Rᵀ, with M the average of G′ = Q_Lᵀ G Q_R, and V that of G′². A tensor has
    a basis for each axis. For a leaf without any, such as a vector, this is Adam.

    Source: Vyas et al. (2025), "SOAP: improving and stabilizing Shampoo using Adam", algorithm 3;
    algorithm 4 for the bases: a power iteration and a QR decomposition every so many steps.
    Differs: the first update, of whose gradient the first bases are, is Adam's, where the authors
    skip it: that gradient is diagonal in them, and the rest rounding. Bases are renewed before a
    gradient is rotated, not after. M is turned into new bases once, where the paper turns the
    average of G at each step, which is the same. An axis longer than `block_size` is cut into
    equal blocks with factors of their own, where the authors' code leaves it as it is. Numbers
    beyond ±2⁶⁰/√n (in float32), n those of the layer, count as that: no finite gradient makes a
    factor infinite.

    Cost: 6 Σₖ nₖ operations a parameter, nₖ the widths of its block; every so many steps a QR
    decomposition for each axis and 6 Σₖ nₖ more, within a loop of no or one step. Two trees of
    memory, and two matrices for each axis: in all six trees for a square matrix. A sharded leaf is
    gathered for its products, and its matrices are on every device; its averages are sharded like
    it, unless the leaf is cut.

    Args:
        b1: β₁, decay of the average of g.
        b2: β₂, decay of the averages of g² and of the factors.
        eps: ε [the unit of g].
        every: steps from one renewal of the bases to the next.
        block_size: widest factor.
        axes: (dotted path, shape) -> the axes of that leaf which have a factor; by default those
            longer than 1, if there are two of them at least. Of stacked layers the shape is one's.
        stacked: leaves in which layers are stacked, as for `jax.lax.scan`: each has factors of its
            own. A pattern of paths or several for axis 0, `"layers.*"`, patterns with the axis of
            each, `{"layers.*": 1}`, or a function of the parameters that returns a tree of axes and
            False.

    Raises:
        ValueError: `every` or `block_size` is not a positive whole number.
    """
    needs_count(every, "every", member="scale_by_soap")
    needs_count(block_size, "block_size", member="scale_by_soap")
    plan = Plan("scale_by_soap", block_size, axes, stacked)

    def init(params, step):
        return kronecker.begun(params, plan, blocked=True)

    def update(updates, state, params, h, **_):
        leaves = Leaves.of(updates, state, h, plan)
        c1, c2 = h.bias("b1", state.age), h.bias("b2", state.age)
        age, kept = state.age, (leaves.matrices, leaves.mu, leaves.nu)

        def first(kept, factors):
            Q = [tuple(jnp.linalg.eigh(L)[1][..., ::-1] for L in of_leaf) for of_leaf in factors]
            return Q, *kept[1:]

        def renewed(kept, factors):
            parts = zip(leaves.cuts, *kept, factors, strict=True)
            return _parts(3, (_iterated(*leaf) for leaf in parts))

        kept = when(age == 0, first, kept, leaves.factors)
        bases, mu, nu = when((age > 0) & (age % every == 0), renewed, kept, leaves.factors)

        def scaled(cut, g, M, V, Q):
            G = _like(applied(cut, Q, cut.blocked(g), transposed=True), M)
            M, V = h.averaged("b1", M, G), h.averaged("b2", V, square(G))
            N = M / c1 / (root(V / c2) + h.eps)
            u = shardings.spread(cut.whole(applied(cut, Q, _in_blocks(cut, N))), g)
            return jnp.where(age == 0, g / (jnp.abs(g) + h.eps), u), M, V

        each = zip(leaves.cuts, leaves.g, mu, nu, bases, strict=True)
        u, mu, nu = _parts(3, (scaled(*leaf) for leaf in each))
        return leaves.ended(u, mu, nu, bases)

    return link(init, update, b1=b1, b2=b2, eps=eps, leafwise=True)


@transformation
def soap(
    learning_rate: optax.ScalarOrSchedule = 3e-3,
    b1: optax.ScalarOrSchedule = 0.95,
    b2: optax.ScalarOrSchedule = 0.95,
    eps: optax.ScalarOrSchedule = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.01,
    mask: Labels | None = None,
    *,
    every: int = 10,
    block_size: int = 1024,
    axes: Axes = kronecker.every_matrix,
    stacked: Stacked | None = None,
) -> Link:
    """SOAP: θ ← (1 − η w) θ − η u, with u Adam's update in the eigenbases of Shampoo's factors.

    Source: Vyas et al. (2025), "SOAP: improving and stabilizing Shampoo using Adam", algorithm 3,
    with the authors' defaults.
    Differs: see `gk.scale_by_soap`.

    Cost: see `gk.scale_by_soap`.

    Args:
        learning_rate: η, a number or a schedule.
        b1: β₁, decay of the average of g.
        b2: β₂, decay of the averages of g² and of the factors.
        eps: ε [the unit of g].
        weight_decay: w, a number or a schedule; multiplied by the learning rate.
        mask: which leaves decay; see `gk.add_decayed_weights`.
        every: steps from one renewal of the bases to the next.
        block_size: widest factor.
        axes: which axes have a factor; see `gk.scale_by_soap`.
        stacked: leaves in which layers are stacked; see `gk.scale_by_soap`.

    Raises:
        ValueError: `every` or `block_size` is not a positive whole number.
    """
    return chain(
        scale_by_soap(b1, b2, eps, every=every, block_size=block_size, axes=axes, stacked=stacked),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    ).named("soap")


def _parts(count: int, of_leaves: Iterable[tuple]) -> tuple[list, ...]:
    """So many lists of the parts of all leaves, of which there may be none."""
    found = list(of_leaves)
    return tuple([parts[k] for parts in found] for k in range(count))


def _iterated(
    cut: Cut, bases: tuple, mu: jax.Array, nu: jax.Array, factors: tuple
) -> tuple[tuple, jax.Array, jax.Array]:
    """QR of L Q, its columns in falling order of Qᵀ L Q; the averages of g and g² go along."""
    found, v = [], _in_blocks(cut, nu)
    for axis, Q, L in zip(cut.axes, bases, factors, strict=True):
        LQ = jnp.matmul(L, Q, precision=HIGHEST)
        order = jnp.argsort(-jnp.sum(jnp.real(jnp.conj(Q) * LQ), axis=1), axis=-1)
        found.append(jnp.linalg.qr(_ordered(LQ, order, 1))[0])
        v = _ordered(v, order, axis)
    m = applied(cut, found, applied(cut, bases, _in_blocks(cut, mu)), transposed=True)
    return tuple(found), _like(m, mu), _like(v, nu)


def _in_blocks(cut: Cut, kept: jax.Array) -> jax.Array:
    """The blocks of an average that is kept by blocks, or whole where there is one."""
    return jnp.reshape(shardings.gathered(kept), (cut.blocks, *cut.block))


def _like(blocks: jax.Array, kept: jax.Array) -> jax.Array:
    """The blocks as such an average is kept."""
    return shardings.spread(jnp.reshape(blocks, kept.shape), kept)


def _ordered(x: jax.Array, order: jax.Array, axis: int) -> jax.Array:
    """Each block of x in an order of its own along an axis."""
    return jax.vmap(lambda block, places: jnp.take(block, places, axis=axis))(x, order)
