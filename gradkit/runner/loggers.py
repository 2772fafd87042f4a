"""Where else a run's metrics can go: the record is the truth, a logger is told of each line too."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from gradkit.runner.errors import UserError

FLUSH = 10  # seconds at most between a line and the disk


@runtime_checkable
class Logger(Protocol):
    """Takes the metrics of a run, line by line, in the order of the steps."""

    def log(self, line: Mapping[str, Any]) -> None:
        """Takes one metrics line; it has its `step`."""

    def close(self) -> None:
        """Ends the log; nothing comes after it."""


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
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.proto.summary_pb2 import Summary
        except ModuleNotFoundError as error:
            if error.name != "tensorboardX":
                raise
            raise UserError(
                "a log for TensorBoard needs the package tensorboardX: "
                "pip install 'gradkit[tensorboard]'"
            ) from None
        self._summary = Summary
        self._writer = FileWriter(os.fspath(folder), flush_secs=FLUSH)
        if resumed_at:  # what an earlier log has from this step on is hidden
            begin = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(session_log=begin), resumed_at + 1)

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
