"""A driver that keeps its state on disk, and goes on from there in another process."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import tree
from gradkit.files import replacing
from gradkit.krylov.drivers import Drive, Step, Until, on_host, operators
from gradkit.processes import by_first, first

PyTree = Any


class Resumable:
    """A driver for one computation; see `resumable`."""

    def __init__(self, path: str | os.PathLike[str], every: float, drive: Drive):
        self.path, self.every, self.drive = Path(path), every, drive
        self.stage = 0

    def __call__(
        self,
        step: Step,
        A: Any,
        state: PyTree,
        *,
        until: Until,
        watch: Callable[[PyTree], None] | None = None,
    ) -> PyTree:
        """Runs the recurrence from where it was, and saves its state now and at the end."""
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / f"stage-{self.stage:03d}.npz"
        self.stage += 1
        origin = _origin(A, state)
        kept = by_first(lambda: file.read_bytes() if file.exists() else None)
        if kept is not None:
            state = _restored(file, kept, state, origin)
        saved = time.monotonic()

        def keep(state):
            nonlocal saved
            if watch is not None:
                watch(state)
            if time.monotonic() - saved >= self.every:
                _save(file, state, origin)
                saved = time.monotonic()

        state = self.drive(step, A, state, until=until, watch=keep)
        _save(file, state, origin)
        return state

    def remove(self) -> None:
        """Deletes what is saved, once it is no longer needed."""
        shutil.rmtree(self.path, ignore_errors=True)


def resumable(
    path: str | os.PathLike[str], *, every: float = 10.0, drive: Drive = on_host
) -> Resumable:
    """Returns a driver that saves its state under `path` and goes on from what is saved there.

    For one call of one function, such as `gk.spectrum(A, ..., drive=gk.resumable("state"))`: called
    again with the same arguments after an interruption, it gives the same numbers to the last bit.
    Call `remove` on the driver when the result is safe.

    Cost: one product, by which the operator is recognized; on disk, the state of each recurrence.

    Args:
        path: a folder, made if it is missing.
        every: seconds between two saves.
        drive: the driver below, `gk.on_host` with whatever it is bound to.

    Raises:
        ValueError: what is saved is damaged, or belongs to another operator or other arguments;
            raised by the calls of the driver.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp, gradkit as gk
        >>> A = gk.Operator(lambda v: jnp.arange(100.0) * v, jnp.zeros(100))
        >>> drive = gk.resumable(tempfile.mkdtemp())
        >>> first = gk.eigsh(A, 3, key=jax.random.key(0), drive=drive)
        >>> again = gk.eigsh(A, 3, key=jax.random.key(0), drive=gk.resumable(drive.path))
        >>> bool((first.values == again.values).all())
        True
        >>> drive.remove()
    """
    if not every >= 0:
        raise ValueError(f"every: expected seconds, at least 0, got {every}")
    return Resumable(path, every, drive)


def _origin(A: Any, state: PyTree) -> dict[str, np.ndarray]:
    """What a computation is recognized by: its start, and two figures of each operator."""
    digest = hashlib.sha256()
    for x in _arrays(state).values():
        digest.update(f"{x.dtype}{x.shape}".encode())
        digest.update(x.tobytes())
    figures = []
    for B in operators(A):
        shapes, structure = jax.tree.flatten(B.domain)
        u = _direction(shapes=tuple(shapes), structure=structure)
        Bu = B @ u
        figures += [float(tree.inner(u, Bu)), float(tree.norm(Bu))]
    start = np.frombuffer(digest.digest(), np.uint8)
    return {"start": start, "operator": np.array(figures)}


@functools.partial(jax.jit, static_argnames=("shapes", "structure"))
def _direction(*, shapes: tuple, structure: Any) -> PyTree:
    return tree.hashed_normal(jnp.uint32(0), structure.unflatten(shapes))


def _arrays(state: PyTree) -> dict[str, np.ndarray]:
    """The leaves by number, as NumPy keeps them: random keys as their data."""

    def plain(x):
        return np.asarray(jax.random.key_data(x) if tree.is_key(x) else x)

    return {f"leaf-{i:03d}": plain(x) for i, x in enumerate(jax.tree.leaves(state))}


def _save(file: Path, state: PyTree, origin: dict[str, np.ndarray]) -> None:
    if not first():
        return
    arrays: dict[str, Any] = origin | _arrays(state)
    with replacing(file) as opened:
        np.savez(opened, **arrays)


def _restored(file: Path, kept: bytes, state: PyTree, origin: dict[str, np.ndarray]) -> PyTree:
    try:
        with np.load(io.BytesIO(kept), allow_pickle=False) as saved:
            found = {name: saved[name] for name in saved.files}
    except Exception as error:  # zip, zlib and numpy each have their own for a damaged file
        raise ValueError(
            f"{file}: a damaged saved state ({error}): delete {file.parent} to begin anew"
        ) from None
    nothing = np.array(np.nan)
    same = np.array_equal(found.get("start", nothing), origin["start"])
    near = np.allclose(found.get("operator", nothing), origin["operator"], rtol=1e-4)
    if not (same and near):
        differs = "operator" if same else "arguments"
        raise ValueError(
            f"{file}: saved by a computation with another {differs}. Call with the same to go on, "
            f"or delete {file.parent} to begin anew"
        )
    leaves, structure = jax.tree.flatten(state)
    return structure.unflatten(
        [_like(found[name], x) for name, x in zip(_arrays(state), leaves, strict=True)]
    )


def _like(array: np.ndarray, x: jax.Array) -> jax.Array:
    if tree.is_key(x):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(x))
    return jax.device_put(array.view(x.dtype), x.sharding)
