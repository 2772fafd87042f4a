"""Every experiment has commands that the command line takes, and pages of what it found."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from gradkit.runner import listing, sweep
from gradkit.runner.config import load

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.parent.name for path in (ROOT / "experiments").glob("*/experiment.py"))


def found(name):
    return json.loads((ROOT / "experiments" / name / "result.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("run", ROOT / "experiments" / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["run"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_an_experiment_are_good_ones(name, run, tmp_path):
    commands = found(name)["commands"]
    out = run.RUNS / name
    assert commands[0] == next(iter(run.loaded(name).commands(out)))
    for command in commands:
        program, verb, file, *words = shlex.split(command)
        assert program == "gradkit"
        assert verb in ("sweep", "run", "spectrum", "compare", "report")
        values = [word for word in words if "=" in word]
        if verb == "sweep":
            assert sweep.plan(file, values, None)
        elif verb == "run":
            assert load(file, values)
        else:
            assert Path(file).is_relative_to(out)


def test_a_command_that_has_ended_is_not_run_again(run, tmp_path, monkeypatch):
    module = SimpleNamespace(
        __doc__="A claim.",
        REFERENCE="none",
        commands=lambda out: iter(("gradkit list", "gradkit list adam")),
        judge=lambda out: ("a figure", True, "words"),
        draw=lambda out: Figure(),
    )
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "RUNS", tmp_path / "runs")
    (tmp_path / "claim").mkdir()
    (tmp_path / "runs" / "claim").mkdir(parents=True)
    (tmp_path / "runs" / "claim" / "ended.json").write_text('{"gradkit list": 12.0}')
    ran = []

    def no_process(words):
        ran.append(words[3:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(run.subprocess, "run", no_process)
    assert run.performed("claim", module) == 0
    assert ran == [["list", "adam"]]
    result = json.loads((tmp_path / "claim" / "result.json").read_text("utf-8"))
    assert result["seconds"] == pytest.approx(12, abs=1)
    assert "gradkit list\ngradkit list adam" in (tmp_path / "claim" / "README.md").read_text(
        "utf-8"
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_an_experiment_is_what_its_result_says(name, run):
    folder = ROOT / "experiments" / name
    result = found(name)
    assert (folder / "README.md").read_text("utf-8") == run.page(name, run.loaded(name), result)
    assert (folder / "plot.svg").read_text("utf-8").startswith("<?xml")


def test_the_table_has_every_result(run):
    assert (ROOT / "experiments" / "RESULTS.md").read_text("utf-8") == run.results()


def test_the_list_of_experiments(run):
    text = listing.experiments()
    assert all(f"  {name:24}{run.claim_of(run.loaded(name))}" in text for name in NAMES)


def test_an_unknown_experiment(run, capsys):
    assert run.main(["xro"]) == 2
    assert f"no experiment 'xro'; there are {NAMES[0]}, " in capsys.readouterr().err
