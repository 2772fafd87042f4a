"""What a config can name, as text for a terminal."""

from __future__ import annotations

import textwrap
from typing import get_args

from gradkit.runner.catalog import Parameter, catalog, find
from gradkit.runner.config import DATA_SETS, Model

KINDS = ("optimizer", "transformation", "schedule")


def overview() -> str:
    """Returns every name by kind, gradkit's with a line each, then optax's."""
    entries = catalog().values()
    blocks = []
    for kind in KINDS:
        ours = [e for e in entries if e.kind == kind and e.library == "gradkit"]
        theirs = [e.name for e in entries if e.kind == kind and e.library != "gradkit"]
        lines = [f"{kind}s"]
        lines += [f"  {e.name:24}{e.summary}" for e in ours]
        lines += _wrapped("of optax: " + ", ".join(theirs))
        blocks.append("\n".join(lines))
    data = DATA_SETS | {"PATH.npz": "your own: x (examples, features) and y (examples,)"}
    blocks.append("\n".join(["data sets", *(f"  {name:24}{what}" for name, what in data.items())]))
    models = get_args(Model.model_fields["name"].annotation)
    blocks.append("models\n" + "\n".join(f"  {name}" for name in models))
    return "\n\n".join(blocks) + "\n\n`gradkit list NAME` shows a name's arguments."


def entry(name: str) -> str:
    """Returns one factory's summary, source and arguments with their defaults.

    Raises:
        UserError: there is no such name; the message has the nearest.
    """
    if name in DATA_SETS:
        return f"{name}: a data set; write `data: {{source: {name}}}`"
    found = find(name)
    lines = [f"{found.name} ({found.kind}, {found.library})", f"  {found.summary}"]
    if found.source:
        lines += _wrapped(f"Source: {found.source}")
    rows = [("argument", "default", "takes"), *map(_argument, found.parameters)]
    names, defaults, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines += ["", *(f"  {a:{names}}  {b:{defaults}}  {c}" for a, b, c in rows)]
    return "\n".join(lines)


def _argument(parameter: Parameter) -> tuple[str, str, str]:
    """Its name, its default and what a config may give."""
    takes = {"code": "nothing in a file: Python only", "rate": "a number or a schedule"}
    default = "required" if parameter.default is None else parameter.default
    return parameter.name, default, takes.get(parameter.kind, parameter.kind)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, width=98, initial_indent="  ", subsequent_indent="    ")
