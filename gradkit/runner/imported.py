"""An object of the user's: found by `path/to/file.py:name` or `module:name`, its errors told."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import gradkit as gk
from gradkit.runner.catalog import nearest
from gradkit.runner.errors import UserError

_EXPECTED = "expected FILE.py:NAME or MODULE:NAME"
_NOT_THE_USERS = (
    str(Path(gk.__file__).parent),
    *(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")),
)


def imported(spec: str, option: str) -> tuple[Any, Path]:
    """Returns the object that a text such as `file.py:task` names, and its file.

    Args:
        spec: the text.
        option: what it was given as, for messages.

    Raises:
        UserError: there is none, or importing its file fails.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise UserError(f"{option}: {_EXPECTED}, got {spec!r}")
    found = _of_file(Path(place), option) if place.endswith(".py") else _of_module(place, option)
    module, source = found
    if not hasattr(module, name):
        names = [n for n, value in vars(module).items() if callable(value) and n[0] != "_"]
        raise UserError(f"{option}: {place} has no {name}; {nearest(name, names)}".rstrip("; "))
    return getattr(module, name), source


def _of_file(path: Path, option: str) -> tuple[ModuleType, Path]:
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.py")])
        raise UserError(f"{option}: no such file {path}; {near}".rstrip("; "))
    found = importlib.util.spec_from_file_location(f"gradkit_task_{path.stem}", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    sys.path.insert(0, str(path.parent.absolute()))
    with told(path, f"{path} cannot be imported"):
        found.loader.exec_module(module)
    return module, path


def _of_module(name: str, option: str) -> tuple[ModuleType, Path]:
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a package above it that is missing, or no name at all
        found = None
    if found is None:
        hint = f"; for a file write {name}.py:NAME" if Path(f"{name}.py").is_file() else ""
        raise UserError(f"{option}: no module named {name!r} from here{hint}; {_EXPECTED}")
    source = Path(found.origin or name)
    with told(source, f"{name} cannot be imported"):
        return importlib.import_module(name), source


@contextmanager
def told(source: Path, what: str) -> Iterator[None]:
    """Shows an error in the user's code as one message with the place in the user's file."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        places = [
            f"{os.path.relpath(frame.filename)}:{frame.lineno}: "
            for frame in traceback.extract_tb(error.__traceback__)
            if not frame.filename.startswith(("<", *_NOT_THE_USERS))
        ]
        if isinstance(error, SyntaxError):
            places = [f"{source}:{error.lineno}: "]
        place = places[-1] if places else ""
        kind = type(error).__name__
        raise UserError(f"{place}{what}: {kind}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message."""
    return str(error).strip().partition("\n")[0]


def described(value: Any) -> str:
    """Returns what kind of thing a value is, with an article."""
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    kind = type(value).__name__
    return "None" if value is None else f"a{'n' if kind[0].lower() in 'aeiou' else ''} {kind}"
