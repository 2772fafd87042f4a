"""Non-linear conjugate gradients: each direction keeps a part of the last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.core import needs_params
from gradkit.optimizers.differences import (
    Before,
    Counts,
    Pair,
    descends,
    first_scale,
    nothing_before,
    pair,
    scale_after,
    seen,
)
from gradkit.optimizers.lengths import stepping
from gradkit.searches.methods import method_named
from gradkit.transforms.line_search import line_search
from gradkit.transforms.link import Link, link, transformation

PyTree = Any


class Products(NamedTuple):
    """Inner products of g, g₋, y = g − g₋ and d₋, the last direction with the sign of descent."""

    gg: jax.Array
    gy: jax.Array
    gd: jax.Array
    yy: jax.Array
    yd: jax.Array
    dd: jax.Array
    gg_before: jax.Array
    gd_before: jax.Array


def hager_zhang(p: Products) -> jax.Array:
    """Returns (y − 2 d₋ yᵀy / yᵀd₋)ᵀg / yᵀd₋, and no less than 0.4 g₋ᵀd₋ / d₋ᵀd₋.

    Source: Hager & Zhang (2005), (1.3); the bound of Hager & Zhang (2013), section 4, which unlike
    that of 2005 is the same for any scale of the loss.
    """
    return jnp.maximum((p.gy - 2 * p.gd * p.yy / p.yd) / p.yd, 0.4 * p.gd_before / p.dd)


METHODS: dict[str, Callable[[Products], jax.Array]] = {
    "fletcher_reeves": lambda p: p.gg / p.gg_before,
    "polak_ribiere": lambda p: p.gy / p.gg_before,
    "polak_ribiere_plus": lambda p: jnp.maximum(p.gy / p.gg_before, 0),
    "hestenes_stiefel": lambda p: p.gy / p.yd,
    "dai_yuan": lambda p: p.gg / p.yd,
    "hager_zhang": hager_zhang,
}


class NonlinearCgState(NamedTuple):
    """What the update before saw, and its direction.

    Attributes:
        before: parameters and gradient of the last update.
        direction: d₋, with the sign of g and of its size.
        scale: γ = sᵀy / yᵀy of the last pair of positive curvature; 0 before the first.
        beta: of the last update.
        counts: what went otherwise than hoped.
    """

    before: Before
    direction: PyTree
    scale: jax.Array
    beta: jax.Array
    counts: Counts

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes β, which is 0 for steepest descent."""
        return {"beta": self.beta}


@transformation
def scale_by_nonlinear_cg(
    method: str = "hager_zhang",
    *,
    orthogonality: optax.ScalarOrSchedule = 0.2,
    min_cosine: optax.ScalarOrSchedule = 1e-12,
) -> Link:
    """Turns a gradient g into a direction of conjugate gradients, d = g + β d₋, times a length.

    Steps along the direction must be nearly exact, as by a line search with `curvature=0.1`. With
    y = g − g₋, and d₋ with the sign of descent in the formulas, β is

    - `"fletcher_reeves"`: gᵀg / g₋ᵀg₋
    - `"polak_ribiere"`: gᵀy / g₋ᵀg₋
    - `"polak_ribiere_plus"`: the same, and no less than 0
    - `"hestenes_stiefel"`: gᵀy / yᵀd₋
    - `"dai_yuan"`: gᵀg / yᵀd₋
    - `"hager_zhang"`: (y − 2 d₋ yᵀy / yᵀd₋)ᵀg / yᵀd₋, and no less than 0.4 g₋ᵀd₋ / d₋ᵀd₋

    which on a quadratic with exact steps is one and the same, and ends in n steps. It restarts with
    β = 0 where successive gradients are far from orthogonal, |gᵀg₋| ≥ ν gᵀg (save for Hager and
    Zhang's, which needs none), where sᵀy ≤ c ‖s‖‖y‖, where the last update has changed nothing, and
    where −d is no direction of descent. What leaves is t d, with t the step that an exact one
    before would predict. A gradient that is not finite passes as it is and leaves no trace.

    **A batch that changes is no use here**: y would be the difference of two functions. Where
    `value_fn` is among the extras, as it is from `observe`, a change of the batch is seen, β is 0
    and the metric `function_changes` counts it: if that grows, these are steps of gradient descent.
    Without `value_fn` nothing is known.

    Source: Fletcher & Reeves (1964); Polak & Ribière (1969); Powell (1977) for the restarts and
    (1984) for PR+; Hestenes & Stiefel (1952); Dai & Yuan (1999); Hager & Zhang (2005, 2013);
    Nocedal & Wright (2006), section 5.2.

    Cost: about 12 passes over the tree; 3 trees of memory. One pass over the batch.

    Args:
        method: one of the six names.
        orthogonality: ν, from which successive gradients count as not orthogonal.
        min_cosine: c, smallest cosine between the step s and y.

    Raises:
        ValueError: the method is unknown.
    """
    beta_of = method_named(method, METHODS)

    def init(params, step):
        dtype = tree.scalar_dtype(params)
        zeros = jnp.zeros((), dtype), jnp.zeros((), dtype)
        return NonlinearCgState(
            nothing_before(params), tree.wide_zeros(params), *zeros, Counts.none()
        )

    def update(updates, state, params, h, *, value_fn=None, **_):
        needs_params(params, member="scale_by_nonlinear_cg")
        here, dtype = seen(updates, params, value_fn), state.beta.dtype
        new = pair(state.before, here)
        curved = new.usable & (new.cosine > h.min_cosine)
        gamma = scale_after(new, curved, state.scale, state.beta == 0)

        sigma = tree.scale(state.before.g)
        g, g_before, d = (
            tree.scaled(1 / sigma, a) for a in (here.g, state.before.g, state.direction)
        )
        p = _products(g, g_before, d)
        beta = beta_of(p)
        kept = curved & jnp.isfinite(beta)
        if method != "hager_zhang":
            kept &= jnp.abs(p.gg - p.gy) < h.orthogonality * p.gg  # Powell's restart
        beta = jnp.where(kept, beta, 0)
        d = tree.add_scaled(g, beta, d)
        descending = descends(d, g) | ~new.finite | (p.gg == 0)
        d, beta = optax.tree.where(descending, (d, beta), (g, jnp.zeros_like(beta)))

        plain = jnp.where(gamma > 0, gamma, first_scale(here.g, new.s_norm))
        t = _first_trial(new, p, tree.inner(g, d))
        t = jnp.where(curved & (t > 0) & jnp.isfinite(t), t, plain)
        d = tree.scaled(sigma, d)
        state = NonlinearCgState(
            before=optax.tree.where(new.finite, here, state.before),
            direction=optax.tree.where(new.finite, d, state.direction),
            scale=gamma,
            beta=beta.astype(dtype),
            counts=state.counts.plus(
                restarts=new.stuck | ~descending,
                refused=new.usable & ~curved,
                changes=new.changed,
            ),
        )
        return optax.tree.where(new.finite, tree.scaled(t, d), updates), state

    return link(init, update, orthogonality=orthogonality, min_cosine=min_cosine)


