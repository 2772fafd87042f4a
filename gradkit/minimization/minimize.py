"""Minimize a function of any tree with any optimizer, and say how it ended."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import optimizers, tree
from gradkit.core import Problem
from gradkit.curvature.hessian import observed
from gradkit.krylov.drivers import Drive, chosen
from gradkit.minimization.bounds import as_bounds
from gradkit.minimization.derivative import solution
from gradkit.minimization.saddle import negative_curvature
from gradkit.minimization.status import CONVERGED, MESSAGES, Status, Stops
from gradkit.minimization.walk import (
    Given,
    History,
    Plan,
    Walk,
    ended,
    gradient_equivalents,
    start,
    stepper,
    total,
    value_function,
)
from gradkit.optimizers.bfgs import scale_by_bfgs
from gradkit.optimizers.lbfgs import scale_by_lbfgs
from gradkit.states import Work
from gradkit.transforms.chain import chain
from gradkit.transforms.line_search import line_search
from gradkit.transforms.link import Link
from gradkit.validation import check_arguments, check_parameters

PyTree = Any

# What SciPy calls the methods: factory and arguments.
SCIPY = {
    "bfgs": ("bfgs", {}),
    "l-bfgs-b": ("lbfgs", {}),
    "cg": ("nonlinear_cg", {}),
    "newton-cg": ("newton_cg", {}),
    "trust-ncg": ("trust_region", {"solver": "steihaug"}),
    "trust-krylov": ("trust_region", {"solver": "gltr"}),
    "trust-exact": ("trust_region", {"solver": "gltr", "tol": 1e-3}),
}


class Result(NamedTuple):
    """Where a minimization ended: at the best finite point it has seen.

    Attributes:
        params: the point, a tree like `x0`.
        value: the loss there. grad: its gradient there.
        status: a `gk.Status`, as an integer array.
        steps: updates made.
        evaluations: losses computed, those with a gradient included.
        gradients: gradients computed, linearizations included.
        products: Hessian-vector products.
        aux: the auxiliary value of the loss there, the residuals of least squares, or None.
        history: of the first points, where it was asked for, or None.
    """

    params: PyTree
    value: jax.Array
    grad: PyTree
    status: jax.Array
    steps: jax.Array
    evaluations: jax.Array
    gradients: jax.Array
    products: jax.Array
    aux: Any = None
    history: History | None = None

    @property
    def converged(self) -> jax.Array:
        """Whether the status is one of convergence."""
        return jnp.isin(self.status, jnp.asarray(CONVERGED, jnp.int32))

    @property
    def gradient_equivalents(self) -> jax.Array:
        """The work: a loss counts a third, a gradient two thirds, a product one."""
        return gradient_equivalents(Work(self.evaluations, self.gradients, self.products))

    @property
    def message(self) -> str:
        """The status in words, with what to do about it; outside `jit`."""
        return MESSAGES[Status(int(self.status))]

    x = property(lambda self: self.params, doc="SciPy's name of `params`.")
    fun = property(lambda self: self.value, doc="SciPy's name of `value`.")
    jac = property(lambda self: self.grad, doc="SciPy's name of `grad`.")
    nit = property(lambda self: self.steps, doc="SciPy's name of `steps`.")
    nfev = property(lambda self: self.evaluations, doc="SciPy's name of `evaluations`.")
    njev = property(lambda self: self.gradients, doc="SciPy's name of `gradients`.")
    nhev = property(lambda self: self.products, doc="SciPy's name of `products`.")
    success = property(lambda self: self.converged, doc="SciPy's name of `converged`.")


def minimize(
    fun: Callable,
    x0: PyTree,
    *,
    method: str | optax.GradientTransformation = "lbfgs",
    tol: float | jax.Array = 1e-6,
    max_steps: int | jax.Array = 1000,
    args: Any = (),
    has_aux: bool = False,
    function_tol: float | jax.Array = 0.0,
    step_tol: float | jax.Array = 0.0,
    budget: float | jax.Array = jnp.inf,
    bounds: tuple[Any, Any] | None = None,
    history: int = 0,
    drive: Drive | None = None,
) -> Result:
    """Returns the best point that an optimizer finds for fun(x, *args) from x0, and how it ended.

    One compiled loop, on any tree; `jit` and `vmap` over starts and over arguments go around it.
    Converged means that a test stated in `gk.Status` holds at the point returned, which is the best
    finite one seen: by default the test of the gradient alone, and no negative curvature was met in
    20 steps of Lanczos there. The tests are relative: 10⁻¹² f ends where f does.

    `params` and `value` have derivatives with respect to `args`, by the implicit function theorem,
    forward and in reverse; they mean what they say at a minimum with an invertible Hessian.

    Source: Nocedal & Wright (2006) for most methods; each optimizer names its own.

    Cost: of a step, what the optimizer asks for. Where its last member is a line search with
    gradients, no more; else loss and gradient at each point, linearized there if it asks for
    curvature. Once at the end, one gradient and up to 20 products. Two trees of memory beside the
    optimizer's. The same `fun` and method compile once for each shape of x0 and args.

    Args:
        fun: scalar function fun(x, *args), or (scalar, aux) with `has_aux=True`.
        x0: start, a tree of floating-point arrays or numbers.
        method: name of an optimizer of gradkit, with its defaults: `"lbfgs"`, `"bfgs"`,
            `"nonlinear_cg"`, `"trust_region"`, `"newton_cg"` …, or what SciPy calls them; or any
            transformation of gradkit or optax, built once and not anew at each call.
        tol: of the gradient: ‖g‖∞ ≤ tol · min(1, max(‖g₀‖∞, |f₀|/max(1, ‖x₀‖∞))).
        max_steps: most updates.
        args: further arguments of fun, a tuple of trees, or one that is no tuple: of arrays,
            numbers and random keys.
        has_aux: whether fun returns a pair.
        function_tol: also stop where a step lowers f by at most this times |f|; 0 for never.
        step_tol: also stop where a step changes x by at most this times ‖x‖∞; 0 for never.
        budget: most gradient-equivalents to spend, to within one step.
        bounds: (lower, upper), each None, a number, or a tree like x0, for `"lbfgs"` and `"bfgs"`:
            variables at a bound that −g would cross are held, the others go along the path
            projected onto the bounds (Bertsekas 1982). The gradient is then tested as projected,
            and a saddle is not looked for.
        history: of how many points to record loss, gradient norm and work.
        drive: `gk.in_jit` (default), or `gk.on_host` to watch the walk or to save it.

    Returns:
        A `gk.Result`. NaN, a loss without a lower bound and the like are statuses of it.

    Raises:
        TypeError: fun is no function or not scalar, a leaf of x0 is not floating-point, one of args
            is not an array or a number, or the method needs what no function has.
        ValueError: the method is unknown, or does not take bounds, or these do not fit.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> def rosenbrock(x):
        ...     return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)
        >>> found = gk.minimize(rosenbrock, jnp.array([-1.2, 1.0]), method="bfgs", tol=1e-4)
        >>> found.params.round(3), found.message
        (Array([1., 1.], dtype=float32), 'converged: the gradient is within its tolerance')
    """
    if not callable(fun):
        raise TypeError(f"minimize: fun must be a function of x0 and args, got {fun!r}")
    problem = Problem(Applied(fun), has_aux=has_aux)
    stops = Stops(tol, function_tol, step_tol, max_steps, budget)
    tx = transformation(method) if bounds is None else _projected(method)
    walk = {"bounds": bounds, "history": history, "drive": drive}
    return run(problem, tx, x0, args, stops, observed, member="minimize", **walk)


@dataclasses.dataclass(frozen=True, eq=False)
class Applied:
    """A function of parameters and a tuple of arguments, equal to another of the same function.

    One that has no hash, as an `equinox.Module` of arrays has none, is the same as itself alone.
    """

    fun: Callable

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Applied):
            return NotImplemented
        return self.fun is other.fun or (
            _is_hashable(self.fun) and _is_hashable(other.fun) and self.fun == other.fun
        )

    def __hash__(self) -> int:
        return hash(self.fun) if _is_hashable(self.fun) else id(self.fun)

    def __call__(self, params: PyTree, args: tuple) -> Any:
        """Returns the function's value."""
        return self.fun(params, *args)


