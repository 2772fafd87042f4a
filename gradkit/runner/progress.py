"""A live line on a terminal; plain lines where the output is piped."""

from __future__ import annotations

import sys
import time
from typing import Any

PLAIN_EVERY = 2.0  # seconds between two plain lines


class Progress:
    """How far a task has come: count, rate, remaining time and a few figures.

    Use as a context manager and call `update` as often as you like.

    Args:
      title: what is under way, such as "train".
      total: how many units there are.
      unit: their name, such as "step".
      done: how many of them were done before, by a run that is now resumed.
    """

    def __init__(self, title: str, total: int, unit: str, done: int = 0):
        self.title, self.total, self.unit = title, total, unit
        self.first = self.done = done
        self.start = self.last = time.perf_counter()
        self.figures: dict[str, Any] = {}
        self.live = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._open_live()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live is not None:
            self.live.update(self.task, completed=self.done, status=self._status())
            self.live.stop()
        elif self.done > self.first:
            self._print()

    def update(self, done: int, **figures: Any) -> None:
        """Says that `done` units are done now; `figures` are shown beside."""
        self.done = done
        self.figures.update(figures)
        now = time.perf_counter()
        if self.live is not None:
            self.live.update(self.task, completed=done, status=self._status())
        elif now - self.last >= PLAIN_EVERY:
            self.last = now
            self._print()

    def _open_live(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[status]}"),
            TextColumn("remaining"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.live.add_task(self.title, total=self.total, status="", completed=self.done)
        self.live.start()

    def _status(self) -> str:
        elapsed = time.perf_counter() - self.start
        rate = (self.done - self.first) / elapsed if elapsed > 0 else 0.0
        figures = "".join(f"  {name} {_short(value)}" for name, value in self.figures.items())
        return f"{self.unit}s  {rate:,.0f} {self.unit}s/s{figures}"

    def _print(self) -> None:
        elapsed = time.perf_counter() - self.start
        rate = (self.done - self.first) / elapsed
        remaining = (self.total - self.done) / rate if rate > 0 else float("inf")
        line = f"{self.title} {self.done}/{self.total} {self._status()}"
        print(f"{line}  remaining {remaining:.0f} s", file=sys.stderr, flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
