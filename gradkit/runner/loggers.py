"""Where else a run's metrics can go: the record is the truth, a logger is told of each line too."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from gradkit.runner import imported
from gradkit.runner.errors import UserError

FLUSH = 10  # seconds at most between a line and the disk


@runtime_checkable
class Logger(Protocol):
    """Takes the metrics of a run, line by line, in the order of the steps."""

    def log(self, line: Mapping[str, Any]) -> None:
        """Takes one metrics line; it has its `step`."""

    def close(self) -> None:
        """Ends the log; nothing comes after it."""


class Loggers:
    """The loggers that a config names; one that fails is told of once and left out from then on.

    Args:
        names: "tensorboard", or `path/to/file.py:name` of a user's, which is called with the run
            folder and returns a `Logger`.
        folder: of the run.
        resumed_at: the step that the run goes on from; 0 for a new one.

    Raises:
        UserError: there is no such logger, or it cannot be opened.
    """

    def __init__(self, names: Sequence[str], folder: Path, resumed_at: int = 0):
        self._open: dict[str, Logger] = {}
        for name in names:
            if name == "tensorboard":
                self._open[name] = TensorBoard(folder / name, resumed_at=resumed_at)
            else:
                self._open[name] = _users(name, folder)

    def log(self, line: Mapping[str, Any]) -> None:
        """Tells every logger of a metrics line."""
        self._each(lambda logger: logger.log(line))

    def close(self) -> None:
        """Ends every log."""
        self._each(lambda logger: logger.close())

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._open.items()):
            try:
                call(logger)
            except Exception as error:  # of others' code: the run and its record go on
                del self._open[name]
                with contextlib.suppress(Exception):
                    logger.close()
                words = f"{type(error).__name__}: {imported.first_line(error)}"
                print(f"log_to: {name} fails and is left out: {words}", file=sys.stderr)


def _users(spec: str, folder: Path) -> Logger:
    found, source = imported.imported(spec, "log_to")
    with imported.told(source, f"log_to: {spec} fails"):
        logger = found(folder)
    if not isinstance(logger, Logger):
        raise UserError(
            f"log_to: {spec}: expected what has log(line) and close(), got "
            f"{imported.described(logger)}"
        )
    return logger


class TensorBoard:
    """The numbers of each line as TensorBoard scalars.

    `train_loss` is the scalar `train/loss`, so that TensorBoard groups figures by their data; a
    number that is not finite is shown as one, and what is no number is left out. A run that goes on
    from a checkpoint opens a log of its own in the same folder, and tells TensorBoard by
    `resumed_at` to drop what was logged after that step.

    Args:
        folder: of the log; made where there is none.
        resumed_at: the step that a run goes on from; 0 for a new one.

    Raises:
        UserError: the package `tensorboardX` is missing.
    """

    def __init__(self, folder: str | os.PathLike[str], *, resumed_at: int = 0):
        try:
            from tensorboardX import FileWriter
            from tensorboardX.proto import event_pb2, summary_pb2
        except ModuleNotFoundError as error:
            if error.name != "tensorboardX":
                raise
            raise UserError(
                "a log for TensorBoard needs the package tensorboardX: "
                "pip install 'gradkit[tensorboard]'"
            ) from None
        self._summary: Any = getattr(summary_pb2, "Summary")  # noqa: B009
        self._writer = FileWriter(os.fspath(folder), flush_secs=FLUSH)
        if resumed_at:  # what an earlier log has from this step on is hidden
            events: Any = event_pb2  # made by protobuf, which no checker reads
            begin = events.SessionLog(status=events.SessionLog.START)
            self._writer.add_event(events.Event(session_log=begin), resumed_at + 1)

    def log(self, line: Mapping[str, Any]) -> None:
        """Takes one metrics line; it has its `step`."""
        scalars = self._summary()
        for name, value in line.items():
            number = _number(value)
            if name != "step" and number is not None:
                scalars.value.add(tag=_tag(name), simple_value=number)
        self._writer.add_summary(scalars, line["step"])

    def close(self) -> None:
        """Writes what is left and ends the log."""
        self._writer.close()


def _tag(name: str) -> str:
    part, _, rest = name.partition("_")
    return f"{part}/{rest}" if part in ("train", "validation", "test") and rest else name


def _number(value: Any) -> float | None:
    """A recorded value as a float; null is a number that was not finite."""
    if value is None:
        return math.nan
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if known else None
