"""What the races among the experiments are made of."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import races

from gradkit.runner import compare


def curve(loss, steps=(10.0, 20.0, 40.0)):
    steps = np.array(steps)
    return {"steps": steps, "seconds": steps / 10, "loss": np.array(loss)}


FOUND = {
    "adamw": [curve([4.0, 2.0, 1.0]), curve([4.0, 3.0, 2.0])],
    "fast": [curve([3.0, 1.0, 0.5]), curve([3.0, 2.0, 0.5])],
    "slow": [curve([4.0, 3.0, 2.0]), curve([4.0, 3.0, 2.0])],
}


def test_the_cost_to_where_adamw_ends():
    np.testing.assert_allclose(races.saved(FOUND, "fast", "steps", "loss"), [2, 2])
    np.testing.assert_allclose(races.saved(FOUND, "slow", "steps", "loss"), [0, 1])
    assert races.shares(FOUND, "steps", "loss") == "fast 0.50, no other by all seeds"


def test_figures_are_on_lines_between_evaluations_and_nowhere_else():
    each = FOUND["adamw"]
    np.testing.assert_allclose(races.at(each, "steps", 15, "loss"), [3, 3.5])
    assert np.isnan(races.at(each, "steps", [5, 50], "loss")).all()
    np.testing.assert_allclose(races.needed(each, "steps", "loss", 2.5), [17.5, 30])
    np.testing.assert_allclose(races.needed(each, "steps", "loss", [2.0, 3.0]), [20, 20])
    assert np.isinf(races.needed(each, "seconds", "loss", 0.1)).all()


def test_methods_are_ranked_with_their_standard_errors():
    ends = {name: np.array([run["loss"][-1] for run in each]) for name, each in FOUND.items()}
    assert races.ranked(ends, ".1f") == "fast 0.5 ± 0.0, adamw 1.5 ± 0.5, slow 2.0 ± 0.0"
    assert races.after(1234.5) == "after 1,234"
    assert races.after(np.inf) == "not there"


def test_a_race_tunes_each_method_and_goes_on_with_what_was_best(monkeypatch):
    chain = [{"name": "clip"}, {"name": "adam", "learning_rate": {"warmup_cosine": {"peak": 1}}}]
    methods = {
        "adam": races.Method(chain, "batch_size=5", "1.learning_rate.warmup_cosine.peak"),
        "lbfgs": races.Method({"name": "lbfgs"}, tuned=None),
    }
    race = races.Race(
        "configs/x.yaml", methods, "train_loss", (0.1, 0.2), seeds=3, words="epochs=2"
    )
    monkeypatch.setattr(compare, "best", lambda *given: SimpleNamespace(path=Path("run")))
    best = [chain[0], {"name": "adam", "learning_rate": {"warmup_cosine": {"peak": 0.2}}}]
    monkeypatch.setattr(races, "values_in", lambda path: {"optimizer": best})
    tuning, seeds, lbfgs = map(shlex.split, race.commands(Path("out")))
    assert tuning[:5] == ["gradkit", "sweep", "configs/x.yaml", "epochs=2", "batch_size=5"]
    assert tuning[6:] == [
        "optimizer.1.learning_rate.warmup_cosine.peak=0.1,0.2", "--out", "out/adam/tuning",
    ]  # fmt: skip
    assert seeds[6:] == [
        "optimizer.1.learning_rate.warmup_cosine.peak=0.2", "seed=1:3", "--out", "out/adam/seeds",
    ]  # fmt: skip
    assert lbfgs[4:] == ['optimizer={"name": "lbfgs"}', "seed=0:3", "--out", "out/lbfgs/seeds"]
    assert race.choices(Path("out")) == "adam 0.2"


@pytest.mark.parametrize("budget", [None, ("steps", 30)])
def test_a_plot_has_a_panel_a_pair_and_a_line_a_method(budget):
    panels = [("steps", "loss", "steps", "loss"), ("seconds", "loss", "seconds", "loss")]
    figure = races.drawn(FOUND, panels, ("fast",), ("slow",), budget)
    assert [axes.get_xlabel() for axes in figure.axes] == ["steps", "seconds"]
    for axes in figure.axes:
        assert [line.get_label() for line in axes.lines] == [*FOUND]
    assert [axes.get_xscale() for axes in figure.axes] == ["linear", "log"]
    line = figure.axes[0].lines[0]
    assert line.get_xdata()[-1] == (30 if budget else 40)
    np.testing.assert_allclose(line.get_ydata()[-1], 2 if budget else 1.5)
