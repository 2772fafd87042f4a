"""Steps of a model in a Krylov space, tried until the loss falls as the model said it would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.core import needs_params, required
from gradkit.krylov.models import ModelStep
from gradkit.krylov.subspace import Subspace
from gradkit.operators import Operator
from gradkit.searches.acceptance import Found, Rules, Trial, until_accepted
from gradkit.states import Work
from gradkit.transforms.norms import scaled_norm

PyTree = Any

ACCEPT = 1e-4  # ρ of a step that is taken
POOR, GOOD = 0.25, 0.75  # ρ below which steps get shorter, and above which they may get longer
LONGER = 0.9  # ρ above which a longer step is tried in the same space


class Local(NamedTuple):
    """The loss about the parameters.

    Attributes:
        params: θ. value: f there. value_fn: f.
        A: the curvature.
        g: the gradient. g_norm: ‖g‖.
        usable: whether there is a step to look for: f and g are finite, and g is not zero.
    """

    params: PyTree
    value: jax.Array
    value_fn: Callable[[PyTree], jax.Array]
    A: Operator
    g: PyTree
    g_norm: jax.Array
    usable: jax.Array

    @classmethod
    def of(cls, updates: PyTree, params: PyTree, extra: dict[str, Any], member: str) -> Local:
        """Returns what a member's update is given."""
        value, value_fn, curvature = (
            required(extra, name, member=member) for name in ("value", "value_fn", "curvature")
        )
        needs_params(params, member=member)
        g = optax.tree.cast_like(updates, params)
        g_norm = scaled_norm(g).value
        usable = (g_norm > 0) & jnp.isfinite(g_norm) & jnp.isfinite(value)
        return cls(params, value, value_fn, curvature(), g, g_norm, usable)

    @property
    def size(self) -> jax.Array:
        """‖θ‖, or 1 where that is 0."""
        size = scaled_norm(self.params).value
        return jnp.where((size > 0) & jnp.isfinite(size), size, 1)


class Last(NamedTuple):
    """The last update.

    Attributes:
        first: ‖g₀‖, of the first gradient [loss/param].
        ratio: ρ, of the reduction of the loss to that of the model, at the last step.
        trials: how many steps were tried. rows: dimension of their Krylov space.
        failures: updates in which none was accepted.
        work: of all updates so far.
    """

    first: jax.Array
    ratio: jax.Array
    trials: jax.Array
    rows: jax.Array
    failures: jax.Array
    work: Work

    @classmethod
    def none(cls, params: PyTree) -> Last:
        """Returns the state before the first update."""
        zero, none = jnp.zeros((), tree.scalar_dtype(params)), jnp.zeros((), jnp.int32)
        return cls(zero, zero, none, none, none, Work.none())

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes ρ, trials, rows and failures."""
        return {name: getattr(self, name) for name in ("ratio", "trials", "rows", "failures")}

    def forcing(self, here: Local, tol: jax.Array) -> jax.Array:
        """Returns the relative residual to ask for, which makes convergence superlinear."""
        first = jnp.where(self.first > 0, self.first, here.g_norm)
        return jnp.minimum(tol, jnp.sqrt(here.g_norm / first))

    def followed(self, here: Local, space: Subspace, found: Found) -> Last:
        """Returns what the update leaves."""
        first = jnp.where(here.usable & ~(self.first > 0), here.g_norm, self.first)
        return Last(
            first=first,
            ratio=found.ratio,
            trials=found.trials,
            rows=space.lanczos.step,
            failures=self.failures + (~found.accepted & (here.g_norm != 0)),
            work=self.work.plus(evaluations=found.trials, products=space.products),
        )


def tried(
    here: Local,
    space: Subspace,
    solve: Callable[[jax.Array], ModelStep],
    limited: Callable[[ModelStep, jax.Array], jax.Array],
    rules: Rules,
    control: jax.Array,
) -> tuple[PyTree, Found]:
    """Returns the step that was accepted, zero for none, and what the trials have found.

    Args:
        here: the loss about the parameters.
        space: the Krylov space.
        solve: control -> the model's step in coordinates of the space.
        limited: (step, control) -> whether the control keeps the step short.
        rules: of the trials.
        control: of the first.
    """

    def attempt(control):
        step = solve(control)
        there = tree.add_scaled(here.params, 1, space.combined(step.h, here.g))
        return Trial(
            control=control,
            value=here.value_fn(there),
            reduction=step.reduction,
            slope=space.g_norm * step.h[0],
            norm=step.norm,
            limited=limited(step, control),
            moves=tree.largest(optax.tree.sub(there, here.params)) > 0,
            carried=step.h,
        )

    found = until_accepted(attempt, here.value, control, rules, here.usable)
    return space.combined(jnp.where(found.accepted, found.trial.carried, 0), here.g), found
