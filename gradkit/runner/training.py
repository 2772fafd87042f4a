"""The course of a run: compiled steps, as many at a time as take a moment, and their figures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gradkit.processes import of_all
from gradkit.runner import optimizers
from gradkit.runner.best import Watch
from gradkit.runner.programs import Programs, shortest
from gradkit.runner.setting import Setting, State

MOMENT = 0.2  # seconds of steps between two looks at signals and at the clock


class Training:
    """A run under way; how many steps are taken at a time changes nothing but the speed.

    Args:
        setting: what the config describes.
        programs: its compiled functions.
        state: where to go on, after `step` steps and so many `seconds`.
        lines: the metrics lines until then.
    """

    def __init__(
        self,
        setting: Setting,
        programs: Programs,
        state: State,
        *,
        step: int = 0,
        seconds: float = 0.0,
        lines: Sequence[dict[str, Any]] = (),
    ):
        self.setting, self.programs = setting, programs
        self._key = programs.feed.devices.on_each(setting.key)
        self.state, self.step = state, step
        self.watch = Watch(setting.config.best)
        for line in lines:
            self.watch.see(line)
        self._diverged, self._start = False, time.perf_counter() - seconds
        self._pace = 1
        self.plan(step)

    @property
    def seconds(self) -> float:
        """Seconds of training until now."""
        return time.perf_counter() - self._start

    @property
    def goes_on(self) -> bool:
        """Whether there is a step left to take."""
        left = self.step < self.setting.steps
        return left and not self._diverged and not self.watch.out_of_patience

    @property
    def status(self) -> str:
        """How it stands: "finished" and "diverged" are the ends."""
        return "diverged" if self._diverged else "unfinished" if self.goes_on else "finished"

    def agreed(self, signal: int | None) -> int | None:
        """Settles with the other processes how many steps to take at a time, and whether any.

        Args:
            signal: the number of one that asks this process to stop.

        Returns:
            The number of one that asks any of them.
        """
        paces, signals = of_all(self._pace, signal or 0).T
        self._pace = int(paces[0])
        return int(signals.max()) or None

    def due(self, every: int) -> bool:
        """Whether what is done every so many steps, and at the end, is to be done now."""
        return self.step % every == 0 or self.step == self.setting.steps

    def advance(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """Takes some steps; yields their metrics lines, each with whether it is the best so far."""
        first, began = self.step, self.seconds
        count, feed = self.next
        after = self.programs.advance(
            self.state, self._key, *feed, np.int32(first), np.int32(count)
        )
        self.plan(first + count)  # while the device works
        yield from self.took(*after, began=began)

    def took(
        self, state: State, history: dict[str, Any], taken: Any, finite: Any, *, began: float
    ) -> Iterator[tuple[dict[str, Any], bool]]:
        """Yields the lines of steps that have been taken since `began` seconds, as `advance`."""
        config, first = self.setting.config, self.step
        self.state, self.step, self._diverged = state, first + int(taken), not finite
        took, count = self.seconds - began, self.step - first
        self._pace = max(1, min(self.programs.feed.most, 8 * count, int(count * MOMENT / took)))
        steps = np.arange(first + 1, self.step + 1)
        cadence = config.log_every, config.evaluate_every, config.checkpoint_every
        told = (steps == self.setting.steps) | (self._diverged & (steps == self.step))
        for every in cadence:
            told |= steps % every == 0
        places = np.flatnonzero(told)
        columns = {name: shortest(np.asarray(values)[places]) for name, values in history.items()}
        for step, *figures in zip(steps[places].tolist(), *columns.values(), strict=True):
            seconds = began + took * (step - first) / count
            line = self._line(step, dict(zip(columns, figures, strict=True)), seconds)
            if step == self.step and self.due(config.evaluate_every) and not self._diverged:
                line |= self.programs.evaluate(self.state)
            yield line, self.watch.see(line)

    def plan(self, step: int) -> None:
        """Sets `next`: how many steps come after `step`, up to what is due, and their examples."""
        config, steps = self.setting.config, self.setting.steps
        ends = [every - step % every for every in (config.evaluate_every, config.checkpoint_every)]
        count = min(self._pace, steps - step, *ends)
        self.next = count, self.programs.feed.ahead(step, count) if count > 0 else ()

    def _rate(self, step: int) -> float | None:
        rate = self.setting.rate(step)
        return None if rate is None else shortest(np.atleast_1d(rate))[0]

    def _line(self, step: int, figures: dict[str, Any], seconds: float) -> dict[str, Any]:
        line = {
            "step": step,
            "epoch": round(step / self.setting.batches.per_epoch, 4),
            "time": round(seconds, 4),
            "learning_rate": self._rate(step - 1),
        }
        if "sharpness" in figures:
            line |= optimizers.sharpness_limits(self.setting.config.optimizer)
        return line | figures | {"gradients": step + figures["gradients"]}
