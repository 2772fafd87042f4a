"""Operator: a symmetric linear map on pytrees, `A @ v`, and its algebra."""

from __future__ import annotations

import dataclasses
import functools
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from gradkit import shardings, tree
from gradkit.validation import check_parameters, list_non_arrays

PyTree = Any


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """A symmetric linear map on trees like `domain`: `A @ v` is a tree like v.

    A registered pytree: it crosses `jit` as an argument or a result whenever `matvec` is a
    `jax.tree_util.Partial` over arrays, as the linearizations of `gradkit.curvature` are. A plain
    function is wrapped in one without arrays, and is recompiled for each new function object.

    Args:
        matvec: maps a tree like `domain` to one of the same structure, shapes and dtypes. It must
            be linear and symmetric.
        domain: tree of floating-point or complex arrays or `jax.ShapeDtypeStruct`.
        traceable: whether `jit` can trace `matvec`. What streams data from the host cannot be
            traced: it is called from Python, and every method here goes by that.

    Raises:
        TypeError: `matvec` is no function, or a leaf of the domain is not floating-point: a vector
            of integers would be rounded to integers in every method.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> A = gk.Operator(lambda v: {"x": 2 * v["x"]}, {"x": jnp.zeros(3)})
        >>> (A + 1.0) @ {"x": jnp.ones(3)}
        {'x': Array([3., 3., 3.], dtype=float32)}
    """

    matvec: Callable[[PyTree], PyTree]
    domain: PyTree
    traceable: bool = True

    def __post_init__(self):
        if not callable(self.matvec):
            raise TypeError(
                f"matvec: expected a function of one tree, got {type(self.matvec).__name__}. "
                "For a matrix M write gk.Operator(lambda v: M @ v, v0)."
            )
        check_parameters(self.domain, member="Operator", name="the leaves of the domain")
        matvec = self.matvec if isinstance(self.matvec, Partial) else Partial(self.matvec)
        object.__setattr__(self, "matvec", matvec)
        object.__setattr__(self, "domain", tree.shapes(self.domain))

    @property
    def dimension(self) -> int:
        """The number of parameters n: A is an n by n matrix."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.domain))

    @property
    def loops_on_host(self) -> bool:
        """Whether products cannot be traced, or are slow inside a compiled loop.

        XLA runs a convolution some 40 times slower there on a CPU.
        """
        if not self.traceable:
            return True
        if jax.default_backend() != "cpu":
            return False
        return _holds_convolution(tree.Shapes.of(self.matvec), tree.Shapes.of(self.domain))

    def __matmul__(self, v: PyTree) -> PyTree:
        self.check(v)
        if self.traceable:
            return _apply(self, v)
        if tree.traced(v):
            raise TypeError(
                "A @ v: this operator is made of products in Python and cannot be traced; apply it "
                "outside jit, vmap and grad, or build it from arrays within them"
            )
        return self.matvec(tree.as_arrays(v))

    def __add__(self, other: Operator | Any) -> Operator:
        """A + B for an operator on the same domain, A + σI for a scalar σ."""
        if not isinstance(other, Operator):
            return self._with(Partial(_shifted, self.matvec, _scalar(other)))
        if tree.Shapes.of(self.domain) != tree.Shapes.of(other.domain):
            raise ValueError(
                "A + B needs two operators on the same domain, got\n"
                f"  {self.domain}\nand\n  {other.domain}"
            )
        both = self.traceable and other.traceable
        return Operator(Partial(_sum, self.matvec, other.matvec), self.domain, both)

    def __mul__(self, factor: Any) -> Operator:
        return self._with(Partial(_scaled, self.matvec, _scalar(factor)))

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Operator:
        return -1.0 * self

    def __sub__(self, other: Operator | Any) -> Operator:
        return self + (-other)

    def restrict(self, select: Callable[[str], bool]) -> Operator:
        """Returns the diagonal block of A on the leaves that `select` accepts.

        Args:
            select: predicate on a leaf's dotted path, such as `lambda path: "bias" in path`.

        Returns:
            The operator P A Pᵀ. Its domain keeps the structure, with None for each leaf left out.

        Raises:
            ValueError: no leaf is selected; the message lists the paths there are.
        """
        leaves, structure = jax.tree_util.tree_flatten_with_path(self.domain)
        paths = [tree.path_name(path) for path, _ in leaves]
        kept = tuple(bool(select(path)) for path in paths)
        if not any(kept):
            raise ValueError(f"restrict: no leaf was selected from {', '.join(paths)}")
        leaves = [x if k else None for (_, x), k in zip(leaves, kept, strict=True)]
        domain = structure.unflatten(leaves)
        restricted = Partial(_Restriction(kept, tree.Shapes.of(self.domain)), self.matvec)
        return Operator(restricted, domain, self.traceable)

    def dense(self) -> jax.Array:
        """Returns the (n, n) matrix, leaves in `jax.tree` order, each ravelled row by row.

        Cost: n products and n² numbers; for small problems and tests.
        """
        flat, unravel = tree.ravel(tree.zeros(self.domain))
        units = jnp.eye(flat.size, dtype=flat.dtype)
        if self.loops_on_host and not tree.traced(units):
            return jnp.stack([tree.ravel(self @ unravel(e))[0] for e in units], axis=1)
        return jax.lax.map(lambda e: tree.ravel(self @ unravel(e))[0], units).T

    def _with(self, matvec: Partial) -> Operator:
        return Operator(matvec, self.domain, self.traceable)

    def tree_flatten(self):
        """The pytree protocol: the arrays are the matvec's."""
        return (self.matvec,), (tree.Shapes.of(self.domain), self.traceable)

    @classmethod
    def tree_unflatten(cls, static: tuple[tree.Shapes, bool], children):
        """The pytree protocol."""
        operator = object.__new__(cls)
        object.__setattr__(operator, "matvec", children[0])
        object.__setattr__(operator, "domain", static[0].unflatten())
        object.__setattr__(operator, "traceable", static[1])
        return operator

    def check(self, v: PyTree) -> None:
        """Raises a `ValueError` that names the leaf if v is not a tree like the domain.

        A `TypeError` if a leaf of v is not an array or a number.
        """
        if bad := list_non_arrays(v):
            raise TypeError("A @ v: v must be a tree of arrays, got\n" + "\n".join(bad))
        shapes = tree.shapes(v)
        if tree.Shapes.of(shapes) == tree.Shapes.of(self.domain):
            return
        expected = dict(jax.tree_util.tree_leaves_with_path(self.domain))
        got = dict(jax.tree_util.tree_leaves_with_path(shapes))
        differing = [path for path in {**expected, **got} if expected.get(path) != got.get(path)]
        lines = "\n".join(
            f"  {tree.path_name(path) or 'the leaf'}: expected {_text(expected.get(path))}, "
            f"got {_text(got.get(path))}"
            for path in differing
        )
        raise ValueError(
            "A @ v: v must have the structure, shapes and dtypes of the operator's domain.\n"
            + (lines or f"  expected {self.domain}\n  got {shapes}")
        )


