"""A run's config: how it is read and written.

All problems of a file are reported at once, each with the place it was written at, and before JAX
is imported.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from gradkit.runner.catalog import nearest
from gradkit.runner.document import Document, Place, describe, lines_of, read, yaml
from gradkit.runner.errors import UserError
from gradkit.runner.members import Member, Schedule, as_written, spelled_out
from gradkit.runner.schema import Config, Data, Spectrum

__all__ = [
    "Config",
    "Data",
    "Member",
    "Schedule",
    "Spectrum",
    "dump",
    "explained",
    "load",
    "resolved",
    "seedless",
]


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """The config in a YAML file, with overrides applied and every default filled in.

    Args:
        path: the file. With `extends: FILE` it says only what differs from that one.
        overrides: `key.path=value` each, the value in YAML; a list's item by its position.

    Raises:
        UserError: the file cannot be read, or has problems; the message lists all of them.
    """
    return resolved(path, overrides)[0]


def resolved(
    path: str | os.PathLike[str], overrides: Sequence[str] = ()
) -> tuple[Config, Document]:
    """The config that `load` returns, and the document that it was read from."""
    path = Path(path)
    document = _extended(path)
    problems: list[tuple[Place, str]] = []
    for number, override in enumerate(overrides):
        place = Place((1, number), f"command line: {override}")
        if problem := document.override(override, place):
            problems.append((place, problem))
    try:
        config = Config.model_validate({"name": path.stem, **document.tree})
    except ValidationError as error:
        problems += [_located(detail, document) for detail in error.errors(include_url=False)]
    else:
        problems += _beside_a_task(config, document)
        if not problems:
            return config, document
    lines = [f"  {place.text}  {problem}" for place, problem in sorted(problems)]
    count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
    raise UserError("\n".join([f"{path}: {count}", *lines]))


def _extended(path: Path) -> Document:
    """The document in a file, on top of the one that it extends."""
    document = _spelled_out(read(path))
    if "extends" not in document.tree:
        return document
    where = document.place(("extends",)).text
    base = document.tree.pop("extends")
    if not isinstance(base, str):
        raise UserError(
            f"{where}  extends: expected the path of a config, from the folder of this one; got "
            f"{describe(base)}"
        )
    try:
        below = _spelled_out(read(path.parent / base, order=-1))
    except UserError as error:
        raise UserError(f"{where}  extends: {error}") from None
    if "extends" in below.tree:
        raise UserError(
            f"{where}  extends: {base} extends {below.tree['extends']} itself; expected a config "
            "that stands by itself: one level keeps it readable"
        )
    return document.over(below)


def _spelled_out(document: Document) -> Document:
    data = document.tree.get("data")
    named = [*((document.tree, key) for key in ("optimizer", "task", "model")), (data, "source")]
    for section, key in named:
        if isinstance(section, dict) and key in section:
            section[key] = spelled_out(section[key])
    return document


def _beside_a_task(config: Config, document: Document) -> list[tuple[Place, str]]:
    """What a task leaves no room for."""
    if config.task is None:
        return []
    return [
        (document.place((key,)), f"{key}: task {config.task.name} brings its own; drop one of both")
        for key in ("model", "loss")
        if document.has((key,))
    ]


def explained(config: Config, document: Document) -> str:
    """A config as `dump` writes it, with the place that each value comes from beside it."""
    text = dump(config)
    lines = text.splitlines()
    width = max(map(len, lines)) + 2
    places = lines_of(text)
    sections = {path[:depth] for path, _ in places for depth in range(len(path))}
    for path, number in places:
        if path not in sections:
            written = path if path[0] != "optimizer" else path[:1]  # its defaults are not shown
            origin = document.place(path).text if document.has(written) else "default"
            lines[number - 1] = f"{lines[number - 1]:{width}}# {origin}"
    return "\n".join(lines) + "\n"


def dump(config: Config) -> str:
    """A config as YAML with every field that it uses; `load` of the text gives an equal config."""
    members = [as_written(member) for member in config.optimizer]
    unused = {"model", "loss"} if config.task else set()
    tree = config.model_dump(mode="json", exclude={"optimizer", *unused})
    tree = {
        name: (members[0] if len(members) == 1 else members) if name == "optimizer" else tree[name]
        for name in Config.model_fields
        if name not in unused
    }
    text = io.StringIO()
    yaml().dump(tree, text)
    return text.getvalue()


def seedless(config: Config) -> str:
    """Returns a config as text but for its seed and its name."""
    return dump(config.model_copy(update={"seed": 0, "name": "any"}))


def _located(detail: ErrorDetails, document: Document) -> tuple[Place, str]:
    path = detail["loc"]
    return document.place(path), f"{'.'.join(map(str, path))}: {_in_plain_words(detail)}"


_WRONG_VALUE = "expected {expected}, got {got}; {near_choice}"
_WORDS = {
    "bool_type": _WRONG_VALUE,
    "extra_forbidden": "unknown key; {near_key}{section} takes {keys}",
    "finite_number": _WRONG_VALUE,
    "float_type": _WRONG_VALUE,
    "greater_than": _WRONG_VALUE,
    "greater_than_equal": _WRONG_VALUE,
    "int_type": _WRONG_VALUE,
    "invalid_key": "expected a key that is text, got {got}",
    "less_than": _WRONG_VALUE,
    "literal_error": _WRONG_VALUE,
    "missing": "missing; expected {description}, such as optimizer: adam",
    "model_type": _WRONG_VALUE,
    "problem": "{message}",
    "string_type": _WRONG_VALUE,
    "tuple_type": _WRONG_VALUE,
}
_NOUNS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_BOUNDS = {"ge": ">=", "gt": ">", "lt": "<"}


def _in_plain_words(detail: ErrorDetails) -> str:
    """What pydantic found wrong: the expectation, the value that came, the nearest name."""
    *parents, key = detail["loc"]
    section, field = _field(parents), _field(detail["loc"])
    keys = [*_section_fields(section), *([] if parents else ["extends"])]
    words = _WORDS.get(detail["type"], "{message}, got {got}").format(
        message=detail["msg"],
        expected=_expected(field) if field else "",
        description=field.description if field else "",
        got=describe(detail["input"]),
        section=parents[-1] if parents else "a config",
        keys=", ".join(keys),
        near_key=nearest(str(key), keys),
        near_choice=nearest(str(detail["input"]), _choices(field)),
    )
    return words.rstrip("; ")


def _field(path: Sequence[str | int]) -> FieldInfo | None:
    """The field at a path; None where the schema has none, or leaves the values to others."""
    field: FieldInfo | None = FieldInfo.from_annotation(Config)
    for part in path:
        if field is None:
            return None
        if isinstance(part, int) and get_origin(field.annotation) is tuple:
            field = FieldInfo.from_annotation(get_args(field.annotation)[0])
        else:
            field = _section_fields(field).get(str(part))
    return field


def _section_fields(field: FieldInfo | None) -> dict[str, FieldInfo]:
    section = field.annotation if field else None
    if isinstance(section, type) and issubclass(section, BaseModel):
        return section.model_fields
    return {}


def _choices(field: FieldInfo | None) -> tuple[str, ...]:
    kinds = [field.annotation, *get_args(field.annotation)] if field else []
    return next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())


def _expected(field: FieldInfo) -> str:
    """The values that a field takes: 'a whole number >= 1'."""
    if choices := _choices(field):
        null = ", or null" if type(None) in get_args(field.annotation) else ""
        return f"one of {', '.join(choices)}{null}"
    if keys := _section_fields(field):
        return f"a mapping with {', '.join(keys)}"
    if get_origin(field.annotation) is tuple:
        item = FieldInfo.from_annotation(get_args(field.annotation)[0])
        return f"a list, each item {_expected(item)}"
    alternatives = get_args(field.annotation)
    if type(None) in alternatives:
        return f"{_expected(FieldInfo.from_annotation(alternatives[0]))}, or null"
    bounds = [
        f"{sign} {getattr(bound, name)}"
        for bound in field.metadata
        for name, sign in _BOUNDS.items()
        if hasattr(bound, name)
    ]
    noun = _NOUNS.get(field.annotation or object, field.description or "another value")
    return f"{noun} {' and '.join(bounds)}".rstrip()
