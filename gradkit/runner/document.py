"""A YAML 1.2 file as plain values that know where they were written, and overrides on top of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scalarbool import ScalarBoolean

from gradkit.runner.catalog import did_you_mean, near
from gradkit.runner.errors import UserError

KeyPath = tuple[Any, ...]
"""The keys and list positions that lead to a value."""

_PLAIN_WORDS = (
    (r"mapping values are not allowed", "a second ': ' in a line, or too deep an indentation"),
    (r"character '\\t'", "a tab; indent with spaces"),
    (r"character (?P<found>'.') that cannot start", "{found} cannot start a value; quote the text"),
    (r"expected ',' or (?P<end>'.')", "a {end} is missing for the bracket opened in line {opened}"),
    (r"unexpected end of stream", "the quote opened in line {opened} is not closed"),
    (r"expected <block end>", "indented differently from the lines above it"),
    (r"could not find expected ':'", "the key in line {opened} has no ': '"),
    (r"found another document", "a second document; a file holds one"),
    (r"undefined alias '(?P<name>.*)'", "the alias *{name} has no anchor"),
)
_TYPES = {
    bool: "truth value",
    int: "whole number",
    float: "number",
    str: "text",
    list: "list",
    dict: "mapping",
}


@dataclass(frozen=True, order=True)
class Place:
    """Where a value was written; sorted, a file's lines come before the command line.

    Attributes:
        order: -1 for a file that is extended, 0 for the file and 1 for the command line, then the
            line or the override's number.
        text: `FILE:LINE` or `command line: OVERRIDE`.
    """

    order: tuple[int, int]
    text: str


class Document:
    """The mapping in a file, with overrides applied.

    Attributes:
        tree: plain dictionaries, lists, numbers, texts, truth values and None.
    """

    def __init__(self, tree: dict[Any, Any], places: dict[KeyPath, Place]):
        self.tree = tree
        self._places = places

    def place(self, path: KeyPath) -> Place:
        """The place of a value; of what it would be part of when it was not written."""
        return next(
            self._places[path[:depth]]
            for depth in range(len(path), -1, -1)
            if path[:depth] in self._places
        )

    def has(self, path: KeyPath) -> bool:
        """Whether there is a value at a path."""
        node: Any = self.tree
        for key in path:
            if key not in (node if isinstance(node, dict) else range(len(node))):
                return False
            node = node[key]
        return True

    def over(self, base: Document) -> Document:
        """This document on top of another: sections are merged key by key, all else is replaced.

        A section that names another thing, as an optimizer does, takes the place of the whole.
        """
        tree, places = dict(base.tree), dict(base._places)
        for key, new in self.tree.items():
            old = tree.get(key)
            if isinstance(old, dict) and isinstance(new, dict) and _of_one_name(old, new):
                tree[key], gone = {**old, **new}, {(key, inner) for inner in new}
            else:
                tree[key], gone = new, {(key,)}
            places = {p: place for p, place in places.items() if not {p[:1], p[:2]} & gone}
        return Document(tree, places | self._places)

    def override(self, text: str, place: Place) -> str | None:
        """Apply one `key.path=value`, the value being YAML; missing mappings on the way are made.

        Returns:
            The problem that kept it from being applied, None when there was none.
        """
        dotted, equals, written = text.partition("=")
        keys = dotted.strip().split(".")
        if not equals or not all(keys):
            return f"{text}: expected key.path=value, such as batch_size=128"
        try:
            value = _plain(_parse(written))
        except _MalformedError as error:
            return f"{dotted}: {error.words}"
        return self._set(keys, value, place)

    def _set(self, keys: list[str], value: Any, place: Place) -> str | None:
        parent: Any = self.tree
        path: KeyPath = ()
        while True:
            key, rest = _step(parent, keys)
            if key is None:
                return f"{'.'.join(map(str, (*path, *keys)))}: {_no_way_on(parent, path)}"
            path = (*path, key)
            if not rest:
                break
            if isinstance(parent, dict) and parent.get(key) is None:
                parent[key] = {}
                self._places[path] = place
            parent, keys = parent[key], rest
        parent[key] = value
        self._places = {p: old for p, old in self._places.items() if p[: len(path)] != path}
        self._places[path] = place
        return None


def _of_one_name(old: dict[Any, Any], new: dict[Any, Any]) -> bool:
    return new.get("name", old.get("name")) == old.get("name")


def read(path: Path, order: int = 0) -> Document:
    """The document in a file.

    Args:
        path: the file.
        order: where its places come among others, see `Place`.

    Raises:
        UserError: there is no such file, or it is not UTF-8, not YAML, or not a mapping.
    """
    text = _read_text(path)
    try:
        node = _parse(text)
    except _MalformedError as error:
        raise UserError(f"{path}:{error.where}  {error.words}") from None
    if node is None:
        raise UserError(f"{path}: is empty; a config needs at least an optimizer")
    if not isinstance(node, Mapping):
        message = "expected a mapping of keys to values, such as optimizer: adam, got "
        message += describe(_plain(node))
        raise UserError(f"{path}:{_first_line(node)}  {message}")
    lines = [((), _first_line(node)), *_lines(node)]
    places = {keys: Place((order, line), f"{path}:{line}") for keys, line in lines}
    return Document(_plain(node), places)


def yaml() -> YAML:
    """The YAML 1.2 reader and writer of this project."""
    return YAML(typ="rt")


def describe(value: Any) -> str:
    """A value and its type in plain words: 'many' (text)."""
    if value is None:
        return "nothing (null)"
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f"{shown} ({_TYPES.get(type(value), type(value).__name__)})"


class _MalformedError(Exception):
    """A text that is not YAML: the line and column, and what is wrong there."""

    def __init__(self, where: str, words: str):
        self.where = where
        self.words = words


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{_configs_near(path)}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a config file{_configs_near(path)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{data[error.start]:02x}"
        raise UserError(f"{path}:{line}  not UTF-8 text ({found}); save it as UTF-8") from None


def _configs_near(path: Path) -> str:
    """What may have been meant: config files of that folder and of configs/."""
    folders = dict.fromkeys((path if path.is_dir() else path.parent, Path("configs")))
    files = [file for folder in folders for file in sorted(folder.glob("*.yaml"))]
    stems = near(path.stem, {file.stem for file in files})
    meant = [str(file) for stem in stems for file in files if file.stem == stem]
    found = did_you_mean(meant).strip() or ", ".join(map(str, files[:8]))
    return f"; {'' if meant else 'there are '}{found}" if found else "; name a YAML file"


def _parse(text: str) -> Any:
    try:
        return yaml().load(text)
    except DuplicateKeyError as error:
        key = re.search(r'duplicate key "(.*?)" with value', str(error.problem))
        words = f"{key[1] if key else 'a key'}: given twice; remove one of the two"
        raise _MalformedError(_position(error), words) from None
    except MarkedYAMLError as error:
        raise _MalformedError(
            _position(error), f"not valid YAML: {_in_plain_words(error)}"
        ) from None
    except ReaderError as error:
        where = f"{text.count(chr(10), 0, error.position) + 1}"
        raise _MalformedError(where, f"not valid YAML: {error.reason}") from None
    except (YAMLError, ValueError) as error:  # ValueError: a date or a number out of bounds
        raise _MalformedError("1", f"not valid YAML: {error}") from None
    except RecursionError:
        raise _MalformedError("1", "not valid YAML: nested too deeply") from None


def _position(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f"{mark.line + 1}:{mark.column + 1}" if mark else "1"


def _in_plain_words(error: MarkedYAMLError) -> str:
    opened = error.context_mark.line + 1 if error.context_mark else 1
    for pattern, words in _PLAIN_WORDS:
        if match := re.search(pattern, str(error.problem)):
            return words.format(opened=opened, **match.groupdict())
    return str(error.problem)


def _plain(node: Any) -> Any:
    """The parser's annotated containers and scalars as Python's own."""
    if isinstance(node, Mapping):
        return {_plain_key(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if isinstance(node, ScalarBoolean):  # an int to Python
        return bool(node)
    plain = next((kind for kind in (bool, int, float, str) if isinstance(node, kind)), None)
    return plain(node) if plain else node


def _plain_key(key: Any) -> Any:
    return _plain(key) if isinstance(key, str | int | float) else str(key)


def values_in(path: Path) -> Any:
    """The plain value in a YAML file.

    Raises:
        UserError: there is no such file, or it is not YAML.
    """
    return _value(_read_text(path), str(path))


def values_of(text: str, what: str) -> list[Any]:
    """The plain values in a text with commas between them, in YAML.

    Raises:
        UserError: it is not YAML; the message begins with `what`.
    """
    return _value(f"[{text}]", what)


def _value(text: str, what: str) -> Any:
    try:
        return _plain(_parse(text))
    except _MalformedError as error:
        raise UserError(f"{what}: {error.words}") from None


def lines_of(text: str) -> list[tuple[KeyPath, int]]:
    """The line of every key and list item in a YAML text that is well formed, from 1."""
    return _lines(_parse(text))


def _lines(node: Any, path: KeyPath = ()) -> list[tuple[KeyPath, int]]:
    """The line of every key and list item below a node, from 1."""
    if isinstance(node, Mapping):
        items: Sequence[tuple[Any, Any]] = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    else:
        return []
    written = getattr(node, "lc", None)
    known = (written.data or {}) if written else {}
    found = []
    for key, value in items:
        if key in known:
            found.append(((*path, _plain_key(key)), known[key][0] + 1))
        found += _lines(value, (*path, _plain_key(key)))
    return found


def _first_line(node: Any) -> int:
    return node.lc.line + 1 if hasattr(node, "lc") else 1


def _step(node: Any, keys: list[str]) -> tuple[str | int | None, list[str]]:
    """The next key of a path into a node and the rest of the path; None where there is no way on.

    A key of the node may itself hold dots, as `optax.cosine_decay_schedule` does.
    """
    if isinstance(node, dict):
        joined = [".".join(keys[:count]) for count in range(len(keys), 1, -1)]
        key = next((key for key in joined if key in node), keys[0])
        return key, keys[key.count(".") + 1 :]
    if isinstance(node, list) and keys[0].isdecimal() and int(keys[0]) < len(node):
        return int(keys[0]), keys[1:]
    return None, keys


def _no_way_on(node: Any, path: KeyPath) -> str:
    parent = ".".join(map(str, path))
    if isinstance(node, list) and node:
        return f"{parent} is a list; its items are {parent}.0 to {parent}.{len(node) - 1}"
    return f"{parent} is {describe(node)} and has no keys"
