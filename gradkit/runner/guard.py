"""What keeps a run whole: one process at a time in its folder, and nothing that is half there."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock

from gradkit.runner import record
from gradkit.runner.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run folder; the system ends that with the process.

    File systems without locks keep nobody out.

    Raises:
        UserError: another process is in it, or nothing can be written there.
    """
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise UserError(
            f"{folder}: another process is training in it. Wait until it has ended, or stop it: "
            "nothing has been changed."
        ) from None
    except NotImplementedError:
        pass
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror or error}. Give yourself the right to "
            "write there, or copy the folder to where you have it: nothing has been changed."
        ) from None
    try:
        yield
    finally:
        lock.release()


def unbegun(folder: Path) -> bool:
    """Whether a folder is empty, but for what a run leaves that is killed before it has a config.

    Such a run is begun anew.
    """
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return all(name in (LOCK, record.ENV) or _is_draft(name) for name in names)


def remove_drafts(*folders: Path) -> None:
    """Removes what processes that were killed have left half written, or half removed."""
    for path in [path for folder in folders for path in folder.glob(".*") if _is_draft(path.name)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_draft(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def remove_whole(folder: Path) -> None:
    """Removes a folder whole or not at all: killed on the way it leaves a draft."""
    draft = folder.with_name(f".{folder.name}.removed.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    os.replace(folder, draft)
    shutil.rmtree(draft)
