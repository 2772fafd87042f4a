"""What a config names with arguments, made: the factory found, its arguments made, and called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optax

import gradkit as gk
from gradkit.runner.catalog import find
from gradkit.runner.errors import UserError
from gradkit.runner.members import Member, Schedule


def made(node: Member | Schedule, *first: Any, kind: str | None = None) -> Any:
    """Returns what a name and its arguments stand for.

    Args:
        node: the name, and arguments in which other names may stand.
        *first: arguments before those of the config.
        kind: of the factory, where its name alone could mean another; see `catalog.Entry`.

    Raises:
        UserError: the factory refuses the values of its arguments.
    """
    entry = find(node.name, *([kind] if kind else []))
    kinds = {parameter.name: parameter.kind for parameter in entry.parameters}
    arguments = {
        name: _argument(value, kinds.get(name, "")) for name, value in node.arguments.items()
    }
    with as_user_error(f"{kind or 'optimizer'}: {node.name} refuses its arguments"):
        return entry.load()(*first, **arguments)


def chained(members: tuple[Member, ...]) -> optax.GradientTransformationExtraArgs:
    """Returns the one member's transformation, or the chain of all."""
    links = [made(member) for member in members]
    return optax.with_extra_args_support(links[0]) if len(links) == 1 else gk.chain(*links)


@contextmanager
def as_user_error(what: str) -> Iterator[None]:
    """Shows what a factory or a member raises without a traceback; its cause stays attached."""
    try:
        yield
    except (TypeError, ValueError) as error:
        first_line, _, _ = str(error).partition("\n")
        raise UserError(f"{what}: {first_line}") from error


def _argument(value: Any, kind: str) -> Any:
    if isinstance(value, Schedule):
        return made(value)
    if isinstance(value, Member):
        return made(value, kind=kind)
    several = isinstance(value, tuple) and any(isinstance(item, Member) for item in value)
    return chained(value) if several else value
