"""A model that was trained elsewhere: its task, a function of the user's, and its parameters.

A task file holds a function that returns `(problem, params, batch)`:

- `task()`, whose params are a pattern that the arrays of a file are put into by their paths, or,
  without a file, the parameters themselves;
- `task(file)`, which reads the file itself, whatever its format, and returns the parameters in it.
"""

from __future__ import annotations

import inspect
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.core import Problem, as_problem
from gradkit.runner import checkpoint, imported
from gradkit.runner.catalog import nearest
from gradkit.runner.errors import UserError
from gradkit.tree import path_name

PyTree = Any

_EXPECTED = "expected an .npz file or an orbax checkpoint folder"
_RETURNS = "a task returns (problem, params, batch)"


class Model(NamedTuple):
    """What a user's task returned, with the file that it is written in."""

    problem: Problem
    params: PyTree
    batch: PyTree
    source: Path


def load(spec: str, params_file: str | None) -> Model:
    """Returns the model of a user's task at the parameters in a file.

    Args:
        spec: `path/to/file.py:function` or `module:function`.
        params_file: an .npz file of arrays by the paths of the leaves, or a checkpoint folder of
            orbax; for a task that takes an argument, whatever it reads. None for parameters that
            the task has itself.

    Raises:
        UserError: no such task or file, an error in the user's code, or parameters that are not
            those of the task; the message names the place or the leaf.
    """
    file = None if params_file is None else Path(params_file)
    if file is not None and not file.exists():
        raise UserError(f"--params: no such file {file}; {_EXPECTED}")
    function, source = imported.imported(spec, "--task")
    if not callable(function):
        what = imported.described(function)
        raise UserError(f"--task: {spec}: expected a function, got {what}")
    reads = _takes_file(spec, function)
    if reads and file is None:
        raise UserError(f"{spec} takes a file of parameters: name it by --params FILE")
    with imported.told(source, f"{spec} fails"):
        returned = function(file) if reads else function()
    if not isinstance(returned, tuple) or len(returned) != 3:
        raise UserError(f"{spec}: {_RETURNS}, got {imported.described(returned)}")
    problem, params, batch = returned
    if not reads and file is not None:
        params = restored(file, params)
    with imported.told(source, f"{spec}: the loss cannot be evaluated"):
        problem = as_problem(problem)
        params, batch = jax.tree.map(jnp.asarray, (params, batch))
        jax.eval_shape(problem.value, params, batch)
    return Model(problem, params, batch, source)


def restored(file: Path, like: PyTree) -> PyTree:
    """Returns the arrays of a file in the structure and the dtypes of a tree, leaf by leaf.

    Leaves are matched by path, as `layers.0.kernel`, or with slashes for dots; the last part of a
    path that nnx adds, `value`, is left out on both sides.

    Raises:
        UserError: the file cannot be read, or a leaf is missing, left over or of another shape.
    """
    found = {_plain_name(name): np.asarray(array) for name, array in _arrays(file).items()}
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = {_plain_name(path_name(path)): leaf for path, leaf in leaves}
    problems = [
        problem
        for name in {**wanted, **found}
        if (problem := _difference(name, wanted, found)) is not None
    ]
    if problems:
        rest = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(
            f"{file}: not the parameters of this task\n  " + "\n  ".join(problems[:8]) + rest
        )
    with np.errstate(over="ignore"):  # becomes infinite, and is refused
        return structure.unflatten(
            [jnp.asarray(found[name], jnp.result_type(leaf)) for name, leaf in wanted.items()]
        )


def _difference(name: str, wanted: dict[str, Any], found: dict[str, np.ndarray]) -> str | None:
    """What is wrong with a leaf; None where nothing is."""
    if name not in found:
        others = [other for other in found if other not in wanted]
        return f"{name}: missing; {nearest(name, others)}".rstrip("; ")
    array = found[name]
    if name not in wanted:
        return f"{name}: shape {array.shape}, is no leaf of the task's params"
    shape, dtype = jnp.shape(wanted[name]), jnp.result_type(wanted[name])
    if array.shape != shape:
        return f"{name}: expected shape {shape}, got {array.shape}"
    if array.dtype.kind not in "fiubc" and array.dtype != dtype:
        return f"{name}: expected numbers, got dtype {array.dtype}; save it as float32"
    if array.dtype.kind == "c" and not jnp.issubdtype(dtype, jnp.complexfloating):
        return f"{name}: expected {dtype}, got {array.dtype}"
    return None


def _plain_name(name: str) -> str:
    return name.replace("/", ".").removesuffix(".value")


def _arrays(file: Path) -> dict[str, Any]:
    if file.is_dir():
        return _checkpoint(file)
    if file.suffix != ".npz":
        raise UserError(
            f"--params: {_EXPECTED}, got {file}; a task that takes an argument, task(file), reads "
            "any other format itself"
        )
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zip, zlib and numpy each have their own for a damaged file
        why = imported.first_line(error) if zipfile.is_zipfile(file) else "it is no zip archive"
        raise UserError(
            f"{file}: not a readable .npz file: {why}; write it by numpy.savez(FILE, **arrays)"
        ) from None


def _checkpoint(folder: Path) -> dict[str, Any]:
    try:
        with checkpoint.quiet_orbax() as orbax, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no sharding was asked for
            tree = orbax.load(folder.absolute())
    except Exception as error:  # orbax has a dozen kinds
        raise UserError(
            f"{folder}: not a readable orbax checkpoint: {imported.first_line(error)}"
        ) from None
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def _takes_file(spec: str, function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (2, 4)]
    if len(needed) > 1:
        raise UserError(
            f"--task: {spec}: expected a function of no argument or of the params file, got one of "
            f"{', '.join(p.name for p in needed)}"
        )
    return bool(needed)
