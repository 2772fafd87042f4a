"""The generalized Gauss–Newton matrix of a loss as an operator, and the Jacobian it is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from gradkit.core import Problem, as_problem
from gradkit.curvature.hessian import linearized
from gradkit.curvature.memory import fits
from gradkit.operators import Operator
from gradkit.validation import check_parameters

PyTree = Any


def gauss_newton(
    problem: Problem, params: PyTree, batch: PyTree, *, linearize: bool | None = None
) -> Operator:
    """Returns the operator G v = Jᵀ H_c J v, the Gauss–Newton matrix of one batch at `params`.

    J is the Jacobian of the outputs in the parameters, H_c the Hessian of the criterion in the
    outputs. G is the Hessian less the term of the model's own curvature, Σ ∂c/∂z ∇²z: equal to it
    for a model linear in its parameters, and positive semidefinite for a criterion convex in the
    outputs.

    Source: Schraudolph (2002), "Fast curvature matrix-vector products for second-order gradient
    descent"; Martens (2010), "Deep learning via Hessian-free optimization".

    Differs: J is the transpose of Jᵀ, the model's vjp, so that one pass through the model serves
    both, and a model with a `jax.custom_vjp`, which has no jvp, is as good as another. Where its
    backward rule calls a further one and has no transpose, J is the derivative of Jᵀ u in u.

    Cost: with `linearize`, one pass through the model and its residuals (all activations of the
    batch) kept in memory, then 4 matrix products a dense layer for each product; without, no
    memory between products, and 5 matrix products a layer. For a layer whose input is the data, 2
    and 3.

    Args:
        problem: a `Problem(predict=..., criterion=...)`. Anything random in `predict` must be
            frozen: pass fixed keys and batch statistics in the batch. The outputs may be any tree;
            leaves that are not floating-point, such as predicted classes, are held constant.
        params: tree of floating-point parameters θ.
        batch: whatever the problem takes; weighting is the criterion's own.
        linearize: linearize model and criterion once and re-apply them, or recompute them in each
            product. By default the former if the residuals, counted from their shapes as if on one
            device, take a quarter of the device's memory at most (of the machine's, for a CPU).

    Returns:
        An `Operator` on trees like `params` [loss/param²].

    Raises:
        TypeError: the problem is a loss alone, or has no floating-point output; or a leaf of
            `params` is not a floating-point array or number.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> problem = gk.Problem(
        ...     predict=lambda x, batch: batch * x[0] * x[1],
        ...     criterion=lambda out, batch: jnp.sum(out**2) / 2,
        ... )
        >>> G = gk.gauss_newton(problem, jnp.array([1.0, 3.0]), jnp.array([2.0]))
        >>> G @ jnp.array([1.0, 0.0])
        Array([36., 12.], dtype=float32)
    """
    problem = with_outputs(problem, "gauss_newton")
    check_parameters(params, member="gauss_newton")
    outputs, H_c = Partial(outputs_at, problem, batch), Partial(_criterion_hessian, problem, batch)
    return congruence(outputs, H_c, params, linearize=linearize)


def observed(problem: Problem, params: PyTree, batch: PyTree) -> tuple[jax.Array, PyTree, Operator]:
    """Returns loss, gradient and linearized Gauss–Newton matrix, from one gradient."""
    problem = with_outputs(problem, "gauss_newton")
    J = jacobian(Partial(outputs_at, problem, batch), params)
    value, u, H_c = linearized(_criterion_gradient(problem, batch, J), J.outputs)
    grad = jax.tree.map(jnp.conj, J.backward(u))
    return value, grad, Operator(Partial(_around, J, H_c), params)


def congruence(
    function: Partial, middle: Partial, params: PyTree, *, linearize: bool | None
) -> Operator:
    """Returns the operator v ↦ Jᵀ M J v, with J the Jacobian of `function` at `params`.

    Args:
        function: from trees like `params` to the outputs.
        middle: from J to M, a `Partial` on trees like `J.outputs`.
        params: tree of floating-point parameters.
        linearize: keep J and M, or recompute them in each product; None: keep them if they fit.
    """
    args = function, middle, params
    keep = fits(_linearized, *args) if linearize is None else linearize
    return Operator(_linearized(*args) if keep else Partial(_product, *args), params)


@jax.jit
def _linearized(function: Partial, middle: Partial, params: PyTree) -> Partial:
    J = jacobian(function, params)
    return Partial(_around, J, middle(J))


def _product(function: Partial, middle: Partial, params: PyTree, v: PyTree) -> PyTree:
    return _linearized(function, middle, params)(v)


def _around(J: Jacobian, M: Callable, v: PyTree) -> PyTree:
    product = J.backward(M(J.forward(v)))  # Jᵀ M J v
    return jax.tree.map(jnp.conj, product)  # of complex leaves jax.grad has the conjugate


def _criterion_hessian(problem: Problem, batch: PyTree, J: Jacobian) -> Callable:
    return linearized(_criterion_gradient(problem, batch, J), J.outputs)[2]


def _criterion_gradient(problem: Problem, batch: PyTree, J: Jacobian) -> Callable:
    def criterion(z):
        return problem.criterion(_joined(z, J.constant), batch)  # pyright: ignore[reportOptionalCall]

    def gradient_and_value(z):
        value, grad = jax.value_and_grad(criterion)(z)
        return grad, value

    return gradient_and_value


class Jacobian(NamedTuple):
    """The derivative J of a function of the parameters at one point, as a pytree of residuals.

    Attributes:
        outputs: the function's value z there, with None for each leaf not floating-point.
        constant: those leaves, with None for the others.
        pullback: u ↦ (Jᵀ u,), as `jax.vjp` has it.
    """

    outputs: PyTree
    constant: PyTree
    pullback: Callable[[PyTree], tuple[PyTree]]

    def forward(self, v: PyTree) -> PyTree:
        """Returns J v, a tree like `outputs`."""
        try:
            return jax.linear_transpose(self.backward, self.outputs)(v)[0]
        except NotImplementedError as error:
            if "custom_vjp" not in str(error):
                raise
            return jax.vjp(self.backward, jax.tree.map(jnp.zeros_like, self.outputs))[1](v)[0]

    def backward(self, u: PyTree) -> PyTree:
        """Returns Jᵀ u, a tree like the parameters."""
        return self.pullback(u)[0]


def jacobian(function: Callable[[PyTree], PyTree], params: PyTree) -> Jacobian:
    """Returns the Jacobian of `function` at `params`, from one pass through it."""
    z, pullback, constant = jax.vjp(lambda theta: parted(function(theta)), params, has_aux=True)
    return Jacobian(z, constant, pullback)


def with_outputs(problem: Problem | Callable, member: str) -> Problem:
    """Returns the problem, if it has the `predict` and `criterion` that `member` needs."""
    if as_problem(problem).predict is None:
        got = "gk.Problem(loss)" if isinstance(problem, Problem) else "a function"
        raise TypeError(
            f"{member} needs the model's outputs: expected gk.Problem(predict=..., criterion=...), "
            f"got {got}. Write the loss as criterion(predict(params, batch), batch), or use "
            "gk.hessian or gk.empirical_fisher, which take any loss."
        )
    return as_problem(problem)


def outputs_at(problem: Problem, batch: PyTree, params: PyTree) -> PyTree:
    """Returns `predict(params, batch)`, in the order in which `Partial` takes it."""
    return problem.predict(params, batch)  # pyright: ignore[reportOptionalCall]


def parted(outputs: PyTree) -> tuple[PyTree, PyTree]:
    """Returns the floating-point leaves, and the others, with None in the places of the rest.

    Raises:
        TypeError: there is no floating-point leaf.
    """
    leaves, structure = jax.tree.flatten(outputs)
    smooth = [jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in leaves]
    if not any(smooth):
        dtypes = ", ".join(str(jnp.result_type(x)) for x in leaves) or "no leaf"
        raise TypeError(
            f"expected floating-point outputs to differentiate, got {dtypes}: let predict return "
            "what the criterion is a smooth function of, such as logits"
        )
    return (
        structure.unflatten([x if s else None for x, s in zip(leaves, smooth, strict=True)]),
        structure.unflatten([None if s else x for x, s in zip(leaves, smooth, strict=True)]),
    )


def _joined(z: PyTree, constant: PyTree) -> PyTree:
    return jax.tree.map(
        lambda x, c: c if x is None else x, z, constant, is_leaf=lambda x: x is None
    )