def _products(g: PyTree, g_before: PyTree, d: PyTree) -> Products:
    """The products, for a direction d that comes with the sign of g."""
    y = jax.tree.map(jnp.subtract, g, g_before)
    return Products(
        gg=tree.inner(g, g),
        gy=tree.inner(g, y),
        gd=-tree.inner(g, d),
        yy=tree.inner(y, y),
        yd=-tree.inner(y, d),
        dd=tree.inner(d, d),
        gg_before=tree.inner(g_before, g_before),
        gd_before=-tree.inner(g_before, d),
    )


def _first_trial(new: Pair, p: Products, slope: jax.Array) -> jax.Array:
    """t, such that −t d falls by as much as an exact step along d₋ would have, to first order.

    Source: Nocedal & Wright (2006), section 3.5, α gᵀd = α₋ g₋ᵀd₋.
    Differs: α₋ is that of the minimum of a parabola along d₋, not the one taken, so that it is no
    matter what scales the steps.
    """
    inverse = new.s_norm / jnp.where(new.y_norm > 0, new.y_norm, 1) / new.cosine
    return inverse * p.gd_before**2 / p.dd / slope


@transformation
def nonlinear_cg(
    learning_rate: optax.ScalarOrSchedule | None = None,
    method: str = "hager_zhang",
    linesearch: optax.GradientTransformation | None = None,
    *,
    orthogonality: optax.ScalarOrSchedule = 0.2,
    min_cosine: optax.ScalarOrSchedule = 1e-12,
) -> Link:
    """Non-linear conjugate gradients: x ← x − α d, d = g + β d₋, with α from a line search.

    Its `update` takes what `observe` returns:
    `tx.update(point.grad, state, params, **point.extras)`. For deterministic losses: a batch that
    changes makes it gradient descent, see `gk.scale_by_nonlinear_cg`.

    Source: Hager & Zhang (2005) for the default; the others see `gk.scale_by_nonlinear_cg`.

    Cost: 4 trees of memory, and the line search's gradients, mostly two an update.

    Args:
        learning_rate: a number or a schedule for α; None (default) searches the line.
        method: of β, see `gk.scale_by_nonlinear_cg`.
        linesearch: `gk.line_search(...)`, or a search of optax; None (default) is
            `gk.line_search("hager_zhang", curvature=0.1)` unless there is a rate.
        orthogonality: see `gk.scale_by_nonlinear_cg`.
        min_cosine: see `gk.scale_by_nonlinear_cg`.

    Raises:
        TypeError: `update` was called without the extra arguments of `observe`.
        ValueError: the method is unknown, or there is a learning rate and a line search of gradkit.
    """
    direction = scale_by_nonlinear_cg(method, orthogonality=orthogonality, min_cosine=min_cosine)
    search = line_search("hager_zhang", curvature=0.1)
    return stepping(direction, learning_rate, search, linesearch).named("nonlinear_cg")
