"""What a config can name, as text for a terminal."""

from __future__ import annotations

import ast
import dataclasses
import textwrap
from pathlib import Path
from typing import Any

from gradkit.runner.catalog import Entry, Parameter, catalog, find
from gradkit.runner.data import installed
from gradkit.runner.errors import UserError


def overview() -> str:
    """Returns every name by kind, gradkit's with a line each, then optax's."""
    entries = catalog().values()
    blocks = []
    for kind in _kinds():
        ours = [e for e in entries if e.kind == kind and e.library == "gradkit"]
        theirs = [e.name for e in entries if e.kind == kind and e.library != "gradkit"]
        lines = [f"{kind}s"]
        for e in ours:
            lines.append(f"  {e.name:26}{e.summary}")
            lines += _wrapped(f"missing: {words}") if (words := installed.missing(e.name)) else []
        lines += _wrapped("of optax: " + ", ".join(theirs)) if theirs else []
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n\n`gradkit list NAME` shows a name's arguments."


def experiments(folder: Path = Path("experiments")) -> str:
    """Returns the experiments in a folder: each with what it claims.

    Raises:
        UserError: there are none.
    """
    found = sorted(folder.glob("*/experiment.py"))
    if not found:
        raise UserError(
            f"list experiments: expected folders with an experiment.py in {folder.resolve()}, got "
            "none; call it in gradkit's own folder, as after git clone"
        )
    lines = ["experiments"]
    for file in found:
        doc = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
        lines.append(f"  {file.parent.name:26}{doc.splitlines()[0]}")
    words = "`python experiments/run.py NAME` runs one, `make experiments` all of them"
    return "\n".join([*lines, "", f"{words}; {folder}/RESULTS.md has what they found."])


def entry(name: str) -> str:
    """Returns one factory's summary, source and arguments with their defaults.

    Raises:
        UserError: there is no such name; the message has the nearest.
    """
    if name == "experiments":
        return experiments()
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


def described(name: str | None) -> dict[str, Any]:
    """Returns what `overview`, or for a name `entry`, says, as plain values.

    Raises:
        UserError: there is no such name; the message has the nearest.
    """
    if name is None:
        every = catalog().values()
        return {
            f"{kind}s".replace(" ", "_"): [_as_dict(e) for e in every if e.kind == kind]
            for kind in _kinds()
        }
    return _as_dict(find(name))


def _as_dict(found: Entry) -> dict[str, Any]:
    missing = {"missing": installed.missing(found.name)} if found.kind == "data set" else {}
    return dataclasses.asdict(found) | missing


def _kinds() -> list[str]:
    """Every kind of thing that has a name, gradkit's optimizers first."""
    return list(dict.fromkeys(["optimizer", *(entry.kind for entry in catalog().values())]))


def _argument(parameter: Parameter) -> tuple[str, str, str]:
    """Its name, its default and what a config may give."""
    takes = {
        "code": "nothing in a file: Python only",
        "rate": "a number or a schedule",
        "ints": "a list of whole numbers",
        "sequence": "a list of numbers",
        "transformation": "an optimizer, or a list of chain members",
        "activation": "an activation's name",
        "initializer": "an initializer's name",
    }
    default = "required" if parameter.default is None else parameter.default
    if parameter.kind in ("activation", "initializer"):
        default = default.removesuffix("()")  # as a config has it
    return parameter.name, default, takes.get(parameter.kind, parameter.kind)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, width=98, initial_indent="  ", subsequent_indent="    ")
