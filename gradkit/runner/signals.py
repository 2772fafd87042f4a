"""Ctrl-C and SIGTERM: both end a command by a `KeyboardInterrupt`, and training first its step."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass
class Asked:
    """Which signal has asked to stop, if one has."""

    by: int | None = None


def _stop(number: int, _: Any) -> None:
    raise KeyboardInterrupt(number)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Lets SIGTERM raise a `KeyboardInterrupt` with its number, so that what is said is said."""
    with _instead({signal.SIGTERM: (signal.SIG_DFL,)}, _stop):
        yield


@contextlib.contextmanager
def patience() -> Iterator[Asked]:
    """Lets a first Ctrl-C or SIGTERM only ask, instead of cutting a step; a second one cuts.

    Signals that somebody else handles or ignores are left to them.
    """
    asked = Asked()
    own = {signal.SIGINT: (signal.default_int_handler,), signal.SIGTERM: (signal.SIG_DFL, _stop)}

    def ask(number, _):
        asked.by = number
        restore()

    with _instead(own, ask) as restore:
        yield asked


@contextlib.contextmanager
def _instead(own: dict[signal.Signals, tuple[Any, ...]], handler: Any) -> Iterator[Callable]:
    """A handler for signals where they have one of their own; yields how to give them back."""
    if threading.current_thread() is not threading.main_thread():
        own = {}
    before = {s: signal.getsignal(s) for s, usual in own.items() if signal.getsignal(s) in usual}

    def restore():
        for number, usual in before.items():
            signal.signal(number, usual)

    for number in before:
        signal.signal(number, handler)
    try:
        yield restore
    finally:
        restore()
