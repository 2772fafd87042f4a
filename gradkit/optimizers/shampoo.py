"""Shampoo: the gradient multiplied along each axis by an inverse root of its second moments."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from gradkit import shardings
from gradkit.core import needs_count
from gradkit.optimizers import kronecker
from gradkit.optimizers.kronecker import HIGHEST, Axes, Leaves, Plan, applied
from gradkit.transforms.chain import chain
from gradkit.transforms.conditional import every_so_often
from gradkit.transforms.decay import add_decayed_weights
from gradkit.transforms.learning_rate import scale_by_learning_rate
from gradkit.transforms.link import Link, link, transformation
from gradkit.transforms.norms import scaled_norms
from gradkit.transforms.selection import Labels
from gradkit.transforms.stacked import Stacked
from gradkit.tree import root, square

RIDGE = 1e-6  # added to the eigenvalues of a factor, times the largest one


@transformation
def scale_by_shampoo(
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    *,
    every: int = 10,
    grafting: bool = True,
    block_size: int = 1024,
    axes: Axes = kronecker.every_matrix,
    stacked: Stacked | None = None,
) -> Link:
    """Scales updates by an inverse root of the second moments along each axis.

    Of a matrix G with L ← β₂ L + (1 − β₂) G Gᵀ, and R likewise of Gᵀ G, the update is
    L̂^(−1/4) M̂ R̂^(−1/4), with M the average of G and hats for corrected averages; a tensor of k
    axes has exponents −1/(2 k). With `grafting` each leaf has the norm of Adam's update. For a leaf
    without a factor, such as a vector, this is Adam.

    Source: Gupta, Koren & Singer (2018), "Shampoo: preconditioned stochastic tensor optimization",
    algorithm 2; Anil et al. (2021), "Scalable second order optimization for deep learning", for
    averages, grafting, blocks and roots that are renewed every so many steps.
    Differs: roots are by eigenvalues, in float32 at least, after the addition of 10⁻⁶ times the
    largest. Numbers beyond ±2⁶⁰/√n (in float32), n those of the layer, count as that: no finite
    gradient makes a factor infinite.

    Cost: 4 Σₖ nₖ operations a parameter, nₖ the widths of its block; every so many steps the
    eigenvectors of each factor, within a loop of no or one step. Two trees of memory, and two
    matrices for each axis: in all six trees for a square matrix. A sharded leaf is gathered for its
    products, and its matrices are on every device; its averages are sharded like it.

    Args:
        b1: β₁, decay of the average of g.
        b2: β₂, decay of the averages of g² and of the factors.
        eps: ε of Adam [the unit of g].
        every: steps from one renewal of the roots to the next.
        grafting: give each leaf's update the norm of Adam's.
        block_size: widest factor; a longer axis is cut into equal blocks.
        axes: (dotted path, shape) -> the axes of that leaf which have a factor; by default those
            longer than 1, if there are two of them at least. Of stacked layers the shape is one's.
        stacked: leaves in which layers are stacked, as for `jax.lax.scan`: each has factors of its
            own. A pattern of paths or several for axis 0, `"layers.*"`, patterns with the axis of
            each, `{"layers.*": 1}`, or a function of the parameters that returns a tree of axes and
            False.

    Raises:
        ValueError: `every` or `block_size` is not a positive whole number.
    """
    needs_count(every, "every", member="scale_by_shampoo")
    needs_count(block_size, "block_size", member="scale_by_shampoo")
    plan = Plan("scale_by_shampoo", block_size, axes, stacked)

    def init(params, step):
        return kronecker.begun(params, plan, blocked=False)

    def update(updates, state, params, h, **_):
        leaves = Leaves.of(updates, state, h, plan)
        c1, c2 = h.bias("b1", state.age), h.bias("b2", state.age)
        mu = h.averaged("b1", leaves.mu, leaves.g)
        nu = h.averaged("b2", leaves.nu, [square(x) for x in leaves.g])

        def renew(roots, factors, c2):
            del roots
            return [tuple(_inverse_root(L / c2, 2 * len(Ls)) for L in Ls) for Ls in factors]

        roots = every_so_often(state.age, every, renew, leaves.matrices, leaves.factors, c2)

        def scaled(cut, m, P):
            return shardings.spread(cut.whole(applied(cut, P, cut.blocked(m / c1))), m)

        adam = [m / c1 / (root(v / c2) + h.eps) for m, v in zip(mu, nu, strict=True)]
        own = [k for k, cut in enumerate(leaves.cuts) if cut.axes]
        found = [scaled(leaves.cuts[k], mu[k], roots[k]) for k in own]
        if grafting:
            found = _grafted(found, [adam[k] for k in own], [leaves.cuts[k].stack for k in own])
        u = {**dict(enumerate(adam)), **dict(zip(own, found, strict=True))}
        return leaves.ended(list(u.values()), mu, nu, roots)

    return link(init, update, b1=b1, b2=b2, eps=eps, leafwise=True)


@transformation
def shampoo(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Labels | None = None,
    *,
    every: int = 10,
    grafting: bool = True,
    block_size: int = 1024,
    axes: Axes = kronecker.every_matrix,
    stacked: Stacked | None = None,
) -> Link:
    """Shampoo: θ ← (1 − η w) θ − η u, u the average of g times inverse roots of second moments.

    Source: Gupta, Koren & Singer (2018), "Shampoo: preconditioned stochastic tensor optimization";
    Anil et al. (2021), "Scalable second order optimization for deep learning".
    Differs: see `gk.scale_by_shampoo`.

    Cost: see `gk.scale_by_shampoo`.

    Args:
        learning_rate: η, a number or a schedule; with `grafting` what it would be for Adam.
        b1: β₁, decay of the average of g.
        b2: β₂, decay of the averages of g² and of the factors.
        eps: ε of Adam [the unit of g].
        weight_decay: w, a number or a schedule; multiplied by the learning rate.
        mask: which leaves decay; see `gk.add_decayed_weights`.
        every: steps from one renewal of the roots to the next.
        grafting: give each leaf's update the norm of Adam's.
        block_size: widest factor.
        axes: which axes have a factor; see `gk.scale_by_shampoo`.
        stacked: leaves in which layers are stacked; see `gk.scale_by_shampoo`.

    Raises:
        ValueError: `every` or `block_size` is not a positive whole number.
    """
    given = {"every": every, "grafting": grafting, "block_size": block_size, "axes": axes}
    given["stacked"] = stacked
    return chain(
        scale_by_shampoo(b1, b2, eps, **given),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    ).named("shampoo")


def _grafted(
    u: list[jax.Array], like: list[jax.Array], stacks: list[int | None]
) -> list[jax.Array]:
    """Each layer with the norm of another; until roots are renewed it may be of any size."""
    along = [tuple(k for k in range(x.ndim) if k != s) for x, s in zip(u, stacks, strict=True)]
    norms = scaled_norms([*u, *like], along * 2)
    own, wanted = norms[: len(u)], norms[len(u) :]

    def leaf(x, own, wanted):
        length = wanted.value / jnp.where(own.rest == 0, 1, own.rest)
        return x * (1 / own.scale) * length.astype(x.dtype)

    return [leaf(*each) for each in zip(u, own, wanted, strict=True)]


def _inverse_root(A: jax.Array, p: int) -> jax.Array:
    """(A + ridge)^(−1/p) of each matrix; I where it is zero."""
    values, Q = jnp.linalg.eigh(A)
    top = values[..., -1:]
    none = top == 0
    values = jnp.maximum(values, 0) + jnp.where(none, 1, RIDGE * top)
    scaled = Q * values[..., None, :] ** (-1 / p)
    return jnp.matmul(scaled, jnp.conj(jnp.matrix_transpose(Q)), precision=HIGHEST)
