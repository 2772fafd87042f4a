"""Fisher matrices as operators: second moments of gradients, with the data's labels or the model's.

The Fisher matrix of a model p(y | x, θ) is E[∇ log p ∇ log pᵀ] over the inputs of the data and
*labels drawn from the model*. The empirical Fisher matrix has the data's labels instead. It is
another matrix: it knows nothing of the curvature in directions in which the model already fits,
and equals the Fisher matrix only where the model's distribution is the data's.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from gradkit import shardings, tree
from gradkit.core import Problem, as_problem
from gradkit.curvature.batches import examples, part_of, some_examples
from gradkit.curvature.gauss_newton import (
    Jacobian,
    congruence,
    jacobian,
    outputs_at,
    parted,
    with_outputs,
)
from gradkit.operators import Operator
from gradkit.validation import check_parameters

PyTree = Any

_AT_ONCE = 2**24  # numbers of gradients of single examples that are held


def empirical_fisher(
    problem: Problem | Callable, params: PyTree, batch: PyTree, *, linearize: bool | None = None
) -> Operator:
    """Returns the operator F v = (1/n) Σᵢ gᵢ gᵢᵀ v, with gᵢ the gradient of the loss on example i.

    The second moment of the gradients, not their covariance: their mean is not taken off.

    Source: Kunstner, Balles and Hennig (2019), "Limitations of the empirical Fisher approximation
    for natural gradient descent", divided by n.

    Differs: no gradient of one example is ever stored. With ℓ(θ) the vector of the n losses and J
    its Jacobian, F v = Jᵀ J v / n.

    Cost: as `gauss_newton`: 4 matrix products a dense layer, or 5 without `linearize`.

    Args:
        problem: a `Problem`, or a plain `loss(params, batch)`. It is evaluated on each example as a
            batch of one: a loss that is a mean over examples becomes the loss of that example, and
            what depends on the other examples, as batch normalization does, loses sight of them.
        params: tree of floating-point parameters θ.
        batch: tree of arrays with one leading axis of n examples.
        linearize: keep the residuals of the losses, or recompute them in each product. By default,
            keep them if they take a quarter of the memory at most, as `gauss_newton` does.

    Returns:
        An `Operator` on trees like `params` [loss²/param²], positive semidefinite.

    Raises:
        TypeError: a leaf of `params` is not a floating-point array or number; the message names it.
        ValueError: the batch's arrays have no common leading axis, or no examples.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> loss = lambda theta, batch: jnp.mean(batch["x"] @ theta)
        >>> F = gk.empirical_fisher(loss, jnp.ones(2), {"x": jnp.array([[1.0, 0.0], [1.0, 2.0]])})
        >>> F @ jnp.array([1.0, 1.0])
        Array([2., 3.], dtype=float32)
    """
    check_parameters(params, member="empirical_fisher")
    n = some_examples(batch, "empirical_fisher: the batch")
    losses = Partial(_losses, as_problem(problem), batch)
    covariance = Partial(_covariance, jnp.ones((1, n)))
    return congruence(losses, covariance, params, linearize=linearize)


def empirical_fisher_diagonal(problem: Problem | Callable, params: PyTree, batch: PyTree) -> PyTree:
    """Returns (1/n) Σᵢ gᵢ², the diagonal of `empirical_fisher`, exactly.

    As `diagonal` of `gk.observe` it preconditions `gk.hessian_free`.

    Cost: a gradient of each example: the matrix products of one gradient of the batch, and n
    numbers written for each parameter, so many examples at a time that they are 2²⁴ at most on a
    device. In Explicit mode, parameters split over the axis of the examples are gathered.

    Args:
        problem: a `Problem`, or a plain `loss(params, batch)`, evaluated on each example as a batch
            of one, as in `empirical_fisher`.
        params: tree of floating-point parameters θ.
        batch: tree of arrays with one leading axis of n examples.

    Returns:
        A tree like `params` [loss²/param²], nowhere negative.

    Raises:
        TypeError: a leaf of `params` is not a floating-point array or number; the message names it.
        ValueError: the batch's arrays have no common leading axis, or no examples.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> loss = lambda theta, batch: jnp.mean(batch["x"] @ theta)
        >>> batch = {"x": jnp.array([[1.0, 0.0], [1.0, 2.0]])}
        >>> gk.empirical_fisher_diagonal(loss, jnp.ones(2), batch)
        Array([1., 2.], dtype=float32)
    """
    check_parameters(params, member="empirical_fisher_diagonal")
    params = tree.as_arrays(params)
    n = some_examples(batch, "empirical_fisher_diagonal: the batch")
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    devices = min(shardings.shards(x, 0) for x in jax.tree.leaves(batch))
    at_once = min(n, devices * max(1, _AT_ONCE // max(1, size)))
    theta = shardings.not_split_as(batch, params)  # a gradient has the axis of examples besides
    gradient = jax.grad(as_problem(problem).value)

    def squares(part):
        """The sum over some examples."""
        g = jax.vmap(lambda example: gradient(theta, jax.tree.map(lambda x: x[None], example)))
        return jax.tree.map(lambda x: jnp.sum(tree.square(x), axis=0), g(part))

    def add(total, number):
        return jax.tree.map(jnp.add, total, squares(part_of(most, number, at_once))), None

    whole = n // at_once * at_once
    most = jax.tree.map(lambda x: x[:whole], batch)
    total, _ = add(tree.wide_zeros(theta), 0)
    if whole > at_once:
        total, _ = jax.lax.scan(add, total, jnp.arange(1, whole // at_once))
    if whole < n:
        rest = squares(jax.tree.map(lambda x: shardings.gathered(x, 0)[whole:], batch))
        total = jax.tree.map(jnp.add, total, rest)
    return jax.tree.map(lambda t, p: shardings.spread((t / n).astype(p.dtype), p), total, params)


def fisher(
    problem: Problem,
    params: PyTree,
    batch: PyTree,
    *,
    key: jax.Array,
    likelihood: str,
    samples: int = 1,
    linearize: bool | None = None,
) -> Operator:
    """Returns the operator F v = (1/(n·samples)) Σ Jᵢᵀ s sᵀ Jᵢ v, a sampled Fisher matrix.

    Jᵢ is the Jacobian of example i's outputs z, and s = −∂ log p(y | z)/∂z for a label y drawn from
    the model's own distribution. Its mean over keys is the Fisher matrix: E[s sᵀ] is the Hessian of
    −log p in z, so that this is the Gauss–Newton matrix of the criterion −(1/n) Σᵢ log p(yᵢ | zᵢ),
    whatever the data's labels. F itself has rank n·samples at most.

    Source: Martens (2020), "New insights and perspectives on the natural gradient method".

    Differs: the scores s are drawn at build time and kept, so that products repeat. Neither labels
    nor the criterion is used: `likelihood` says what the criterion is, up to its scale.

    Cost: as `gauss_newton`; one pass more to draw the scores, and memory for samples × outputs.

    Args:
        problem: a `Problem(predict=..., criterion=...)`. The outputs are a tree of real arrays with
            one leading axis of n examples; leaves, and an example's places, are independent.
        params: tree of floating-point parameters θ.
        batch: whatever the problem takes.
        key: random key of the draw.
        likelihood: "categorical" (outputs are logits, classes on their last axis), "bernoulli"
            (logits), or "normal" (means, unit variance: the criterion is half the squared error).
        samples: labels drawn for each example; the error falls as 1/√(n·samples).
        linearize: keep the residuals of the model, or recompute them in each product. By default,
            keep them if they take a quarter of the memory at most, as `gauss_newton` does.

    Returns:
        An `Operator` on trees like `params` [1/param²], positive semidefinite.

    Raises:
        TypeError: the problem is a loss alone, or has no floating-point output; or a leaf of
            `params` is not a floating-point array or number.
        ValueError: no such likelihood, samples below 1, or outputs without the axes they need.

    Example:
        >>> import jax, jax.numpy as jnp, gradkit as gk
        >>> problem = gk.Problem(predict=lambda p, x: x @ p, criterion=lambda z, x: jnp.mean(z**2))
        >>> x, key = jnp.array([[1.0], [2.0]]), jax.random.key(0)
        >>> F = gk.fisher(problem, jnp.ones(1), x, key=key, likelihood="normal", samples=10_000)
        >>> bool(abs((F @ jnp.ones(1))[0] - 2.5) < 0.1)  # (1² + 2²) / 2
        True
    """
    _known(likelihood)
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples: expected an integer of at least 1, got {samples!r}")
    outputs = Partial(outputs_at, with_outputs(problem, "fisher"), batch)
    check_parameters(params, member="fisher")
    covariance = Partial(_covariance, _scores(outputs, params, key, likelihood, samples))
    return congruence(outputs, covariance, params, linearize=linearize)


def fisher_diagonal(
    problem: Problem, params: PyTree, batch: PyTree, *, key: jax.Array, likelihood: str
) -> PyTree:
    """Returns n ĝ², an estimate of the diagonal of the Fisher matrix from one gradient ĝ.

    ĝ is the gradient of −(1/n) Σᵢ log p(yᵢ | zᵢ) at labels drawn from the model. The mean over keys
    is the diagonal of the Fisher matrix, whose products `fisher` estimates: of the Gauss–Newton
    matrix of that criterion. As `diagonal` of `gk.observe` it makes `gk.sophia` Sophia-G.

    Source: Liu et al. (2024), "Sophia: a scalable stochastic second-order optimizer for language
    model pre-training", algorithm 2, the Gauss–Newton–Bartlett estimator.

    Cost: one gradient.

    Args:
        problem: a `Problem(predict=..., criterion=...)`; see `fisher`.
        params: tree of floating-point parameters θ.
        batch: whatever the problem takes.
        key: random key of the labels.
        likelihood: "categorical", "bernoulli" or "normal"; see `fisher`.

    Returns:
        A tree like `params` [1/param²], nowhere negative.

    Raises:
        TypeError: the problem is a loss alone, or has no floating-point output; or a leaf of
            `params` is not a floating-point array or number.
        ValueError: no such likelihood, or outputs without the axes they need.

    Example:
        >>> import jax, jax.numpy as jnp, gradkit as gk
        >>> problem = gk.Problem(predict=lambda p, x: x @ p, criterion=lambda z, x: jnp.mean(z**2))
        >>> x, keys = jnp.array([[1.0], [2.0]]), jax.random.split(jax.random.key(0), 10_000)
        >>> def estimate(key):
        ...     return gk.fisher_diagonal(problem, jnp.ones(1), x, key=key, likelihood="normal")
        >>> bool(abs(jax.vmap(estimate)(keys).mean() - 2.5) < 0.2)  # (1² + 2²) / 2
        True
    """
    _known(likelihood)
    outputs = Partial(outputs_at, with_outputs(problem, "fisher_diagonal"), batch)
    check_parameters(params, member="fisher_diagonal")
    J = jacobian(outputs, params)
    scores = _drawn(J.outputs, key, likelihood, 1)
    n = examples(J.outputs, "fisher_diagonal: the outputs")
    g = J.backward(jax.tree.map(lambda s, z: s[0].astype(z.dtype), scores, J.outputs))  # n ĝ
    return jax.tree.map(lambda g: (tree.square(g) / n).astype(g.dtype), g)


def _known(likelihood: str) -> None:
    if likelihood not in _SCORE:
        names = ", ".join(map(repr, _SCORE))
        raise ValueError(f"likelihood: expected one of {names}, got {likelihood!r}")


def _losses(problem: Problem, batch: PyTree, params: PyTree) -> jax.Array:
    """ℓ(θ): the loss on each example as a batch of one."""

    def loss(example):
        return problem.value(params, jax.tree.map(lambda x: x[None], example))

    return jax.vmap(loss)(batch)


def _covariance(scores: PyTree, J: Jacobian) -> Partial:
    return Partial(_outer_products, scores)


def _outer_products(scores: PyTree, u: PyTree) -> PyTree:
    """(1/(n·samples)) Σ s sᵀ u, example by example; scores have leading axes (samples, n)."""

    def projected(s, x):
        return jnp.sum(s * tree.wide(x), axis=tuple(range(2, s.ndim)))

    def combined(s, x):
        weights = jnp.reshape(coefficients, coefficients.shape + (1,) * (s.ndim - 2))
        return (jnp.sum(weights * s, axis=0) / coefficients.size).astype(x.dtype)

    coefficients = jax.tree.reduce(operator.add, jax.tree.map(projected, scores, u))
    return jax.tree.map(combined, scores, u)


@functools.partial(jax.jit, static_argnames=("likelihood", "samples"))
def _scores(outputs: Partial, params: PyTree, key: Any, likelihood: str, samples: int) -> PyTree:
    """The scores of so many labels for each example: leading axes (samples, n)."""
    return _drawn(parted(outputs(params))[0], key, likelihood, samples)


def _drawn(z: PyTree, key: Any, likelihood: str, samples: int) -> PyTree:
    """The same, of outputs z."""
    z = jax.tree.map(tree.wide, z)
    classes = ", ..., classes)" if likelihood == "categorical" else ", ...)"
    examples(z, "fisher: the outputs", "(examples" + classes)
    leaves, structure = jax.tree.flatten(z)

    def draw(key):
        keys = jax.random.split(key, len(leaves))
        drawn = (_SCORE[likelihood](k, x) for k, x in zip(keys, leaves, strict=True))
        return list(map(shardings.spread, drawn, leaves))

    return structure.unflatten(jax.vmap(draw)(jax.random.split(key, samples)))


def _categorical(key: jax.Array, z: jax.Array) -> jax.Array:
    label = jax.random.categorical(key, z)
    return jax.nn.softmax(z) - jax.nn.one_hot(label, z.shape[-1], dtype=z.dtype)


def _bernoulli(key: jax.Array, z: jax.Array) -> jax.Array:
    p = jax.nn.sigmoid(z)
    return p - jax.random.bernoulli(key, p)


def _normal(key: jax.Array, z: jax.Array) -> jax.Array:
    return jax.random.normal(key, z.shape, z.dtype)


_SCORE = {"categorical": _categorical, "bernoulli": _bernoulli, "normal": _normal}
