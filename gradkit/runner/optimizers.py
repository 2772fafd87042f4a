"""The transformation that a config describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from gradkit.runner.config import Config
from gradkit.runner.making import as_user_error, chained, made
from gradkit.runner.members import Member, Schedule
from gradkit.runner.stability import stability
from gradkit.spectra.step_sizes import stability_limit

_GAUSS_NEWTON = ("hessian_free", "scale_by_quadratic_model")  # what is meant for that matrix


def build(members: tuple[Member, ...]) -> optax.GradientTransformationExtraArgs:
    """Returns the one member's transformation, or the chain of all.

    Raises:
        UserError: a factory refuses the values of its arguments. So do `init` and `update` of the
          result, when first traced, where a member cannot work with the model or the runner.
    """
    tx = chained(members)

    def init(params):
        with as_user_error("optimizer: cannot be started on this model"):
            return tx.init(params)

    def update(updates, state, params=None, **extra):
        with as_user_error("optimizer: cannot be run from a config"):
            return tx.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def curvature_operator(config: Config) -> str:
    """Returns the name of the curvature that the optimizer of a config is given."""
    never_negative = any(_holds(config.optimizer, name) for name in _GAUSS_NEWTON)
    return config.curvature.operator or ("gauss_newton" if never_negative else "hessian")


def curvature_diagonal(config: Config) -> str | None:
    """Returns the name of the diagonal that it is given; None for that of the operator."""
    suited = "empirical_fisher" if _holds(config.optimizer, "hessian_free") else None
    return config.curvature.diagonal or suited


def _holds(value: Any, name: str) -> bool:
    """Whether a member of that name is among some members, or within one."""
    if isinstance(value, Member):
        return value.name == name or _holds(tuple(value.arguments.values()), name)
    return isinstance(value, tuple) and any(_holds(item, name) for item in value)


def configured_rate(members: tuple[Member, ...]) -> Callable[[int], Any]:
    """Returns the learning rate at a step as the config states it; None where it does not.

    Of a wrapped optimizer it is not said: a wrapper may count other steps.
    """
    for member in members:
        rate = member.arguments.get("learning_rate")
        if isinstance(rate, Schedule):
            return made(rate)
        if rate is not None:
            return lambda step: rate
    return lambda step: None


def sharpness_limits(members: tuple[Member, ...]) -> dict[str, float]:
    """Returns what the sharpness can reach before training on the full batch becomes unstable.

    Of gradient descent a `sharpness_limit`, of Adam and RMSProp, whose preconditioned sharpness it
    is that counts, a `preconditioned_sharpness_limit`; of others, and with schedules, nothing.

    Source: Cohen et al. (2021, 2022); see `gk.track_sharpness`.
    """
    if (threshold := stability(members)["threshold"]) is not None:
        return {"sharpness_limit": threshold}
    name, given = members[0].name.removeprefix("optax."), members[0].arguments
    momentum = {"adam": given.get("b1", 0.9), "rmsprop": given.get("momentum") or 0.0}.get(name)
    rate = given.get("learning_rate", 1e-3)  # gradkit's default; optax has none
    other_form = len(members) > 1 or given.get("nesterov") or given.get("centered")
    if other_form or not isinstance(rate, int | float) or not isinstance(momentum, int | float):
        return {}
    if not rate > 0 or not 0 <= momentum < 1:
        return {}
    limit = stability_limit(rate, momentum=momentum, ema=name == "adam")
    return {"preconditioned_sharpness_limit": float(limit)}
