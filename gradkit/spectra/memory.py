"""What the vectors of a spectrum take of memory, and how they are kept within a limit."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import shardings, tree
from gradkit.krylov.drivers import Drive, on_host
from gradkit.operators import Operator
from gradkit.spectra.extremes import Basis, first_rows, limits

PyTree = Any

ALL = "all vectors"
WORK = 4  # trees that a Lanczos step has besides the basis and the product's own


class Memory(NamedTuple):
    """How the vectors of a spectrum were kept.

    Attributes:
        strategy: "all vectors", "restarted", "restarted on the host" or "restarted in bfloat16".
        basis: the most vectors at once, and their dtype.
        bytes: what that takes of the device's memory at its peak, besides the operator's arrays.
        product: the temporary arrays of one product among them, as XLA tells.
    """

    strategy: str
    basis: Basis
    bytes: int
    product: int


class Need(NamedTuple):
    """What a search needs: trees of `tree_bytes` each, `product` bytes, so many pairs."""

    tree_bytes: int
    product: int
    top: int
    bottom: int

    @property
    def wanted(self) -> int:
        """How many pairs the search is for."""
        return self.top + self.bottom

    def outside(self) -> int:
        """The bytes beside a basis: a step, or the pairs of both ends and their residuals.

        The pairs of one end are held twice while they are put in order.
        """
        pairs = self.wanted + max(self.top, self.bottom)
        return self.product + max(WORK, pairs + WORK) * self.tree_bytes

    def kept_whole(self, rows: int) -> int:
        """The bytes for a basis that doubles up to so many rows: old and new one at once."""
        before = first_rows(self.wanted, rows)
        while 2 * before < rows:
            before *= 2
        old = before + 1 if before < rows else 0
        return max(
            (rows + 1 + old) * self.tree_bytes, (rows + 1) * self.tree_bytes + self.outside()
        )

    def restarted(self, rows: int, share: float = 1.0) -> int:
        """The bytes for one of so many rows, each `share` of a tree, that is restarted."""
        row = share * self.tree_bytes
        kept = self.wanted + (rows - 1 - self.wanted) // 3
        again = (rows + 1 + kept + 1) * row
        return int(max(again, (rows + 1) * row + self.outside()))


def fitting(
    A: Operator, limit: float, *, top: int, bottom: int, most: int | None, drive: Drive | None
) -> tuple[Memory, Drive | None]:
    """Returns how to keep the vectors within a limit, and the driver that does so.

    What is tried in turn: all vectors; as many as fit, with restarts, if that is twice as many as
    are wanted; those in the memory of the host; those in bfloat16, with residuals of 2⁻⁹. The last
    two are for accelerators: to a CPU the host's memory is its own, and XLA computes with bfloat16
    in wide copies there.

    Raises:
        ValueError: nothing fits.
    """
    n, k = A.dimension, top + bottom
    one = sum(map(_on_a_device, jax.tree.leaves(A.domain)))
    need = Need(one, product_bytes(A), top, bottom)
    _, rows = limits(n, k, most, None, 1)
    whole = need.kept_whole(rows)
    if whole <= limit:
        return Memory(ALL, Basis(rows), whole, need.product), drive
    enough, accelerator = min(2 * k + 2, n), jax.default_backend() != "cpu"
    fit = _largest(need.restarted, rows, limit)
    if fit >= enough:
        return Memory("restarted", Basis(fit), need.restarted(fit), need.product), drive
    least = need.outside()
    if accelerator and drive is None and least <= limit:
        host = functools.partial(on_host, state_on=jax.local_devices(backend="cpu")[0])
        return Memory("restarted on the host", Basis(3 * k), least, need.product), host
    narrow = functools.partial(need.restarted, share=jnp.bfloat16.dtype.itemsize / 4)
    fit = _largest(narrow, rows, limit) if accelerator else 0
    if fit >= enough:
        kept = Basis(fit, jnp.bfloat16)
        return Memory("restarted in bfloat16", kept, narrow(fit), need.product), drive
    raise ValueError(
        f"memory_limit: expected at least {need.restarted(enough):,} bytes, for {enough} vectors "
        f"of {one:,} and {need.product:,} that a product takes, got {int(limit):,}; ask for fewer "
        "eigenvalues, or let a product take less, by gk.micro_batched and by jax.checkpoint around "
        "the layers of the model"
    )


def _on_a_device(x: jax.ShapeDtypeStruct) -> int:
    """The bytes of an array, or of a device's part of it where its type says how it is split."""
    given = shardings.of(x)
    shape = x.shape if given is None else given.shard_shape(x.shape)
    return math.prod(shape) * x.dtype.itemsize


def _largest(bytes_of: Any, most: int, limit: float) -> int:
    """The most rows that fit; 0 for none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if bytes_of(middle) <= limit else (low, middle - 1)
    return low


def product_bytes(A: Operator) -> int:
    """Returns the temporary bytes of a product, as XLA tells; 0 for one that is made in Python."""
    if not A.traceable:
        return 0
    shapes, structure = jax.tree.flatten(A.domain)
    analysis = _product.lower(A, tuple(shapes), structure).compile().memory_analysis()
    return int(getattr(analysis, "temp_size_in_bytes", 0) or 0)


@functools.partial(jax.jit, static_argnames=("shapes", "structure"))
def _product(A: Operator, shapes: tuple, structure: Any) -> PyTree:
    return A.matvec(jax.tree.map(tree.zeros, structure.unflatten(shapes)))
