"""Checkpoints: a training state on disk, whole or not at all, and checked on the way back.

```
checkpoints/000200/
  structure.json   path, shape and dtype of every leaf, hashes of all files, what the run adds
  arrays/          the leaves, by orbax
```
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.processes import by_first, first
from gradkit.runner import record
from gradkit.runner.errors import UserError
from gradkit.runner.guard import remove_whole
from gradkit.tree import is_key, path_name

PyTree = Any

STRUCTURE = "structure.json"


def save(folder: Path, step: int, state: PyTree, **meta: Any) -> None:
    """Writes the state after `step` steps; a checkpoint already there is replaced.

    Of several processes all call this, with one folder that all of them see.

    Args:
        folder: the run's `checkpoints` folder.
        step: names the checkpoint.
        state: any pytree of arrays, Python numbers and random keys.
        **meta: what else to keep, as JSON.

    Raises:
        OSError: it cannot be written, as on a full disk; the others are as they were.
    """
    final = _place(folder, step)
    draft = final.with_name(f".{final.name}.tmp")

    def begin():
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)

    def end():
        _describe(draft, step, state, meta)
        if final.exists():
            remove_whole(final)
        os.replace(draft, final)

    try:
        by_first(begin)
        _write(draft, state)
        by_first(end)
    except BaseException:
        if first():
            shutil.rmtree(draft, ignore_errors=True)
        raise


def _write(draft: Path, state: PyTree) -> None:
    try:
        with quiet_orbax() as orbax, _late_writes():
            orbax.save((draft / "arrays").absolute(), _stored(state))
    except ValueError as error:  # as which it hands on what the system says
        if code := re.search(r"os_error_code='(\d+)'", str(error)):
            number = int(code[1])
            raise OSError(number, os.strerror(number), str(draft)) from error
        raise


def _describe(draft: Path, step: int, state: PyTree, meta: dict[str, Any]) -> None:
    structure = {
        "step": step,
        "leaves": [_description(path, leaf) for path, leaf in _leaves(state)],
        "files": _hashes(draft / "arrays"),
        "meta": meta,
    }
    record.write_json(draft / STRUCTURE, {"sha256": _fingerprint(structure), **structure})


def steps(folder: Path) -> list[int]:
    """Returns the steps that have a checkpoint, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(child.name) for child in folder.iterdir() if child.name.isdecimal())


def keep_only(folder: Path, step: int) -> None:
    """Removes every checkpoint but one."""
    for other in set(steps(folder)) - {step}:
        remove_whole(_place(folder, other))


def restore(folder: Path, step: int, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """Returns the state of a checkpoint, bit for bit, and what was kept beside it.

    Args:
        folder: the run's `checkpoints` folder.
        step: which checkpoint.
        like: a state of the same structure, shapes and dtypes; its containers and kinds of leaves
          are those of the result.

    Raises:
        UserError: the checkpoint is missing or damaged, or was saved by a different model or
          optimizer; the message names the first leaf that differs.
    """
    place = _place(folder, step)
    if not place.is_dir():
        there = ", ".join(map(str, steps(folder))) or "none"
        raise UserError(f"{place}: no such checkpoint; there are: {there}")
    structure = _read_structure(place, step)
    _compare_files(place, structure["files"])
    _compare_leaves(place, structure["leaves"], like)
    with quiet_orbax() as orbax:
        stored = orbax.load((place / "arrays").absolute(), _stored(like))
    leaves, treedef = jax.tree.flatten(like)
    restored = [_like(stored.get(_number(i)), leaf) for i, leaf in enumerate(leaves)]
    return treedef.unflatten(restored), structure["meta"]


def kept_beside(folder: Path, step: int) -> dict[str, Any]:
    """Returns what was kept beside the state of a checkpoint.

    Raises:
        UserError: the checkpoint is damaged.
    """
    place = _place(folder, step)
    return _read_structure(place, step)["meta"]


def _place(folder: Path, step: int) -> Path:
    return folder / f"{step:06d}"


@contextmanager
def quiet_orbax() -> Iterator[Any]:
    """Orbax, with its reports of its own progress silenced."""
    from orbax.checkpoint import v1

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # its errors are raised as well
    try:
        yield v1
    finally:
        logger.setLevel(level)


@contextmanager
def _late_writes() -> Iterator[None]:
    """Silences threads of tensorstore whose writes end when orbax has given up waiting for them.

    That can be any time after a save has failed, so the silence outlasts it.
    """
    before = sys.unraisablehook

    def tell(unraisable: Any, /) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = tell
    yield
    sys.unraisablehook = before


def _leaves(state: PyTree) -> list[tuple[str, Any]]:
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]


def _stored(state: PyTree) -> dict[str, np.ndarray]:
    """What orbax keeps: every leaf that is not empty, by its number."""
    arrays = {_number(i): _data(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    return {number: array for number, array in arrays.items() if array.size}


def _number(i: int) -> str:
    return f"{i:05d}"


def _data(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def _like(array: np.ndarray | None, leaf: Any) -> Any:
    """An array as the kind of leaf that it was saved from."""
    if array is None:  # empty
        return leaf
    array = np.asarray(array)
    if is_key(leaf):
        return jax.random.wrap_key_data(jnp.array(array), impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array):
        return jnp.array(array)
    return array if isinstance(leaf, np.ndarray) else type(leaf)(array.item())


def _description(path: str, leaf: Any) -> dict[str, Any]:
    dtype = getattr(leaf, "dtype", type(leaf).__name__)
    return {"path": path, "shape": list(np.shape(leaf)), "dtype": str(dtype)}


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def sha256(path: Path) -> str:
    """Returns the hash of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(structure: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(structure, sort_keys=True).encode()).hexdigest()


def _read_structure(place: Path, step: int) -> dict[str, Any]:
    try:
        structure = json.loads((place / STRUCTURE).read_text("utf-8"))
    except FileNotFoundError:
        raise _damaged(place, f"{STRUCTURE} is missing") from None
    except ValueError as error:
        raise _damaged(place, f"{STRUCTURE}: {error}") from None
    saved = structure.pop("sha256", None) if isinstance(structure, dict) else None
    if saved != _fingerprint(structure):
        raise _damaged(place, f"{STRUCTURE} is not what was saved")
    if structure["step"] != step:
        raise _damaged(place, f"holds step {structure['step']}")
    return structure


def _compare_files(place: Path, saved: dict[str, str]) -> None:
    found = _hashes(place / "arrays")
    for name in sorted({*saved, *found}):
        if saved.get(name) != found.get(name):
            what = "is not what was saved" if name in found else "is missing"
            raise _damaged(place, f"arrays/{name} {what}")


def _compare_leaves(place: Path, saved: list[Any], like: PyTree) -> None:
    wanted = [_description(path, leaf) for path, leaf in _leaves(like)]
    for here, there in itertools.zip_longest(wanted, saved):
        if here != there:
            raise UserError(
                f"{place}: saved by a different model or optimizer: expected {_text(here)}, "
                f"got {_text(there)}. Go on with the config that the run began with."
            )


def _text(leaf: dict[str, Any] | None) -> str:
    return f"{leaf['path']} {leaf['dtype']}{leaf['shape']}" if leaf else "no further leaf"


def _damaged(place: Path, why: str) -> UserError:
    before = [step for step in steps(place.parent) if step < int(place.name)]
    then = f"go on from step {before[-1]}" if before else "begin from the start"
    return UserError(f"{place}: damaged checkpoint: {why}. Delete this folder to {then}.")
