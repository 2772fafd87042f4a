"""Checkpoints: a training state on disk, whole or not at all, and checked on the way back.

```
checkpoints/000200/
  structure.json   path, shape, dtype and hash of every leaf, and what else the run wants to keep
  arrays/          the leaves, by orbax
```
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.runner import record
from gradkit.runner.errors import UserError
from gradkit.tree import path_name

PyTree = Any


def save(folder: Path, step: int, state: PyTree, **meta: Any) -> None:
    """Writes the state after `step` steps; a checkpoint already there is replaced.

    Args:
      folder: the run's `checkpoints` folder.
      step: names the checkpoint.
      state: any pytree of arrays.
      **meta: what else to keep, as JSON.
    """
    draft, final = folder / f".{step:06d}.tmp", _place(folder, step)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    arrays = _arrays(state)
    _orbax().save_pytree(draft / "arrays", _numbered(arrays.values()))
    structure = [_description(path, array) for path, array in arrays.items()]
    record.write_json(draft / "structure.json", {"step": step, "leaves": structure, **meta})
    shutil.rmtree(final, ignore_errors=True)
    os.replace(draft, final)


def steps(folder: Path) -> list[int]:
    """Returns the steps that have a checkpoint, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(child.name) for child in folder.iterdir() if child.name.isdigit())


def restore(folder: Path, step: int, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """Returns the state of a checkpoint and what was kept beside it.

    Args:
      folder: the run's `checkpoints` folder.
      step: which checkpoint.
      like: a state of the same structure, shapes and dtypes.

    Raises:
      UserError: the checkpoint is missing or damaged, or was saved by a different model or
        optimizer; the message names the first leaf that differs.
    """
    place = _place(folder, step)
    meta = _read_structure(place, steps(folder))
    wanted = _arrays(like)
    _compare(place, meta["leaves"], wanted)
    abstract = _numbered(wanted.values())
    try:
        loaded = _orbax().load_pytree(place / "arrays", abstract)
        arrays = [np.asarray(loaded[name]) for name in abstract]
    except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
        raise _damaged(place, str(error).splitlines()[0][:200]) from None
    for leaf, array in zip(meta["leaves"], arrays, strict=True):
        if _hash(array) != leaf["sha256"]:
            raise _damaged(place, f"{leaf['path']} is not what was saved")
    leaves, structure = jax.tree.flatten(like)
    restored = [_like(array, leaf) for array, leaf in zip(arrays, leaves, strict=True)]
    return structure.unflatten(restored), meta


def _place(folder: Path, step: int) -> Path:
    return folder / f"{step:06d}"


def _orbax() -> Any:
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs its own progress as warnings
    from orbax.checkpoint import v1

    return v1


def _arrays(state: PyTree) -> dict[str, np.ndarray]:
    """The leaves by path, as NumPy arrays; random keys as their data."""
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        data = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        arrays[path_name(path)] = np.asarray(data)
    return arrays


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _like(array: np.ndarray, leaf: Any) -> jax.Array:
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return jnp.asarray(array)


def _numbered(leaves: Any) -> dict[str, Any]:
    return {f"{number:05d}": leaf for number, leaf in enumerate(leaves)}


def _description(path: str, array: np.ndarray) -> dict[str, Any]:
    shape = list(array.shape)
    return {"path": path, "shape": shape, "dtype": str(array.dtype), "sha256": _hash(array)}


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _read_structure(place: Path, available: list[int]) -> dict[str, Any]:
    if not place.is_dir():
        there = ", ".join(map(str, available)) or "none"
        raise UserError(f"{place}: no such checkpoint; there are {there}")
    try:
        meta = json.loads((place / "structure.json").read_text("utf-8"))
        return {**meta, "leaves": [dict(leaf) for leaf in meta["leaves"]]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(place, f"structure.json: {error}") from None


def _compare(place: Path, saved: list[dict[str, Any]], wanted: dict[str, np.ndarray]) -> None:
    there = {leaf["path"]: (tuple(leaf["shape"]), leaf["dtype"]) for leaf in saved}
    here = {path: (array.shape, str(array.dtype)) for path, array in wanted.items()}
    for path in {**here, **there}:
        if here.get(path) != there.get(path):
            raise UserError(
                f"{place}: saved by a different model or optimizer. {path}: expected "
                f"{_text(here.get(path))}, got {_text(there.get(path))}. "
                "Resume with the config that the run began with."
            )


def _text(leaf: tuple | None) -> str:
    return "no such leaf" if leaf is None else f"{leaf[1]}{list(leaf[0])}"


def _damaged(place: Path, why: str) -> UserError:
    return UserError(
        f"{place}: damaged checkpoint: {why}. Delete this folder to go on from the one before it."
    )
