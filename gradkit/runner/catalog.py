"""Every factory that a config can name, read from the sources without importing them.

Importing JAX costs a second, and checking a config or listing the names must not. So gradkit's and
optax's public namespaces are parsed, each name is followed through the imports to the function that
it means, and that function's signature and docstring are read. `Entry.load` alone imports anything.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from gradkit.runner.errors import UserError
from gradkit.runner.sources import Definition, definition, last_part, names, text

PLACES = (
    *("gradkit", "optax", "optax.transforms", "optax.schedules", "optax.contrib"),
    *("gradkit.runner.data.named", "gradkit.runner.data.files", "gradkit.runner.surfaces"),
    *("gradkit.runner.models", "gradkit.runner.activations", "gradkit.runner.initializers"),
)
"""The namespaces searched for a name, in this order."""

_RUNNERS = tuple(place for place in PLACES if place.startswith("gradkit.runner."))

_KINDS = {
    **dict.fromkeys(("float", "ArrayLike", "Numeric", "Scalar", "ScalarLike"), "number"),
    **dict.fromkeys(("DTypeLike", "dtype", "DType"), "dtype"),
    "bool": "bool",
    "int": "int",
    "str": "text",
    "Labels": "text",  # a pattern of paths
    "None": "null",
    "Activation": "activation",
    "Initializer": "initializer",
    "Schedule": "schedule",
    "ScalarOrSchedule": "rate",
    **dict.fromkeys(
        ("GradientTransformation", "GradientTransformationExtraArgs", "Link"), "transformation"
    ),
}
_SOURCE = re.compile(r"^[ ]*Source:\s*(.+(?:\n[ ]++(?!\w+:\s).+)*)", re.MULTILINE)
_SEQUENCES = {"tuple", "list", "Tuple", "List", "Sequence", "Iterable"}
_MAPPINGS = {"dict", "Dict", "Mapping"}
_RETURNED = {
    "Schedule": "schedule",
    "Examples": "data set",
    "Task": "task",
    "Net": "model",
    "Activation": "activation",
    "Initializer": "initializer",
}
_NOT_FROM_A_FILE = "sizes"  # what a model is told of the data
_COVERED = {  # a kind, and those that need no mention beside it
    "rate": {"number", "int", "schedule"},
    "number": {"int"},
    "sequence": {"ints"},
}


@dataclass(frozen=True)
class Parameter:
    """One argument of a factory.

    Attributes:
        name: the keyword.
        kind: what a config file may give: bool, int, number, rate (a number or a schedule),
            schedule, transformation (a name with arguments, or a list of them), activation and
            initializer (a name, or one with arguments), dtype, text, ints (whole numbers),
            sequence (of numbers), mapping (of whole numbers to numbers), or code, which no file can
            hold. Alternatives are joined by " or ".
        default: its source text, None when the argument is required.
        annotation: its source text, empty when there is none.
    """

    name: str
    kind: str
    default: str | None
    annotation: str

    @property
    def required(self) -> bool:
        """Whether a call must give it."""
        return self.default is None

    @property
    def nullable(self) -> bool:
        """Whether None (null in a file) is a value of it."""
        return self.default == "None" or bool(re.search(r"\b(None|Optional)\b", self.annotation))

    @property
    def choices(self) -> tuple[str, ...]:
        """The only texts it takes, where its annotation lists them."""
        if self.kind not in ("text", "dtype") or "Literal[" not in self.annotation:
            return ()
        return tuple(re.findall(r"""["'](\w+)["']""", self.annotation))


@dataclass(frozen=True)
class Entry:
    """One factory: of an optimizer, a transformation, a data set or another kind of thing.

    Attributes:
        name: the one name that always means this factory: `adam` (gradkit's), `optax.adam`,
            `contrib.muon`, `models.polynomial` beside the data set `polynomial`.
        library: gradkit or optax.
        module: the public module to import it from.
        attribute: its name there.
        kind: optimizer, transformation, schedule, data set, task, model, activation, initializer.
        parameters: its arguments in order.
        summary: the docstring's first line.
        source: what the docstring's `Source:` names, None without one.
    """

    name: str
    library: str
    module: str
    attribute: str
    kind: str
    parameters: tuple[Parameter, ...]
    summary: str
    source: str | None

    def load(self) -> Any:
        """The factory itself; imports its library."""
        return getattr(importlib.import_module(self.module), self.attribute)


@cache
def catalog() -> dict[str, Entry]:
    """Every factory by its name, gradkit's first."""
    entries = (_entry(place, name) for place in PLACES for name in names(place))
    return {entry.name: entry for entry in entries if entry is not None}


def find(name: str, *kinds: str) -> Entry:
    """The factory that a name means: gradkit's, else optax's, else optax.contrib's.

    Args:
        name: bare (`adam`), or with its library (`optax.adam`, `contrib.muon`). A schedule may go
            without its `_schedule`.
        *kinds: the kinds of entry looked for; any when none is given.

    Raises:
        UserError: there is no such factory; the message has the nearest names.
    """
    prefix, _, attribute = name.rpartition(".")
    places = [p for p in PLACES if prefix in ("", p, _short(p))]
    other = None
    for entry in _entries(attribute, places):
        if not kinds or entry.kind in kinds:
            return entry
        other = other or entry
    wanted = " or ".join(kinds) or "name"
    if other:
        raise UserError(f"{name} names {_a(other.kind)}; expected {_a(wanted)}")
    hint = did_you_mean(_near_entries(attribute, kinds, places or PLACES, prefix if places else ""))
    raise UserError(f"unknown {wanted} {name!r}; {hint}`gradkit list` shows every name")


def nearest(name: str, names: Iterable[str]) -> str:
    """'did you mean a, b or c? ' with up to three of the names; empty when none is near."""
    return did_you_mean(near(name, names))


def near(name: str, names: Iterable[str]) -> list[str]:
    """The names like a name, the nearest first."""
    lowered = {known.lower(): known for known in sorted({*names})}
    matches = difflib.get_close_matches(name.lower(), lowered, n=12, cutoff=0.65)
    return [lowered[match] for match in matches]


def did_you_mean(names: Sequence[str]) -> str:
    """'did you mean a, b or c? ' with the first three of the names; empty without any."""
    *others, last = names[:3] or [""]
    return f"did you mean {', '.join(others)}{' or ' if others else ''}{last}? " if last else ""


def _near_entries(name: str, kinds: Sequence[str], places: Sequence[str], prefix: str) -> list[str]:
    """The nearest names of the wanted kinds; only modules with a name near it are parsed."""
    known = [attribute for place in places for attribute in names(place)]
    candidates = near(name, [*known, *(long.removesuffix("_schedule") for long in known)])
    wanted = [
        candidate
        for candidate in candidates
        if any(not kinds or entry.kind in kinds for entry in _entries(candidate, places))
    ]
    return [f"{prefix}.{attribute}" if prefix else attribute for attribute in wanted]


def _a(noun: str) -> str:
    return f"an {noun}" if noun.startswith("o") else f"a {noun}"


def _entries(attribute: str, places: Sequence[str]) -> Iterator[Entry]:
    """What a bare name, or else a schedule's name cut short, means in each of the places."""
    candidates = (attribute, f"{attribute}_schedule")
    entries = (_entry(place, candidate) for candidate in candidates for place in places)
    return (entry for entry in entries if entry is not None)


@cache
def _entry(place: str, attribute: str) -> Entry | None:
    function = None if attribute.startswith("_") else definition(place, attribute)
    if function is None or (kind := _entry_kind(function)) is None:
        return None
    if place.startswith("gradkit.") and function.module != place:  # imported there for its own use
        return None
    if place.startswith("optax.") and definition("optax", attribute) == function:
        return _entry("optax", attribute)
    earlier = _RUNNERS[: _RUNNERS.index(place)] if place in _RUNNERS else ()
    same = any(_entry(other, attribute) for other in earlier)  # such as a data set and a model
    prefix = f"{_short(place)}." if place.startswith("optax") or same else ""
    doc = ast.get_docstring(function.node, clean=False) or ""
    source = _SOURCE.search(doc)
    return Entry(
        name=prefix + attribute,
        library=place.partition(".")[0],
        module=place,
        attribute=attribute,
        kind=kind,
        parameters=tuple(p for p in _parameters(function) if p.name != _NOT_FROM_A_FILE),
        summary=doc.strip().partition("\n")[0],
        source=" ".join(source[1].split()) if source else None,
    )


def _short(place: str) -> str:
    return place.removeprefix("optax.").removeprefix("gradkit.runner.")


def _entry_kind(function: Definition) -> str | None:
    """The kind of what a function makes; None for one that makes nothing to be named."""
    node = function.node
    returned = last_part(_returned(function))
    if node.args.vararg or node.args.kwarg:  # not writable as keys
        return None
    if returned in _RETURNED:
        return _RETURNED[returned]
    if not returned.startswith(("GradientTransformation", "Link")):
        return None
    if node.name.startswith("scale_by_"):
        return "transformation"
    if function.module.startswith("gradkit."):
        folder = function.module.split(".")[1]
        return {"optimizers": "optimizer", "transforms": "transformation"}.get(folder)
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    rated = any(argument.arg.endswith("learning_rate") for argument in arguments)
    return "optimizer" if rated else "transformation"


def _returned(function: Definition) -> ast.expr | None:
    """The return annotation; without one, what the function's last line constructs or chains."""
    module, node, _ = function
    if node.returns is not None:
        return _unquoted(node.returns)
    match node.body[-1]:
        case ast.Return(value=ast.Call(func=called)) if last_part(called) == "chain":
            chain = definition(module, ast.unparse(called))
            return chain.node.returns if chain else None
        case ast.Return(value=ast.Call(func=called)):
            return called
        case _:
            return None


def _parameters(function: Definition) -> Iterator[Parameter]:
    module, node, replaced = function
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults = [*node.args.defaults, *node.args.kw_defaults]
    required = [None] * (len(positional) - len(node.args.defaults))
    for argument, default in zip(
        [*positional, *node.args.kwonlyargs], [*required, *defaults], strict=True
    ):
        replacement = replaced.get(argument.arg)
        written = text(module, default) if default else None
        yield Parameter(
            name=argument.arg,
            kind=_parameter_kind(argument, replacement or default),
            default=ast.unparse(replacement) if replacement else written,
            annotation=text(module, argument.annotation) if argument.annotation else "",
        )


def _parameter_kind(argument: ast.arg, default: ast.expr | None) -> str:
    if "dtype" in argument.arg.split("_"):
        return "dtype"
    says = argument.annotation
    kinds = _kinds_like(default) if says is None or last_part(says) == "Any" else _kinds(says)
    if {"number", "schedule"} <= kinds:
        kinds |= {"rate"}
    covered = set().union({"null"}, *(_COVERED.get(kind, ()) for kind in kinds))
    return " or ".join(sorted(kinds - covered - {"code"})) or "code"


def _kinds(annotation: ast.expr) -> set[str]:
    """The kinds of value that an annotation admits."""
    match _unquoted(annotation):
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _kinds(left) | _kinds(right)
        case ast.Subscript(value=head, slice=inner):
            items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return _subscript_kinds(last_part(head), items)
        case ast.Constant(value=None):
            return {"null"}
        case other:
            return {_KINDS.get(last_part(other), "code")}


def _subscript_kinds(head: str, items: list[ast.expr]) -> set[str]:
    if head == "Literal":
        return {"text"}
    kinds = [_kinds(item) for item in items if not _is_ellipsis(item)]
    union = set().union(*kinds)
    if head in ("Optional", "Union"):
        return union | ({"null"} if head == "Optional" else set())
    if head in _SEQUENCES and union <= {"int", "number", "sequence"}:
        return {"ints"} if union == {"int"} else {"sequence"}
    if head in _MAPPINGS and kinds[0] == {"int"} and kinds[-1] <= {"int", "number"}:
        return {"mapping"}
    return {"code"}


def _kinds_like(default: ast.expr | None) -> set[str]:
    """The kinds of an argument whose annotation says nothing: a number, or like its default."""
    match default:
        case ast.Constant(value=bool()):
            return {"bool"}
        case ast.Constant(value=str()):
            return {"text"}
        case None | ast.Constant(value=int() | float() | None):
            return {"number"}
        case _:
            return {"code"}


def _unquoted(annotation: ast.expr) -> ast.expr:
    match annotation:
        case ast.Constant(value=str() as quoted):
            return ast.parse(quoted, mode="eval").body
        case _:
            return annotation


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...
