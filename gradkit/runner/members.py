"""What a config names with arguments: an optimizer's members, a data set, a task.

The arguments are checked against the signatures of the factories.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gradkit.runner.catalog import Entry, Parameter, find, nearest
from gradkit.runner.document import KeyPath, describe
from gradkit.runner.errors import UserError

Problems = list[tuple[KeyPath, str]]

_SCHEDULE = "a schedule such as {warmup_cosine: {peak: 0.1, steps: 1000}}"
_EXAMPLES = {
    "optimizer": "{name: adam, learning_rate: 0.001}",
    "data set": "{name: spirals, noise: 0.1}",
    "task": "{name: rosenbrock, start: [-1.2, 1]}",
    "model": "{name: mlp, hidden: [32, 32]}",
    "activation": "{name: leaky_relu, negative_slope: 0.1}",
    "initializer": "{name: normal, stddev: 0.1}",
}
_EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "number": "a number",
    "rate": f"a number or {_SCHEDULE}",
    "schedule": _SCHEDULE,
    "transformation": "an optimizer such as {name: adam, learning_rate: 0.001}, or a list of them",
    **{
        kind: f"an {kind}'s name, or one with arguments such as {_EXAMPLES[kind]}"
        for kind in ("activation", "initializer")
    },
    "text": "text",
    "ints": "a list of whole numbers",
    "sequence": "a list of numbers",
    "mapping": "a mapping of whole numbers to numbers",
}
_CODE = "cannot be written in a config file; use the Python API"
_DTYPES = ("bfloat16", "float16", "float32", "float64", "complex64", "complex128")


@dataclass(frozen=True)
class Schedule:
    """A schedule in place of a number: the name of its factory and the factory's arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Member:
    """Something named: the name of its factory and the factory's arguments.

    `catalog.find(name).load()` is the factory. An argument is what the file holds, with a list as a
    tuple, a schedule as a `Schedule`, and a transformation that is wrapped as a tuple of members.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


def spelled_out(value: Any) -> Any:
    """An optimizer as written, with each member that is a bare name made a mapping."""
    if isinstance(value, list | tuple):
        return [spelled_out(item) for item in value]
    return {"name": value} if isinstance(value, str) else value


def resolve(value: Any) -> tuple[tuple[Member, ...], Problems]:
    """The members of an optimizer, and every problem with them.

    Args:
        value: a mapping of a name and arguments, or a list of them.

    Returns:
        The members in order, and the problems, each with its path below the optimizer. The members
        are of use only when there are no problems.
    """
    value = spelled_out(value)
    kinds, problems = ("optimizer", "transformation"), []
    if isinstance(value, list) and value:
        members = [_member(item, kinds, (index,), problems) for index, item in enumerate(value)]
    else:
        members = [_member(value, kinds, (), problems)]
    return tuple(members), problems


def resolve_one(value: Any, kind: str) -> tuple[Member, Problems]:
    """What a name, or a mapping of a name and arguments, means; and every problem with it.

    Args:
        value: as written.
        kind: "data set", "task", "model", "activation" or "initializer".
    """
    problems: Problems = []
    return _member(spelled_out(value), (kind,), (), problems), problems


def as_written(member: Member) -> dict[str, Any]:
    """The mapping that resolves to a member."""
    return {"name": member.name, **{key: _written(v) for key, v in member.arguments.items()}}


def _member(written: Any, kinds: tuple[str, ...], path: KeyPath, problems: Problems) -> Member:
    if isinstance(written, Member):
        written = as_written(written)
    if not isinstance(written, dict):
        expected = f"a name and arguments, such as {_EXAMPLES[kinds[0]]}"
        expected += ", or a list of such members" if kinds[0] == "optimizer" and not path else ""
        problems.append((path, f"expected {expected}, got {describe(written)}"))
        return Member("")
    arguments = {key: value for key, value in written.items() if key != "name"}
    if "name" not in written:
        a = "an" if kinds[0][0] in "aio" else "a"
        words = f"missing; the name of {a} {kinds[0]}, as in {_EXAMPLES[kinds[0]]}"
        problems.append(((*path, "name"), words))
        return Member("", arguments)
    entry = _factory(written["name"], kinds, (*path, "name"), problems)
    if entry is None:
        return Member("", arguments)
    return Member(entry.name, _arguments(entry, arguments, path, problems))


def _schedule(written: dict[Any, Any], path: KeyPath, problems: Problems) -> Schedule:
    name, arguments = next(iter(written.items()), (None, None))
    arguments = {} if arguments is None else arguments
    if len(written) != 1 or not isinstance(arguments, dict):
        problems.append((path, f"expected {_SCHEDULE}, got {describe(written)}"))
        return Schedule("")
    entry = _factory(name, ("schedule",), (*path, name), problems)
    if entry is None:
        return Schedule("", arguments)
    return Schedule(entry.name, _arguments(entry, arguments, (*path, name), problems))


def _factory(name: Any, kinds: tuple[str, ...], path: KeyPath, problems: Problems) -> Entry | None:
    if not isinstance(name, str):
        problems.append((path, f"expected a name, got {describe(name)}"))
        return None
    if name.rpartition(".")[2] == "chain":
        problems.append((path, "a chain is written as a list of its members"))
        return None
    try:
        return find(name, *kinds)
    except UserError as error:
        problems.append((path, str(error)))
        return None


def _arguments(
    entry: Entry, written: dict[Any, Any], path: KeyPath, problems: Problems
) -> dict[str, Any]:
    """The arguments of a factory, checked one by one against its signature."""
    parameters = {parameter.name: parameter for parameter in entry.parameters}
    resolved = {}
    for key, value in written.items():
        if key in parameters:
            resolved[key] = _argument(parameters[key], value, (*path, key), problems)
        else:
            problems.append(((*path, key), _unknown_argument(entry, key)))
    for name, parameter in parameters.items():
        if parameter.required and name not in written:
            problems.append(((*path, name), _missing(entry, parameter)))
    return resolved


def _unknown_argument(entry: Entry, key: Any) -> str:
    names = [p.name for p in entry.parameters if p.kind != "code"]
    takes = f"{entry.name} takes {', '.join(names) or 'no arguments'}"
    return f"unknown argument of {entry.name}; {nearest(str(key), names)}{takes}"


def _missing(entry: Entry, parameter: Parameter) -> str:
    if parameter.kind == "code":
        return f"missing; {entry.name} needs it, and it {_CODE}"
    return f"missing; {entry.name} needs {_expected(parameter)}"


def _argument(parameter: Parameter, value: Any, path: KeyPath, problems: Problems) -> Any:
    value = _written(value)
    kinds = parameter.kind.split(" or ")
    choices = _choices(parameter)
    if value is None and parameter.nullable:
        return None
    if isinstance(value, dict) and {"rate", "schedule"} & {*kinds}:
        return _schedule(value, path, problems)
    if isinstance(value, str | dict | list) and "transformation" in kinds:
        members, found = resolve(value)
        problems += [((*path, *inner), problem) for inner, problem in found]
        return members
    if isinstance(value, str | dict) and parameter.kind in ("activation", "initializer"):
        member, found = resolve_one(value, parameter.kind)
        problems += [((*path, *inner), problem) for inner, problem in found]
        return member
    if value in choices if choices else any(_fits(value, kind) for kind in kinds):
        return _frozen(value)
    if parameter.kind == "code":
        problems.append((path, _CODE))
    else:
        hint = nearest(value, choices) if isinstance(value, str) else ""
        problem = f"expected {_expected(parameter)}, got {describe(value)}; {hint}"
        problems.append((path, problem.rstrip("; ")))
    return None


def _choices(parameter: Parameter) -> tuple[str, ...]:
    return parameter.choices or (_DTYPES if parameter.kind == "dtype" else ())


def _expected(parameter: Parameter) -> str:
    if choices := _choices(parameter):
        return f"one of {', '.join(choices)}"
    return " or ".join(_EXPECTED[kind] for kind in parameter.kind.split(" or "))


def _fits(value: Any, kind: str) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = whole or (isinstance(value, float) and value == value)  # nan is no value
    match kind:
        case "bool":
            return isinstance(value, bool)
        case "int":
            return whole
        case "number" | "rate":
            return number
        case "text":
            return isinstance(value, str)
        case "ints":
            return isinstance(value, list | tuple) and all(_fits(item, "int") for item in value)
        case "sequence":
            return isinstance(value, list | tuple) and all(
                _fits(item, "number") or _fits(item, "sequence") for item in value
            )
        case "mapping":
            return isinstance(value, dict) and all(
                _fits(key, "int") and _fits(item, "number") for key, item in value.items()
            )
        case _:
            return False


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _written(value: Any) -> Any:
    if isinstance(value, Member):
        return as_written(value)
    if isinstance(value, Schedule):
        return {value.name: {key: _written(v) for key, v in value.arguments.items()}}
    return [_written(item) for item in value] if isinstance(value, tuple) else value
