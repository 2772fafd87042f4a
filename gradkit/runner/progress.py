"""A live line on a terminal; plain lines where the output is piped."""

from __future__ import annotations

import sys
import time
from typing import Any

PLAIN_EVERY = 2.0  # seconds between two plain lines
LIVE_EVERY = 0.1  # seconds between two states of the live line


class Progress:
    """How far a task has come: count, rate, remaining time and a few figures.

    Use as a context manager and call `update` as often as you like. The rate is counted from the
    first update, so that it is not spoiled by what had to be compiled before.

    Args:
        title: what is under way, such as "train".
        total: how many units there are.
        unit: their name, such as "step".
        done: how many of them were done before, by a run that is now resumed.
        brief: whether a pipe is told only of what takes long, and not of the end: one of many tasks
            that each have a line of their own.
        mute: whether nothing is shown: in another process it is.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
        done: int = 0,
        *,
        brief: bool = False,
        mute: bool = False,
    ):
        self.title, self.total, self.unit = title, total, unit
        self.done, self.brief, self.mute = done, brief, mute
        self.first = None  # count and time of the first update
        self.shown = 0.0
        self.news = False  # whether there is something that was not shown yet
        self.figures: dict[str, Any] = {}
        self.live = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and not self.mute:
            self._open_live()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.news and not (self.brief and self.live is None):
            self._show()
        if self.live is not None:
            self.live.stop()

    def update(self, done: int, **figures: Any) -> None:
        """Says that `done` units are done now; `figures` are shown beside."""
        now = time.perf_counter()
        if self.first is None:
            self.first, self.shown = (done, now), now
        self.done = done
        self.figures |= figures
        self.news = True
        if now - self.shown >= (PLAIN_EVERY if self.live is None else LIVE_EVERY):
            self.shown = now
            self._show()

    def _open_live(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}"),
            console=Console(stderr=True),
        )
        self.task = self.live.add_task(
            self.title, total=self.total, completed=self.done, status=self._status()
        )
        self.live.start()

    def _show(self) -> None:
        self.news = False
        if self.mute:
            return
        if self.live is not None:
            self.live.update(
                self.task, total=self.total, completed=self.done, status=self._status()
            )
        else:
            print(f"{self.title} {self._status()}", file=sys.stderr, flush=True)

    def _status(self) -> str:
        parts = [f"{self.done}/{self.total} {self.unit}s"]
        rate = self._rate()
        if rate is not None:
            parts.append(
                f"{rate:,.0f} {self.unit}s/s" if rate >= 10 else f"{rate:.2g} {self.unit}s/s"
            )
        parts += [f"{name} {_short(value)}" for name, value in self.figures.items()]
        if rate is not None:
            parts.append(f"remaining {(self.total - self.done) / rate:.0f} s")
        return "  ".join(parts)

    def _rate(self) -> float | None:
        """Units a second since the first update; None while there is nothing to go by."""
        if self.first is None:
            return None
        count, start = self.first
        elapsed = time.perf_counter() - start
        return (self.done - count) / elapsed if self.done > count and elapsed > 0 else None


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
