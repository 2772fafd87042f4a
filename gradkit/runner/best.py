"""Which evaluation of a run was the best so far, and whether it is worth going on."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from gradkit.runner.schema import Best


@dataclasses.dataclass
class Watch:
    """What the evaluations so far say; shown every metrics line again, it says the same.

    Attributes:
        rule: the config's.
        value: the best figure, None before the first.
        step: its step.
        since: evaluations after it.
        test: the figures of the test set at that step.
    """

    rule: Best
    value: float | None = None
    step: int | None = None
    since: int = 0
    test: dict[str, Any] = dataclasses.field(default_factory=dict)

    def see(self, line: dict[str, Any]) -> bool:
        """Returns whether a metrics line is the best evaluation so far."""
        found = line.get(self.rule.metric) if self.rule.metric else None
        if self.rule.metric not in line:
            return False
        if found is None or not math.isfinite(found) or not self._better(found):
            self.since += 1
            return False
        self.value, self.step, self.since = found, line["step"], 0
        self.test = {name: value for name, value in line.items() if name.startswith("test_")}
        return True

    def _better(self, found: float) -> bool:
        if self.value is None:
            return True
        return found < self.value if self.rule.goal == "lowest" else found > self.value

    @property
    def out_of_patience(self) -> bool:
        """Whether there have been as many evaluations without a better one as the config allows."""
        return self.rule.patience is not None and self.since >= self.rule.patience

    def summary(self) -> dict[str, Any]:
        """Returns what `summary.json` says of it; nothing where nothing is watched."""
        if self.value is None:
            return {}
        best = {"metric": self.rule.metric, "value": self.value, "step": self.step}
        return {"best": best | self.test}
