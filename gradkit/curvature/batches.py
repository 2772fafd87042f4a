"""Curvature of more examples than fit in memory at once: in micro-batches, or from a loader."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from gradkit import tree
from gradkit.core import Problem, as_problem, needs_count
from gradkit.operators import Operator
from gradkit.validation import check_parameters

PyTree = Any


def micro_batched(curvature: Callable[..., Operator], size: int) -> Callable[..., Operator]:
    """Returns `curvature` computed `size` examples at a time: the same operator in less memory.

    A v = Σ nᵢ Aᵢ v / Σ nᵢ over micro-batches of nᵢ = `size` examples, the last of what is left: the
    operator of all data where the loss is a mean over examples that do not see each other, as in
    batch normalization they do. Of data split over devices, a size that divides their number takes
    as many examples of each device.

    Differs: what is random is drawn for each micro-batch, with `key` folded by its number.

    Cost: the memory of one micro-batch, besides the data, and two trees. Nothing is kept between
    products: 8 matrix products a dense layer for each of `hessian`, 5 of `gauss_newton`.

    Args:
        curvature: `gk.hessian` or another function (problem, params, batch, **options) -> Operator.
        size: examples in a micro-batch.

    Returns:
        A function (problem, params, data, **options) -> Operator, to stand wherever `curvature`
        does; options are handed on to it. `data` is a tree of arrays with one leading axis of
        examples. On a CPU, where a convolution is slow within a compiled loop, the operator of
        one built outside `jit` loops over the micro-batches in Python and is not traceable.

    Raises:
        TypeError: when the operator is built, a leaf of `params` is not a floating-point array or
            number.
        ValueError: `size` is not a positive whole number; or, when the operator is built, the data
            has no common leading axis, or no examples.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> loss = lambda theta, x: jnp.mean((x @ theta) ** 2)
        >>> theta, x = jnp.ones(2), jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
        >>> A = gk.micro_batched(gk.hessian, 2)(loss, theta, x)  # 2 examples, then 1
        >>> A @ theta  # (2/3) Σ x xᵀ θ
        Array([2., 4.], dtype=float32)
    """
    needs_count(size, "size", member="micro_batched")
    return _MicroBatched(curvature, size)


def streamed(
    curvature: Callable[..., Operator], *, weight: Callable[[PyTree], float] | None = None
) -> Callable[..., Operator]:
    """Returns `curvature` over the batches of a loader, read from the host once a product.

    A v = Σ nᵢ Aᵢ v / Σ nᵢ, with nᵢ the examples of batch i: the operator of all the data where the
    loss is a mean over examples that do not see each other.

    Differs: what is random is drawn for each batch, with `key` folded by its number: a loader that
    shuffles then makes another operator of each product.

    Cost: one pass through the data a product; the memory of two batches and two trees. Compiled
    once for each shape of batch. For batches too large, `gk.streamed(gk.micro_batched(...))`.

    Args:
        curvature: `gk.hessian` or another function (problem, params, batch, **options) -> Operator.
        weight: function of a batch that gives the nᵢ of a loss that is a mean over something else,
            such as the tokens that are not padding. By default the length of the first axis that
            the batch's arrays have in common.

    Returns:
        A function (problem, params, loader, **options) -> Operator; options are handed on. The
        loader yields the same batches whenever it is iterated: a list, a data loader, or a function
        without arguments that returns an iterator. Its arrays may be NumPy's. The operator is not
        traceable: its products, and the loops of those who use it, run from Python.

    Raises:
        TypeError: the loader can be iterated only once, as a generator, or not at all; or a leaf of
            `params` is not a floating-point array or number.
        ValueError: at a product, the loader gives no batch, a batch no examples, or a pass another
            number of them than the first, which would be another operator.

    Example:
        >>> import numpy as np, jax.numpy as jnp, gradkit as gk
        >>> loss = lambda theta, x: jnp.mean((x @ theta) ** 2)
        >>> theta, x = jnp.ones(2), np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
        >>> A = gk.streamed(gk.hessian)(loss, theta, [x[:2], x[2:]])
        >>> A @ theta
        Array([2., 4.], dtype=float32)
    """
    return _Streamed(curvature, weight)


def examples(arrays: PyTree, what: str, expected: str = "(examples, ...)") -> int:
    """Returns the length of the leading axis of all arrays.

    Raises:
        ValueError: they have none in common, or fewer axes than `expected` names.
    """
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    shapes = {tree.path_name(path): jnp.shape(x) for path, x in leaves}
    axes = expected.count(",")  # the dots stand for none or more
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or min(map(len, shapes.values())) < axes:
        got = ", ".join(f"{name} {shape}".strip() for name, shape in shapes.items())
        raise ValueError(f"{what}: expected arrays of shape {expected}, got {got or 'none'}")
    return min(lengths)[0]


def some_examples(arrays: PyTree, what: str) -> int:
    """Returns that length where it is not zero.

    Raises:
        ValueError: as `examples`, and of none.
    """
    if not (n := examples(arrays, what)):
        raise ValueError(f"{what} holds no examples")
    return n


@dataclasses.dataclass(frozen=True)
class _MicroBatched:
    curvature: Callable[..., Operator]
    size: int

    def __call__(
        self, problem: Problem | Callable, params: PyTree, data: PyTree, **options: Any
    ) -> Operator:
        check_parameters(params, member="micro_batched")
        some_examples(data, "micro_batched: the data")
        summand, arrays = _parted(self.curvature, problem, options)
        data = jax.tree.map(jnp.asarray, data)
        A = Operator(Partial(_Scanned(summand, self.size), params, arrays, data), params)
        if _is_traced((params, arrays, data)) or not A.loops_on_host:
            return A
        looped = Partial(_Looped(summand, self.size), params, arrays, data)
        return Operator(looped, params, traceable=False)


@dataclasses.dataclass(frozen=True)
class _Streamed:
    curvature: Callable[..., Operator]
    weight: Callable[[PyTree], float] | None

    def __call__(
        self, problem: Problem | Callable, params: PyTree, loader: Any, **options: Any
    ) -> Operator:
        once, one = isinstance(loader, Iterator), _is_array(loader) or isinstance(loader, dict)
        if once or one or not (isinstance(loader, Iterable) or callable(loader)):
            came = ", one batch; see gk.micro_batched" if one else ", which ends" if once else ""
            raise TypeError(
                "streamed: every product reads the loader anew: expected a list, a data loader, or "
                "a function without arguments that returns an iterator, such as "
                f"lambda: batches(); got {type(loader).__name__}{came}"
            )
        check_parameters(params, member="streamed")
        summand, arrays = _parted(self.curvature, problem, options)
        matvec = Partial(_Pass(summand, loader, self.weight), params, arrays)
        return Operator(matvec, params, traceable=False)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Summand:
    """What a batch adds to the sum; equal ones share compiled code."""

    curvature: Callable[..., Operator]
    problem: Problem
    options: tuple[tuple[str, Any], ...]

    def added(self, total, params, arrays, batch, number, weight, v):
        """The sum and `weight` times the product on a batch, the batch of this number."""
        options = dict(self.options) | arrays
        if "key" in arrays:
            options["key"] = jax.random.fold_in(arrays["key"], number)
        product = self.curvature(self.problem, params, batch, **options).matvec(v)
        return jax.tree.map(lambda t, x: t + weight * tree.wide(x), total, product)


def _parted(curvature: Callable, problem: Any, options: dict[str, Any]) -> tuple[_Summand, dict]:
    """The summand, with the options that are no arrays, and those that are."""
    while isinstance(curvature, functools.partial) and not curvature.args:
        options, curvature = curvature.keywords | options, curvature.func
    arrays = {
        name: value
        for name, value in options.items()
        if (leaves := jax.tree.leaves(value)) and all(map(_is_array, leaves))
    }
    if getattr(inspect.signature(curvature).parameters.get("linearize"), "default", 0) is None:
        options = {"linearize": False} | options  # a product of each, and nothing to keep
    rest = tuple((name, value) for name, value in options.items() if name not in arrays)
    return _Summand(curvature, as_problem(problem), rest), arrays


@functools.partial(jax.jit, donate_argnames="total")
def _added(summand: _Summand, total, params, arrays, batch, number, weight, v) -> PyTree:
    return summand.added(total, params, arrays, batch, number, weight, v)


@jax.jit
def _mean(total: PyTree, weight: Any, v: PyTree) -> PyTree:
    return jax.tree.map(lambda t, x: (t / weight).astype(x.dtype), total, v)


@dataclasses.dataclass(frozen=True)
class _Scanned:
    """A product over micro-batches in one compiled loop."""

    summand: _Summand
    size: int

    def __call__(self, params: PyTree, arrays: dict, data: PyTree, v: PyTree) -> PyTree:
        n, size = len(jax.tree.leaves(data)[0]), self.size
        whole, left = divmod(n, size)
        cut = part_of if not left else _slice_of

        def add(total, number):
            batch = cut(data, number, size)
            return self.summand.added(total, params, arrays, batch, number, size, v), None

        total = tree.wide_zeros(v)
        if whole:
            total, _ = jax.lax.scan(add, total, jnp.arange(whole))
        if left:
            batch = jax.tree.map(lambda x: x[whole * size :], data)
            total = self.summand.added(total, params, arrays, batch, whole, left, v)
        return _mean(total, float(n), v)


def part_of(data: PyTree, number: Any, size: int) -> PyTree:
    """Every k-th example from a number on, of k · size: as many of each device that has some."""

    def part(x):
        rows = jnp.reshape(x, (size, x.shape[0] // size, *x.shape[1:]))
        return jax.lax.dynamic_index_in_dim(rows, number, axis=1, keepdims=False)

    return jax.tree.map(part, data)


def _slice_of(data: PyTree, number: Any, size: int) -> PyTree:
    """So many examples, one after the other; no copy is made of those that are in no whole part."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, number * size, size), data)


