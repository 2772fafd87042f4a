"""A run under way and the folder that keeps its lines, its checkpoints and its end."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gradkit.processes import by_first, first
from gradkit.runner import checkpoint, record
from gradkit.runner.loggers import Loggers
from gradkit.runner.progress import Progress
from gradkit.runner.setting import BEST, CHECKPOINTS, origin
from gradkit.runner.training import Training


@dataclasses.dataclass(frozen=True)
class Kept:
    """A training and its run folder, in which the first process writes for all.

    Attributes:
        training: the run.
        folder: its folder, which has its config already.
        loggers: what else is told of its metrics, by the first process.
    """

    training: Training
    folder: Path
    loggers: Loggers

    @classmethod
    @contextlib.contextmanager
    def open(cls, training: Training, folder: Path) -> Iterator[Kept]:
        """Opens the run's loggers for as long as it is trained."""
        names = training.setting.config.log_to if first() else ()
        loggers = Loggers(names, folder, training.step)
        try:
            yield cls(training, folder, loggers)
        finally:
            loggers.close()

    def keep(self, lines: Iterable[tuple[dict[str, Any], bool]], progress: Progress) -> None:
        """Writes the metrics lines of some steps, and the checkpoints that are due after them."""
        training = self.training
        for line, best in lines:
            if first():
                record.append_metrics(self.folder / record.METRICS, line)
            self.loggers.log(line)
            progress.update(line["step"], loss=line["loss"])
            if best:
                self.save(BEST)
                by_first(lambda: checkpoint.keep_only(self.folder / BEST, training.step))
        progress.update(training.step)
        wanted = training.due(training.setting.config.checkpoint_every) or not training.goes_on
        if wanted and training.status != "diverged":
            self.save()

    def save(self, place: str = CHECKPOINTS) -> None:
        """Writes a checkpoint of the state now."""
        training = self.training
        metrics = self.folder / record.METRICS
        meta = {
            "seconds": training.seconds,
            "origin": origin(training.setting.config),
            "metrics": metrics.stat().st_size if metrics.exists() else 0,
        }
        checkpoint.save(self.folder / place, training.step, training.state, **meta)

    def end(self) -> dict[str, Any]:
        """Writes the summary of a run that has ended, and returns it."""
        return by_first(self._end)

    def _end(self) -> dict[str, Any]:
        training = self.training
        lines, _ = record.read_metrics(self.folder / record.METRICS)
        final = lines[-1] if training.status == "finished" else {}  # evaluated at the last step
        parts = tuple(f"{part}_" for part in training.setting.task.data.parts)
        summary = {
            "status": training.status,
            "steps": training.step,
            "seconds": round(training.seconds, 3),
            "compile_seconds": round(training.programs.seconds, 3),
            **{name: value for name, value in final.items() if name.startswith(parts)},
            **training.watch.summary(),
        }
        record.write_json(self.folder / record.SUMMARY, summary)
        return summary
