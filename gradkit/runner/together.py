"""Runs that differ in their seeds alone, trained at once by one vectorized program."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gradkit.runner import signals, train
from gradkit.runner.config import Config
from gradkit.runner.kept import Kept
from gradkit.runner.programs import compiled, stacked
from gradkit.runner.progress import Progress
from gradkit.runner.training import Training


def begin(
    configs: Sequence[Config], folders: Sequence[Path], command: Sequence[str]
) -> list[dict[str, Any]]:
    """Trains in new run folders and returns the summaries.

    The numbers are those of one run after the other to rounding: products of matrices are batched.

    Args:
        configs: equal but for seed and name.
        folders: one for each.
        command: the command line.

    Raises:
        UserError: as from `train.begin`.
        KeyboardInterrupt: as from `train.resume`, with which each can be resumed by itself.
    """
    for folder in folders:
        train.refuse_existing(folder)
    workshop = train.Workshop()
    settings = [workshop.setting(config) for config in configs]
    states = [setting.initial() for setting in settings]
    keys = stacked([setting.key for setting in settings])
    programs = compiled(settings[0], states[0], keys)
    with contextlib.ExitStack() as stack:
        runs = []
        for setting, folder, state in zip(settings, folders, states, strict=True):
            stack.enter_context(train.claimed(folder))
            train.describe(folder, setting, state, command)
            training = Training(setting, programs.of(setting.batches), state)
            runs.append(stack.enter_context(Kept.open(training, folder)))
        _train(runs, keys, stacked(states))
        return [run.end() for run in runs]


def _train(runs: Sequence[Kept], keys: jax.Array, states: Any) -> None:
    every = [run.training for run in runs]
    steps, title = every[0].setting.steps, f"train {len(runs)} seeds"
    with Progress(title, steps, "step") as progress, signals.patience() as asked:
        while (alive := [t for t in every if t.goes_on]) and asked.by is None:
            lead = alive[0]
            count = min(t.next[0] for t in alive)
            feeds = [t.next[1] if t.goes_on else lead.next[1] for t in every]
            data, rows = (list(parts) for parts in zip(*feeds, strict=True))
            began = [t.seconds for t in every]
            states, history, taken, finite = lead.programs.advance(
                states,
                keys,
                data[0] if lead.programs.feed.resident else stacked(data),
                stacked(rows),
                np.int32(lead.step),
                np.int32(count),
            )
            for i, (run, start) in enumerate(zip(runs, began, strict=True)):
                if run.training.goes_on:
                    one = jax.tree.map(lambda x, i=i: x[i], (states, history, taken, finite))
                    run.keep(run.training.took(*one, began=start), progress)
                    run.training.plan(run.training.step)
        if asked.by is not None and alive:
            for run in runs:
                if run.training.goes_on:
                    run.save()
            raise KeyboardInterrupt(asked.by)