def _is_hashable(fun: Callable) -> bool:
    try:
        hash(fun)
    except TypeError:
        return False
    return True


def run(
    problem: Problem,
    tx: optax.GradientTransformation,
    x0: PyTree,
    args: Any,
    stops: Stops,
    curvature: Callable,
    *,
    member: str,
    bounds: tuple[Any, Any] | None = None,
    history: int,
    drive: Drive | None,
) -> Result:
    """Returns the result of the walk of `tx` on `problem` from x0, for the function `member`."""
    check_parameters(x0, member=member, name="the leaves of x0")
    check_arguments(args, member=member)
    x0 = jax.tree.map(_strong, x0)
    within = None if bounds is None else as_bounds(bounds, x0)
    x0 = x0 if within is None else within.project(x0)
    args = jax.tree.map(jnp.asarray, args if isinstance(args, tuple) else (args,))
    tx = optax.with_extra_args_support(tx)
    hands_over = isinstance(tx, Link) and tx.traits.evaluates
    asks = not hands_over and _asks_for_curvature(tx, problem, tree.Shapes.of((x0, args)))
    searches = asks or hands_over or within is not None
    plan = Plan(problem, tx, curvature, asks, hands_over, searches)
    stops = Stops(*map(jnp.asarray, stops))

    def found(args):
        given = Given(args, stops, within)
        walk = _start(plan, x0, given, history)
        walk = chosen(drive)(stepper(plan), given, walk, until=ended)
        return _result(plan, walk, given)

    return solution(problem, found, args, within)


