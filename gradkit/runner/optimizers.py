"""The transformation that a config describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optax

import gradkit as gk
from gradkit.runner.catalog import find
from gradkit.runner.errors import UserError
from gradkit.runner.members import Member, Schedule
from gradkit.runner.stability import stability
from gradkit.spectra.step_sizes import stability_limit


def build(members: tuple[Member, ...]) -> optax.GradientTransformationExtraArgs:
    """Returns the one member's transformation, or the chain of all.

    Raises:
        UserError: a factory refuses the values of its arguments. So do `init` and `update` of the
          result, when first traced, where a member cannot work with the model or the runner.
    """
    tx = _chained(members)

    def init(params):
        with _as_user_error("optimizer: cannot be started on this model"):
            return tx.init(params)

    def update(updates, state, params=None, **extra):
        with _as_user_error("optimizer: cannot be run from a config"):
            return tx.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def configured_rate(members: tuple[Member, ...]) -> Callable[[int], Any]:
    """Returns the learning rate at a step as the config states it; None where it does not.

    Of a wrapped optimizer it is not said: a wrapper may count other steps.
    """
    for member in members:
        rate = member.arguments.get("learning_rate")
        if isinstance(rate, Schedule):
            return _call(rate)
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


def _chained(members: tuple[Member, ...]) -> optax.GradientTransformationExtraArgs:
    links = [_call(member) for member in members]
    return optax.with_extra_args_support(links[0]) if len(links) == 1 else gk.chain(*links)


def _argument(value: Any) -> Any:
    if isinstance(value, Schedule):
        return _call(value)
    return _chained(value) if _are_members(value) else value


def _are_members(value: Any) -> bool:
    return isinstance(value, tuple) and any(isinstance(item, Member) for item in value)


def _call(node: Member | Schedule) -> Any:
    arguments = {key: _argument(value) for key, value in node.arguments.items()}
    with _as_user_error(f"optimizer: {node.name} refuses its arguments"):
        return find(node.name).load()(**arguments)


@contextmanager
def _as_user_error(what: str) -> Iterator[None]:
    """Shows what a factory or a member raises without a traceback; its cause stays attached."""
    try:
        yield
    except (TypeError, ValueError) as error:
        first_line, _, _ = str(error).partition("\n")
        raise UserError(f"{what}: {first_line}") from error
