"""What a public name of gradkit or optax means, found in the sources without importing them."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

_LIBRARIES = ("gradkit", "optax")
_WORTH_PARSING = re.compile(
    rb"GradientTransformation|Schedule|Examples|Task|Net|Activation|Initializer|\bchain\b|\bLink\b"
)


class Definition(NamedTuple):
    """A function: its module, its `def`, and the defaults that a `partial` of it replaces.

    Of its body only the first and the last statement are kept: docstring and result.
    """

    module: str
    node: ast.FunctionDef
    replaced: dict[str, ast.expr]


class _Import(NamedTuple):
    module: str
    name: str


@cache
def definition(module: str, name: str) -> Definition | None:
    """The function that a dotted name means in a module, through imports, aliases and partials."""
    owner, dot, attribute = name.partition(".")
    match names(module).get(owner):
        case _Import(source, original) if dot:
            return definition(f"{source}.{original}", attribute)
        case _Import(source, original) if (source, original) != (module, name):  # no submodule
            return definition(source, original)
        case ast.FunctionDef() as node:
            return Definition(module, node, {})
        case ast.Name() | ast.Attribute() as alias:
            return definition(module, ast.unparse(alias))
        case ast.Call(func=func, args=[target], keywords=keywords) if last_part(func) == "partial":
            inner = definition(module, ast.unparse(target))
            replaced = {k.arg: k.value for k in keywords if k.arg}
            return inner and inner._replace(replaced={**inner.replaced, **replaced})
        case _:
            return None


@cache
def names(module: str) -> dict[str, ast.AST | _Import]:
    """What each top-level name of a module is bound to: a `def`, an import, an expression."""
    bound: dict[str, ast.AST | _Import] = {}
    for statement in _tree(module).body:
        match statement:
            case ast.FunctionDef(name=name, body=body):
                statement.body = [body[0], body[-1]]  # frees the most memory
                bound[name] = statement
            case ast.ImportFrom(names=aliases):
                source = _imported_module(module, statement)
                bound |= {a.asname or a.name: _Import(source, a.name) for a in aliases}
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                bound[name] = value
    return bound


def text(module: str, node: ast.expr) -> str:
    """The source of an expression, as written where it is on one line."""
    if node.lineno != node.end_lineno:
        return ast.unparse(node)
    return _lines(module)[node.lineno - 1][node.col_offset : node.end_col_offset].decode()


def last_part(node: ast.AST | None) -> str:
    """The last part of a dotted name: `ArrayLike` of `jax.typing.ArrayLike`; empty without one."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _imported_module(module: str, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    package = module if _is_package(_file(module)) else module.rpartition(".")[0]
    return importlib.util.resolve_name("." * statement.level + (statement.module or ""), package)


def _tree(module: str) -> ast.Module:
    source = _source(module)
    wanted = _is_package(_file(module)) or _WORTH_PARSING.search(source)
    return ast.parse(source if wanted else b"")


@cache
def _lines(module: str) -> list[bytes]:
    return _source(module).splitlines()


@cache
def _source(module: str) -> bytes:
    file = _file(module)
    return file.read_bytes() if file else b""


@cache
def _file(module: str) -> Path | None:
    """The source file of a module of the two libraries; a package's stub where it has one."""
    root, *parts = module.split(".")
    spec = importlib.util.find_spec(root) if root in _LIBRARIES else None
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], *parts)
    candidates = (path / "__init__.pyi", path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in candidates if file.is_file()), None)


def _is_package(file: Path | None) -> bool:
    return file is not None and file.stem == "__init__"
