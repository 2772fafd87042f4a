"""What a member within another one sees of the loss: the same, as a function of its own trees."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial

from gradkit.operators import Operator


def seen_from_inside(
    extra: dict[str, Any], inward: Callable, outward: Callable, tangent: Callable
) -> dict[str, Any]:
    """Returns the extra arguments of `update` for a member whose parameters are another tree.

    Args:
        extra: as they came.
        inward: a tree like the parameters -> one like the member's.
        outward: the member's parameters -> the parameters.
        tangent: a change of the member's parameters -> that of the parameters; linear.
    """
    inner = dict(extra)
    if extra.get("grad") is not None:
        inner["grad"] = inward(extra["grad"])
    if (value_fn := extra.get("value_fn")) is not None:

        def value_at(value_fn, params, **more):
            return value_fn(outward(params), **more)

        value = Partial(value_at, value_fn)  # the batch stays in sight of what marks it
        vars(value)["__signature__"] = inspect.signature(value_fn)  # optax's searches read it
        inner["value_fn"] = value
    if (curvature := extra.get("curvature")) is not None:

        def seen():
            A = curvature()
            domain = jax.eval_shape(inward, A.domain)
            return Operator(lambda v: inward(A @ tangent(v)), domain)

        inner["curvature"] = seen
    if (diagonal := extra.get("diagonal")) is not None:
        inner["diagonal"] = lambda: inward(diagonal())
    return inner


def with_data(extra: dict[str, Any]) -> dict[str, Any]:
    """Returns the extra arguments with `value_fn` a function of the parameters alone.

    As in optax's line searches, the other arguments that it names are arguments of `update`:
    `tx.update(g, state, params, value_fn=f, y=y)` for f(params, y).

    Raises:
        TypeError: `value_fn` needs an argument that `update` was called without.
    """
    value_fn = extra.get("value_fn")
    try:
        parameters = list(inspect.signature(value_fn).parameters.values())[1:] if value_fn else []
    except (TypeError, ValueError):  # of a function that Python cannot look into
        return extra
    several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    own = {p.name: p.default is p.empty for p in parameters if p.kind not in several}
    if not own or "curvature" in own:  # `observe` has bound its functions to their data
        return extra
    missing = [name for name, needed in own.items() if needed and name not in extra]
    if missing:
        named = "".join(f", {name}={name}" for name in missing)
        raise TypeError(
            f"update: value_fn needs {', '.join(map(repr, missing))} beside the parameters, got "
            f"{', '.join(sorted(extra))}; pass tx.update(grad, state, params, value_fn=value_fn"
            f"{named}, ...), or a function of the parameters alone"
        )
    given = {name: extra[name] for name in own if name in extra}
    return extra | {"value_fn": Partial(value_fn, **given)} if given else extra
