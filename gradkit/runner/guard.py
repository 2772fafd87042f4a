"""What keeps a run whole: one process at a time in its folder, and signals that wait for a step."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import filelock

from gradkit.runner.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run folder; the system ends that with the process.

    File systems without locks keep nobody out.

    Raises:
        UserError: another process is in it.
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
    try:
        yield
    finally:
        lock.release()


@dataclasses.dataclass
class Asked:
    """Which signal has asked to stop, if one has."""

    by: int | None = None


@contextlib.contextmanager
def patience() -> Iterator[Asked]:
    """Lets a first Ctrl-C or SIGTERM only ask, instead of cutting a step; a second one cuts.

    Signals that somebody else handles or ignores are left to them.
    """
    asked = Asked()
    own = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if threading.current_thread() is not threading.main_thread():
        own = {}
    before = {s: handler for s, handler in own.items() if signal.getsignal(s) is handler}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number, _):
        asked.by = number
        restore()

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        restore()
