"""What a config can name, as text for a terminal."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any, get_args

from gradkit.runner.catalog import Entry, Parameter, catalog, find
from gradkit.runner.config import Model, expected
from gradkit.runner.data import installed

KINDS = ("optimizer", "transformation", "schedule", "data set", "task")
MODELS = get_args(Model.model_fields["name"].annotation)


def overview() -> str:
    """Returns every name by kind, gradkit's with a line each, then optax's."""
    entries = catalog().values()
    blocks = []
    for kind in KINDS:
        ours = [e for e in entries if e.kind == kind and e.library == "gradkit"]
        theirs = [e.name for e in entries if e.kind == kind and e.library != "gradkit"]
        lines = [f"{kind}s"]
        for e in ours:
            lines.append(f"  {e.name:24}{e.summary}")
            lines += _wrapped(f"missing: {words}") if (words := installed.missing(e.name)) else []
        lines += _wrapped("of optax: " + ", ".join(theirs)) if theirs else []
        blocks.append("\n".join(lines))
    blocks.append("\n".join(["models", *(f"  {name}" for name in MODELS)]))
    return "\n\n".join(blocks) + "\n\n`gradkit list NAME` shows a name's arguments."


def entry(name: str) -> str:
    """Returns one factory's summary, source and arguments with their defaults.

    Raises:
        UserError: there is no such name; the message has the nearest.
    """
    if name in MODELS:
        lines = [f"{name} (model)"]
        rows = [(p["name"], str(p["default"]), p["takes"]) for p in _model_parameters()]
    else:
        found = find(name)
        lines = [f"{found.name} ({found.kind}, {found.library})", f"  {found.summary}"]
        lines += _wrapped(f"Source: {found.source}") if found.source else []
        lines += _wrapped(f"missing: {words}") if (words := installed.missing(name)) else []
        rows = [_argument(parameter) for parameter in found.parameters]
    if not rows:
        return "\n".join([*lines, "  takes no arguments"])
    rows.insert(0, ("argument", "default", "takes"))
    names, defaults, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines += ["", *(f"  {a:{names}}  {b:{defaults}}  {c}" for a, b, c in rows)]
    return "\n".join(lines)


def every_name() -> list[str]:
    """Returns whatever `entry` knows."""
    return [*catalog(), *MODELS]


def described(name: str | None) -> dict[str, Any]:
    """Returns what `overview`, or for a name `entry`, says, as plain values.

    Raises:
        UserError: there is no such name; the message has the nearest.
    """
    if name is None:
        by_kind = {
            f"{kind}s".replace(" ", "_"): [
                _as_dict(e) for e in catalog().values() if e.kind == kind
            ]
            for kind in KINDS
        }
        return {**by_kind, "models": list(MODELS)}
    if name in MODELS:
        return {"name": name, "kind": "model", "parameters": _model_parameters()}
    return _as_dict(find(name))


def _as_dict(found: Entry) -> dict[str, Any]:
    missing = {"missing": installed.missing(found.name)} if found.kind == "data set" else {}
    return dataclasses.asdict(found) | missing


def _model_parameters() -> list[dict[str, Any]]:
    return [
        {"name": key, "default": field.default, "takes": expected(field)}
        for key, field in Model.model_fields.items()
        if key != "name"
    ]


def _argument(parameter: Parameter) -> tuple[str, str, str]:
    """Its name, its default and what a config may give."""
    takes = {
        "code": "nothing in a file: Python only",
        "rate": "a number or a schedule",
        "transformation": "an optimizer, or a list of chain members",
    }
    default = "required" if parameter.default is None else parameter.default
    return parameter.name, default, takes.get(parameter.kind, parameter.kind)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, width=98, initial_indent="  ", subsequent_indent="    ")
