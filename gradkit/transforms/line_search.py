"""Line search: a learning rate found by trying the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.core import Known, required
from gradkit.searches.line import Rules, Trial, along
from gradkit.searches.methods import method_named
from gradkit.states import Work
from gradkit.transforms.link import Link, link, transformation

PyTree = Any


class LineSearchState(NamedTuple):
    """The last search: `learning_rate` is 0 where it failed, and `failures` how often it has.

    `known` is the loss at the parameters that the update leads to, for methods that take its
    gradient at every trial; else it is empty.
    """

    learning_rate: jax.Array
    failures: jax.Array
    work: Work
    known: Known | tuple[()]

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes the learning rate and the failures."""
        return {"learning_rate": self.learning_rate, "failures": self.failures}


class Line(NamedTuple):
    """The loss along θ − α u, φ(α) = f(θ − α u).

    Attributes:
        params: θ. u: the updates that come in.
        grad: g, for its dtypes. value_fn: f.
        project: parameters -> parameters, or None.
    """

    params: PyTree
    u: PyTree
    grad: PyTree
    value_fn: Callable[[PyTree], jax.Array]
    project: Callable[[PyTree], PyTree] | None

    def moved(self, alpha: jax.Array) -> tuple[PyTree, PyTree]:
        """Returns −α u in the dtypes that leave, and where it leads: what the caller finds.

        Behind the barrier, no compiler contracts product and sum into one rounding.
        """
        change = tree.cast_updates(tree.scaled(-alpha, self.u), self.grad, self.params)
        change = jax.lax.optimization_barrier(change)
        x = optax.apply_updates(self.params, change)
        if self.project is None:
            return change, x
        x = self.project(x)
        return optax.tree.sub(x, self.params), x

    def without_slope(self, alpha: jax.Array) -> tuple[jax.Array, jax.Array, tuple[()]]:
        """Returns φ(α), NaN for its slope, and nothing to carry."""
        return self.value_fn(self.moved(alpha)[1]), jnp.full_like(alpha, jnp.nan), ()

    def with_slope(self, alpha: jax.Array) -> tuple[jax.Array, jax.Array, PyTree]:
        """Returns φ(α), φ′(α) and the gradient there."""
        f, g = jax.value_and_grad(self.value_fn)(self.moved(alpha)[1])
        g = optax.tree.cast_like(jax.tree.map(jnp.conj, g), self.params)
        return f, -tree.inner(g, self.u), g


@transformation
def line_search(
    method: str = "backtracking",
    *,
    decrease: optax.ScalarOrSchedule = 1e-4,
    curvature: optax.ScalarOrSchedule = 0.9,
    shrink: optax.ScalarOrSchedule = 0.5,
    max_steps: int = 20,
) -> Link:
    """Scales updates u to −α u, with α found by trials along the line, of which 1 is the first.

    It takes the place of a learning rate. With φ(α) = f(θ − α u):

    - `"backtracking"`: the first α of 1, ½, ¼ … with φ(α) ≤ φ(0) + c₁ α φ′(0) (Armijo). One loss a
      trial.
    - `"more_thuente"`: |φ′(α)| ≤ c₂ |φ′(0)| as well (strong Wolfe). A gradient a trial.
    - `"hager_zhang"`: the same, or a condition on slopes alone where rounding leaves nothing of the
      differences of losses (approximate Wolfe). A gradient a trial.

    With an extra argument `project`, a function of the parameters, trials are projected: the line
    becomes the path of Bertsekas (1982).

    The last two know the gradient at the parameters that the update leads to: on the same batch
    `gk.observe(..., state=state)` takes it from the state instead of computing it.

    Source: Nocedal & Wright (2006), algorithm 3.1; Moré & Thuente (1994); Hager & Zhang (2006).
    Differs: a loss that is NaN or infinite fails the trial; the test allows for the rounding of f,
    4 ε |f|, without which no step passes near a minimum in float32; where no α passes, the lowest
    trial is taken, and where none is lower, or −u is not a direction of descent, the update is zero
    and counted as a failure, unless u is zero itself.

    Cost: one loss a trial, with its gradient for the last two, and then one tree of memory.

    Args:
        method: one of the three names.
        decrease: c₁, 0 < c₁ < ½.
        curvature: c₂, c₁ < c₂ < 1: 0.9 for directions of Newton's kind, 0.1 for conjugate ones.
        shrink: of backtracking, the factor between one trial and the next.
        max_steps: most trials.

    Raises:
        ValueError: the method is unknown.
        TypeError: `update` was called without `value`, `grad` or `value_fn`.
    """
    search = method_named(method)

    def init(params, step):
        dtype = tree.scalar_dtype(params)
        return LineSearchState(
            learning_rate=jnp.ones((), dtype),
            failures=jnp.zeros((), jnp.int32),
            work=Work.none(),
            known=Known.nothing(params) if search.slopes else (),
        )

    def update(updates, state, params, h, **extra):
        value, grad, value_fn = (
            required(extra, name, member="line_search") for name in ("value", "grad", "value_fn")
        )
        here = Line(params, updates, grad, value_fn, extra.get("project"))
        dtype = state.learning_rate.dtype
        f = value.astype(dtype)
        noise = 4 * jnp.finfo(value.dtype).eps * jnp.abs(f)
        start = Trial(jnp.zeros((), dtype), f, -tree.inner(grad, updates).astype(dtype))
        found = along(
            here.with_slope if search.slopes else here.without_slope,
            start,
            optax.tree.cast_like(grad, params) if search.slopes else (),
            search,
            Rules(h.decrease, h.curvature, h.shrink, noise),
            alpha=jnp.ones((), dtype),
            max_steps=max_steps,
        )
        alpha = found.trial.alpha
        u = jax.tree.map(lambda x: jnp.where(alpha > 0, x, 0), updates)  # 0 times infinity is NaN
        change, x = here._replace(u=u).moved(alpha)
        failed = (alpha == 0) & (tree.largest(updates) != 0)
        gradients = found.trials if search.slopes else 0
        known = ()
        if search.slopes:
            known = Known(tree.mark((x, value_fn)), found.trial.value, found.carried)
        return change, LineSearchState(
            alpha,
            state.failures + failed,
            state.work.plus(found.trials, gradients),
            known,
        )

    rules: Any = {"decrease": decrease, "curvature": curvature, "shrink": shrink}
    return link(init, update, evaluates=search.slopes, steps=True, **rules)