@dataclasses.dataclass(frozen=True)
class _Looped:
    """The same in a Python loop."""

    summand: _Summand
    size: int

    def __call__(self, params: PyTree, arrays: dict, data: PyTree, v: PyTree) -> PyTree:
        n, total = len(jax.tree.leaves(data)[0]), tree.wide_zeros(v)
        for number, start in enumerate(range(0, n, self.size)):
            batch = jax.tree.map(lambda x, start=start: x[start : start + self.size], data)
            weight = min(self.size, n - start)
            total = _added(self.summand, total, params, arrays, batch, number, weight, v)
        return _mean(total, float(n), v)


class _Pass:
    """A product over the batches of a loader, and the total weight that each pass must have."""

    def __init__(self, summand: _Summand, loader: Any, weight: Callable | None):
        self.summand, self.loader, self.weight = summand, loader, weight
        self.expected = None

    def __call__(self, params: PyTree, arrays: dict, v: PyTree) -> PyTree:
        if _is_traced(v):
            raise TypeError(
                "streamed: a product reads the loader and cannot be traced: make it outside jit. "
                "The methods of gradkit do, if they are called outside jit themselves"
            )
        n, total = 0, tree.wide_zeros(v)
        batches = self.loader if isinstance(self.loader, Iterable) else self.loader()
        for number, batch in enumerate(batches):
            batch = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else np.asarray(x), batch)
            weight = self._weight(batch, number)
            jax.block_until_ready(total)  # or all the batches would wait in the device's memory
            total = _added(self.summand, total, params, arrays, batch, number, weight, v)
            n += weight
        self._check(n)
        return _mean(total, float(n), v)

    def _weight(self, batch: PyTree, number: int) -> float:
        if self.weight is not None:
            weight = float(self.weight(batch))
        else:
            weight = examples(batch, f"streamed: batch {number}, without a weight function")
        if not weight > 0:
            raise ValueError(
                f"streamed: batch {number} has the weight {weight}, expected a positive number: "
                "leave batches without examples out"
            )
        return weight

    def _check(self, n: float) -> None:
        if self.expected is None:
            if not n:
                raise ValueError("streamed: the loader gave no batch")
            self.expected = n
        if not np.isclose(n, self.expected, rtol=1e-6 if self.weight else 0, atol=0):
            raise ValueError(
                f"streamed: a pass of the loader gave {n} examples, the first one {self.expected}: "
                "products of different data are not one operator. Let each pass give the same, "
                "or build the operator anew"
            )


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray)


def _is_traced(arrays: PyTree) -> bool:
    """Whether one of the arrays is traced, or whatever is computed here would be."""
    return tree.traced(jnp.zeros(()), arrays)