@dataclasses.dataclass(frozen=True)
class _Restriction:
    """Pᵀ, then A, then P; equal restrictions compare equal, so that jit recognizes them."""

    kept: tuple[bool, ...]
    domain: tree.Shapes

    def __call__(self, matvec, v):
        selected = iter(jax.tree.leaves(v))
        full = [
            next(selected) if keep else tree.zeros(x)
            for keep, x in zip(self.kept, self.domain.leaves, strict=True)
        ]
        product = jax.tree.leaves(matvec(self.domain.structure.unflatten(full)))
        return self.domain.structure.unflatten(
            [x if keep else None for keep, x in zip(self.kept, product, strict=True)]
        )


def _scalar(value: Any) -> Any:
    known = numbers.Number | np.ndarray | jax.Array  # ArrayLike leaves out traced arrays
    if not isinstance(value, known) or jnp.shape(value) != ():
        raise TypeError(
            "an operator adds to another operator or to a scalar, and is multiplied by a scalar; "
            f"got {type(value).__name__}"
        )
    return value


def _shifted(matvec, sigma, v):
    return tree.add_scaled(matvec(v), sigma, v)


def _scaled(matvec, factor, v):
    return tree.scaled(factor, matvec(v))


def _sum(matvec_a, matvec_b, v):
    return tree.add_scaled(matvec_a(v), 1, matvec_b(v))


@jax.jit
def _apply(A: Operator, v: PyTree) -> PyTree:
    return A.matvec(v)


@functools.lru_cache(maxsize=64)
def _holds_convolution(matvec: tree.Shapes, domain: tree.Shapes) -> bool:
    shapes = matvec.unflatten(), domain.unflatten()
    jaxpr = jax.make_jaxpr(lambda matvec, v: matvec(v))(*shapes)
    return holds_convolution(jaxpr)


def holds_convolution(jaxpr: Any) -> bool:
    """Whether there is a convolution in a jaxpr, which a CPU is slow at inside a compiled loop."""
    return "conv_general_dilated" in _primitives(jaxpr)


def _primitives(jaxpr: Any) -> set[str]:
    """The names of all primitives in a jaxpr, those of its loops and calls included."""
    found = set()
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        found.add(equation.primitive.name)
        for value in jax.tree.leaves(equation.params):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                found |= _primitives(value)
    return found


def _text(leaf: jax.ShapeDtypeStruct | None) -> str:
    if leaf is None:
        return "no leaf"
    given = shardings.of(leaf)
    return f"{leaf.dtype}{list(leaf.shape)}" + (f" sharded {given.spec}" if given else "")
