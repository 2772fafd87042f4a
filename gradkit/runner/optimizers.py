"""The transformation that a config describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

import gradkit as gk
from gradkit.runner.catalog import find
from gradkit.runner.errors import UserError
from gradkit.runner.members import Member, Schedule


def build(members: tuple[Member, ...]) -> optax.GradientTransformationExtraArgs:
    """Returns the one member's transformation, or the chain of all.

    Raises:
      UserError: a factory refuses the values of its arguments.
    """
    links = [_call(member) for member in members]
    return optax.with_extra_args_support(links[0]) if len(links) == 1 else gk.chain(*links)


def configured_rate(members: tuple[Member, ...]) -> Callable[[int], float | None]:
    """Returns the learning rate at a step as the config states it; None where it does not."""
    for member in members:
        rate = member.arguments.get("learning_rate")
        if isinstance(rate, Schedule):
            schedule = _call(rate)
            return lambda step: float(schedule(step))
        if rate is not None:
            return lambda step: rate
    return lambda step: None


def _call(node: Member | Schedule) -> Any:
    arguments = {
        key: _call(value) if isinstance(value, Schedule) else value
        for key, value in node.arguments.items()
    }
    try:
        return find(node.name).load()(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer.{node.name}: {error}") from None
