"""Transformations of optax, or of anyone, as links."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit.transforms.link import Link, Traits, transformation

PyTree = Any


def as_link(tx: optax.GradientTransformation) -> Link:
    """Returns a transformation of optax, or of anyone, as a link; a link as it is.

    It keeps its own counter. With a step at `init`, those of its schedules begin there too. What
    enters it has the dtype that it would have in `optax.chain`.
    """
    return tx if isinstance(tx, Link) else _as_link(tx)


@transformation
def _as_link(tx: optax.GradientTransformation) -> Link:
    names = (getattr(f, "__qualname__", "").partition(".<locals>") for f in (tx.init, tx.update))
    name = next((outer for outer, inside, _ in names if inside), "member").rpartition(".")[2]
    whole = optax.with_extra_args_support(tx)

    def start(params, step):
        def begin(node):
            return optax.ScaleByScheduleState(jnp.array(step)) if _is_schedule(node) else node

        return jax.tree.map(begin, tx.init(params), is_leaf=_is_schedule)

    def advance(updates, state, params, now, extra):
        return whole.update(_narrowed(updates, params, now.dtypes), state, params, **extra)

    def steps(params):
        return [_descends(tx)] * len(jax.tree.leaves(params))

    name = name.removesuffix("_fn")
    return Link(name, start, advance, traits=Traits(leafwise=name, steps=steps))  # for all we know


def _narrowed(updates: PyTree, params: PyTree, dtypes: PyTree) -> PyTree:
    """The updates as they came in, or in the wider dtype of those and the parameters."""
    if dtypes is None:
        return updates

    def leaf(u, d, p):
        return u if u.dtype == d else u.astype(jnp.promote_types(d, p))

    like = dtypes if params is None else jax.tree.map(jnp.result_type, params)
    return jax.tree.map(leaf, updates, dtypes, like)


@functools.lru_cache(maxsize=64)
def _descends(tx: optax.GradientTransformation) -> bool | None:
    """Whether a transformation makes of a gradient a step against it; None if it cannot be told.

    A rate of zero, at which a warm-up may begin, leaves the sign in its zeros.
    """

    def loss(params):
        return jnp.sum(params["w"] ** 2)

    def first_update():
        params = {"w": jnp.ones((2, 2))}
        value, g = jax.value_and_grad(loss)(params)
        extra = {"value": value, "grad": g, "value_fn": loss}
        whole = optax.with_extra_args_support(tx)
        return whole.update(g, tx.init(params), params, **extra)[0]

    try:
        with jax.ensure_compile_time_eval():
            u = jnp.concatenate([x.ravel() for x in jax.tree.leaves(jax.jit(first_update)())])
            return True if jnp.signbit(u).all() else None if (u == 0).any() else False
    except Exception:  # it is for other trees, or asks for more than a gradient
        return None


def _is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)
