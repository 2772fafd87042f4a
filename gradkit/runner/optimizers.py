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


def build(members: tuple[Member, ...]) -> optax.GradientTransformationExtraArgs:
    """Returns the one member's transformation, or the chain of all.

    Raises:
        UserError: a factory refuses the values of its arguments. So do `init` and `update` of the
          result, when first traced, where a member cannot work with the model or the runner.
    """
    links = [_call(member) for member in members]
    tx = optax.with_extra_args_support(links[0]) if len(links) == 1 else gk.chain(*links)

    def init(params):
        with _as_user_error("optimizer: cannot be started on this model"):
            return tx.init(params)

    def update(updates, state, params=None, **extra):
        with _as_user_error("optimizer: cannot be run from a config"):
            return tx.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def configured_rate(members: tuple[Member, ...]) -> Callable[[int], Any]:
    """Returns the learning rate at a step as the config states it; None where it does not."""
    for member in members:
        rate = member.arguments.get("learning_rate")
        if isinstance(rate, Schedule):
            return _call(rate)
        if rate is not None:
            return lambda step: rate
    return lambda step: None


def _call(node: Member | Schedule) -> Any:
    arguments = {
        key: _call(value) if isinstance(value, Schedule) else value
        for key, value in node.arguments.items()
    }
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