_start = jax.jit(start, static_argnums=(0, 3))


@functools.partial(jax.jit, static_argnums=0)
def _result(plan: Plan, walk: Walk, given: Given) -> Result:
    """What is told of a walk that has ended: at no gradient, the curvature is looked at."""
    params, value, grad = walk.best
    args, work = given.args, total(walk)
    stationary = (walk.status == Status.GRADIENT) & (given.bounds is None)
    negative, products = negative_curvature(plan.problem, params, args, stationary)
    work = work.plus(stationary, stationary, products)
    aux = None
    if plan.problem.has_aux or plan.problem.predict is not None:
        aux = plan.problem.value_and_aux(params, args)[1]
        work = work.plus(1)
    status = jnp.where(stationary & negative, jnp.int32(Status.SADDLE), walk.status)
    return Result(params, value, grad, status, walk.steps, *work, aux, walk.history)


def _strong(x: Any) -> jax.Array:
    """The array of a dtype that does not give way to another's."""
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype)


def transformation(method: Any) -> optax.GradientTransformation:
    """Returns the optimizer of that name, the same one at every call, or the one given."""
    if isinstance(method, optax.GradientTransformation):
        return method
    if not isinstance(method, str):
        raise TypeError(
            f"minimize: method must be a name or a gradient transformation, got {method!r}"
        )
    return _named(method)


@functools.cache
def _projected(method: Any) -> optax.GradientTransformation:
    directions = {"lbfgs": scale_by_lbfgs, "l-bfgs-b": scale_by_lbfgs, "bfgs": scale_by_bfgs}
    if method.lower() not in directions if isinstance(method, str) else True:
        raise ValueError(
            f"minimize: bounds are for the methods 'lbfgs' and 'bfgs', by name; got {method!r}"
        )
    return chain(directions[method.lower()](), line_search())


@functools.cache
def _named(method: str) -> optax.GradientTransformation:
    name, arguments = SCIPY.get(method.lower(), (method, {}))
    known = [module.name for module in pkgutil.iter_modules(optimizers.__path__)]
    factories = {name: _factory(name) for name in ([name] if name in known else known)}
    factory = factories.get(name)
    if factory is None:
        there = [name for name, made in factories.items() if made is not None]
        near = difflib.get_close_matches(name, [*there, *SCIPY], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"minimize: unknown method {method!r}; {hint}There are {', '.join(there)}")
    return factory(**arguments)


def _factory(name: str) -> Callable | None:
    """The optimizer that a module is named for; None for a module that holds none."""
    return getattr(importlib.import_module(f"gradkit.optimizers.{name}"), name, None)


class _AskedError(Exception):
    """An optimizer asked for curvature."""


@functools.lru_cache(maxsize=256)
def _asks_for_curvature(tx: Any, problem: Problem, given: tree.Shapes) -> bool:
    """Whether an update does: it is traced, and left where it asks."""
    x0, args = given.unflatten()

    def curvature():
        raise _AskedError

    def update(params, args):
        value, grad = jax.value_and_grad(problem.value)(params, args)
        extras = {"value": value, "grad": grad, "curvature": curvature}
        extras["value_fn"] = value_function(problem, args)
        return tx.update(grad, tx.init(params), params, **extras)

    try:
        jax.eval_shape(update, x0, args)
    except _AskedError:
        return True
    return False
